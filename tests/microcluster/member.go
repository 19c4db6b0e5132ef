// SPDX-License-Identifier: AGPL-3.0-only

package microcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/netns"
	"github.com/lxd-recover/lxd-recover/tests/progress"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// Member is one daemon's place in a cluster, whether the daemon runs or not.
type Member struct {
	Name    string
	Address string // HOST:PORT
	Dir     string // its state directory

	cluster *Cluster
	ns      *netns.Namespace
	cmd     *exec.Cmd     // the last daemon, nil before the first
	gone    chan struct{} // closed after its end
}

// Spawn starts the daemon and does not wait for it.
func (m *Member) Spawn() error {
	if m.Running() {
		return nil
	}

	output, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}

	defer output.Close()

	cmd := m.command("microd", "--heartbeat", heartbeat.String(), "--verbose")
	cmd.Stdout, cmd.Stderr = output, output
	err = tied.Start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", m.Name, err)
	}

	gone := make(chan struct{})
	m.cmd, m.gone = cmd, gone
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	return nil
}

// Running tells whether the daemon's process exists.
func (m *Member) Running() bool {
	if m.cmd == nil {
		return false
	}

	select {
	case <-m.gone:
		return false
	default:
		return true
	}
}

// Kill ends the daemon by SIGKILL and waits until it is gone. The control socket stays, as after any hard end.
func (m *Member) Kill() {
	m.signal()
	if m.cmd != nil {
		<-m.gone
	}
}

func (m *Member) signal() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
	}
}

// losesLeader is how a daemon ends if the leader is lost while it starts, as on a machine so busy that the leader's heartbeats come late. A service manager
// starts it again then: see docs/architecture.md, "LXD's own failing starts", for the same code in LXD.
var losesLeader = regexp.MustCompile(`Failed to re-establish cluster connection: .*(interrupted|leader exec failed|no available dqlite leader server found|` +
	`context deadline exceeded|check if schema table is there)`)

// restarts is how often waitReady starts such a daemon again.
const restarts = 5

// waitReady waits until the daemon answers: one that is member of a cluster does when it has a leader.
func (m *Member) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	left := restarts
	watch := progress.Watch{What: m.Name + " to be ready", Every: 25 * time.Millisecond, Mark: m.cluster.mark, Seen: m.logTail}
	return watch.Until(ctx, func(ctx context.Context) (bool, error) {
		if !m.Running() {
			last := m.logTail()
			last = last[strings.LastIndexByte(last, '\n')+1:]
			if left == 0 || !losesLeader.MatchString(last) {
				cancel(errors.New("its daemon has ended"))
				return false, nil
			}

			left--
			m.cluster.t.Logf("%s started again: %s", m.Name, last)
			err := m.Spawn()
			if err != nil {
				cancel(err)
			}

			return false, err
		}

		_, err := m.Ctl(ctx, "waitready", "--timeout", "5")
		return err == nil, err
	})
}

// Ctl runs microctl for the member and returns what it prints.
func (m *Member) Ctl(ctx context.Context, args ...string) (string, error) {
	return m.ctl(ctx, "", args...)
}

func (m *Member) ctl(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := progress.Within(ctx, stepTime)
	defer cancel()
	cmd := m.command("microctl", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := tied.Start(cmd)
	if err != nil {
		return "", err
	}

	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	stop()
	if err != nil {
		return "", fmt.Errorf("microctl %s on %s: %w: %s", strings.Join(args, " "), m.Name, errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}

	return stdout.String(), nil
}

// Insert writes a row through the leader, again and again while the members still elect one.
func (m *Member) Insert(ctx context.Context, key string) error {
	return m.cluster.Wait(ctx, "a row to be written", func(ctx context.Context) (bool, error) {
		_, err := m.Ctl(ctx, "sql", fmt.Sprintf("INSERT OR IGNORE INTO extended_table (key, value) VALUES ('%s', '1')", key))
		return err == nil, err
	})
}

// Fill makes so many transactions, of which nothing is asked later: raft takes snapshots then.
func (m *Member) Fill(ctx context.Context, transactions int) error {
	const workers = 8
	errs := make([]error, workers)
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < transactions && errs[worker] == nil; i += workers {
				_, errs[worker] = m.Ctl(ctx, "sql", fmt.Sprintf("INSERT INTO some_other_table (field_one, field_two) VALUES ('%d', '%d')", i, i))
			}
		})
	}

	group.Wait()
	return errors.Join(errs...)
}

// Keys are the rows that Insert has written, as the leader has them.
func (m *Member) Keys(ctx context.Context) ([]string, error) {
	var keys []string
	err := m.cluster.Wait(ctx, "rows to be read", func(ctx context.Context) (bool, error) {
		out, err := m.Ctl(ctx, "sql", "SELECT key FROM extended_table ORDER BY key")
		keys = nil
		for line := range strings.Lines(out) {
			if cell, ok := strings.CutPrefix(strings.TrimSpace(line), "|"); ok {
				keys = append(keys, strings.TrimSpace(strings.TrimSuffix(cell, "|")))
			}
		}

		return err == nil, err
	})

	return slices.DeleteFunc(keys, func(key string) bool { return key == "key" }), err
}

// Edit runs microcluster's own recovery on the member, whose daemon is down. Each line of the list of members, address, name and role, goes through change.
func (m *Member) Edit(ctx context.Context, change func(line string) string) error {
	err := os.Remove(filepath.Join(m.Dir, "control.socket")) // which a daemon that was killed leaves, and which stands for one that runs
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}

	list, err := os.ReadFile(filepath.Join(m.Dir, "database", "cluster.yaml"))
	if err != nil {
		return err
	}

	var edited strings.Builder
	id := ""
	for line := range strings.Lines(string(list)) { // ID, Address, Role of each member
		key, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "- ")), ": ")
		switch key {
		case "ID":
			id = value
		case "Address":
			fmt.Fprintf(&edited, "- {id: %s, %s}\n", id, change(fmt.Sprintf("name: %s, address: %q, role: voter", m.cluster.nameOf(value), value)))
		}
	}

	_, err = m.ctl(ctx, edited.String(), "cluster", "edit")
	return err
}

// SameMembers is the change of an Edit that leaves the list as it is.
func SameMembers(line string) string { return line }

func (c *Cluster) nameOf(address string) string {
	for _, m := range c.Members {
		if m.Address == address {
			return m.Name
		}
	}

	return ""
}

// command is one of the programs, to be run in the member's network.
func (m *Member) command(program string, args ...string) *exec.Cmd {
	args = append([]string{"--net=" + m.ns.Path(), filepath.Join(m.cluster.bin, program), "--state-dir", m.Dir}, args...)
	cmd := exec.Command("nsenter", args...)
	cmd.Dir = m.cluster.dir
	return cmd
}

// logFile is where the output of all the daemon's runs is.
func (m *Member) logFile() string { return filepath.Join(m.cluster.dir, m.Name+".log") }

// lastLines are so many lines of a daemon's log.
const lastLines = 30

func (m *Member) logTail() string {
	log, err := os.ReadFile(m.logFile())
	if err != nil {
		return err.Error()
	}

	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-lastLines):], "\n")
}

// mark is where the member stands: its log, its database's files, and the processor time of its daemon.
func (m *Member) mark() string {
	mark := progress.Files(m.logFile(), filepath.Join(m.Dir, "database"))
	if m.Running() {
		mark += progress.CPU(m.cmd.Process.Pid)
	}

	return mark
}
