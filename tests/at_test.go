// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// exportAtLab is what the steps of TestExportAt share.
type exportAtLab struct {
	c       *cluster.Cluster
	m       *cluster.Member       // the one that is exported
	deleted uint64                // the index at which the profile was deleted
	last    recovery.HistoryEntry // of the log, before it was edited
	moved   []string              // the addresses that it is edited to
	file    string                // the export
}

// A profile is deleted by accident, and noticed after other changes. The log says where; the export leaves out what came after it;
// once imported everywhere the profile is back on all members, at the addresses that were edited meanwhile.
func TestExportAt(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	m := c.Member(1)
	must(t, c.MakeSnapshot(ctx))
	lxc(t, m, "profile", "create", "precious")
	lxc(t, m, "profile", "set", "precious", "user.why=kept")
	lxc(t, m, "profile", "create", "bystander")
	lxc(t, m, "profile", "delete", "precious")
	lxc(t, m, "profile", "create", "later")
	killAlike(t, c, c.Members()...)

	all := entries(t, m.Dir(), "--rows")
	l := exportAtLab{c: c, m: m, deleted: profileChange(t, all, "delete", "precious"), last: all[len(all)-1],
		file: filepath.Join(t.TempDir(), "tarball")}
	check := unchanged(t, m.Dir())
	l.wantUneditedRefused(t)
	l.exportAtSnapshot(t)
	_, err := os.Lstat(l.file)
	if err == nil {
		t.Error("a refused export wrote its file")
	}

	check()

	for _, address := range addresses(c.Members()) {
		l.moved = append(l.moved, strings.Replace(address, ":8443", ":9393", 1))
	}

	must(t, m.EditReplace(ctx, ":8443", ":9393"))
	check = unchanged(t, m.Dir())
	l.exportAtEnd(t)
	l.exportBeforeDeletion(t)
	check()
	l.wantInTarball(t)
	for _, member := range c.Members() {
		recoverTool(t, member, "global-db-import", "--yes", l.file).want(t, 3, "--discard-local-entries", "precious")
		mustRecover(t, member, "global-db-import", "--yes", "--discard-local-entries", l.file)
	}

	must(t, c.StartAll(ctx))
	l.wantBack(t)
}

// exportAt is the export of what the member had at an index.
func (l exportAtLab) exportAt(t testing.TB, index uint64, args ...string) result {
	t.Helper()
	return recoverTool(t, l.m, append([]string{"cluster", "export-db", "--at", fmt.Sprint(index)}, args...)...)
}

// mustExportAt is exportAt that must succeed.
func (l exportAtLab) mustExportAt(t testing.TB, index uint64, args ...string) result {
	t.Helper()
	return mustRecover(t, l.m, append([]string{"cluster", "export-db", "--at", fmt.Sprint(index)}, args...)...)
}

func (l exportAtLab) wantUneditedRefused(t testing.TB) {
	t.Helper()
	l.exportAt(t, l.deleted-1, l.file).want(t, 3, "lxd-recover cluster edit", "--unedited")
	l.exportAt(t, l.deleted-1, "--unedited", l.file).want(t, 3, "no terminal", "--yes", fmt.Sprintf("index %d, term %d", l.deleted, l.last.Term),
		"delete profile precious in project default", "insert profile later in project default")
	l.exportAt(t, l.last.Index+1, "--unedited", l.file).want(t, 1, fmt.Sprintf("ends at index %d", l.last.Index))
	l.exportAt(t, 0, "--unedited", l.file).want(t, 2, "neither an index of the raft log")
}

// exportAtSnapshot exports the member as its snapshot has it, and one entry before that.
func (l exportAtLab) exportAtSnapshot(t testing.TB) {
	t.Helper()
	snapshot := openLog(t, globalOf(l.m)).Snapshot()
	furthest := filepath.Join(t.TempDir(), "furthest") // libdqlite proves that a snapshot with nothing but the recovery entry after it will do
	l.mustExportAt(t, snapshot.Index, "--unedited", "--yes", furthest)
	if inside, status := inspectDir(t, furthest); status != 0 || inside.Raft.LastIndex != snapshot.Index+1 || inside.Raft.SnapshotIndex != snapshot.Index {
		t.Errorf("exit status %d, %+v", status, inside.Raft)
	}

	// The snapshot: from the beginning of the log, which is still there. Others have such a snapshot, too, which no entry could take back.
	earlier := filepath.Join(t.TempDir(), "earlier")
	l.mustExportAt(t, snapshot.Index-1, "--unedited", "--yes", earlier)
	if inside, status := inspectDir(t, earlier); status != 0 || inside.Raft.LastIndex != inside.Raft.LastTerm || len(inside.Entries) != 0 {
		t.Errorf("exit status %d, %+v", status, inside.Raft)
	}
}

// exportAtEnd gives nothing up, and has nothing to confirm.
func (l exportAtLab) exportAtEnd(t testing.TB) {
	t.Helper()
	r := l.mustExportAt(t, l.last.Index, filepath.Join(t.TempDir(), "x"))
	if strings.Contains(r.stdout, "given up") || strings.Contains(r.stdout, "--discard-local-entries") {
		t.Errorf("nothing is given up:\n%s", r.stdout)
	}
}

func (l exportAtLab) exportBeforeDeletion(t testing.TB) {
	t.Helper()
	r := l.mustExportAt(t, l.deleted-1, "--yes", "-f", "json", l.file)
	report := decode[recovery.ExportReport](t, r)
	if report.Before.Index != l.deleted-1 || report.Raft.Index != l.deleted || report.Last.Index != l.last.Index+1 ||
		!report.Edited || !givesUp(report, l.deleted, "precious") {
		t.Errorf("report %+v", report)
	}

	r = l.mustExportAt(t, l.deleted-1, "--yes", "--force", l.file)
	if !strings.Contains(r.stdout, "precious") || !strings.Contains(r.stdout, "--discard-local-entries") {
		t.Errorf("the export says\n%s", r.stdout)
	}
}

func (l exportAtLab) wantInTarball(t testing.TB) {
	t.Helper()
	if inside, status := inspectDir(t, l.file); status != 0 || inside.Raft.LastIndex != l.deleted || !inside.Raft.Edited ||
		inside.Members[2].Address != l.moved[2] {
		t.Errorf("exit status %d, %+v", status, inside)
	}

	if names := sqlRows(t, l.file, "SELECT name FROM profiles ORDER BY name"); fmt.Sprint(names) != "[[bystander] [default] [precious]]" {
		t.Errorf("profiles in the tarball %v", names)
	}
}

// wantBack checks that the cluster works at its new addresses, and has what it had before the profile was deleted.
func (l exportAtLab) wantBack(t testing.TB) {
	t.Helper()
	wantRows(t, []string{"precious", "bystander"}, l.c.Members()...)
	wantWorking(t, l.c, l.moved, l.c.Members()...)
	for _, m := range l.c.Members() {
		rows, err := m.SQL(within(t, time.Minute),
			"SELECT c.value FROM profiles_config AS c JOIN profiles AS p ON p.id = c.profile_id WHERE p.name = 'precious'")
		if err != nil || fmt.Sprint(rows) != "[[kept]]" || slices.Contains(profiles(t, m), "later") {
			t.Errorf("%s: %v, %v, profiles %v", m.Name, err, rows, profiles(t, m))
		}
	}
}

// A profile is deleted, and a snapshot taken before that is noticed. Raft keeps the one before it, from which the log goes on: the
// cluster goes back to there.
func TestExportAtOlderSnapshot(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	m := c.Member(1)
	must(t, c.MakeSnapshot(ctx))
	for _, command := range []string{"create", "delete"} {
		lxc(t, m, "profile", command, "precious")
	}

	must(t, c.MakeSnapshot(ctx))
	killAlike(t, c, c.Members()...)

	global := globalOf(m)
	log := openLog(t, global)
	if len(log.Snapshots) < 2 {
		t.Fatalf("snapshots %+v", log.Snapshots)
	}

	older, newest := log.Snapshots[len(log.Snapshots)-2], log.Snapshot()
	for _, s := range log.Segments { // as raft removes them when its log is longer
		if !s.Open && s.Last <= older.Index {
			must(t, os.Remove(filepath.Join(global, s.File)))
		}
	}

	deleted := profileChange(t, entries(t, m.Dir(), "--rows"), "delete", "precious")
	if deleted <= older.Index || deleted > newest.Index {
		t.Fatalf("deleted at index %d, snapshots at %d and %d", deleted, older.Index, newest.Index)
	}

	check := unchanged(t, m.Dir())
	file := filepath.Join(t.TempDir(), "tarball")
	recoverTool(t, m, "cluster", "export-db", "--unedited", "--at", fmt.Sprint(older.Index-1), file).want(t, 1,
		fmt.Sprintf("reaches no further back than index %d", older.Index))
	wantMissing(t, file)
	mustRecover(t, m, "cluster", "export-db", "--unedited", "--yes", "--at", fmt.Sprint(older.Index), file)
	out := mustRecover(t, m, "cluster", "export-db", "--unedited", "--yes", "--force", "--format", "json", "--at", fmt.Sprint(deleted-1), file)
	check()
	wantGivenUp(t, out.stdout, entries(t, m.Dir(), "--rows"), deleted)
	if inside, status := inspectDir(t, file); status != 0 || inside.Raft.LastIndex != inside.Raft.LastTerm || len(inside.Entries) != 0 {
		t.Errorf("exit status %d, %+v", status, inside.Raft)
	}

	// The newest snapshot is beyond what is exported: so the fence is a snapshot, which brings a member along that is forgotten and has
	// such a snapshot itself.
	for _, member := range c.Members()[:2] {
		mustRecover(t, member, "global-db-import", "--yes", "--discard-local-entries", file)
	}

	must(t, c.StartAll(ctx))
	wantRows(t, []string{"precious"}, c.Members()...)
	createRow(t, m, "after")
	wantCaughtUp(t, c, []string{"precious", "after"})
}

// givesUp tells whether a report names a deleted profile at an index, and entries after it only.
func givesUp(report recovery.ExportReport, index uint64, name string) bool {
	found := false
	for _, d := range report.GivenUp {
		if d.Index < index {
			return false
		}

		for _, row := range d.Rows {
			found = found || d.Index == index && row.Table == "profiles" && row.After == nil && row.Before["name"] == "'"+name+"'"
		}
	}

	return found
}

// A damaged tail on LXD 6.9's own directory: it takes --accept-damage to go back to before it, and what cannot be told is said.
// wantGivenUp checks that an export's report names exactly the transactions from an index on, each with the rows that the log tells.
func wantGivenUp(t *testing.T, report string, log []recovery.HistoryEntry, from uint64) {
	t.Helper()
	var r recovery.ExportReport
	must(t, json.Unmarshal([]byte(report), &r))
	given := map[uint64]recovery.Discarded{}
	for _, d := range r.GivenUp {
		given[d.Index] = d
	}

	count := 0
	for _, e := range log {
		if e.Index < from || e.Pages == 0 {
			continue
		}

		count++
		d, ok := given[e.Index]
		if !ok || d.Term != e.Term || d.Unknown != e.Unknown || !reflect.DeepEqual(d.Rows, append([]globaldb.RowChange{}, e.Rows...)) {
			t.Errorf("index %d is given up as %v, the log says %v", e.Index, d, e.Rows)
		}
	}

	if count != len(r.GivenUp) || count == 0 {
		t.Errorf("%d transactions are given up, the log has %d", len(r.GivenUp), count)
	}
}

func TestExportAtDamage(t *testing.T) {
	dir := unpackFixtures(t)
	for _, member := range []string{"n1-afteredit", "n1-preedit"} { // the fixtures have none; an export only takes its fingerprint
		must(t, os.WriteFile(filepath.Join(dir, "forgotten", member, "cluster.crt"), anyCertificate(t), 0o600))
	}

	export := func(member string, args ...string) result {
		cmd := exec.CommandContext(t.Context(), tool, append([]string{"cluster", "export-db", "--unsigned"}, args...)...)
		cmd.Env = append(os.Environ(), "LXD_DIR="+filepath.Join(dir, "forgotten", member))
		return run(t, cmd)
	}
	tarball := filepath.Join(t.TempDir(), "tarball")
	if r := export("n1-afteredit", "--at", "187", "--yes", tarball); r.status != 0 || !strings.Contains(r.stdout, "lostrow2") {
		t.Errorf("LXD 6.9: %+v", r)
	}

	if names := sqlRows(t, tarball, "SELECT name FROM profiles WHERE name LIKE 'lostrow%'"); fmt.Sprint(names) != "[[lostrow]]" {
		t.Errorf("profiles in the tarball %v", names)
	}

	export("n1-afteredit", "--at", "30", "--yes", tarball, "--force").want(t, 1, "joined the cluster after index 30")
	export("n1-afteredit", "--at", "1", "--yes", tarball, "--force").want(t, 1, "at index 1 there was no database yet")

	global := filepath.Join(dir, "forgotten", "n1-preedit", "database", "global")
	damageLast(t, global)
	before := tree(t, filepath.Dir(global))
	export("n1-preedit", "--at", "186", "--unedited", "--yes", tarball, "--force").want(t, 4, "--accept-damage")
	export("n1-preedit", "--at", "188", "--unedited", "--yes", "--accept-damage", tarball, "--force").want(t, 1, "sound up to index 187 only")
	r := export("n1-preedit", "--at", "186", "--unedited", "--yes", "--accept-damage", tarball, "--force")
	if r.status != 0 || !strings.Contains(r.stdout, "lostrow") || !strings.Contains(r.stdout, "1 entry, index 188, in open-1") {
		t.Errorf("damaged: %+v", r)
	}

	if tree(t, filepath.Dir(global)) != before {
		t.Error("the damaged directory was changed")
	}
}

// anyCertificate makes a certificate for nothing in particular.
func anyCertificate(t testing.TB) []byte {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
