// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// docsServers are the machines that the pages are about, server1 to server4 with the addresses 10.78.0.1 to 10.78.0.4. The
// first three are voters: losing two of these loses the quorum, with two members left.
const docsServers = 4

// docsLab is a place to run the pages in: a cluster in guests, saved, so that each scenario begins with the same one.
type docsLab struct {
	variant string // package or snap
	lxdDir  string
	guests  map[string]*guest.Guest

	real map[string]string // what a time or an index on the page stands for here
}

// editor is $EDITOR for the pages' commands. What it is to make of the file is put into /root/wanted.yaml before.
const editor = "#!/bin/sh\nexec cp /root/wanted.yaml \"$1\"\n"

// newDocsLab boots the machines, without our tool on them, and forms the cluster.
func newDocsLab(t *testing.T, variant string) *docsLab {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	l := &docsLab{variant: variant, lxdDir: guestLXD, guests: map[string]*guest.Guest{}}
	snap := ""
	if variant == "snap" {
		l.lxdDir = guest.LXDSnapDir
		snap = packSnap(t, "docs")
	}

	network := guest.NetworkForTest(t)
	var nodes []*guest.Guest
	for i := range docsServers {
		name, ip := fmt.Sprintf("server%d", i+1), fmt.Sprintf("10.78.0.%d", i+1)
		g := guest.ForTest(t, guest.Options{Name: name, Network: network, Address: ip + "/16", WithoutLXD: variant == "snap"})
		l.guests[name] = g
		nodes = append(nodes, g)
		must(t, g.Put(ctx, tool, "/root/lxd-recover", 0o755))
		// LXD without a quorum does not always heed SIGTERM; Debian's unit gives it 30 s, which are of no use here.
		putText(t, g, "/etc/systemd/system/lxd.service.d/stop.conf", "[Service]\nTimeoutStopSec=8\n")
		inGuest(t, g, "systemctl", "daemon-reload")
		if variant == "snap" {
			must(t, g.InstallLXDSnap(ctx))
			must(t, g.Put(ctx, snap, "/root/lxd-recover.snap", 0o644))
			continue
		}
	}

	must(t, guest.FormCluster(ctx, nodes...))
	waitThreeVoters(t, nodes[0])
	lxcInGuest(t, nodes[0], "profile", "create", "precious")
	waitDatabase(t, nodes[3])
	letIn(t, nodes)
	for _, g := range nodes {
		putText(t, g, "/usr/local/bin/test-editor", editor)
		inGuest(t, g, "chmod", "755", "/usr/local/bin/test-editor")
	}

	l.freezeAlike(t, nodes...)
	l.each(t, func(g *guest.Guest) {
		inGuest(t, g, "cp", "--archive", l.lxdDir+"/database", "/root/saved") // before it is killed: systemd wakes first what it stops
		l.kill(t, g)
	})
	return l
}

// reset gives all members the database back that they had when the cluster had just been formed. LXD is down everywhere.
func (l *docsLab) reset(t *testing.T) {
	t.Helper()
	l.real = map[string]string{}
	l.each(t, func(g *guest.Guest) {
		l.kill(t, g)
		inGuest(t, g, "sh", "-c", "rm -rf "+l.lxdDir+"/database* /root/*.tar.gz /root/*.json /root/*.yaml /var/log/lxd-recover; rm -f /usr/local/sbin/lxd; "+
			"snap remove lxd-recover 2> /dev/null; rm -f /usr/local/bin/lxd-recover; cp --archive /root/saved "+l.lxdDir+"/database")
	})
	l.network(t, "10.78")
}

// network puts the machines into another network, 10.78 or 10.79, and back onto theirs if they were off it.
func (l *docsLab) network(t *testing.T, network string) {
	t.Helper()
	hosts := "127.0.0.1 localhost\n"
	for i := range len(l.guests) {
		hosts += fmt.Sprintf("%s.0.%d server%d\n", network, i+1, i+1)
	}

	for i := range len(l.guests) {
		g := l.guests[fmt.Sprintf("server%d", i+1)]
		putText(t, g, "/etc/hosts", hosts)
		inGuest(t, g, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
		inGuest(t, g, "ip", "addr", "add", fmt.Sprintf("%s.0.%d/16", network, i+1), "dev", "eth0")
	}

	for name := range l.guests {
		inGuest(t, l.guests[name], "ip", "link", "set", "eth0", "up")
	}

	for name := range l.guests {
		l.found(t, name)
	}
}

// found puts a machine back onto the network, and returns when the first one reaches it.
func (l *docsLab) found(t *testing.T, server string) {
	t.Helper()
	inGuest(t, l.guests[server], "ip", "link", "set", "eth0", "up")
	inGuest(t, l.guests["server1"], "bash", "-c", "until : < /dev/tcp/"+server+"/22; do sleep 0.1; done 2> /dev/null")
}

// each does something on all machines at once.
func (l *docsLab) each(t *testing.T, do func(g *guest.Guest)) {
	t.Helper()
	var wait sync.WaitGroup
	for _, g := range l.guests {
		wait.Go(func() { do(g) })
	}

	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// kill ends LXD as a power cut does, and keeps it down. A service that is being stopped is not started again when it dies.
func (l *docsLab) kill(t *testing.T, g *guest.Guest) {
	t.Helper()
	unit, sockets := l.unit(), "lxd.socket"
	switch l.variant {
	case "snap":
		sockets = "snap.lxd.daemon.unix.socket snap.lxd.activate.service"
	case "incus":
		sockets = "incus.socket"
	}

	inGuest(t, g, "sh", "-c", fmt.Sprintf(`
		systemctl stop --no-block --job-mode=ignore-dependencies %[1]s %[2]s
		systemctl kill --signal=KILL %[2]s
		systemctl stop --job-mode=ignore-dependencies %[1]s
		for i in $(seq 200); do
			case $(systemctl show --property=ActiveState --value %[2]s) in inactive|failed) break;; esac
			systemctl kill --signal=KILL %[2]s
			sleep 0.1
		done
		systemctl reset-failed`, sockets, unit))
	wantState(t, g, "inactive", unit)
}

// start starts LXD as a boot of the machine does, and does not wait for it.
func (l *docsLab) start(t *testing.T, servers ...string) {
	t.Helper()
	for _, server := range servers {
		socket := strings.TrimSuffix(l.unit(), ".service") + ".socket"
		if l.variant == "snap" {
			socket = "snap.lxd.daemon.unix.socket"
		}

		inGuest(t, l.guests[server], "systemctl", "start", "--no-block", socket, l.unit())
	}
}

// startStaleAgain starts the LXDs again that take themselves for voters and are none any more, and no others; said and err are what
// `lxc cluster list`, or another command, has just printed on server. What their goroutines were waiting for goes to the test's log.
func (l *docsLab) startStaleAgain(t *testing.T, server, said string, err error) {
	t.Helper()
	g := l.guests[server]
	if l.variant == "incus" || !l.runs(t, server) || !staleRole(t, g, said, err) {
		return
	}

	t.Logf("LXD on %s takes itself for a voter, and is none any more: started again; it was waiting in:\n%s", server, l.waiting(t, server))
	l.kill(t, g)
	l.start(t, server)
}

// waiting ends LXD on a machine, and tells what its goroutines were waiting for: Go's own handler of SIGABRT shows them.
func (l *docsLab) waiting(t *testing.T, server string) string {
	t.Helper()
	dump, err := l.guests[server].Exec(within(t, time.Minute), "sh", "-c", fmt.Sprintf(`systemctl kill --signal=ABRT --kill-whom=main %[1]s && sleep 1 &&
		journalctl --sync && journalctl --output=cat --since=-20s --unit=%[1]s`, l.unit()))
	if err != nil {
		return err.Error()
	}

	return progress.Goroutines(dump)
}

// runs tells whether LXD runs on a machine.
func (l *docsLab) runs(t *testing.T, server string) bool {
	t.Helper()
	_, err := l.guests[server].Exec(within(t, time.Minute), "systemctl", "is-active", "--quiet", l.unit())
	return err == nil
}

// variable says where its directory is.
func (l *docsLab) variable() string {
	if l.variant == "incus" {
		return "INCUS_DIR"
	}

	return "LXD_DIR"
}

// client is the program that asks it.
func (l *docsLab) client() string {
	if l.variant == "incus" {
		return "incus"
	}

	return "lxc"
}

// unit is LXD's.
func (l *docsLab) unit() string {
	switch l.variant {
	case "snap":
		return "snap.lxd.daemon.service"
	case "incus":
		return "incus.service"
	}

	return "lxd.service"
}

// lost ends LXD on machines, in a moment in which the others' logs are alike, and takes them off the network.
func (l *docsLab) lost(t *testing.T, servers ...string) {
	t.Helper()
	var others []*guest.Guest
	for _, g := range l.guests {
		if !slices.Contains(servers, g.Name) {
			others = append(others, g)
		}
	}

	l.freezeAlike(t, others...)
	l.each(t, func(g *guest.Guest) {
		if slices.Contains(servers, g.Name) {
			l.kill(t, g)
			inGuest(t, g, "ip", "link", "set", "eth0", "down")
		}
	})
	l.signal(t, "CONT")
}

// signal sends a signal to LXD on all machines where it runs.
func (l *docsLab) signal(t *testing.T, signal string) {
	t.Helper()
	unit := l.unit()
	l.each(t, func(g *guest.Guest) {
		inGuest(t, g, "sh", "-c", "systemctl is-active --quiet "+unit+" || exit 0; systemctl kill --signal="+signal+" "+unit)
	})
}

// freezeAlike stops LXD in its tracks on all machines, in a moment in which the logs of these end with the same entry.
func (l *docsLab) freezeAlike(t *testing.T, guests ...*guest.Guest) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	for {
		l.signal(t, "STOP")
		ends := map[string]bool{}
		for _, g := range guests {
			stdout, _ := g.Exec(ctx, "env", l.variable()+"="+l.lxdDir, "/root/lxd-recover", "global-db-inspect", "--format", "json")
			var report recovery.InspectReport
			if json.Unmarshal([]byte(stdout), &report) != nil || !report.Healthy { // in the middle of a write
				ends[g.Name] = true
			}

			ends[fmt.Sprint(report.Raft.LastIndex, report.Raft.LastTerm)] = true
		}

		if len(ends) == 1 {
			return
		}

		l.signal(t, "CONT")
		select {
		case <-ctx.Done():
			t.Fatalf("the logs never ended alike: %v", ends)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// run runs all commands of some sections, in their order, that belong to this lab and have no other tags than these.
func (l *docsLab) run(t *testing.T, p *page, sections []string, tags ...string) {
	t.Helper()
	tags = append(tags, l.variant, eventually)
	for _, section := range sections {
		begin := time.Now()
		for _, b := range p.section(t, section, tags...) {
			l.runBlock(t, b)
		}

		t.Logf("%s: %s: %.1f s", p.name, section, time.Since(begin).Seconds())
	}
}

func (l *docsLab) runBlock(t *testing.T, b *block) {
	t.Helper()
	b.runs.Add(1)
	switch b.language {
	case "yaml":
		for _, g := range l.guests {
			putText(t, g, "/root/wanted.yaml", strings.Join(b.lines, "\n")+"\n")
		}
	case "console":
		for _, c := range b.commands(t) {
			l.runCommand(t, c)
			if t.Failed() {
				t.FailNow() // what follows would only fail, too
			}
		}
	}
}

// callTimeout is how long one call to an LXD may take that is called again until it says what it should.
const callTimeout = 25 * time.Second

// commandTimeout is how long any other command may take.
const commandTimeout = 2 * time.Minute

// eventually is the tag of a block that shows what is to be seen after a while, and not at once.
const eventually = "eventually"

// runCommand runs one command as it stands on the page, and checks what is then to be seen.
func (l *docsLab) runCommand(t *testing.T, c command) {
	t.Helper()
	g := l.guests[c.machine]
	if g == nil {
		t.Fatalf("%s: there is no machine %s", c, c.machine)
	}

	text, missing := realText(c.text, l.real)
	for _, shown := range missing {
		t.Errorf("%s: what is %s? It was in no output before", c, shown)
	}

	ctx := within(t, progress.Far)
	again := c.block.has(eventually) || strings.HasPrefix(c.text, "lxc ") || strings.HasPrefix(c.text, "incus cluster list") // see lxcInGuest
	for {
		limit := commandTimeout
		if again {
			limit = callTimeout
		}

		// timeout ends what the shell has started, too.
		cmd := g.Command(ctx, "timeout", "--signal=KILL", strconv.Itoa(int(progress.Stretched(limit).Seconds())),
			"bash", "-c", "export EDITOR=/usr/local/bin/test-editor; "+text)
		screen, status := (&typist{answers: c.answers()}).run(ctx, t, cmd)
		right := c.bind(screen, l.real) && (status == 0) == !c.fails()
		if !right && again {
			t.Logf("%s: exit status %d: %s", c, status, screen)
			l.startStaleAgain(t, c.machine, screen, nil)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
				continue
			}
		}

		t.Logf("%s %s: root@%s:~# %s\n%s", time.Now().Format("05.0"), c, c.machine, text, screen)
		if !right {
			t.Errorf("%s: exit status %d, and the page shows:\n%s", c, status, strings.Join(c.output, "\n"))
		}

		return
	}
}

// wantPrecious checks that nothing was lost on a member, and that its cluster works: it can write.
func (l *docsLab) wantPrecious(t *testing.T, servers ...string) {
	t.Helper()
	for _, server := range servers {
		if list := l.lxc(t, server, "profile", "list", "--format", "csv"); !strings.Contains(list, "precious") {
			t.Errorf("%s has the profiles %s", server, list)
		}

		l.lxc(t, server, "profile", "create", fmt.Sprintf("after-%d", time.Now().UnixNano()))
	}
}

// lxc is lxcInGuest on a machine of the lab, where LXD may have to be started again: see startStaleAgain.
func (l *docsLab) lxc(t *testing.T, server string, args ...string) string {
	t.Helper()
	return askLXC(t, l.guests[server], func(said string, err error) { l.startStaleAgain(t, server, said, err) }, args...)
}

// waitReplicated waits until a member that is no voter has got the database from the leader.
func waitDatabase(t *testing.T, g *guest.Guest) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		var report struct {
			Data *struct{ Rows int64 } `json:"database"`
		}
		stdout, _ := g.Exec(ctx, "/root/lxd-recover", "global-db-inspect", "--format", "json") // in the middle of a write it may look damaged
		if json.Unmarshal([]byte(stdout), &report) == nil && report.Data != nil && report.Data.Rows > 0 {
			return
		}

		select {
		case <-ctx.Done():
			t.Fatalf("%s never got the database", g.Name)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// letIn lets root of any of the machines in on the others by ssh.
func letIn(t *testing.T, nodes []*guest.Guest) {
	t.Helper()
	moved := func(g *guest.Guest) string { return strings.Replace(g.IP(), "10.78.", "10.79.", 1) }
	must(t, guest.LetIn(within(t, 2*time.Minute), moved, nodes...))
	for _, g := range nodes {
		// The manager of root's sessions stays when the last one ends: it would take with it what snapd runs in its scopes. This
		// is what `loginctl enable-linger` does, which fails in a guest.
		inGuest(t, g, "mkdir", "-p", "/var/lib/systemd/linger")
		inGuest(t, g, "touch", "/var/lib/systemd/linger/root")
	}
}
