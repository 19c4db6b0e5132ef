// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// compareFixtures are the members of a real LXD 6.9 cluster: the third one was forgotten, and lacks two rows of the others.
type compareFixtures struct{ dir, n1, n2, n3 string }

// The fixtures, of LXD 6.9: directories, tarballs, saved reports, and any mix.
func TestCompareFixtures(t *testing.T) {
	dir := unpackFixtures(t)
	f := compareFixtures{dir: dir}
	f.n1, f.n2, f.n3 = f.at("forgotten/n1-preedit"), f.at("forgotten/n2-preedit"), f.at("forgotten/n3-preedit")
	before := tree(t, dir)
	f.compareAll(t)
	f.compareReports(t)
	f.compareEdited(t)
	f.compareTooFew(t)
	if tree(t, dir) != before {
		t.Error("the sources were changed")
	}

	f.compareDamaged(t)
	f.compareKept(t)
	f.compareBackup(t)
	run(t, exec.Command(tool, "global-db-compare", f.n1, filepath.Join(dir, "nothing"))).want(t, 1, "nothing")
	run(t, exec.Command(tool, "global-db-compare", f.n1)).want(t, 2, "global-db-compare --help")
}

func (f compareFixtures) at(name string) string { return filepath.Join(f.dir, name) }

// copyAs copies a fixture to a name of its own among them.
func (f compareFixtures) copyAs(t testing.TB, source, name string) string {
	t.Helper()
	out, err := exec.Command("cp", "-a", source, f.at(name)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	return f.at(name)
}

// wantLost checks what choosing the third member would lose.
func (f compareFixtures) wantLost(t testing.TB, r recovery.CompareReport) {
	t.Helper()
	lost := []string{"delete profile lostrow in project default", "delete profile lostrow2 in project default"}
	if got := changesOf(t, r, "node3"); !slices.Equal(got, lost) {
		t.Errorf("choosing node3 would %q", got)
	}
}

// compareAll compares all three. A report that it is to save beside one that is there already is refused, and so are the others.
func (f compareFixtures) compareAll(t testing.TB) {
	t.Helper()
	survivors := filepath.Join(t.TempDir(), "survivors")
	r, status := compareSources(t, "--export-survivors", survivors, f.n3, f.n2, f.n1)
	wantRecommended(t, r, status, "node1", "node2")
	f.wantLost(t, r)
	if r.Common != 186 || r.Committed != 188 || len(r.Branches) > 0 || len(r.Uncertain) > 0 {
		t.Errorf("common %d, committed %d, branches %v, uncertain %v", r.Common, r.Committed, r.Branches, r.Uncertain)
	}

	must(t, os.Remove(filepath.Join(survivors, "node3.json")))
	run(t, exec.Command(tool, "global-db-compare", "--export-survivors", survivors, f.n3, f.n2)).want(t, 1, "node2.json exists already")
	wantMissing(t, filepath.Join(survivors, "node3.json"))
}

// compareReports compares what global-db-compare itself has saved of the members.
func (f compareFixtures) compareReports(t testing.TB) {
	t.Helper()
	survivors := filepath.Join(t.TempDir(), "again")
	compareSources(t, "--export-survivors", survivors, f.n3, f.n2, f.n1)
	reports := []string{filepath.Join(survivors, "node1.json"), filepath.Join(survivors, "node2.json"), filepath.Join(survivors, "node3.json")}
	r, status := compareSources(t, reports...)
	wantRecommended(t, r, status, "node1", "node2")
	r, status = compareSources(t, f.n3+"/database", reports[0])
	wantRecommended(t, r, status, "node1")
	var named []string
	for _, d := range r.Rows {
		for _, transaction := range d.Lacks {
			named = append(named, transaction.Changes...)
		}
	}

	if !slices.Equal(named, []string{"insert profile lostrow in project default", "insert profile lostrow2 in project default"}) {
		t.Errorf("by the reports, choosing node3 would lose %q", named)
	}
}

// compareEdited has one that was edited since: the entry of term 1 does not make the log older.
func (f compareFixtures) compareEdited(t testing.TB) {
	t.Helper()
	r, status := compareSources(t, f.n3, f.at("forgotten/n1-afteredit"))
	wantRecommended(t, r, status, "node1")
	f.wantLost(t, r)
}

// compareTooFew has one voter of three; a directory that does not tell whose it is counts for none.
func (f compareFixtures) compareTooFew(t testing.TB) {
	t.Helper()
	r, status := compareSources(t, f.n1, f.n1+"/database")
	wantDoubt(t, r, status, "node1", survivor.TooFew)
	r, status = compareSources(t, f.n1, f.n2+"/database/global", f.at("forgotten/lxd_recovery_db.tar.gz"))
	wantRecommended(t, r, status, "node1", "node2", f.at("forgotten/lxd_recovery_db.tar.gz"))
}

// compareDamaged has the tail of node1's log damaged: with both others what matters is known, with one it is not.
func (f compareFixtures) compareDamaged(t testing.TB) {
	t.Helper()
	damaged := f.copyAs(t, f.n1, "damaged")
	damageLast(t, filepath.Join(damaged, "database", "global"))
	r, status := compareSources(t, damaged, f.n2, f.n3)
	wantRecommended(t, r, status, "node2")
	r, status = compareSources(t, damaged, f.n3)
	wantRefusal(t, r, status, 4, survivor.Damaged)
	if r.Refusal != nil && !strings.Contains(r.Refusal.Reason, "the newest of these logs has node1, sound up to index 187") ||
		slices.Equal(r.Preferred, r.Longest) {
		t.Errorf("preferred %v, longest %v, %+v", r.Preferred, r.Longest, r.Refusal)
	}
}

// compareKept has what need not be a member's last state: it is no evidence of where its log ended.
func (f compareFixtures) compareKept(t testing.TB) {
	t.Helper()
	kept := f.copyAs(t, f.n2+"/database", "database.before-import-20261122T213000Z")
	r, status := compareSources(t, f.n3, kept)
	wantRefusal(t, r, status, 3, survivor.TooFew)
	if r.Refusal != nil && !strings.Contains(r.Refusal.Reason, "a kept database") || !slices.Equal(r.Preferred, []string{"node2"}) {
		t.Errorf("preferred %v, %+v", r.Preferred, r.Refusal)
	}

	r, status = compareSources(t, f.n3, f.n1, kept)
	wantRecommended(t, r, status, "node1", "node2")
}

// compareBackup has LXD's own backup, which is as little evidence, and the member itself.
func (f compareFixtures) compareBackup(t testing.TB) {
	t.Helper()
	backups, err := filepath.Glob(f.at("small/n1-afteredit/db_backup.*.tar.gz"))
	must(t, err)
	r, status := compareSources(t, f.at("small/n2-preimport"), backups[0])
	wantRefusal(t, r, status, 3, survivor.TooFew)
	r, status = compareSources(t, f.at("small/n2-preimport"), f.at("small/n1-afteredit"))
	if status != 0 || r.Recommendation.Label != "node1" {
		t.Errorf("exit status %d, %+v, %+v", status, r.Recommendation, r.Refusal)
	}
}
