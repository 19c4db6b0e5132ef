// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// wedge is a point at which LXD's own loader, killed there, is known to get stuck.
type wedge struct {
	name   string
	at     func(*systrace.Call) bool
	action systrace.Action
	says   string // LXD, when it is started there; empty: it is not tried
	left   []string
	gone   []string
}

var wedges = []wedge{
	{"between the two commits of the node database", call("unlink", "local.db-journal"), systrace.KillAfter,
		"This cluster member has no raft role", []string{"global", "global.recover"}, []string{"patch.global.sql"}},
	{"when it had created the patch", call("openat", "patch.global.sql"), systrace.KillAfter,
		"patch.global.sql: Custom patches", []string{"global", "global.recover", "patch.global.sql"}, nil},
	{"in the middle of the patch", call("write", "patch.global.sql"), systrace.KillAfter,
		"patch.global.sql: Custom patches", []string{"global", "global.recover", "patch.global.sql"}, nil},
	{"at the rename", call("renameat", "global.recover"), systrace.KillBefore,
		"", []string{"global.recover", "patch.global.sql"}, []string{"global"}},
	{"at the rename, LXD started again", call("renameat", "global.recover"), systrace.KillBefore,
		"patch.global.sql: Custom patches", []string{"global.recover", "patch.global.sql"}, []string{"global"}},
	{"after the rename", call("renameat", "global.recover"), systrace.KillAfter,
		"patch.global.sql: Custom patches", []string{"global", "patch.global.sql"}, []string{"global.recover"}},
}

// LXD's own loader, killed at each point at which it is known to get stuck, and the member put right by an import of the very
// tarball that the loader had. LXD itself refuses to start there; that is looked at first, as an administrator would see it.
func TestWedgedByLXD(t *testing.T) {
	l := getLab6(t)
	part := func(name string, do func(t *testing.T, ctx context.Context)) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := progress.Within(t.Context(), 3*time.Minute)
			defer cancel()
			l.beginWedged(t, ctx)
			do(t, ctx)
		})
	}
	for _, w := range wedges {
		part(w.name, func(t *testing.T, ctx context.Context) { l.wedgedAt(t, ctx, w) })
	}

	part("at the rename, with a transaction that the tarball lacks", l.lostAtRename)
	for _, left := range []int{1, 4} {
		part(fmt.Sprintf("after %d files were removed, with a transaction that the tarball lacks", left),
			func(t *testing.T, ctx context.Context) { l.lostInRemoval(t, ctx, left) })
	}

	part("on the edited member", l.wedgedEdited)
}

// wedgedAt kills the loader at one point, and checks what is there, what is said of it, and that an import is the way out.
func (l *lab) wedgedAt(t *testing.T, ctx context.Context, w wedge) {
	m := l.cluster.Member(2)
	placeTarball(t, l.cluster.Member(1).OwnTarball(), m)
	killLoader(t, m, w.at, w.action)
	for _, name := range append(w.left, filepath.Base(m.LoadedTarball())) {
		wantThere(t, m, name, true)
	}

	for _, name := range w.gone {
		wantThere(t, m, name, false)
	}

	wantLoaderDead(t, ctx, m, slices.Contains(w.gone, "global"))
	if w.says != "" {
		ageBackup(t, m)
		wantRefused(t, ctx, m, w.says)
	}

	l.putRight(t, ctx, m)
}

// lostAtRename has what would be lost told, also where only LXD's backup has it.
func (l *lab) lostAtRename(t *testing.T, ctx context.Context) {
	m := l.writeLacking(t, ctx)
	killLoader(t, m, call("renameat", "global.recover"), systrace.KillBefore)
	wantImportRefused(t, ctx, m, "insert profile lacking in project default", "--discard-local-entries")
	backups, err := filepath.Glob(filepath.Join(m.Dir(), "db_backup.*"))
	must(t, err)
	for _, backup := range backups {
		must(t, os.Remove(backup))
	}

	wantImportRefused(t, ctx, m, "no backup of LXD's has it", "--discard-local-entries")
	l.putRight(t, ctx, m, "--discard-local-entries")
}

// lostInRemoval kills the loader in the middle of removing the database file by file: what is left of its log may look sound,
// and shorter.
func (l *lab) lostInRemoval(t *testing.T, ctx context.Context, left int) {
	m := l.writeLacking(t, ctx)
	removed := 0
	killLoader(t, m, func(c *systrace.Call) bool {
		if c.Name == "unlinkat" && c.Kind == systrace.Change && filepath.Base(filepath.Dir(c.Files[0])) == "global" {
			removed++
		}

		return removed == left
	}, systrace.KillAfter)
	wantThere(t, m, "global", true)
	wantThere(t, m, "global.recover", true)
	wantImportRefused(t, ctx, m, "insert profile lacking in project default")
	l.putRight(t, ctx, m, "--discard-local-entries")
}

// wedgedEdited has the tarball that the first member's own edit leaves in the database directory, where its manual has it stay.
func (l *lab) wedgedEdited(t *testing.T, ctx context.Context) {
	m := l.cluster.Member(1)
	placeTarball(t, m.OwnTarball(), m)
	wantRefused(t, ctx, m, "patch.global.sql: Custom patches")
	l.putRight(t, ctx, m)
}

// writeLacking has the members that were not edited write a transaction that the tarball lacks, and places it on one of them.
func (l *lab) writeLacking(t *testing.T, ctx context.Context) *cluster.Member {
	t.Helper()
	m := l.cluster.Member(2)
	must(t, l.cluster.StartAll(ctx, m, l.cluster.Member(3))) // the first one is edited, and does not know
	must(t, m.CreateProfile(ctx, "lacking"))
	l.cluster.KillAll()
	placeTarball(t, l.cluster.Member(1).OwnTarball(), m)
	return m
}

// wantImportRefused checks that an import of the loader's tarball is refused, and what it says.
func wantImportRefused(t *testing.T, ctx context.Context, m *cluster.Member, says ...string) {
	t.Helper()
	out, err := m.Command(ctx, tool, "global-db-import", "--yes", "--unsigned", m.LoadedTarball()).CombinedOutput()
	var exit *exec.ExitError
	lacks := func(s string) bool { return !strings.Contains(string(out), s) }
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || slices.ContainsFunc(says, lacks) {
		t.Errorf("import: %v, want exit status 3 and %q: %s", err, says, out)
	}
}

// call finds a call by its name and that of its file.
func call(name, file string) func(*systrace.Call) bool {
	return func(c *systrace.Call) bool {
		return c.Name == name && c.Kind == systrace.Change && filepath.Base(c.Files[0]) == file
	}
}

// beginWedged brings the cluster back to where only the first member was edited.
func (l *lab) beginWedged(t *testing.T, ctx context.Context) {
	t.Helper()
	must(t, l.cluster.Restore(ctx, "edited"))
	t.Cleanup(func() { l.cluster.KillAll() })
}

// placeTarball puts a tarball where LXD loads it from.
func placeTarball(t *testing.T, tarball string, m *cluster.Member) {
	t.Helper()
	data, err := os.ReadFile(tarball)
	must(t, err)
	must(t, os.WriteFile(m.LoadedTarball(), data, 0o600))
}

// killLoader starts LXD under the tracer, for it to be killed while it loads the tarball.
func killLoader(t *testing.T, m *cluster.Member, at func(*systrace.Call) bool, action systrace.Action) {
	t.Helper()
	cmd := m.DaemonCommand()
	out, err := os.Create(filepath.Join(t.TempDir(), "output"))
	must(t, err)
	defer out.Close()
	hit := false
	loaded := call("unlinkat", filepath.Base(m.LoadedTarball()))
	status, err := systrace.Run(systrace.Program{
		Path: cmd.Path, Args: cmd.Args[1:], Env: cmd.Env, Dir: cmd.Dir, Output: out, Roots: []string{filepath.Join(m.Dir(), "database")}, Lenient: true,
	}, func(c *systrace.Call) systrace.Action {
		switch {
		case at(c):
			hit = true
			return action
		case loaded(c): // it would become a daemon that nobody ends
			return systrace.KillBefore
		}

		return systrace.Proceed
	})
	must(t, err)
	if !hit || status.Signal() != unix.SIGKILL {
		said, _ := os.ReadFile(out.Name())
		t.Fatalf("not killed where it should be (%v):\n%s", status, said)
	}
}

// wantThere checks whether something is in a member's database directory.
func wantThere(t *testing.T, m *cluster.Member, name string, want bool) {
	t.Helper()
	_, err := os.Lstat(filepath.Join(m.Dir(), "database", name))
	if err != nil && !errors.Is(err, os.ErrNotExist) || (err == nil) != want {
		t.Errorf("%s: %s is there: want %t: %v", m.Name, name, want, err)
	}
}

// ageBackup gives the backup that LXD has just made the name of an earlier time. LXD names them by the second, and one more of the
// same second, made while there is no global/ any more, would replace the one that has it.
func ageBackup(t *testing.T, m *cluster.Member) {
	t.Helper()
	backups, err := filepath.Glob(filepath.Join(m.Dir(), "db_backup.*"))
	must(t, err)
	if len(backups) != 1 {
		t.Fatalf("backups %v, want one", backups)
	}

	must(t, os.Rename(backups[0], filepath.Join(m.Dir(), "db_backup.2024-02-29T120000Z.tar.gz")))
}

// wantRefused starts LXD on a member that is wedged.
func wantRefused(t *testing.T, ctx context.Context, m *cluster.Member, says string) {
	t.Helper()
	must(t, m.Spawn())
	status, err := m.Wait(ctx)
	must(t, err)
	if words := m.LogTail(1); status == 0 || !strings.Contains(words, says) {
		t.Errorf("LXD is not wedged: exit status %d, want %q: %s", status, says, words)
	}
}

// wantLoaderDead checks what the status says of a member whose loader is dead.
func wantLoaderDead(t *testing.T, ctx context.Context, m *cluster.Member, emptied bool) {
	t.Helper()
	out, err := m.Command(ctx, tool, "global-db-status").CombinedOutput()
	gone := strings.Contains(string(out), "database/global is gone: LXD's own loader was interrupted")
	if err != nil || gone != emptied || !strings.Contains(string(out), "LXD (5.21.3 and later, 6.2 and later) will load this tarball") {
		t.Errorf("status: %v: %s", err, out)
	}

	if !emptied {
		return
	}

	out, err = m.Command(ctx, tool, "cluster", "export-db", filepath.Join(t.TempDir(), "tarball")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "database/global is gone: LXD's own loader was interrupted") {
		t.Errorf("export: %v: %s", err, out)
	}
}

// putRight imports the tarball of LXD's own on a wedged member, from where it lies, and on the others, and starts the cluster.
func (l *lab) putRight(t *testing.T, ctx context.Context, wedged *cluster.Member, flags ...string) {
	t.Helper()
	own := l.cluster.Member(1).OwnTarball()
	var other tree
	for _, m := range append(slices.DeleteFunc(l.cluster.Members(), func(m *cluster.Member) bool { return m == wedged }), wedged) {
		tarball := own
		if m == wedged {
			tarball = m.LoadedTarball()
		}

		out, err := m.Command(ctx, tool, append([]string{"global-db-import", "--yes", "--unsigned", tarball}, flags...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("import on %s: %v: %s", m.Name, err, out)
		}

		t.Logf("%s: %s", m.Name, out)
		all, err := readTree(m.Dir())
		must(t, err)
		// LXD's own loader gives what it unpacks other modes, and what stands in for it has those.
		now := all.sub("database").without(recordName).without("local.db").ofOneMode()
		if other != nil && m == wedged {
			if diff := now.differ(other, false); diff != "" {
				t.Errorf("the database is not what it is on %s, which was never wedged: %s", l.cluster.Member(3).Name, diff)
			}
		}

		if m == l.cluster.Member(3) {
			other = now
		}
	}

	for _, name := range []string{"global.recover", filepath.Base(wedged.LoadedTarball())} {
		wantThere(t, wedged, name, false)
	}

	out, err := wedged.Command(ctx, tool, "global-db-status").CombinedOutput()
	if err != nil || strings.Contains(string(out), "Problem") {
		t.Errorf("status: %v: %s", err, out)
	}

	must(t, l.cluster.StartAll(ctx))
	for _, m := range l.cluster.Members() {
		have, err := m.Profiles(ctx)
		must(t, err)
		for _, row := range l.rows {
			if !slices.Contains(have, row) {
				t.Errorf("%s has lost %s", m.Name, row)
			}
		}
	}

	must(t, wedged.CreateProfile(ctx, "written-after"))
	table.add("LXD's own loader killed, its tarball imported by us, real LXDs started", func(row *figures) {
		row.injected++
		row.new++
		row.again++
	})
}
