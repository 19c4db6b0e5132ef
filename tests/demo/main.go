// SPDX-License-Identifier: AGPL-3.0-only

// Command demo shows the job of lxd-recover on a real LXD cluster: it forms three members, writes rows, kills them all, gives
// them new addresses, and recovers them with the commands that an administrator would type; then the same with one command for all
// members, which is taken back and done again. Everything runs in directories
// and network namespaces of its own and is gone afterwards; an LXD that is installed on the machine is not touched.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	began := time.Now()
	err := demo(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}

	say("Done in %s. The members, their directories and their networks are gone again.", time.Since(began).Round(time.Second))
}

// show is one demonstration: a cluster, and the directory that the person at the keyboard is in.
type show struct {
	ctx  context.Context
	c    *cluster.Cluster
	tool string // directory of lxd-recover
	home string
}

func demo(ctx context.Context) error {
	tool, err := filepath.Abs("bin")
	if err != nil {
		return err
	}

	lxd, err := cluster.Debian()
	if err != nil {
		return err
	}

	home, err := os.MkdirTemp("", "lxd-recover-demo-")
	if err != nil {
		return err
	}

	defer os.RemoveAll(home)

	err = demoByHand(ctx, lxd, tool, home)
	if err != nil {
		return err
	}

	return demoTogether(ctx, tool)
}

// demoByHand recovers the members with the commands that are for one member each.
func demoByHand(ctx context.Context, lxd cluster.LXD, tool string, home string) (err error) {
	say("A real LXD cluster of three members, each daemon with its own directory and network namespace.")
	c, err := cluster.New(ctx, cluster.Options{LXD: lxd})
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, c.Close()) }()
	s := &show{ctx: ctx, c: c, tool: tool, home: home}
	return s.play()
}

func (s *show) play() error {
	one := s.c.Member(1)
	for _, step := range []func() error{
		func() error { return s.list(one) },
		func() error {
			return s.write(one, "project create shop", "profile create web", "profile create database")
		},
		s.lose,
		s.edit,
		s.export,
		s.importAll,
		s.start,
		s.check,
	} {
		err := step()
		if err != nil {
			return err
		}
	}

	return nil
}

// list shows the members.
func (s *show) list(m *cluster.Member) error { return s.enter(m, "lxc cluster list") }

// write makes rows through lxc.
func (s *show) write(m *cluster.Member, commands ...string) error {
	say("Some rows in the global database: a project and profiles.")
	for _, command := range commands {
		err := s.enter(m, "lxc "+command)
		if err != nil {
			return err
		}
	}

	return nil
}

// lose ends the daemons one after the other, so that their logs end at different places, and moves the machines to
// another network.
func (s *show) lose() error {
	one, two, three := s.c.Member(1), s.c.Member(2), s.c.Member(3)
	say("Disaster. node3 dies; node1 and node2 still accept one more row; then they die, too (SIGKILL).")
	note("kill -KILL: node3")
	three.Kill()
	err := s.enter(one, "lxc profile create last-row-before-the-end")
	if err != nil {
		return err
	}

	note("kill -KILL: node1, node2")
	s.c.KillAll(one, two)
	say("And the machines come back in another network: no member has the address that the cluster knows.")
	for _, m := range s.c.Members() {
		err := m.SetAddresses(s.ctx, moved(m)+"/16")
		if err != nil {
			return err
		}

		note("%s: %s is now %s", m.Name, m.IP(), moved(m))
	}

	return nil
}

func moved(m *cluster.Member) string { return strings.Replace(m.IP(), "10.77.0.", "10.77.1.", 1) }

// edit runs LXD's own command with the new addresses.
func (s *show) edit() error {
	one := s.c.Member(1)
	say("Recovery. node1 has the newest data; its administrator fixes the member list there.")
	prompt(one, "lxd cluster edit")
	var shown []byte
	err := one.Edit(s.ctx, func(yaml []byte) []byte {
		shown = []byte(strings.ReplaceAll(string(yaml), "10.77.0.", "10.77.1."))
		return shown
	})
	if err != nil {
		return err
	}

	for line := range strings.Lines(string(shown)) {
		if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
			fmt.Print("    " + line)
		}
	}

	return nil
}

func (s *show) export() error {
	say("First command: the edited member's global database becomes a tarball.")
	return s.enter(s.c.Member(1), "lxd-recover cluster export-db")
}

func (s *show) importAll() error {
	say("Second command, on every survivor. A dry run first, to see what it would do on node3:")
	err := s.enter(s.c.Member(3), "lxd-recover global-db-import --dry-run lxd_recovery_db.tar.gz")
	if err != nil {
		return err
	}

	for _, m := range s.c.Members() {
		err := s.enter(m, "lxd-recover global-db-import --yes lxd_recovery_db.tar.gz")
		if err != nil {
			return err
		}
	}

	return nil
}

func (s *show) start() error {
	say("LXD is started on all members.")
	return s.c.StartAll(s.ctx)
}

// check shows that the rows are there on every member, and fails if they are not.
func (s *show) check() error {
	err := s.c.WaitHeartbeat(s.ctx)
	if err != nil {
		return err
	}

	err = s.c.WaitOnline(s.ctx, 3)
	if err != nil {
		return err
	}

	three := s.c.Member(3)
	err = s.list(three)
	if err != nil {
		return err
	}

	say("Every row is there, the last one included, also on node3, which had never seen it:")
	err = s.enter(three, "lxc profile list -f csv | cut -d, -f1")
	if err != nil {
		return err
	}

	for _, m := range s.c.Members() {
		names, err := m.Profiles(s.ctx)
		if err != nil {
			return err
		}

		for _, want := range []string{"web", "database", "last-row-before-the-end"} {
			if !strings.Contains(strings.Join(names, " "), want) {
				return fmt.Errorf("%s lost the profile %s: it has %v", m.Name, want, names)
			}
		}
	}

	say("And the cluster takes new ones:")
	return s.enter(three, "lxc profile create after-the-recovery")
}

// enter runs a command line on a member as if it were typed there, and shows what it prints.
func (s *show) enter(m *cluster.Member, line string) error {
	prompt(m, line)
	cmd := m.Command(s.ctx, "sh", "-c", line)
	cmd.Dir = s.home
	for i, v := range cmd.Env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			cmd.Env[i] = "PATH=" + s.tool + ":" + path
		}
	}

	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if err != nil {
		return fmt.Errorf("%s: %s: %w", m.Name, line, err)
	}

	return nil
}

// Colours, on a terminal that may have them.
var bold, dim, plain = colours()

func colours() (bold, dim, plain string) {
	if !term.IsTerminal(int(os.Stdout.Fd())) || os.Getenv("NO_COLOR") != "" {
		return "", "", ""
	}

	return "\x1b[1m", "\x1b[2m", "\x1b[0m"
}

func say(format string, args ...any) {
	fmt.Printf("\n%s==> %s%s\n", bold, fmt.Sprintf(format, args...), plain)
}

func note(format string, args ...any) {
	fmt.Printf("%s    %s%s\n", dim, fmt.Sprintf(format, args...), plain)
}

func prompt(m *cluster.Member, line string) { fmt.Printf("\n%s%s#%s %s\n", bold, m.Name, plain, line) }
