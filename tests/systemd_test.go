// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// guestLXD is LXD's directory in a guest, whose LXD is Debian's package.
const guestLXD = "/var/lib/lxd"

// guestTarball is where the tarball is in a guest.
const guestTarball = "/root/lxd_recovery_db.tar.gz"

// otherTarball is where one of another cluster is, whose member has the same name and address.
const otherTarball = "/root/other.tar.gz"

// TestSystemd is about an LXD that systemd runs, and starts whenever somebody calls: each part finds it running, in a cluster
// of one, and has a tarball to import that was exported from it before it last started.
func TestSystemd(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "node1", Address: "10.78.0.1/16"})
	must(t, g.Put(t.Context(), tool, "/usr/local/bin/lxd-recover", 0o755))
	must(t, guest.FormCluster(t.Context(), g))
	lxcInGuest(t, g, "profile", "create", "exported")
	exportInGuest(t, g)
	runParts(t, g, startLXD, []guestPart{
		{"import beside a running LXD", testImportBeside},
		{"looking does not wake it", testLooking},
		{"export beside a running LXD", testExportBeside},
		{"only the socket is up", testOnlySocket},
		{"only the socket is up, and nothing is to be started", testOnlySocketNoStart},
		{"clients that call all the time", testCallingClients},
		{"refused imports", testRefusedImports},
		{"rollback", testRollback},
		{"backups at set times", testScheduled},
		{"LXD that fails to start", testFailingUnit},
	})
}

// testImportBeside imports while LXD runs: it is stopped, started once, and ready.
func testImportBeside(t *testing.T, g *guest.Guest) {
	lxcInGuest(t, g, "profile", "create", "written-since") // the tarball lacks it
	pid := property(t, g, "lxd.service", "MainPID")
	containers := property(t, g, "lxd-containers.service", "InactiveExitTimestampMonotonic")
	begin := len(lxdStarts(t, g))

	r := importInGuest(t, g, "--format", "json")
	report := decode[recovery.ImportReport](t, r)
	if !report.Done || !report.Started || !report.Ready || len(report.Warnings) != 0 {
		t.Errorf("report %+v", report)
	}

	wantOrder(t, r.stderr, "Stopping LXD (systemd unit lxd.service)", "The new database is in place", "Starting LXD (systemd unit lxd.service)")
	wantState(t, g, "active", "lxd.service", "lxd.socket", "lxd-containers.service")
	if now := property(t, g, "lxd.service", "MainPID"); now == pid || now == "0" {
		t.Errorf("LXD's pid is %s, was %s", now, pid)
	}

	// Stopping this one shuts down all instances.
	if now := property(t, g, "lxd-containers.service", "InactiveExitTimestampMonotonic"); now != containers {
		t.Error("lxd-containers.service was stopped and started")
	}

	if n := len(lxdStarts(t, g)) - begin; n != 1 {
		t.Errorf("LXD was started %d times", n)
	}

	wantProfiles(t, g, "default", "exported")

	status := statusInGuest(t, g)
	if !status.Running || !status.Agree || status.Member == nil || status.Member.Address != "10.78.0.1:9393" || len(status.Pending) != 0 {
		t.Errorf("status %+v", status)
	}

	if status.Import == nil || status.Import.Source != "node1" || len(status.Kept) != 1 || guestLXD+"/"+status.Kept[0].Name != report.Kept {
		t.Errorf("import %+v, backups %+v, reported %s", status.Import, status.Kept, report.Kept)
	}

	if !strings.Contains(status.Daemon, "systemd unit lxd.service") {
		t.Errorf("daemon %q", status.Daemon)
	}
}

// testLooking asks for the status and does a dry run, both while LXD is down and would be started by whoever calls it.
func testLooking(t *testing.T, g *guest.Guest) {
	stopService(t, g)
	begin := len(lxdStarts(t, g))
	status := statusInGuest(t, g)
	if status.Running || !strings.Contains(status.Daemon, "on demand") {
		t.Errorf("status %+v", status)
	}

	toolInGuest(t, g, "global-db-import", "--dry-run", guestTarball)
	if n := len(lxdStarts(t, g)) - begin; n != 0 {
		t.Errorf("LXD was started %d times", n)
	}

	wantState(t, g, "inactive", "lxd.service")
	wantState(t, g, "active", "lxd.socket")
}

// testExportBeside has an export refused while LXD runs.
func testExportBeside(t *testing.T, g *guest.Guest) {
	pid := property(t, g, "lxd.service", "MainPID")
	r := toolInGuest(t, g, "cluster", "export-db", "--unedited", "/root/refused.tar.gz")
	r.want(t, 1, "LXD is running", "pid "+pid, "lxd.service")
	wantMissing(t, g.Root()+"/root/refused.tar.gz")
}

// testOnlySocket imports while LXD is down and its socket open: nobody wakes it before the new database is in place.
func testOnlySocket(t *testing.T, g *guest.Guest) {
	stopService(t, g)
	begin := len(lxdStarts(t, g))
	importInGuest(t, g)
	wantState(t, g, "active", "lxd.socket")
	if n := len(lxdStarts(t, g)) - begin; n != 0 {
		t.Errorf("LXD was woken %d times", n)
	}

	wantProfiles(t, g, "default", "exported")
	wantStartAfterExchange(t, g, begin)
}

// testOnlySocketNoStart imports there with --no-start, which closes the socket, too.
func testOnlySocketNoStart(t *testing.T, g *guest.Guest) {
	stopService(t, g)
	begin := len(lxdStarts(t, g))
	importInGuest(t, g, "--no-start")
	wantState(t, g, "inactive", "lxd.service", "lxd.socket")
	if n := len(lxdStarts(t, g)) - begin; n != 0 {
		t.Errorf("LXD was started %d times", n)
	}

	startLXD(t, g)
	wantProfiles(t, g, "default", "exported")
}

// testCallingClients imports while clients call, whose every call would start LXD.
func testCallingClients(t *testing.T, g *guest.Guest) {
	stop := callAllTheTime(t, g)
	defer stop()
	for range 3 {
		inGuest(t, g, "systemctl", "reset-failed", "lxd.service") // see startLXD
		begin := len(lxdStarts(t, g))
		importInGuest(t, g)
		wantStartAfterExchange(t, g, begin)
		wantProfiles(t, g, "default", "exported")
	}
}

// testRefusedImports has imports refused while LXD runs: neither it nor its database notices.
func testRefusedImports(t *testing.T, g *guest.Guest) {
	other := guest.ForTest(t, guest.Options{Name: "node1", Address: "10.78.0.1/16"})
	must(t, other.Put(t.Context(), tool, "/usr/local/bin/lxd-recover", 0o755))
	must(t, guest.FormCluster(t.Context(), other))
	exportInGuest(t, other)
	must(t, g.Put(t.Context(), other.Root()+guestTarball, otherTarball, 0o600))
	inGuest(t, g, "sh", "-c", "head --bytes=-1000 "+guestTarball+" > /root/short.tar.gz")

	pid := property(t, g, "lxd.service", "MainPID")
	inGuest(t, g, "systemctl", "kill", "--kill-whom=main", "--signal=STOP", "lxd.service") // so that the database stays as it is
	defer inGuest(t, g, "systemctl", "kill", "--kill-whom=main", "--signal=CONT", "lxd.service")
	check := unchanged(t, g.Root()+guestLXD)
	toolInGuest(t, g, "global-db-import", "--yes", otherTarball).want(t, 1, "not for this member")
	toolInGuest(t, g, "global-db-import", "--yes", "/root/short.tar.gz").want(t, 4, "/root/short.tar.gz")
	toolInGuest(t, g, "global-db-import", "--yes", guestTarball).want(t, 3, "would be lost", "--discard-local-entries")
	check()
	wantState(t, g, "active", "lxd.service", "lxd.socket")
	if now := property(t, g, "lxd.service", "MainPID"); now != pid {
		t.Errorf("LXD's pid is %s, was %s", now, pid)
	}
}

// testRollback goes back to before an import, and then to before that rollback.
func testRollback(t *testing.T, g *guest.Guest) {
	lxcInGuest(t, g, "profile", "create", "replaced")
	importInGuest(t, g)
	wantProfiles(t, g, "default", "exported")
	begin := len(lxdStarts(t, g))

	inGuest(t, g, "lxd-recover", "global-db-rollback", "--yes", "--discard-local-entries")
	if n := len(lxdStarts(t, g)) - begin; n != 1 {
		t.Errorf("LXD was started %d times", n)
	}

	wantState(t, g, "active", "lxd.service", "lxd.socket")
	wantProfiles(t, g, "default", "exported", "replaced")

	inGuest(t, g, "sh", "-c", "lxd-recover global-db-rollback --yes --discard-local-entries --no-start "+
		"$(basename $(ls -d "+guestLXD+"/database.before-rollback-*/ | tail -n 1))")
	wantState(t, g, "inactive", "lxd.service", "lxd.socket")
	startLXD(t, g)
	wantProfiles(t, g, "default", "exported")
}

// testFailingUnit has an LXD that ends at once: the database is in place all the same.
func testFailingUnit(t *testing.T, g *guest.Guest) {
	lxcInGuest(t, g, "profile", "create", "written-since")
	dropIn := "/etc/systemd/system/lxd.service.d/fail.conf"
	putText(t, g, dropIn, "[Service]\nExecStart=\nExecStart=/bin/false\n")
	inGuest(t, g, "systemctl", "daemon-reload")
	// It is the failure that ends the wait: an hour would be too long for toolInGuest.
	r := toolInGuest(t, g, "global-db-import", "--yes", "--discard-local-entries", "--timeout", "1h", guestTarball)
	r.want(t, 1, "the database is in place", "systemd unit lxd.service failed to start", "journalctl -u lxd.service")

	inGuest(t, g, "systemctl", "stop", "lxd.service", "lxd.socket")
	inGuest(t, g, "rm", dropIn)
	inGuest(t, g, "systemctl", "daemon-reload")
	startLXD(t, g)
	wantProfiles(t, g, "default", "exported")
}

// TestSystemdQuorumLoss has three machines, and LXD never runs again on one of them. On the others it runs, but does not work.
func TestSystemdQuorumLoss(t *testing.T) {
	t.Parallel()
	ctx := within(t, 5*time.Minute)
	network := guest.NetworkForTest(t)
	var nodes []*guest.Guest
	for _, n := range []string{"1", "2", "3"} {
		g := guest.ForTest(t, guest.Options{Name: "node" + n, Network: network, Address: "10.78.0." + n + "/16"})
		must(t, g.Put(ctx, tool, "/usr/local/bin/lxd-recover", 0o755))
		nodes = append(nodes, g)
	}

	must(t, guest.FormCluster(ctx, nodes...))
	one, two, three := nodes[0], nodes[1], nodes[2]
	waitThreeVoters(t, one)
	lxcInGuest(t, one, "profile", "create", "exported")

	inGuest(t, three, "systemctl", "stop", "lxd.service", "lxd.socket")
	inGuest(t, one, "systemctl", "stop", "lxd.service", "lxd.socket")
	wantState(t, two, "active", "lxd.service")
	inGuest(t, one, "sh", "-c",
		"lxd cluster show | sed -e s/:8443/:9393/ -e '/name: node3/,/role:/ s/role: .*/role: spare/' | lxd cluster edit")
	inGuest(t, one, "lxd-recover", "cluster", "export-db", guestTarball)

	// The first to import is started, but cannot answer yet.
	inGuest(t, one, "systemctl", "start", "--no-block", "lxd.service")
	r := importInGuest(t, one, "--timeout", "20s") // for the stop and the start: it is all spent on waiting for an answer
	if !strings.Contains(r.stdout, "does not answer yet: it does once 2 of the 2 voters are up") {
		t.Errorf("import on the first: %s", r.stdout)
	}

	must(t, two.Put(ctx, one.Root()+guestTarball, guestTarball, 0o600))
	report := decode[recovery.ImportReport](t, importInGuest(t, two, "--format", "json"))
	if !report.Done || !report.Started || !report.Ready {
		t.Errorf("import on the second: %+v", report)
	}

	for _, g := range []*guest.Guest{one, two} {
		wantState(t, g, "active", "lxd.service", "lxd.socket")
		wantProfiles(t, g, "default", "exported")
		list := lxcInGuest(t, g, "cluster", "list", "--format", "csv")
		for _, address := range []string{"https://10.78.0.1:9393", "https://10.78.0.2:9393"} {
			if !strings.Contains(list, address) {
				t.Errorf("%s does not list %s:\n%s", g.Name, address, list)
			}
		}
	}

	lxcInGuest(t, two, "profile", "create", "written-since")
	wantProfiles(t, one, "default", "exported", "written-since")
}

// guestPart is a part of a test whose parts share one guest.
type guestPart struct {
	name string
	do   func(t *testing.T, g *guest.Guest)
}

// runParts runs parts one after the other. Each finds LXD running, whatever the one before has left: start starts it.
func runParts(t *testing.T, g *guest.Guest, start func(testing.TB, *guest.Guest), parts []guestPart) {
	t.Helper()
	for _, part := range parts {
		start(t, g)
		newFence(t, g)
		t.Run(part.name, func(t *testing.T) { part.do(t, g) })
	}
}

// callAllTheTime has a client call LXD, again and again, until stop is called.
func callAllTheTime(t testing.TB, g *guest.Guest) (stop func()) {
	t.Helper()
	loop := g.Command(t.Context(), "sh", "-c", "while :; do lxc list > /dev/null 2>&1; done")
	must(t, loop.Start())
	return func() {
		t.Helper()
		must(t, loop.Process.Kill())
		_ = loop.Wait()
	}
}

// waitThreeVoters waits until three members of the cluster are voters. LXD promotes them one after the other.
func waitThreeVoters(t testing.TB, g *guest.Guest) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		show := inGuest(t, g, "lxd", "sql", "local", "SELECT count(*) AS voters FROM raft_nodes WHERE role = 0")
		if strings.Contains(show, "| 3 ") {
			return
		}

		select {
		case <-ctx.Done():
			t.Fatalf("never three voters: %s", show)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// exportInGuest does what an administrator does on the chosen member: stop LXD, give it another port, export.
func exportInGuest(t testing.TB, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "systemctl", "stop", "lxd.service", "lxd.socket")
	inGuest(t, g, "sh", "-c", "lxd cluster show | sed s/:8443/:9393/ | lxd cluster edit")
	inGuest(t, g, "lxd-recover", "cluster", "export-db", guestTarball)
	keepExported(t, g, guestLXD)
}

// exportedLXD is a copy of LXD's directory as it was when it was exported from, with the high-water file: without it the next fence could lie
// below that of an export in the same second.
const exportedLXD = "/root/exported"

func keepExported(t testing.TB, g *guest.Guest, lxdDir string) {
	t.Helper()
	inGuest(t, g, "sh", "-c", fmt.Sprintf("rm -rf %[1]s; mkdir %[1]s; cd %[2]s; "+
		"cp --archive database database.high-water.yaml server.crt server.key cluster.crt cluster.key %[1]s", exportedLXD, lxdDir))
}

// newFence makes the tarball anew from that copy, if there is one: a cluster is started only once from the same fence.
func newFence(t testing.TB, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "sh", "-c", fmt.Sprintf("if test -d %[1]s; then LXD_DIR=%[1]s lxd-recover cluster export-db --no-verify --force %[2]s; fi",
		exportedLXD, guestTarball))
}

// startLXD starts everything that Debian's package has, and returns when LXD is ready. That it was started before does not
// count: systemd gives up on a unit that is started more than five times in ten seconds.
func startLXD(t testing.TB, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "systemctl", "reset-failed")
	inGuest(t, g, "systemctl", "start", "lxd.socket", "lxd.service", "lxd-containers.service")
}

// stopService stops LXD and leaves its socket open, as a machine is after its start.
func stopService(t testing.TB, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "systemctl", "stop", "lxd.service")
	wantState(t, g, "inactive", "lxd.service")
	wantState(t, g, "active", "lxd.socket")
}

// inGuest runs a command that must succeed.
func inGuest(t testing.TB, g *guest.Guest, name string, args ...string) string {
	t.Helper()
	out, err := g.Exec(within(t, 2*time.Minute), name, args...)
	must(t, err)
	return out
}

// lxcInGuest asks the guest's LXD something, and asks again if that fails: soon after a start of all members LXD moves the roles, and what it is asked while
// one leader hands over to another is an error. What it said goes to the test's log.
func lxcInGuest(t testing.TB, g *guest.Guest, args ...string) string {
	t.Helper()
	return askLXC(t, g, func(string, error) {}, args...)
}

// askLXC is lxcInGuest. It calls failed with what `lxc` has printed before it asks again.
func askLXC(t testing.TB, g *guest.Guest, failed func(said string, err error), args ...string) (out string) {
	t.Helper()
	tries := 0
	watch := progress.Watch{What: fmt.Sprintf("LXD on %s to do %v", g.Name, args), Every: time.Second}
	must(t, watch.Until(t.Context(), func(ctx context.Context) (bool, error) {
		ctx, cancel := progress.Within(ctx, 2*time.Minute)
		defer cancel()

		tries++
		var err error
		out, err = g.Exec(ctx, "lxc", args...)
		if err == nil || tries > 1 && strings.Contains(err.Error(), "already exists") { // made by a try that had no answer
			return true, nil
		}

		t.Logf("%s: lxc %v: %v", g.Name, args, err)
		failed(out, err)
		return false, err
	}))
	return out
}

// toolInGuest runs lxd-recover in the guest.
func toolInGuest(t testing.TB, g *guest.Guest, args ...string) result {
	t.Helper()
	return run(t, g.Command(within(t, 2*time.Minute), "lxd-recover", args...))
}

// importInGuest imports what exportInGuest exported, in place of what was written since.
func importInGuest(t testing.TB, g *guest.Guest, flags ...string) result {
	t.Helper()
	newFence(t, g)
	r := toolInGuest(t, g, append([]string{"global-db-import", "--yes", "--discard-local-entries", guestTarball}, flags...)...)
	if r.status != 0 {
		t.Fatalf("import on %s: exit status %d: %s", g.Name, r.status, r.stderr)
	}

	return r
}

// putText writes a file in the guest.
func putText(t testing.TB, g *guest.Guest, path, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "text")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	must(t, g.Put(t.Context(), file, path, 0o644))
}

// property asks systemd for one property of a unit.
func property(t testing.TB, g *guest.Guest, unit, name string) string {
	t.Helper()
	return strings.TrimSpace(inGuest(t, g, "systemctl", "show", "--value", "--property="+name, unit))
}

// wantState checks the state of units. One on its way into another state may get there: LXD answers for up to half a second
// before `lxd waitready`, which its unit waits for, has noticed.
func wantState(t testing.TB, g *guest.Guest, state string, units ...string) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	for _, unit := range units {
		now := property(t, g, unit, "ActiveState")
		for strings.HasSuffix(now, "ating") && ctx.Err() == nil { // activating, deactivating
			now = property(t, g, unit, "ActiveState")
		}

		if now != state {
			t.Errorf("%s is %s, want %s", unit, now, state)
		}
	}
}

// lxdStarts are the times at which systemd began to start lxd.service, for whatever reason.
func lxdStarts(t testing.TB, g *guest.Guest) []time.Time {
	t.Helper()
	return unitStarts(t, g, "lxd.service", "7d4958e842da4a758f6c1cdc7b36dcc5") // SD_MESSAGE_UNIT_STARTING
}

// unitStarts are the times at which systemd's journal has a message about a unit, by the message's id.
func unitStarts(t testing.TB, g *guest.Guest, unit, message string) []time.Time {
	t.Helper()
	inGuest(t, g, "journalctl", "--sync")
	var times []time.Time
	for line := range strings.Lines(inGuest(t, g, "journalctl", "--quiet", "--output=short-unix", "MESSAGE_ID="+message, "UNIT="+unit)) {
		seconds, err := strconv.ParseFloat(strings.Fields(line)[0], 64)
		must(t, err)
		times = append(times, time.UnixMicro(int64(seconds*1e6)))
	}

	return times
}

// wantStartAfterExchange checks that LXD was started once since there were begin starts, and that the new database was in
// place by then.
func wantStartAfterExchange(t testing.TB, g *guest.Guest, begin int) {
	t.Helper()
	wantStartsAfterExchange(t, g, guestLXD, lxdStarts(t, g)[begin:])
}

func wantStartsAfterExchange(t testing.TB, g *guest.Guest, lxdDir string, starts []time.Time) {
	t.Helper()
	status := statusInGuest(t, g)
	if len(status.Kept) == 0 {
		t.Fatal("no database is kept")
	}

	// The last step of the exchange is to rename the old database.
	changed := strings.TrimSpace(inGuest(t, g, "stat", "--format=%.6Z", lxdDir+"/"+status.Kept[0].Name))
	seconds, err := strconv.ParseFloat(changed, 64)
	must(t, err)
	exchanged := time.UnixMicro(int64(seconds * 1e6))
	if len(starts) != 1 || starts[0].Before(exchanged) {
		t.Errorf("LXD was started at %v, the database exchanged at %v", starts, exchanged)
	}
}

// wantProfiles checks which rows LXD has.
func wantProfiles(t testing.TB, g *guest.Guest, want ...string) {
	t.Helper()
	if names := profileNames(t, g); !slices.Equal(names, want) {
		t.Errorf("profiles %v, want %v", names, want)
	}
}

// profileNames are the names of LXD's profiles, sorted.
func profileNames(t testing.TB, g *guest.Guest) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(lxcInGuest(t, g, "profile", "list", "--format", "csv")) {
		name, _, _ := strings.Cut(line, ",")
		names = append(names, name)
	}

	slices.Sort(names)
	return names
}

// wantOrder checks that text has these parts, one after the other.
func wantOrder(t testing.TB, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, part := range parts {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			t.Errorf("no %q, or not after the others, in %q", part, text)
			return
		}

		rest = after
	}
}
