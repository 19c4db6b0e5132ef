// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// compareSources runs global-db-compare and returns its report and exit status.
func compareSources(t testing.TB, args ...string) (recovery.CompareReport, int) {
	t.Helper()
	r := run(t, exec.CommandContext(t.Context(), tool, append([]string{"global-db-compare", "--format", "json"}, args...)...))
	if r.status != 0 && r.status != 3 && r.status != 4 {
		t.Fatalf("exit status %d: %s", r.status, r.stderr)
	}

	return decode[recovery.CompareReport](t, r), r.status
}

// wantRecommended checks which sources are recommended, in any order.
func wantRecommended(t testing.TB, r recovery.CompareReport, status int, want ...string) {
	t.Helper()
	if status != 0 || r.Recommendation == nil || !r.Certain || r.Doubt != nil {
		t.Fatalf("exit status %d, nothing recommended for certain: %+v, %+v", status, r.Refusal, r.Doubt)
	}

	got := append([]string{r.Recommendation.Label}, r.Recommendation.Same...)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("recommended %v, want %v", got, want)
	}
}

// wantDoubt checks that a member is recommended, and that it is not said to have all for certain.
func wantDoubt(t testing.TB, r recovery.CompareReport, status int, member string, verdict survivor.Verdict) {
	t.Helper()
	found := status == 0 && r.Recommendation != nil && strings.HasPrefix(r.Recommendation.Label, member)
	if !found || r.Certain || r.Doubt == nil || r.Doubt.Verdict != verdict {
		t.Errorf("exit status %d, %+v, certain %v, %+v, %+v, want %s, %s", status, r.Recommendation, r.Certain, r.Doubt, r.Refusal, member, verdict)
	}
}

func wantRefusal(t testing.TB, r recovery.CompareReport, status int, wantStatus int, verdict survivor.Verdict) {
	t.Helper()
	if status != wantStatus || r.Recommendation != nil || r.Refusal == nil || r.Refusal.Verdict != verdict {
		t.Errorf("exit status %d, %+v, %+v, want %d, %s", status, r.Recommendation, r.Refusal, wantStatus, verdict)
	}
}

// changesOf are the rows that choosing a source would change, without what LXD writes by itself.
func changesOf(t testing.TB, r recovery.CompareReport, label string) []string {
	t.Helper()
	for _, d := range r.Rows {
		if !slices.Contains(d.Sources, label) {
			continue
		}

		if d.Unknown != "" {
			t.Errorf("%s: %s", label, d.Unknown)
		}

		var all []string
		for _, row := range d.Rows {
			if !row.EitherWayByLXD() {
				all = append(all, row.String())
			}
		}

		slices.Sort(all)
		return all
	}

	return nil
}

// content is everything that a user has made, in the words that compare has for it, as it is on a stopped member's disk.
func content(t testing.TB, m *cluster.Member) []string {
	t.Helper()
	rows := sqlOnDisk(t, filepath.Join(m.Dir(), "database", "global"), `
		SELECT 'project ' || name FROM projects
		UNION ALL SELECT 'profile ' || p.name || ' in project ' || j.name FROM profiles p JOIN projects j ON j.id = p.project_id
		UNION ALL SELECT 'config ' || c.key || '=' || c.value || ' of profile ' || p.name || ' in project ' || j.name FROM profiles_config c
			JOIN profiles p ON p.id = c.profile_id JOIN projects j ON j.id = p.project_id`)
	slices.Sort(rows)
	return rows
}

// missing is what is in one list and not in the other.
func missing(from []string, in []string) []string {
	return slices.DeleteFunc(slices.Clone(from), func(s string) bool { return slices.Contains(in, s) })
}

// recoverFrom recovers a cluster from one member, whatever the others hold, and stops it again.
func recoverFrom(t testing.TB, c *cluster.Cluster, m *cluster.Member) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	must(t, m.EditReplace(ctx))
	tarball := export(t, m)
	for _, other := range c.Members() {
		mustRecover(t, other, "global-db-import", "--yes", "--discard-local-entries", tarball)
	}

	startTogether(t, c)
	createRow(t, c.Member(1), "after")
	waitReplicated(t, c)
	c.KillAll()
}

// waitReplicated waits until all members' logs end at the same index, at which the first one's had ended before.
func waitReplicated(t testing.TB, c *cluster.Cluster) {
	t.Helper()
	ctx := within(t, time.Minute)
	want := lastIndex(t, c.Member(1))
	for _, m := range c.Members()[1:] {
		for lastIndex(t, m) < want {
			select {
			case <-ctx.Done():
				t.Fatalf("%s never got the entry with index %d", m.Name, want)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

func dirs(members ...*cluster.Member) []string {
	var all []string
	for _, m := range members {
		all = append(all, m.Dir())
	}

	return all
}

// wantLoss recovers from a member that is not recommended, and checks that what is then missing everywhere is what was named.
func wantLoss(t testing.TB, c *cluster.Cluster, r recovery.CompareReport, wrong *cluster.Member, best *cluster.Member) {
	t.Helper()
	full := content(t, best)
	var named []string
	for _, line := range changesOf(t, r, wrong.Name) {
		what, deleted := strings.CutPrefix(line, "delete ")
		if deleted {
			named = append(named, what)
		}
	}

	if len(named) == 0 {
		t.Errorf("nothing is named that choosing %s would lose", wrong.Name)
	}

	recoverFrom(t, c, wrong)
	for _, m := range c.Members() {
		if gone := missing(full, content(t, m)); !slices.Equal(gone, named) {
			t.Errorf("recovered from %s, %s lacks %q; named were %q", wrong.Name, m.Name, gone, named)
		}
	}
}

// Facts 6: the forgotten member, whose last term is no lower than the others'. Recovered from the one recommended, all rows are
// there; from the wrong one, exactly those are missing that were named.
func TestCompareForgottenMember(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	lost := forgottenMember(t, c)
	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	r, status := compareSources(t, dirs(three, one, two)...)
	wantRecommended(t, r, status, one.Name, two.Name)
	if got := missing([]string{"delete profile lostrow in project default", "delete profile lostrow2 in project default"},
		changesOf(t, r, three.Name)); len(got) > 0 {
		t.Errorf("not named: %q", got)
	}

	// A node database that is damaged, or that LXD's own loader was killed in: the member's certificate tells whose log it is.
	nodeDB := filepath.Join(one.Dir(), "database", "local.db")
	must(t, os.WriteFile(nodeDB, []byte("not a database"), 0o600))
	r, status = compareSources(t, dirs(three, one)...)
	wantRecommended(t, r, status, one.Name)
	if r := recoverTool(t, one, "global-db-inspect"); r.status != 0 || !strings.Contains(r.stdout, "file is not a database") {
		t.Errorf("inspect: %+v", r)
	}

	must(t, os.Remove(nodeDB))
	r, status = compareSources(t, dirs(three, one)...)
	wantRecommended(t, r, status, one.Name)
	must(t, c.Restore(ctx, "behind"))

	// Another cluster, whose certificate is not at hand: every LXD's first entry is the same, and nothing else.
	stranger := t.TempDir()
	out, err := exec.Command("tar", "-xJf", "fixtures/lxd-6.9-members.tar.xz", "-C", stranger, "forgotten/n1-preedit").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	other, status := compareSources(t, one.Dir(), two.Dir(), filepath.Join(stranger, "forgotten/n1-preedit"))
	wantRefusal(t, other, status, 3, survivor.Different)

	// What LXD's manual had: edit on every member. The recovery entries make the longer logs no older and the shorter one no newer.
	for _, m := range c.Members() {
		must(t, m.EditReplace(ctx))
	}

	r, status = compareSources(t, dirs(three, two, one)...)
	wantRecommended(t, r, status, one.Name, two.Name)
	must(t, c.Restore(ctx, "behind"))

	wantLoss(t, c, r, three, one)
	must(t, c.Restore(ctx, "behind"))
	recoverFrom(t, c, two)
	for _, m := range c.Members() {
		if gone := missing(append(lost, "kept"), rowsOnDisk(t, m)); len(gone) > 0 {
			t.Errorf("%s lacks %q", m.Name, gone)
		}
	}
}

// Facts 5: a cluster in its first term, its members edited apart from each other and started. Raft takes different entries for the
// same then, for ever; compare does not.
func TestCompareEditedApart(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	must(t, one.CreateProfile(ctx, "kept"))
	must(t, c.WaitFormed(ctx))
	three.Kill()
	createRow(t, one, "lostrow")
	killAlike(t, c, one, two)
	for _, m := range c.Members() {
		must(t, m.EditReplace(ctx))
	}

	r, status := compareSources(t, dirs(c.Members()...)...)
	wantRecommended(t, r, status, one.Name, two.Name)
	edit := lastIndex(t, three)
	startTogether(t, c)
	createRow(t, one, "after")
	waitReplicated(t, c)
	c.KillAll()
	ours, theirs := entryAt(t, one, edit), entryAt(t, three, edit)
	if ours.Term != theirs.Term || ours.Type == theirs.Type {
		t.Fatalf("the members have not diverged: %+v, %+v", ours, theirs)
	}

	r, status = compareSources(t, dirs(c.Members()...)...)
	wantRefusal(t, r, status, 3, survivor.Conflict)
}

// canonical/lxd#7540: one member is recovered as the only survivor, and goes on; then the others are started on their old data, and go on
// as well. Both sides have confirmed changes, so none is recommended. While they run, nothing is damaged.
func TestCompareRecoveredApart(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	must(t, one.CreateProfile(ctx, "kept"))
	must(t, c.WaitFormed(ctx))
	r, status := compareSources(t, dirs(c.Members()...)...)
	wantRefusal(t, r, status, 3, survivor.Running)
	c.KillAll()
	mustRecover(t, one, "cluster", "recover-from-quorum-loss", "--quiet")
	must(t, one.Start(ctx))
	must(t, one.CreateProfile(ctx, "aftermath"))
	one.Kill()
	r, status = compareSources(t, dirs(c.Members()...)...)
	wantRecommended(t, r, status, one.Name)
	r, status = compareSources(t, dirs(one, one)...)
	wantDoubt(t, r, status, one.Name, survivor.LeftOut)

	must(t, c.StartAll(ctx, two, three))
	createRow(t, two, "elsewhere")
	killAlike(t, c, two, three)
	r, status = compareSources(t, dirs(c.Members()...)...)
	wantRefusal(t, r, status, 3, survivor.Split)
	named := strings.Join(append(changesOf(t, r, one.Name), changesOf(t, r, two.Name)...), "\n")
	if !strings.Contains(named, "aftermath") || !strings.Contains(named, "elsewhere") {
		t.Errorf("the rows named are %q", named)
	}
}

// entryAt is an entry of a stopped member's log, without its content.
func entryAt(t testing.TB, m *cluster.Member, index uint64) raftlog.Entry {
	t.Helper()
	for entry, err := range openLog(t, filepath.Join(m.Dir(), "database", "global")).Entries(t.Context(), index) {
		must(t, err)
		return entry
	}

	t.Fatalf("%s has no entry with index %d", m.Name, index)
	return raftlog.Entry{}
}

// An entry that only the leader has: it is kept, and said to be uncommitted. Without the leader the others are enough; either of them
// alone is not.
func TestCompareUncommitted(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	leader, row := uncommitted(t, c)
	others := membersBut(c, leader)
	must(t, c.Save(ctx, "uncommitted"))

	r, status := compareSources(t, dirs(c.Members()...)...)
	wantRecommended(t, r, status, leader.Name)
	if n := len(r.Uncertain); n != 1 || !r.Uncertain[0].Never || r.Uncertain[0].Holding != 1 || r.Uncertain[0].First.Index != r.Committed+1 {
		t.Errorf("committed %d, uncertain %+v", r.Committed, r.Uncertain)
	}

	if got := changesOf(t, r, others[0].Name); !slices.Contains(got, "delete profile "+row+" in project default") {
		t.Errorf("choosing %s would %q", others[0].Name, got)
	}

	without, status := compareSources(t, dirs(others...)...)
	wantRecommended(t, without, status, others[0].Name, others[1].Name)
	alone, status := compareSources(t, dirs(leader, leader)...)
	wantDoubt(t, alone, status, leader.Name, survivor.TooFew)

	wantLoss(t, c, r, others[1], leader)
	must(t, c.Restore(ctx, "uncommitted"))
	recoverFrom(t, c, leader)
	for _, m := range c.Members() {
		if gone := missing([]string{"kept", row}, rowsOnDisk(t, m)); len(gone) > 0 {
			t.Errorf("%s lacks %q", m.Name, gone)
		}
	}
}

// The first scenario of canonical/lxd#13524, A C | A B: an entry that only the leader has, and another one that the others have
// committed in its place. What choosing the old leader would lose, and bring back, is just what is missing and there afterwards.
func TestCompareBranch(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	leader, row := uncommitted(t, c)
	others := membersBut(c, leader)
	must(t, c.StartAll(ctx, others...))
	createRow(t, others[0], "instead")
	killAlike(t, c, others...)
	must(t, c.Save(ctx, "branch"))

	r, status := compareSources(t, dirs(c.Members()...)...)
	wantRecommended(t, r, status, others[0].Name, others[1].Name)
	at := lastIndex(t, leader)
	if len(r.Branches) != 1 || r.Branches[0].Index != at || r.Branches[0].Term >= r.Branches[0].PreferredTerm ||
		!slices.Equal(r.Branches[0].Sources, []string{leader.Name}) {
		t.Errorf("branches %+v, want one of %s at index %d", r.Branches, leader.Name, at)
	}

	lost, back := "profile instead in project default", "profile "+row+" in project default"
	got := changesOf(t, r, leader.Name)
	if !slices.Equal(got, []string{fmt.Sprintf("update %s (name: 'instead' -> '%s')", back, row)}) { // both are the profile with the next id
		t.Errorf("choosing %s would %q", leader.Name, got)
	}

	full := content(t, others[0])
	recoverFrom(t, c, leader)
	for _, m := range c.Members() {
		have := content(t, m)
		if gone, come := missing(full, have), missing(have, full); !slices.Equal(gone, []string{lost}) || !slices.Contains(come, back) {
			t.Errorf("recovered from %s, %s lacks %q and has %q", leader.Name, m.Name, gone, come)
		}
	}

	must(t, c.Restore(ctx, "branch"))
	recoverFrom(t, c, others[0])
	for _, m := range c.Members() {
		if gone := missing([]string{"kept", "instead"}, rowsOnDisk(t, m)); len(gone) > 0 || slices.Contains(rowsOnDisk(t, m), row) {
			t.Errorf("%s lacks %q, has %q", m.Name, gone, rowsOnDisk(t, m))
		}
	}
}

// Members killed one after the other while clients write through all of them: whatever the tails are, the recommended member has every
// row that was confirmed, and the cluster recovered from it, too.
func TestCompareTails(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	var confirmed []string
	for round := range 2 {
		must(t, c.WaitFormed(ctx))
		var writers []*cluster.Writer
		for i, m := range c.Members() {
			writers = append(writers, m.StartWriter(fmt.Sprintf("round%d-%d", round, i)))
		}

		for n, i := range []int{(round + 2) % 3, (round + 1) % 3, round % 3} {
			last := writers[round%3]
			if n < 2 {
				must(t, last.WaitConfirmed(ctx, 3*(n+1)))
			}

			c.Members()[i].Kill()
		}

		for _, w := range writers {
			w.Stop()
			confirmed = append(confirmed, w.Confirmed()...)
		}

		r, status := compareSources(t, dirs(c.Members()...)...)
		if status != 0 {
			t.Fatalf("exit status %d: %+v", status, r.Refusal)
		}

		best := memberNamed(t, c, r.Recommendation.Label)
		for _, pair := range [][]*cluster.Member{{c.Member(1), c.Member(2)}, {c.Member(2), c.Member(3)}, {c.Member(1), c.Member(3)}} {
			two, status := compareSources(t, dirs(pair...)...)
			if status != 0 {
				t.Fatalf("exit status %d: %+v", status, two.Refusal)
			}

			if gone := missing(confirmed, rowsOnDisk(t, memberNamed(t, c, two.Recommendation.Label))); len(gone) > 0 {
				t.Errorf("%s, recommended of two, lacks %q", two.Recommendation.Label, gone)
			}
		}

		t.Logf("round %d: ends %v, %d rows confirmed, recommended %s", round, ends(r), len(confirmed), best.Name)
		recoverFrom(t, c, best)
		for _, m := range c.Members() {
			if gone := missing(confirmed, rowsOnDisk(t, m)); len(gone) > 0 {
				t.Errorf("%s lacks %q", m.Name, gone)
			}
		}

		must(t, c.StartAll(ctx))
	}
}

func ends(r recovery.CompareReport) string {
	var all []string
	for _, s := range r.Sources {
		all = append(all, fmt.Sprintf("%s %d/%d", s.Label, s.End.Index, s.End.Term))
	}

	return strings.Join(all, ", ")
}

func memberNamed(t testing.TB, c *cluster.Cluster, name string) *cluster.Member {
	t.Helper()
	i := slices.IndexFunc(c.Members(), func(m *cluster.Member) bool { return m.Name == name })
	if i < 0 {
		t.Fatalf("no member %s", name)
	}

	return c.Members()[i]
}
