// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// Everything that must be refused: the message, the exit status, and that nothing was changed.
func TestRefusals(t *testing.T) {
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	one, two := c.Member(1), c.Member(2)

	t.Run("export beside a running daemon", func(t *testing.T) {
		defer freeze(t, one)()
		check := unchanged(t, one.Dir())
		output := filepath.Join(t.TempDir(), "out.tar.gz")
		recoverTool(t, one, "cluster", "export-db", output).want(t, 1, "LXD is running", "pid "+strconv.Itoa(one.Pid()), "Stop LXD")
		check()
		wantMissing(t, output)
	})

	c.KillAll()
	must(t, c.Save(ctx, "unedited"))
	t.Run("export of an unedited member", func(t *testing.T) {
		check := unchanged(t, one.Dir())
		output := filepath.Join(t.TempDir(), "out.tar.gz")
		recoverTool(t, one, "cluster", "export-db", output).want(t, 3, "lxd cluster edit", "--unedited")
		check()
		wantMissing(t, output)
		mustRecover(t, one, "cluster", "export-db", "--unedited", output)
		check()
	})

	must(t, one.EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, one)

	t.Run("existing output", func(t *testing.T) {
		check := unchanged(t, one.Dir())
		output := filepath.Join(t.TempDir(), "out.tar.gz")
		must(t, os.WriteFile(output, []byte("precious"), 0o600))
		recoverTool(t, one, "cluster", "export-db", output).want(t, 3, output, "exists already", "--force")
		data, err := os.ReadFile(output)
		must(t, err)
		if string(data) != "precious" {
			t.Errorf("the file was changed to %q", data)
		}

		check()
		mustRecover(t, one, "cluster", "export-db", "--force", output)
	})

	t.Run("output that cannot be written", func(t *testing.T) {
		check := unchanged(t, one.Dir())
		recoverTool(t, one, "cluster", "export-db", "/nonexistent/out.tar.gz").want(t, 1, "/nonexistent/out.tar.gz", "no such file or directory")
		check()
	})

	t.Run("not root", func(t *testing.T) {
		check := unchanged(t, two.Dir())
		asNobody := copyTool(t)
		for _, args := range [][]string{{"cluster", "export-db"}, {"global-db-import", "--yes", tarball},
			{"global-db-rollback", "--yes"}, {"global-db-status"}} {
			cmd := two.Command(ctx, "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", asNobody}, args...)...)
			run(t, cmd).want(t, 1, "needs root")
		}

		check()
	})

	t.Run("import beside a running daemon", func(t *testing.T) {
		must(t, two.Spawn())
		defer two.Kill()
		waitHolds(t, two)
		defer freeze(t, two)()
		check := unchanged(t, two.Dir())
		recoverTool(t, two, "global-db-import", "--yes", tarball).want(t, 1, "LXD is running", "pid "+strconv.Itoa(two.Pid()), "stop it first")
		check()
	})

	t.Run("no terminal to ask on", func(t *testing.T) {
		check := unchanged(t, two.Dir())
		recoverTool(t, two, "global-db-import", tarball).want(t, 3, "--yes")
		check()
	})

	t.Run("dry run", func(t *testing.T) {
		check := unchanged(t, two.Dir())
		mustRecover(t, two, "global-db-import", "--dry-run", tarball)
		check()
	})

	t.Run("a term above the fence", func(t *testing.T) {
		global := filepath.Join(two.Dir(), "database", "global")
		name := filepath.Join(global, "metadata1")
		old, err := os.ReadFile(name)
		must(t, err)
		defer func() { must(t, os.WriteFile(name, old, 0o600)) }()
		must(t, os.WriteFile(name, raftlog.Metadata{Version: 1<<40 + 1, Term: 1 << 40}.Encode(), 0o600))
		check := unchanged(t, two.Dir())
		recoverTool(t, two, "global-db-import", "--yes", tarball).want(t, 3, "raft term 1099511627776", "could outvote it", "--survivor")
		// To give up local entries is not to say nothing about this.
		r := mustRecover(t, two, "global-db-import", "--dry-run", "--discard-local-entries", tarball)
		if !strings.Contains(r.stdout, "could outvote it") {
			t.Errorf("not said:\n%s", r.stdout)
		}

		check()

		report := filepath.Join(t.TempDir(), "two.json")
		r = mustRecover(t, two, "global-db-inspect", "--format", "json")
		must(t, os.WriteFile(report, []byte(r.stdout), 0o600))
		higher := filepath.Join(t.TempDir(), "higher.tar.gz")
		mustRecover(t, one, "cluster", "export-db", "--survivor", report, higher)
		mustRecover(t, two, "global-db-import", "--dry-run", higher)
		check()
	})

	t.Run("not a tarball", func(t *testing.T) {
		check := unchanged(t, two.Dir())
		recoverTool(t, two, "global-db-import", "--yes", tool).want(t, 4, tool, "not a gzip file")
		recoverTool(t, two, "global-db-import", "--yes", "/nonexistent").want(t, 1, "/nonexistent", "no such file")
		recoverTool(t, two, "global-db-import", "--yes", t.TempDir()).want(t, 1, "is not a file")
		check()
	})

	t.Run("truncated tarball", func(t *testing.T) {
		check := unchanged(t, two.Dir())
		data, err := os.ReadFile(tarball)
		must(t, err)
		for _, size := range []int{0, 1, 20, 1000, len(data) / 2, len(data) - 100, len(data) - 8, len(data) - 1} {
			short := filepath.Join(t.TempDir(), "short.tar.gz")
			must(t, os.WriteFile(short, data[:size], 0o600))
			recoverTool(t, two, "global-db-import", "--yes", short).want(t, 4, short)
		}

		check()
	})

	t.Run("too little disk space", func(t *testing.T) {
		dir := t.TempDir()
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48M"))
		t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
		run(t, two.Command(ctx, "cp", "-a", "--sparse=always", two.Dir()+"/database", two.Dir()+"/cluster.crt", two.Dir()+"/server.crt", dir))
		check := unchanged(t, dir)
		cmd := two.Command(ctx, tool, "global-db-import", "--yes", tarball)
		cmd.Env = append(cmd.Env, "LXD_DIR="+dir)
		run(t, cmd).want(t, 1, tarball, "not enough disk space")
		check()
	})

	t.Run("database behind a link, on a mount point", func(t *testing.T) {
		dir := t.TempDir()
		run(t, two.Command(ctx, "cp", "-a", "--sparse=always", two.Dir()+"/database", two.Dir()+"/cluster.crt", two.Dir()+"/server.crt", dir))
		must(t, os.Rename(dir+"/database", dir+"/elsewhere"))
		must(t, os.Symlink(dir+"/elsewhere", dir+"/database"))
		before := tree(t, dir)
		cmd := two.Command(ctx, tool, "global-db-import", "--yes", tarball)
		cmd.Env = append(cmd.Env, "LXD_DIR="+dir)
		run(t, cmd).want(t, 1, "symbolic link", dir+"/elsewhere")
		if tree(t, dir) != before {
			t.Error("something was changed behind the link")
		}

		must(t, os.Remove(dir+"/database"))
		must(t, os.Mkdir(dir+"/database", 0o700))
		must(t, unix.Mount(dir+"/elsewhere", dir+"/database", "", unix.MS_BIND, ""))
		t.Cleanup(func() { must(t, unix.Unmount(dir+"/database", unix.MNT_DETACH)) })
		before = tree(t, dir)
		cmd = two.Command(ctx, tool, "global-db-import", "--yes", tarball)
		cmd.Env = append(cmd.Env, "LXD_DIR="+dir)
		run(t, cmd).want(t, 1, "mount point")
		if tree(t, dir) != before {
			t.Error("something was changed on the mount")
		}
	})

	t.Run("nothing to roll back", func(t *testing.T) {
		check := unchanged(t, two.Dir())
		recoverTool(t, two, "global-db-rollback", "--yes").want(t, 1, "nothing to roll back")
		check()
	})

	t.Run("wrong usage", func(t *testing.T) {
		check := unchanged(t, two.Dir())
		for _, args := range [][]string{
			{"global-db-import"}, {"global-db-import", "a", "b"}, {"global-db-import", "--nonsense", tarball}, {"cluster", "nonsense"}, {"nonsense"},
			{"global-db-import", "--format", "xml", "--yes", tarball}, {"cluster", "export-db", "a", "b"}, {"global-db-status", "x"},
		} {
			recoverTool(t, two, args...).want(t, 2)
		}

		check()
	})

	t.Run("no LXD there", func(t *testing.T) {
		dir := t.TempDir()
		cmd := two.Command(ctx, tool, "global-db-import", "--yes", tarball)
		cmd.Env = append(cmd.Env, "LXD_DIR="+dir)
		run(t, cmd).want(t, 1, dir, "is not the directory of an LXD")
	})

	t.Run("member not in the tarball", func(t *testing.T) {
		// The tarball is older than the fourth member.
		older := tarball
		must(t, c.Restore(ctx, "unedited"))
		must(t, c.StartAll(ctx))
		four, err := c.AddMember(ctx)
		must(t, err)
		c.KillAll()
		check := unchanged(t, four.Dir())
		recoverTool(t, four, "global-db-import", "--yes", older).want(t, 1, "not for this member", "no id 4", four.Address())
		check()
	})
}

// Two clusters formed alike have the same names, ids and addresses. Only certificates tell them apart.
func TestRefuseOtherCluster(t *testing.T) {
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

// A member that was never clustered has nothing to export, and nothing to import to.
func TestRefuseUnclustered(t *testing.T) {
	c := cluster.ForTest(t, cluster.Options{})
	c.KillAll()
	ctx := within(t, 3*time.Minute)
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, c.Member(1))
	m := c.Member(2)
	must(t, os.Remove(filepath.Join(m.Dir(), "cluster.crt")))
	check := unchanged(t, m.Dir())
	recoverTool(t, m, "global-db-import", "--yes", tarball).want(t, 1, "not a member of a cluster")
	recoverTool(t, m, "cluster", "export-db", filepath.Join(t.TempDir(), "x")).want(t, 1, "not a member of a cluster")
	check()
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
// its two commits: LXD does not start on it. The import recognises the member by its certificate and puts it right.
func TestImportOnWedgedMember(t *testing.T) {
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
