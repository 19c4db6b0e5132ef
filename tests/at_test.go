// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// A profile is deleted by accident, and noticed after other changes. The log says where; the export leaves out what came after it;
// once imported everywhere the profile is back on all members, at the addresses that were edited meanwhile.
func TestExportAt(t *testing.T) {
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	m := c.Member(1)
	lxc := func(args ...string) {
		_, err := m.LXC(ctx, args...)
		must(t, err)
	}
	must(t, c.MakeSnapshot(ctx))
	lxc("profile", "create", "precious")
	lxc("profile", "set", "precious", "user.why=kept")
	lxc("profile", "create", "bystander")
	lxc("profile", "delete", "precious")
	lxc("profile", "create", "later")
	killAlike(t, c, c.Members()...)

	all := entries(t, m.Dir(), "--rows")
	deleted, last := profileChange(t, all, "delete", "precious"), all[len(all)-1]
	at := fmt.Sprint(deleted - 1)
	snapshot := openLog(t, filepath.Join(m.Dir(), "database", "global")).Snapshot()
	check := unchanged(t, m.Dir())
	file := filepath.Join(t.TempDir(), "tarball")
	recoverTool(t, m, "cluster", "export-db", "--at", at, file).want(t, 3, "lxd cluster edit", "--unedited")
	recoverTool(t, m, "cluster", "export-db", "--unedited", "--at", at, file).want(t, 3, "no terminal", "--yes",
		fmt.Sprintf("index %d, term %d", deleted, last.Term), "delete profile precious in project default", "insert profile later in project default")
	recoverTool(t, m, "cluster", "export-db", "--unedited", "--at", fmt.Sprint(last.Index+1), file).want(t, 1, fmt.Sprintf("ends at index %d", last.Index))
	recoverTool(t, m, "cluster", "export-db", "--unedited", "--at", "0", file).want(t, 2, "--at needs an index")
	furthest := filepath.Join(t.TempDir(), "furthest") // libdqlite proves that a snapshot with nothing but the recovery entry after it will do
	mustRecover(t, m, "cluster", "export-db", "--unedited", "--yes", "--at", fmt.Sprint(snapshot.Index), furthest)
	if inside, status := inspectDir(t, furthest); status != 0 || inside.Raft.LastIndex != snapshot.Index+1 || inside.Raft.SnapshotIndex != snapshot.Index {
		t.Errorf("exit status %d, %+v", status, inside.Raft)
	}

	earlier := filepath.Join(t.TempDir(), "earlier") // the snapshot: from the beginning of the log, which is still there
	mustRecover(t, m, "cluster", "export-db", "--unedited", "--yes", "--at", fmt.Sprint(snapshot.Index-1), earlier)
	if inside, status := inspectDir(t, earlier); status != 0 || inside.Raft.LastIndex != snapshot.Index || inside.Raft.SnapshotIndex != 0 {
		t.Errorf("exit status %d, %+v", status, inside.Raft)
	}

	_, err := os.Lstat(file)
	if err == nil {
		t.Error("a refused export wrote its file")
	}

	check()

	old, moved := addresses(c.Members()), []string{}
	for _, address := range old {
		moved = append(moved, strings.Replace(address, ":8443", ":9393", 1))
	}

	must(t, m.EditReplace(ctx, ":8443", ":9393"))
	check = unchanged(t, m.Dir())
	nothing := mustRecover(t, m, "cluster", "export-db", "--at", fmt.Sprint(last.Index), filepath.Join(t.TempDir(), "x")) // nothing to confirm
	if strings.Contains(nothing.stdout, "given up") || strings.Contains(nothing.stdout, "--discard-local-entries") {
		t.Errorf("nothing is given up:\n%s", nothing.stdout)
	}

	r := mustRecover(t, m, "cluster", "export-db", "--at", at, "--yes", "-f", "json", file)
	report := decode[recovery.ExportReport](t, r)
	if report.Before.Index != deleted-1 || report.Raft.Index != deleted || report.Last.Index != last.Index+1 ||
		!report.Edited || !givesUp(report, deleted, "precious") {
		t.Errorf("report %+v", report)
	}

	r = mustRecover(t, m, "cluster", "export-db", "--at", at, "--yes", "--force", file)
	if !strings.Contains(r.stdout, "precious") || !strings.Contains(r.stdout, "--discard-local-entries") {
		t.Errorf("the export says\n%s", r.stdout)
	}

	check()
	if inside, status := inspectDir(t, file); status != 0 || inside.Raft.LastIndex != deleted || !inside.Raft.Edited || inside.Members[2].Address != moved[2] {
		t.Errorf("exit status %d, %+v", status, inside)
	}

	if names := sqlRows(t, file, "SELECT name FROM profiles ORDER BY name"); fmt.Sprint(names) != "[[bystander] [default] [precious]]" {
		t.Errorf("profiles in the tarball %v", names)
	}

	for _, member := range c.Members() {
		recoverTool(t, member, "global-db-import", "--yes", file).want(t, 3, "--discard-local-entries", "precious")
		mustRecover(t, member, "global-db-import", "--yes", "--discard-local-entries", file)
	}

	must(t, c.StartAll(ctx))
	wantRows(t, []string{"precious", "bystander"}, c.Members()...)
	wantWorking(t, c, moved, c.Members()...)
	for _, member := range c.Members() {
		rows, err := member.SQL(ctx, "SELECT c.value FROM profiles_config AS c JOIN profiles AS p ON p.id = c.profile_id WHERE p.name = 'precious'")
		if err != nil || fmt.Sprint(rows) != "[[kept]]" || slices.Contains(profiles(t, member), "later") {
			t.Errorf("%s: %v, %v, profiles %v", member.Name, err, rows, profiles(t, member))
		}
	}
}

// A profile is deleted, and a snapshot taken before that is noticed. Raft keeps the one before it, from which the log goes on: the
// cluster goes back to there.
func TestExportAtOlderSnapshot(t *testing.T) {
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	m := c.Member(1)
	must(t, c.MakeSnapshot(ctx))
	for _, command := range []string{"create", "delete"} {
		_, err := m.LXC(ctx, "profile", command, "precious")
		must(t, err)
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
	mustRecover(t, m, "cluster", "export-db", "--unedited", "--yes", "--force", "--at", fmt.Sprint(deleted-1), file)
	check()
	if inside, status := inspectDir(t, file); status != 0 || inside.Raft.LastIndex != deleted || inside.Raft.SnapshotIndex != older.Index {
		t.Errorf("exit status %d, %+v", status, inside.Raft)
	}

	for _, member := range c.Members() {
		mustRecover(t, member, "global-db-import", "--yes", "--discard-local-entries", file)
	}

	must(t, c.StartAll(ctx))
	wantRows(t, []string{"precious"}, c.Members()...)
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
func TestExportAtDamage(t *testing.T) {
	dir := unpackFixtures(t)
	for _, member := range []string{"n1-afteredit", "n1-preedit"} { // the fixtures have none; an export only takes its fingerprint
		must(t, os.WriteFile(filepath.Join(dir, "forgotten", member, "cluster.crt"), anyCertificate(t), 0o600))
	}

	export := func(member string, args ...string) result {
		cmd := exec.CommandContext(t.Context(), tool, append([]string{"cluster", "export-db"}, args...)...)
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
	file, offset, _ := lastCommand(t, openLog(t, global))
	f, err := os.OpenFile(filepath.Join(global, file), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{0xff}, offset+200)
	must(t, err)
	must(t, f.Close())
	before := tree(t, filepath.Dir(global))
	export("n1-preedit", "--at", "186", "--unedited", "--yes", tarball, "--force").want(t, 4, "--accept-damage")
	export("n1-preedit", "--at", "188", "--unedited", "--yes", "--accept-damage", tarball, "--force").want(t, 1, "ends at index 187")
	r := export("n1-preedit", "--at", "186", "--unedited", "--yes", "--accept-damage", tarball, "--force")
	if r.status != 0 || !strings.Contains(r.stdout, "lostrow") || !strings.Contains(r.stdout, "after index 187 the log is damaged") {
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
