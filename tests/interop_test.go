// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// lxd6 is LXD 6.6, the one that writes and loads recovery tarballs of its own.
func lxd6(t testing.TB) cluster.LXD {
	t.Helper()
	lxd, err := cluster.LXD6()
	must(t, err)
	return lxd
}

// newPort are the addresses of members that have kept their IPs.
func newPort(members []*cluster.Member) []string {
	var all []string
	for _, m := range members {
		all = append(all, m.IP()+":9393")
	}

	return all
}

// LXD 6.6 and lxd-recover on one cluster: who made the tarball, and who takes it, is all one.
func TestInterop(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	c := cluster.ForTest(t, cluster.Options{LXD: lxd6(t)})
	ctx := within(t, 10*time.Minute)
	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	must(t, one.CreateProfile(ctx, "before-snapshot"))
	must(t, c.MakeSnapshot(ctx))
	must(t, one.CreateProfile(ctx, "kept"))
	rows := []string{"before-snapshot", "kept"}
	c.KillAll()
	must(t, one.EditReplace(ctx, ":8443", ":9393"))
	must(t, c.Save(ctx, "edited"))
	ours := export(t, one)
	part := func(name string, do func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			must(t, c.Restore(ctx, "edited"))
			do(t)
			startTogether(t, c)
			wantRows(t, rows, c.Members()...)
			wantWorking(t, c, newPort(c.Members()), c.Members()...)
			wantCaughtUp(t, c, rows)
			for _, m := range c.Members() {
				wantMissing(t, m.LoadedTarball()) // LXD has loaded it
				if log := openLog(t, globalOf(m)); log.Term < uint64(begin.Unix()) {
					t.Errorf("%s is at term %d: the cluster is not fenced", m.Name, log.Term)
				}
			}
		})
	}

	part("LXD's own tarball, imported by us", func(t *testing.T) {
		recoverTool(t, two, "global-db-import", "--yes", one.OwnTarball()).want(t, 3, "is not signed", "--unsigned")
		importOwn(t, one.OwnTarball(), c.Members()...)
	})
	part("our tarball, loaded by LXD at its start", func(t *testing.T) {
		place(t, ours, two)
		place(t, ours, three)
	})
	part("our tarball, imported by us on two, loaded by LXD on the third", func(t *testing.T) {
		importOn(t, ours, one, two)
		place(t, ours, three)
	})
	part("LXD's own tarball, imported by us on two, loaded by LXD on the third", func(t *testing.T) {
		importOwn(t, one.OwnTarball(), one, two)
		place(t, one.OwnTarball(), three)
	})
}

// place puts a tarball where LXD loads it from when it starts.
func place(t testing.TB, tarball string, m *cluster.Member) {
	t.Helper()
	data, err := os.ReadFile(tarball)
	must(t, err)
	must(t, os.WriteFile(m.LoadedTarball(), data, 0o600))
}

// importOwn imports a tarball of LXD's own on members. All must make the same files of it: each fences it by itself.
func importOwn(t testing.TB, tarball string, members ...*cluster.Member) {
	t.Helper()
	var first string
	for _, m := range members {
		r := decode[recovery.ImportReport](t, mustRecover(t, m, "global-db-import", "--yes", "--unsigned", "--format", "json", tarball))
		if len(r.Unchecked) == 0 || r.Signature != recovery.SignatureNone || r.Raft.Term < 1000 {
			t.Errorf("%s: %+v", m.Name, r)
		}

		files := contents(t, globalOf(m))
		if first == "" {
			first = files
		}

		if files != first {
			t.Errorf("%s has other files than %s:\n%s\n%s", m.Name, members[0].Name, files, first)
		}
	}
}

// contents names the files of a directory with their sums.
func contents(t testing.TB, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `cd "$1" && sha256sum *`, "sh", dir).Output()
	must(t, err)
	return string(out)
}

// The tarball of LXD 6.6 on members of LXD 5.0.2. The database of a 6.6 cluster is no matter for them, and refused. But a 5.0.2
// cluster that is recovered with a newer LXD, as after a failed upgrade, has such a tarball with a database of its own: it is
// imported, and libdqlite 1.11 goes on with what libdqlite 1.18 has written.
func TestImportTarballOfNewerLXD(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	one := c.Member(1)
	must(t, one.CreateProfile(ctx, "kept"))
	c.KillAll()
	must(t, c.Save(ctx, "down"))
	tarball := editedBy(t, lxd6(t), one)
	must(t, c.Restore(ctx, "down")) // without what the newer LXD has made of the first member's node database
	importOwn(t, tarball, c.Members()...)
	must(t, c.StartAll(ctx))
	wantRows(t, []string{"kept"}, c.Members()...)
	wantWorking(t, c, newPort(c.Members()), c.Members()...)
	c.KillAll()

	newer := cluster.ForTest(t, cluster.Options{LXD: lxd6(t)})
	newer.KillAll()
	must(t, newer.Member(1).EditReplace(ctx))
	for _, m := range c.Members() {
		check := unchanged(t, m.Dir())
		recoverTool(t, m, "global-db-import", "--yes", "--unsigned", newer.Member(1).OwnTarball()).want(t, 1,
			"this tarball is not for this member", "does not know this member's certificate")
		check()
	}
}

// editedBy runs another LXD's `cluster edit` on a member that is down, for new ports, and returns the tarball that it writes.
func editedBy(t testing.TB, lxd cluster.LXD, m *cluster.Member) string {
	t.Helper()
	cmd := m.Command(t.Context(), filepath.Join(lxd.BinDir, "lxd"), "cluster", "edit")
	cmd.Stdin = bytes.NewReader(listOf(t, m, ":8443", ":9393"))
	if r := run(t, cmd); r.status != 0 {
		t.Fatalf("%s: exit status %d", lxd.Name, r.status)
	}

	tarball := filepath.Join(t.TempDir(), "lxd_recovery_db.tar.gz")
	must(t, os.Rename(m.LoadedTarball(), tarball))
	return tarball
}
