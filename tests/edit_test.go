// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
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
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// listOf is what `lxd cluster show` prints of a member that is down, with pairs of old and new strings replaced.
func listOf(t testing.TB, m *cluster.Member, oldnew ...string) []byte {
	t.Helper()
	list, err := m.ShowYAML(t.Context())
	must(t, err)
	for i := 0; i < len(oldnew); i += 2 {
		if !bytes.Contains(list, []byte(oldnew[i])) {
			t.Fatalf("%q is not in %s", oldnew[i], list)
		}
	}

	return []byte(strings.NewReplacer(oldnew...).Replace(string(list)))
}

// edit runs our `cluster edit` on a member with a list on standard input.
func edit(t testing.TB, m *cluster.Member, list []byte, args ...string) result {
	t.Helper()
	cmd := m.Command(t.Context(), tool, append([]string{"cluster", "edit"}, args...)...)
	cmd.Stdin = bytes.NewReader(list)
	return run(t, cmd)
}

// mustEdit is edit that must succeed.
func mustEdit(t testing.TB, m *cluster.Member, list []byte, args ...string) recovery.EditReport {
	t.Helper()
	r := edit(t, m, list, append(args, "--format", "json")...)
	if r.status != 0 {
		t.Fatalf("edit on %s: exit status %d: %s", m.Name, r.status, r.stderr)
	}

	return decode[recovery.EditReport](t, r)
}

// downCluster forms a cluster with some rows before and after a snapshot, kills it, and saves it as "down".
func downCluster(t testing.TB, lxd cluster.LXD) (c *cluster.Cluster, rows []string) {
	t.Helper()
	c = cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 2*time.Minute)
	rows = []string{"before-snapshot", "after-snapshot", "last"}
	must(t, c.Member(1).CreateProfile(ctx, rows[0]))
	must(t, c.MakeSnapshot(ctx))
	for _, row := range rows[1:] {
		must(t, c.Member(1).CreateProfile(ctx, row))
	}

	c.KillAll()
	must(t, c.Save(ctx, "down"))
	return c, rows
}

func globalOf(m *cluster.Member) string { return filepath.Join(m.Dir(), "database", "global") }

// Our edit, and the way from there to a cluster that works, on one cluster that is restored before each part.
func TestEdit(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, editInParts)
}

// editLab is what the parts of TestEdit share: a cluster that is down, and was saved as "down".
type editLab struct {
	lxd  cluster.LXD
	c    *cluster.Cluster
	one  *cluster.Member
	rows []string // that the cluster must have in the end
}

func editInParts(t *testing.T, lxd cluster.LXD) {
	c, rows := downCluster(t, lxd)
	l := editLab{lxd: lxd, c: c, one: c.Member(1), rows: rows}
	fromDown(t, c, "new addresses", l.newAddresses)
	fromDown(t, c, "twice, at the old addresses in the end", l.twice)
	fromDown(t, c, "by LXD's own command", l.byLXD)
	fromDown(t, c, "rolled back", l.rolledBack)
	fromDown(t, c, "where a tarball of LXD's own lies", l.overTarball)
	fromDown(t, c, "damaged, accepted", l.damageAccepted)
	fromDown(t, c, "beside another member's daemon", l.besideOther)
	fromDown(t, c, "the only survivor", l.onlySurvivor)
}

// fromDown runs a subtest on a cluster that is as it was when it was saved as "down".
func fromDown(t *testing.T, c *cluster.Cluster, name string, do func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		must(t, c.Restore(within(t, time.Minute), "down"))
		do(t)
	})
}

func (l editLab) newAddresses(t *testing.T) {
	old, moved := addresses(l.c.Members()), []string{}
	for _, m := range l.c.Members() {
		ip := strings.Replace(m.IP(), "10.77.0.", "10.77.1.", 1)
		must(t, m.AddAddress(t.Context(), ip+"/16"))
		moved = append(moved, ip+":9393")
	}

	before := entriesOf(t, globalOf(l.one), 0)
	begin := time.Now()
	r := mustEdit(t, l.one, listOf(t, l.one, old[0], moved[0], old[1], moved[1], old[2], moved[2]))
	if !r.Done || r.Member.Address != moved[0] || len(r.Members) != 3 || r.Before.Index != uint64(len(before)) || r.Raft.Index != r.Before.Index+1 {
		t.Errorf("report %+v, %d entries before", r, len(before))
	}

	wantFenced(t, l.one, before, begin)
	wantModes(t, l.one, r.Kept)
	s := status(t, l.one)
	if s.Edit == nil || s.Edit.Raft != r.Raft || s.Import != nil || !s.Edited || len(s.Kept) != 1 || s.Kept[0].Purpose != "edit" || len(s.Pending) != 1 {
		t.Errorf("status %+v", s)
	}

	l.goesOn(t)
	wantWorking(t, l.c, moved, l.c.Members()...)
}

func (l editLab) twice(t *testing.T) {
	mustEdit(t, l.one, listOf(t, l.one, ":8443", ":9393"))
	r := mustEdit(t, l.one, listOf(t, l.one, ":9393", ":8443"))
	if again := mustEdit(t, l.one, listOf(t, l.one)); !again.NothingToDo || again.Done || again.Raft != r.Raft || again.Kept != r.Kept {
		t.Errorf("the same list again: %+v", again)
	}

	if s := status(t, l.one); !s.Agree || len(s.Kept) != 2 || len(s.Pending) > 0 {
		t.Errorf("status %+v", s)
	}

	l.goesOn(t)
}

func (l editLab) byLXD(t *testing.T) {
	before, term := tree(t, filepath.Join(l.one.Dir(), "database")), uint64(1)
	if l.lxd.KeepsTerm {
		term = openLog(t, globalOf(l.one)).LastTerm
	}

	r := mustEdit(t, l.one, listOf(t, l.one, ":8443", ":9393"), "--passthrough")
	if !r.Done || tree(t, r.Kept) != before {
		t.Errorf("the copy is not the database as it was: %+v", r)
	}

	wantMissing(t, l.one.LoadedTarball()) // LXD would not start with it
	if (r.Tarball != "") != l.lxd.WritesTarball {
		t.Errorf("%s, and the report has the tarball %q", l.lxd.Name, r.Tarball)
	}

	if log := openLog(t, globalOf(l.one)); log.LastTerm != term || !log.Edited {
		t.Errorf("not LXD's own edit: it ends with term %d", log.LastTerm)
	}

	l.goesOn(t)
}

// goesOn goes the way from the edited first member to a cluster that has all its rows.
func (l editLab) goesOn(t *testing.T) {
	t.Helper()
	importOn(t, export(t, l.one), l.c.Members()...)
	must(t, l.c.StartAll(t.Context()))
	wantRows(t, l.rows, l.c.Members()...)
}

func (l editLab) rolledBack(t *testing.T) {
	before := tree(t, filepath.Join(l.one.Dir(), "database"))
	mustEdit(t, l.one, listOf(t, l.one, ":8443", ":9393"))
	mustRecover(t, l.one, "global-db-rollback", "--yes")
	if after := tree(t, filepath.Join(l.one.Dir(), "database")); after != before {
		t.Errorf("after the rollback:\n%s\n--- before\n%s", after, before)
	}
}

func (l editLab) overTarball(t *testing.T) {
	name := "lxd_recovery_db.tar.gz"
	must(t, os.WriteFile(filepath.Join(l.one.Dir(), "database", name), []byte("LXD's"), 0o600))
	r := mustEdit(t, l.one, listOf(t, l.one, ":8443", ":9393"))
	wantMissing(t, filepath.Join(l.one.Dir(), "database", name))
	if data, err := os.ReadFile(filepath.Join(r.Kept, name)); err != nil || string(data) != "LXD's" {
		t.Errorf("the kept directory has %q (%v)", data, err)
	}
}

func (l editLab) damageAccepted(t *testing.T) {
	whole := entriesOf(t, globalOf(l.one), 0) // another member may have taken its snapshots elsewhere
	index := damageLast(t, globalOf(l.one))
	list := listOf(t, l.c.Member(2))
	check := unchanged(t, l.one.Dir())
	edit(t, l.one, list).want(t, 4, "damaged", "--accept-damage", fmt.Sprintf("up to index %d", index-1))
	check()
	begin := time.Now()
	r := mustEdit(t, l.one, list, "--accept-damage")
	if r.Before.Index != index-1 || r.Raft.Index != index || len(r.Damage) == 0 {
		t.Errorf("report %+v, damaged at %d", r, index)
	}

	wantFenced(t, l.one, whole[:index-1], begin)
}

// besideOther has edits of the first member refused because LXD runs on the second one, which proves by its certificate that it
// belongs to the cluster.
func (l editLab) besideOther(t *testing.T) {
	two, product := l.c.Member(2), l.lxd.Names.Product
	good := listOf(t, l.one, ":8443", ":9393")
	must(t, two.Spawn())
	defer two.Kill()
	check := unchanged(t, l.one.Dir())
	waitRefused(t, l.one) // until it listens
	edit(t, l.one, good).want(t, 3, product+" still runs on node2", two.Address(), "--beside-cluster")
	recoverTool(t, l.one, "cluster", "recover-from-quorum-loss", "--quiet").want(t, 3, product+" runs on node2", "lxd-recover cluster edit", "--beside-cluster")
	edit(t, l.one, good, "--passthrough").want(t, 3, product+" still runs on node2")

	// One that hangs takes connections all the same: it is no less there.
	must(t, unix.Kill(two.Pid(), unix.SIGSTOP))
	edit(t, l.one, good).want(t, 3, "node2 ("+two.Address()+") is up", "does not answer", "--beside-cluster")
	must(t, unix.Kill(two.Pid(), unix.SIGCONT))
	check()
	mustEdit(t, l.one, good, "--beside-cluster")
}

// onlySurvivor recovers the first member alone, starts LXD on it, and removes the others.
func (l editLab) onlySurvivor(t *testing.T) {
	ctx := within(t, 2*time.Minute)
	one := l.one
	check := unchanged(t, one.Dir())
	recoverTool(t, one, "cluster", "recover-from-quorum-loss").want(t, 3, "no terminal", "--quiet")
	check()
	r := decode[recovery.EditReport](t, mustRecover(t, one, "cluster", "recover-from-quorum-loss", "--quiet", "--format", "json"))
	log := openLog(t, globalOf(one))
	if !r.Done || len(log.Configuration) != 1 || log.Configuration[0].ID != 1 || log.Configuration[0].Role != raftlog.Voter {
		t.Errorf("report %+v, configuration %+v", r, log.Configuration)
	}

	if said := strings.Join(r.Warnings, "\n"); !strings.Contains(said, "node2, node3, must never start "+l.lxd.Names.Product+" on their old databases") {
		t.Errorf("warnings %q", said)
	}

	again := decode[recovery.EditReport](t, mustRecover(t, one, "cluster", "recover-from-quorum-loss", "--quiet", "--format", "json"))
	if !again.NothingToDo {
		t.Errorf("again: %+v", again)
	}

	must(t, one.Start(ctx))
	wantRows(t, l.rows, one)
	for _, lost := range l.c.Members()[1:] {
		lxc(t, one, "cluster", "remove", "--force", "--yes", lost.Name)
	}

	must(t, l.c.WaitOnline(ctx, 1))
	list, err := one.List(ctx)
	must(t, err)
	if len(list) != 1 || list[0].Name != one.Name || cluster.CountRoles(list).Voters != 1 {
		t.Errorf("members %+v", list)
	}

	must(t, one.CreateProfile(ctx, "after"))
}

// entriesOf reads the entries of a log, from an index on, each as text that says all of it.
func entriesOf(t testing.TB, global string, from uint64) []string {
	t.Helper()
	log := openLog(t, global)
	entries := make([]string, max(log.FirstIndex, 1)-1) // those that only the snapshot has
	for entry, err := range log.Entries(t.Context(), from) {
		must(t, err)
		entries = append(entries, fmt.Sprintf("%d %d %s %x", entry.Index, entry.Term, entry.Type, entry.Data))
	}

	return entries
}

// wantFenced checks an edited directory: the entries before are as they were, and the last one has a term that no survivor can
// have, which is the one in the metadata, too. It is what libdqlite reads.
func wantFenced(t testing.TB, m *cluster.Member, before []string, begin time.Time) {
	t.Helper()
	log := openLog(t, globalOf(m))
	entries := entriesOf(t, globalOf(m), 0)
	lacking := int(max(log.FirstIndex, 1)) - 1
	if len(entries) != len(before)+1 || len(entries) <= lacking || !slices.Equal(entries[lacking:len(before)], before[lacking:]) {
		t.Errorf("%s: %d entries became %d, or others", m.Name, len(before), len(entries))
	}

	if log.LastTerm < uint64(begin.UnixMilli()) || log.LastTerm != log.MaxTerm || log.LastTerm != log.Term {
		t.Errorf("%s: last term %d, highest %d, current %d, edited at %d", m.Name, log.LastTerm, log.MaxTerm, log.Term, begin.UnixMilli())
	}

	for _, meta := range log.Metadata {
		if meta == nil || meta.Term != log.LastTerm || meta.Vote != 0 {
			t.Errorf("%s: metadata %+v", m.Name, meta)
		}
	}

	r, exit := inspectDir(t, m.Dir())
	if exit != 0 || !r.Healthy || !r.Raft.Edited || len(r.Libdqlite.Actions) > 0 {
		t.Errorf("%s: exit status %d, %+v", m.Name, exit, r)
	}

	wantAsLibdqlite(t, globalOf(m))
}

// wantModes checks that nobody can read more of an edited database than of the one before, and that it has the same owner.
func wantModes(t testing.TB, m *cluster.Member, kept string) {
	t.Helper()
	old, err := os.Stat(kept)
	must(t, err)
	err = filepath.WalkDir(filepath.Join(m.Dir(), "database"), func(path string, e fs.DirEntry, err error) error {
		must(t, err)
		info, err := e.Info()
		must(t, err)
		was, err := os.Lstat(strings.Replace(path, filepath.Join(m.Dir(), "database"), kept, 1))
		if err == nil && info.Mode()&^was.Mode() != 0 || err != nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %s", path, info.Mode())
		}

		if a, b := info.Sys().(*syscall.Stat_t), old.Sys().(*syscall.Stat_t); a.Uid != b.Uid || a.Gid != b.Gid {
			t.Errorf("%s is of %d:%d", path, a.Uid, a.Gid)
		}

		return nil
	})
	must(t, err)
}

// damageLast flips bits in the newest transaction of a log and returns its index.
func damageLast(t testing.TB, global string) uint64 {
	t.Helper()
	file, offset, index := lastCommand(t, openLog(t, global))
	flip(t, filepath.Join(global, file), offset+200)
	return index
}

func flip(t testing.TB, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	var b [1]byte
	_, err = f.ReadAt(b[:], offset)
	must(t, err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b[:], offset)
	must(t, errors.Join(err, f.Close()))
}

// editRefusalLab is what the cases of TestEditRefusals share: a cluster that is down, and was saved as "down".
type editRefusalLab struct {
	c    *cluster.Cluster
	one  *cluster.Member
	good []byte // a list that the first member's edit takes
}

// Everything else that an edit must refuse: the message, the exit status, and that nothing was changed.
func TestEditRefusals(t *testing.T) {
	lxd, err := cluster.Debian() // what is refused is no LXD's business
	must(t, err)
	c, _ := downCluster(t, lxd)
	one := c.Member(1)
	l := editRefusalLab{c: c, one: one, good: listOf(t, one, ":8443", ":9393")}
	for _, bad := range l.badLists() {
		t.Run(bad.name, func(t *testing.T) {
			list := bad.list(t, l.good)
			check := unchanged(t, one.Dir())
			edit(t, one, list).want(t, 1, "standard input", bad.says)
			check()
		})
	}

	t.Run("wrong usage", l.wrongUsage)
	t.Run("this member's daemon runs", l.besideOwnDaemon)
	fromDown(t, c, "spare made voter", l.spareMadeVoter)
	fromDown(t, c, "damaged snapshot", l.damagedSnapshot)
	fromDown(t, c, "no cluster certificate", l.noCertificate)
}

// badList is a list of members that an edit must refuse, and what it says of it.
type badList struct {
	name    string
	oldnew  []string // in the good list
	instead []byte   // of the good list
	says    string
}

func (l editRefusalLab) badLists() []badList {
	good, one, two := l.good, l.one, l.c.Member(2)
	return []badList{
		{"no address", []string{two.IP() + ":9393", "bogus"}, nil, `"bogus" is not HOST:PORT`},
		{"no port", []string{two.IP() + ":9393", two.IP() + ":0"}, nil, "no port from 1 to 65535"},
		{"one address twice", []string{two.IP(), one.IP()}, nil, "have the same address " + one.IP() + ":9393"},
		{"another id", []string{"id: 2", "id: 7"}, nil, "no member has the id 7"},
		{"one id twice", []string{"id: 2", "id: 1"}, nil, "names cannot be changed"},
		{"another name", []string{"name: node2", "name: other"}, nil, `named "node2", not "other"`},
		{"unknown role", []string{"role: voter", "role: king"}, nil, "king"},
		{"no voter", []string{"role: voter", "role: stand-by"}, nil, "no member has the role"},
		{"unknown field", []string{"role: voter", "rule: voter"}, nil, "rule"},
		{"member missing", nil, good[:bytes.Index(good, []byte("- id: 3"))], "has 2 members and had 3"},
		{"member added", nil, append(slices.Clone(good), "- id: 4\n  name: node4\n  address: 10.0.0.4:8443\n  role: spare\n"...), "has 4 members and had 3"},
		{"nothing", nil, []byte{}, "is empty"},
		{"another document", nil, []byte("- one\n- two\n"), "not a list of members"},
		{"junk", nil, []byte("\x00\x01\xff\xfe{[[["), "not a list of members"},
	}
}

func (b badList) list(t testing.TB, good []byte) []byte {
	t.Helper()
	if b.instead != nil {
		return b.instead
	}

	list := []byte(strings.NewReplacer(b.oldnew...).Replace(string(good)))
	if bytes.Equal(list, good) {
		t.Fatalf("%q is not in %s", b.oldnew, good)
	}

	return list
}

func (l editRefusalLab) wrongUsage(t *testing.T) {
	check := unchanged(t, l.one.Dir())
	edit(t, l.one, l.good, "node1").want(t, 2)
	edit(t, l.one, l.good, "--nonsense").want(t, 2)
	check()
}

func (l editRefusalLab) besideOwnDaemon(t *testing.T) {
	besideStarted(t, l.one, func() {
		edit(t, l.one, l.good).want(t, 1, "LXD is running", "pid "+strconv.Itoa(l.one.Pid()), "stop it first")
		recoverTool(t, l.one, "cluster", "recover-from-quorum-loss", "--quiet").want(t, 1, "LXD is running")
	})
}

func (l editRefusalLab) spareMadeVoter(t *testing.T) {
	mustEdit(t, l.one, setRoles(l.good, "voter", "voter", "spare"))
	check := unchanged(t, l.one.Dir())
	edit(t, l.one, setRoles(l.good, "spare", "voter", "voter")).want(t, 3, "node1 is this member", "--any-role")
	check()
	r := mustEdit(t, l.one, l.good) // the log says that node3 has had a database
	if !r.Done || r.Members[2].OldRole != "spare" || r.Members[2].NewRole != "voter" {
		t.Errorf("%+v", r)
	}
}

func (l editRefusalLab) damagedSnapshot(t *testing.T) {
	snapshot := openLog(t, globalOf(l.one)).Snapshot()
	flip(t, filepath.Join(globalOf(l.one), snapshot.File), snapshot.Size/2)
	check := unchanged(t, l.one.Dir())
	edit(t, l.one, l.good).want(t, 4, "damaged", snapshot.File)
	edit(t, l.one, l.good, "--passthrough").want(t, 4, "damaged", snapshot.File)
	recoverTool(t, l.one, "cluster", "recover-from-quorum-loss", "--quiet").want(t, 4, "damaged")
	check()
}

func (l editRefusalLab) noCertificate(t *testing.T) {
	must(t, os.Remove(filepath.Join(l.one.Dir(), "cluster.crt")))
	check := unchanged(t, l.one.Dir())
	edit(t, l.one, l.good).want(t, 1, "cluster.crt is missing", "from another member")
	check()
}

// waitRefused waits until an edit is refused because of another member's daemon. The list that it is given could never be used.
func waitRefused(t testing.TB, m *cluster.Member) {
	t.Helper()
	ctx := within(t, time.Minute)
	for edit(t, m, nil).status != 3 {
		select {
		case <-ctx.Done():
			t.Fatal("the other member's daemon never listened")
		case <-time.After(50 * time.Millisecond):
		}
	}
}
