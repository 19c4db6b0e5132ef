// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// refusalLab is what the cases of TestRefusals share.
type refusalLab struct {
	cluster  *cluster.Cluster
	one, two *cluster.Member
	tarball  string // of the first member, edited
}

// Everything that must be refused: the message, the exit status, and that nothing was changed.
func TestRefusals(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	l := &refusalLab{cluster: c, one: c.Member(1), two: c.Member(2)}
	t.Run("export beside a running daemon", l.exportBesideDaemon)

	c.KillAll()
	must(t, c.Save(ctx, "unedited"))
	t.Run("export of an unedited member", l.exportUnedited)

	must(t, l.one.EditReplace(ctx, ":8443", ":9393"))
	l.tarball = export(t, l.one)
	t.Run("existing output", l.exportOverFile)
	t.Run("output that cannot be written", l.exportNowhere)
	t.Run("not root", l.notRoot)
	t.Run("import beside a running daemon", l.importBesideDaemon)
	t.Run("no terminal to ask on", l.noTerminal)
	t.Run("dry run", l.dryRun)
	t.Run("a term above the fence", l.termAboveFence)
	t.Run("not a tarball", l.notTarball)
	t.Run("truncated tarball", l.truncatedTarball)
	t.Run("too little disk space", l.tooLittleSpace)
	t.Run("database behind a link, on a mount point", l.databaseElsewhere)
	t.Run("nothing to roll back", l.nothingToRollBack)
	t.Run("wrong usage", l.wrongUsage)
	t.Run("no LXD there", l.noLXD)
	t.Run("member not in the tarball", l.memberNotInTarball)
}

func (l *refusalLab) exportBesideDaemon(t *testing.T) {
	output := filepath.Join(t.TempDir(), "out.tar.gz")
	besideFrozen(t, l.one, func() {
		recoverTool(t, l.one, "cluster", "export-db", output).want(t, 1, "LXD is running", "pid "+strconv.Itoa(l.one.Pid()), "Stop LXD")
	})
	wantMissing(t, output)
}

func (l *refusalLab) exportUnedited(t *testing.T) {
	check := unchanged(t, l.one.Dir())
	output := filepath.Join(t.TempDir(), "out.tar.gz")
	recoverTool(t, l.one, "cluster", "export-db", output).want(t, 3, "lxd-recover cluster edit", "--unedited")
	check()
	wantMissing(t, output)
	mustRecover(t, l.one, "cluster", "export-db", "--unedited", output)
	check()
}

func (l *refusalLab) exportOverFile(t *testing.T) {
	check := unchanged(t, l.one.Dir())
	output := filepath.Join(t.TempDir(), "out.tar.gz")
	must(t, os.WriteFile(output, []byte("precious"), 0o600))
	recoverTool(t, l.one, "cluster", "export-db", output).want(t, 3, output, "exists already", "--force")
	data, err := os.ReadFile(output)
	must(t, err)
	if string(data) != "precious" {
		t.Errorf("the file was changed to %q", data)
	}

	check()
	mustRecover(t, l.one, "cluster", "export-db", "--force", output)
}

func (l *refusalLab) exportNowhere(t *testing.T) {
	check := unchanged(t, l.one.Dir())
	recoverTool(t, l.one, "cluster", "export-db", "/nonexistent/out.tar.gz").want(t, 1, "/nonexistent/out.tar.gz", "no such file or directory")
	check()
}

func (l *refusalLab) notRoot(t *testing.T) {
	check := unchanged(t, l.two.Dir())
	asNobody := []string{"--reuid=65534", "--regid=65534", "--clear-groups", copyTool(t)}
	for _, args := range [][]string{{"cluster", "export-db"}, {"global-db-import", "--yes", l.tarball},
		{"global-db-rollback", "--yes"}, {"global-db-status"}} {
		run(t, l.two.Command(t.Context(), "setpriv", slices.Concat(asNobody, args)...)).want(t, 1, "needs root")
	}

	check()
}

func (l *refusalLab) importBesideDaemon(t *testing.T) {
	besideStarted(t, l.two, func() {
		recoverTool(t, l.two, "global-db-import", "--yes", l.tarball).want(t, 1, "LXD is running", "pid "+strconv.Itoa(l.two.Pid()), "stop it first")
	})
}

func (l *refusalLab) noTerminal(t *testing.T) {
	check := unchanged(t, l.two.Dir())
	recoverTool(t, l.two, "global-db-import", l.tarball).want(t, 3, "--yes")
	check()
}

func (l *refusalLab) dryRun(t *testing.T) {
	check := unchanged(t, l.two.Dir())
	mustRecover(t, l.two, "global-db-import", "--dry-run", l.tarball)
	check()
}

// termAboveFence has the second member in a term that the tarball does not outvote. An export that is told of this member does.
func (l *refusalLab) termAboveFence(t *testing.T) {
	name := filepath.Join(globalOf(l.two), "metadata1")
	old, err := os.ReadFile(name)
	must(t, err)
	defer func() { must(t, os.WriteFile(name, old, 0o600)) }()
	must(t, os.WriteFile(name, raftlog.Metadata{Version: 1<<40 + 1, Term: 1 << 45}.Encode(), 0o600))
	check := unchanged(t, l.two.Dir())
	recoverTool(t, l.two, "global-db-import", "--yes", l.tarball).want(t, 3, "raft term 35184372088832", "could outvote it", "--survivor")
	// To give up local entries is not to say nothing about this.
	r := mustRecover(t, l.two, "global-db-import", "--dry-run", "--discard-local-entries", l.tarball)
	if !strings.Contains(r.stdout, "could outvote it") {
		t.Errorf("not said:\n%s", r.stdout)
	}

	check()

	report := filepath.Join(t.TempDir(), "two.json")
	r = mustRecover(t, l.two, "global-db-inspect", "--format", "json")
	must(t, os.WriteFile(report, []byte(r.stdout), 0o600))
	higher := filepath.Join(t.TempDir(), "higher.tar.gz")
	mustRecover(t, l.one, "cluster", "export-db", "--survivor", report, higher)
	mustRecover(t, l.two, "global-db-import", "--dry-run", higher)
	check()
}

func (l *refusalLab) notTarball(t *testing.T) {
	check := unchanged(t, l.two.Dir())
	recoverTool(t, l.two, "global-db-import", "--yes", tool).want(t, 4, tool, "not a gzip file")
	recoverTool(t, l.two, "global-db-import", "--yes", "/nonexistent").want(t, 1, "/nonexistent", "no such file")
	recoverTool(t, l.two, "global-db-import", "--yes", t.TempDir()).want(t, 1, "is not a file")
	check()
}

func (l *refusalLab) truncatedTarball(t *testing.T) {
	check := unchanged(t, l.two.Dir())
	data, err := os.ReadFile(l.tarball)
	must(t, err)
	for _, size := range []int{0, 1, 20, 1000, len(data) / 2, len(data) - 100, len(data) - 8, len(data) - 1} {
		short := filepath.Join(t.TempDir(), "short.tar.gz")
		must(t, os.WriteFile(short, data[:size], 0o600))
		recoverTool(t, l.two, "global-db-import", "--yes", short).want(t, 4, short)
	}

	check()
}

func (l *refusalLab) tooLittleSpace(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48M"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	l.copyTwo(t, dir)
	check := unchanged(t, dir)
	l.importTo(t, dir).want(t, 1, l.tarball, "not enough disk space")
	check()
}

func (l *refusalLab) databaseElsewhere(t *testing.T) {
	dir := t.TempDir()
	l.copyTwo(t, dir)
	database, elsewhere := filepath.Join(dir, "database"), filepath.Join(dir, "elsewhere")
	must(t, os.Rename(database, elsewhere))
	must(t, os.Symlink(elsewhere, database))
	before := tree(t, dir)
	l.importTo(t, dir).want(t, 3, "symbolic link", elsewhere)
	if tree(t, dir) != before {
		t.Error("something was changed behind the link")
	}

	must(t, os.Remove(database))
	must(t, os.Mkdir(database, 0o700))
	must(t, unix.Mount(elsewhere, database, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(database, unix.MNT_DETACH)) })
	before = tree(t, dir)
	l.importTo(t, dir).want(t, 3, "mount point")
	if tree(t, dir) != before {
		t.Error("something was changed on the mount")
	}
}

func (l *refusalLab) nothingToRollBack(t *testing.T) {
	check := unchanged(t, l.two.Dir())
	recoverTool(t, l.two, "global-db-rollback", "--yes").want(t, 1, "nothing to roll back")
	check()
}

func (l *refusalLab) wrongUsage(t *testing.T) {
	check := unchanged(t, l.two.Dir())
	for _, args := range [][]string{
		{"global-db-import"}, {"global-db-import", "a", "b"}, {"global-db-import", "--nonsense", l.tarball}, {"cluster", "nonsense"}, {"nonsense"},
		{"global-db-import", "--format", "xml", "--yes", l.tarball}, {"cluster", "export-db", "a", "b"}, {"global-db-status", "x"},
	} {
		recoverTool(t, l.two, args...).want(t, 2)
	}

	check()
}

func (l *refusalLab) noLXD(t *testing.T) {
	dir := t.TempDir()
	l.importTo(t, dir).want(t, 1, dir, "is not the directory of an LXD")
}

// memberNotInTarball has a fourth member join, which the tarball is older than.
func (l *refusalLab) memberNotInTarball(t *testing.T) {
	ctx := within(t, 5*time.Minute)
	must(t, l.cluster.Restore(ctx, "unedited"))
	must(t, l.cluster.StartAll(ctx))
	four, err := l.cluster.AddMember(ctx)
	must(t, err)
	l.cluster.KillAll()
	check := unchanged(t, four.Dir())
	recoverTool(t, four, "global-db-import", "--yes", l.tarball).want(t, 1, "not for this member", "no id 4", four.Address())
	check()
}

// copyTwo copies what makes a directory the second member's.
func (l *refusalLab) copyTwo(t testing.TB, dir string) {
	t.Helper()
	from := l.two.Dir()
	run(t, l.two.Command(t.Context(), "cp", "-a", "--sparse=always", from+"/database", from+"/cluster.crt", from+"/server.crt", dir))
}

// importTo runs the import on the second member as if its LXD were in this directory.
func (l *refusalLab) importTo(t testing.TB, dir string) result {
	t.Helper()
	cmd := l.two.Command(t.Context(), tool, "global-db-import", "--yes", l.tarball)
	cmd.Env = append(cmd.Env, "LXD_DIR="+dir)
	return run(t, cmd)
}

// Two clusters formed alike have the same names, ids and addresses. Only certificates tell them apart.
func TestRefuseOtherCluster(t *testing.T) {
	t.Parallel()
	ours := cluster.ForTest(t, cluster.Options{})
	theirs := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	ours.KillAll()
	theirs.KillAll()
	must(t, theirs.Member(1).EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, theirs.Member(1))
	for _, m := range ours.Members() {
		check := unchanged(t, m.Dir())
		recoverTool(t, m, "global-db-import", "--yes", tarball).want(t, 1, "not for this member", "certificate")
		check()
	}

	importOn(t, tarball, theirs.Members()...)
}

// A member without its cluster certificate cannot tell whose tarball it is given, and none can tell where its own comes from.
func TestRefuseWithoutCertificate(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	c.KillAll()
	ctx := within(t, 3*time.Minute)
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, c.Member(1))
	m := c.Member(2)
	must(t, os.Remove(filepath.Join(m.Dir(), "cluster.crt")))
	check := unchanged(t, m.Dir())
	recoverTool(t, m, "global-db-import", "--yes", tarball).want(t, 1, "cluster.crt is missing", "from another member")
	recoverTool(t, m, "cluster", "export-db", filepath.Join(t.TempDir(), "x")).want(t, 1, "cluster.crt is missing", "from another member")
	check()
}

// besideFrozen does something on a member whose daemon runs, but stands still meanwhile, and checks that nothing was changed.
func besideFrozen(t testing.TB, m *cluster.Member, do func()) {
	t.Helper()
	defer freeze(t, m)()
	check := unchanged(t, m.Dir())
	do()
	check()
}

// besideStarted is besideFrozen on a member that is down: its daemon runs for just that long.
func besideStarted(t testing.TB, m *cluster.Member, do func()) {
	t.Helper()
	must(t, m.Spawn())
	defer m.Kill()
	waitHolds(t, m)
	besideFrozen(t, m, do)
}

// freeze stops a daemon in its tracks, so that its directory does not change by itself, and returns what lets it go on.
func freeze(t testing.TB, m *cluster.Member) (thaw func()) {
	t.Helper()
	pid := m.Pid()
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	ctx := within(t, time.Minute)
	for !stopped(pid) { // a thread in the middle of a write ends that first
		select {
		case <-ctx.Done():
			t.Fatalf("%s was never stopped", m.Name)
		case <-time.After(time.Millisecond):
		}
	}

	return func() { must(t, syscall.Kill(pid, syscall.SIGCONT)) }
}

// stopped tells whether all threads of a process are stopped.
func stopped(pid int) bool {
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat"))
	if err != nil || len(tasks) == 0 {
		return false
	}

	for _, task := range tasks {
		stat, _ := os.ReadFile(task)
		_, state, _ := strings.Cut(string(stat), ") ")
		if !strings.HasPrefix(state, "T") {
			return false
		}
	}

	return true
}

// waitHolds waits until a daemon that was just started has its node database open.
func waitHolds(t testing.TB, m *cluster.Member) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		fds, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(m.Pid()), "fd", "*"))
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); filepath.Base(target) == "local.db" {
				return
			}
		}

		select {
		case <-ctx.Done():
			t.Fatalf("%s never opened its database", m.Name)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// copyTool copies the program to where another user may run it.
func copyTool(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lxd-recover-tool-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	data, err := os.ReadFile(tool)
	must(t, err)
	path := filepath.Join(dir, "lxd-recover")
	must(t, os.WriteFile(path, data, 0o755))
	return path
}

func wantMissing(t testing.TB, path string) {
	t.Helper()
	_, err := os.Lstat(path)
	if !os.IsNotExist(err) {
		t.Errorf("%s is there (%v)", path, err)
	}
}

// A member whose node database does not know its own address any more, as LXD's own loader leaves it when it is killed between
// its two commits: LXD does not start on it. The import recognises the member by its certificate and repairs it.
func TestImportOnWedgedMember(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, c.Member(1))
	wedged := c.Member(2)
	local := filepath.Join(wedged.Dir(), "database", "local.db")
	execSQL(t, local, "UPDATE config SET value = '"+wedged.IP()+":9393' WHERE key = 'cluster.https_address'")
	r := mustRecover(t, wedged, "global-db-import", "--yes", tarball)
	if !strings.Contains(r.stdout, "by its certificate it is node2") {
		t.Errorf("nothing is said: %s", r.stdout)
	}

	importOn(t, tarball, c.Member(1), c.Member(3))
	must(t, c.StartAll(ctx))
	wantRows(t, []string{"kept"}, c.Members()...)
	wantWorking(t, c, []string{c.Member(1).IP() + ":9393", c.Member(2).IP() + ":9393", c.Member(3).IP() + ":9393"}, c.Members()...)
}
