// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// export runs export-db on a member and returns the tarball's path.
func export(t testing.TB, m *cluster.Member, args ...string) string {
	t.Helper()
	tarball := filepath.Join(t.TempDir(), "lxd_recovery_db.tar.gz")
	mustRecover(t, m, append([]string{"cluster", "export-db", tarball}, args...)...)
	return tarball
}

// importOn runs global-db-import on members.
func importOn(t testing.TB, tarball string, members ...*cluster.Member) {
	t.Helper()
	for _, m := range members {
		mustRecover(t, m, "global-db-import", "--yes", tarball)
	}
}

// importGivingUp imports on a member that was killed while it wrote: it may have an entry that the leader itself had not yet on its
// disk. What it is then told that would be lost must not be one of the rows that were confirmed.
func importGivingUp(t testing.TB, m *cluster.Member, tarball string, confirmed []string) {
	t.Helper()
	r := recoverTool(t, m, "global-db-import", "--yes", tarball)
	if r.status == 0 {
		return
	}

	r.want(t, 3, "would be lost", "--discard-local-entries")
	for _, row := range confirmed {
		if strings.Contains(r.stderr, "profile "+row+" ") {
			t.Errorf("%s: %s is confirmed, and would be lost: %s", m.Name, row, r.stderr)
		}
	}

	mustRecover(t, m, "global-db-import", "--yes", "--discard-local-entries", tarball)
}

// lxc runs a command of LXD's client that must succeed on a member.
func lxc(t testing.TB, m *cluster.Member, args ...string) {
	t.Helper()
	_, err := m.LXC(within(t, time.Minute), args...)
	must(t, err)
}

// profiles are the rows that the tests write, as one member serves them.
func profiles(t testing.TB, m *cluster.Member) []string {
	t.Helper()
	names, err := m.Profiles(t.Context())
	must(t, err)
	slices.Sort(names)
	return names
}

// wantRows checks that every member serves all these rows.
func wantRows(t testing.TB, rows []string, members ...*cluster.Member) {
	t.Helper()
	for _, m := range members {
		have := profiles(t, m)
		for _, row := range rows {
			if !slices.Contains(have, row) {
				t.Errorf("%s has no profile %s", m.Name, row)
			}
		}
	}
}

// wantWorking checks that a recovered cluster is one: all its members online at the addresses given, new rows written
// through each seen on all.
func wantWorking(t testing.TB, c *cluster.Cluster, addresses []string, members ...*cluster.Member) {
	t.Helper()
	ctx := within(t, 3*time.Minute)
	must(t, c.WaitHeartbeat(ctx))
	must(t, c.WaitOnline(ctx, len(members)))
	list, err := c.List(ctx)
	must(t, err)
	for _, m := range members {
		i := slices.IndexFunc(list, func(s cluster.State) bool { return s.Name == m.Name })
		if i < 0 || list[i].URL != "https://"+addresses[m.ID-1] {
			t.Errorf("%s is not listed at %s: %+v", m.Name, addresses[m.ID-1], list)
		}
	}

	var rows []string
	for _, m := range members {
		name := fmt.Sprintf("after-%s-%d", m.Name, time.Now().UnixNano())
		must(t, m.CreateProfile(ctx, name))
		rows = append(rows, name)
	}

	wantRows(t, rows, members...)
}

func addresses(members []*cluster.Member) []string {
	var all []string
	for _, m := range members {
		all = append(all, m.Address())
	}

	return all
}

// The whole job: members killed one after the other, so that their logs end at different places, all addresses and the port
// changed, recovered from the member that saw every confirmed row.
func TestRecoverAtNewAddresses(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, func(t *testing.T, lxd cluster.LXD) {
		moments := []struct{ third, others int }{{1, 2}, {40, 60}, {150, 300}}
		if lxd.WritesTarball {
			moments = moments[1:2] // the moment matters to raft's log, and that is the same
		}

		for _, m := range moments {
			t.Run(fmt.Sprintf("killed after %d and %d rows", m.third, m.others), func(t *testing.T) {
				recoverAtNewAddresses(t, lxd, m.third, m.others)
			})
		}
	})
}

func recoverAtNewAddresses(t *testing.T, lxd cluster.LXD, third, others int) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 5*time.Minute)
	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	writer := one.StartWriter("row")
	must(t, writer.WaitConfirmed(ctx, third))
	three.Kill()
	must(t, writer.WaitConfirmed(ctx, others))
	c.KillAll(one, two)
	writer.Stop()

	old, moved := addresses(c.Members()), []string{}
	for _, m := range c.Members() {
		ip := strings.Replace(m.IP(), "10.77.0.", "10.77.1.", 1)
		must(t, m.SetAddresses(ctx, ip+"/16"))
		moved = append(moved, ip+":9393")
	}

	must(t, one.EditReplace(ctx, old[0], moved[0], old[1], moved[1], old[2], moved[2]))
	check := unchanged(t, one.Dir())
	tarball := export(t, one)
	check()
	for _, m := range c.Members() {
		importGivingUp(t, m, tarball, writer.Confirmed())
		wantStatus(t, m, moved)
	}

	must(t, c.StartAll(ctx))
	wantRows(t, writer.Confirmed(), c.Members()...)
	wantWorking(t, c, moved, c.Members()...)
	wantSameRows(t, c, append(writer.Confirmed(), writer.Unanswered()...))

	must(t, c.StopAll(ctx))
	must(t, c.StartAll(ctx))
	wantRows(t, writer.Confirmed(), c.Members()...)
	wantWorking(t, c, moved, c.Members()...)
	for _, m := range c.Members() {
		s := status(t, m)
		if !s.Agree || s.Import == nil || len(s.Pending) > 0 || len(s.Problems) > 0 {
			t.Errorf("%s after the restart: %+v", m.Name, s)
		}
	}
}

// wantSameRows checks that no member serves a row that nobody wrote, or that the others do not have.
func wantSameRows(t testing.TB, c *cluster.Cluster, written []string) {
	t.Helper()
	first := profiles(t, c.Member(1))
	for _, name := range first {
		if strings.HasPrefix(name, "row") && !slices.Contains(written, name) {
			t.Errorf("profile %s was never written", name)
		}
	}

	for _, m := range c.Members()[1:] {
		if have := profiles(t, m); !slices.Equal(have, first) {
			t.Errorf("%s serves %d profiles, %s %d", m.Name, len(have), c.Member(1).Name, len(first))
		}
	}
}

func status(t testing.TB, m *cluster.Member) recovery.StatusReport {
	t.Helper()
	return decode[recovery.StatusReport](t, mustRecover(t, m, "global-db-status", "--format", "json"))
}

// wantStatus checks what global-db-status says right after an import to new addresses.
func wantStatus(t testing.TB, m *cluster.Member, moved []string) {
	t.Helper()
	s := status(t, m)
	if s.Running || s.Member == nil || s.Member.Address != moved[m.ID-1] || !s.Edited || s.Import == nil || s.Import.Source != "node1" || len(s.Kept) != 1 {
		t.Errorf("%s after the import: %+v", m.Name, s)
	}

	for _, a := range s.Addresses {
		if a.Local != moved[a.ID-1] || a.Raft != moved[a.ID-1] {
			t.Errorf("%s after the import: addresses %+v", m.Name, a)
		}
	}
}

func TestRecoverWithoutAddressChange(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, recoverWithoutAddressChange)
}

func recoverWithoutAddressChange(t *testing.T, lxd cluster.LXD) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 5*time.Minute)
	writer := c.Member(1).StartWriter("row")
	must(t, writer.WaitConfirmed(ctx, 50))
	c.KillAll()
	writer.Stop()
	must(t, c.Member(1).EditReplace(ctx))
	tarball := export(t, c.Member(1))
	importOn(t, tarball, c.Members()...)
	for _, m := range c.Members() {
		if s := status(t, m); !s.Agree || len(s.Pending) > 0 {
			t.Errorf("%s: nothing was to be changed: %+v", m.Name, s)
		}
	}

	must(t, c.StartAll(ctx))
	wantRows(t, writer.Confirmed(), c.Members()...)
	wantWorking(t, c, addresses(c.Members()), c.Members()...)
}

// The tests from here on run on LXD 5.0.2 only: what they vary is raft's business, and ours, in which the generations do not differ.

// Five members, two of which never come back: the others go on without them.
func TestRecoverWithoutTwoOfFive(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{Members: 5})
	ctx := within(t, 5*time.Minute)
	rows := []string{"one", "two"}
	for _, row := range rows {
		must(t, c.Member(1).CreateProfile(ctx, row))
	}

	c.KillAll()
	must(t, c.Member(1).Edit(ctx, func(yaml []byte) []byte { return setRoles(yaml, "voter", "voter", "voter", "spare", "spare") }))
	tarball := export(t, c.Member(1))
	survivors := c.Members()[:3]
	importOn(t, tarball, survivors...)
	must(t, c.StartAll(ctx, survivors...))
	wantRows(t, rows, survivors...)
	for _, lost := range []string{"node4", "node5"} {
		_, err := c.Member(1).Query(ctx, http.MethodDelete, "/1.0/cluster/members/"+lost+"?force=1", nil)
		must(t, err)
	}

	wantWorking(t, c, addresses(c.Members()), survivors...)
}

// setRoles gives the members of LXD's YAML these roles, in order.
func setRoles(yaml []byte, roles ...string) []byte {
	lines := strings.Split(string(yaml), "\n")
	i := 0
	for n, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "role:") {
			lines[n] = line[:strings.Index(line, "role:")] + "role: " + roles[i]
			i++
		}
	}

	return []byte(strings.Join(lines, "\n"))
}

// A stand-by has the log and no vote, a spare has neither: both get the database and their role.
func TestRecoverStandByAndSpare(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{Members: 5, Config: map[string]string{"cluster.max_standby": "1"}})
	ctx := within(t, 5*time.Minute)
	must(t, c.WaitRoles(ctx, cluster.Roles{Voters: 3, StandBys: 1, Spares: 1}))
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, c.Member(1))
	importOn(t, tarball, c.Members()...)
	must(t, c.StartAll(ctx))
	wantRows(t, []string{"kept"}, c.Members()...)
	var moved []string
	for _, m := range c.Members() {
		moved = append(moved, m.IP()+":9393")
	}

	wantWorking(t, c, moved, c.Members()...)
	must(t, c.WaitRoles(ctx, cluster.Roles{Voters: 3, StandBys: 1, Spares: 1}))
}

func TestRecoverWithSnapshot(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "before-snapshot"))
	must(t, c.MakeSnapshot(ctx))
	must(t, c.Member(1).CreateProfile(ctx, "after-snapshot"))
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, c.Member(1))
	importOn(t, tarball, c.Members()...)
	must(t, c.StartAll(ctx))
	wantRows(t, []string{"before-snapshot", "after-snapshot"}, c.Members()...)
	wantWorking(t, c, []string{c.Member(1).IP() + ":9393", c.Member(2).IP() + ":9393", c.Member(3).IP() + ":9393"}, c.Members()...)
}

// A second import of the same tarball finds nothing to do; a rollback brings back the old database, to the byte, and a
// cluster rolled back on all members starts as it was.
func TestImportTwiceAndRollBack(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	c.KillAll()
	before := map[string]string{}
	for _, m := range c.Members() {
		before[m.Name] = tree(t, filepath.Join(m.Dir(), "database"))
	}

	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	before["node1"] = tree(t, filepath.Join(c.Member(1).Dir(), "database"))
	tarball := export(t, c.Member(1))
	importOn(t, tarball, c.Members()...)
	for _, m := range c.Members() {
		check := unchanged(t, m.Dir())
		r := decode[recovery.ImportReport](t, mustRecover(t, m, "global-db-import", "--yes", "--format", "json", tarball))
		if !r.NothingToDo || r.Done {
			t.Errorf("second import on %s: %+v", m.Name, r)
		}

		check()
	}

	for _, m := range c.Members() {
		mustRecover(t, m, "global-db-rollback", "--yes")
		if got := tree(t, filepath.Join(m.Dir(), "database")); got != before[m.Name] {
			t.Errorf("%s after the rollback:\n%s\n--- before\n%s", m.Name, got, before[m.Name])
		}

		s := status(t, m)
		if len(s.Kept) != 1 || s.Kept[0].Purpose != "rollback" || s.Import != nil {
			t.Errorf("%s after the rollback: %+v", m.Name, s)
		}
	}

	// Undo the rollback, start at the new addresses, and roll back for good: the second and third member were never
	// edited, so they form the cluster as it was, and node1, whose own edit is undone by nothing, stays away.
	importOn(t, tarball, c.Member(1))
	for _, m := range c.Members()[1:] {
		check := unchanged(t, m.Dir())
		r := mustRecover(t, m, "global-db-rollback", "--yes")
		check()
		if !strings.Contains(r.stdout, "already") {
			t.Errorf("the rollback run again says %q", r.stdout)
		}

		for range 2 { // the rollback undone, and that undone
			mustRecover(t, m, "global-db-rollback", "--yes", status(t, m).Kept[0].Name)
		}
	}

	old := c.Members()[1:]
	must(t, c.StartAll(ctx, old...))
	wantRows(t, []string{"kept"}, old...)
	wantWorking(t, c, addresses(c.Members()), old...)
}

// A recovered cluster has run: one member is not rolled back alone, neither beside the others that run, nor with all of them down, and
// nothing is changed by the attempt. One on which LXD has not run since can, unless a cluster works beside it.
func TestRollbackOfOneMember(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "before"))
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	importOn(t, export(t, c.Member(1)), c.Members()...)
	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	must(t, c.StartAll(ctx, one, two))
	must(t, one.CreateProfile(ctx, "since"))

	check := unchanged(t, three.Dir())
	r := recoverTool(t, three, "global-db-rollback", "--yes")
	r.want(t, 3, "serves a working cluster", one.IP()+":9393", "--beside-cluster")
	check()
	must(t, two.Stop(ctx))
	check = unchanged(t, two.Dir())
	r = recoverTool(t, two, "global-db-rollback", "--yes", "--beside-cluster", "--discard-local-entries")
	r.want(t, 3, "LXD has run on the database in", "export-db --source")
	check()
	c.KillAll()
	recoverTool(t, one, "global-db-rollback", "--yes").want(t, 3, "LXD has run on the database in", "export-db --source")
	dry := decode[recovery.RollbackReport](t, mustRecover(t, three, "global-db-rollback", "--dry-run", "--format", "json"))
	if dry.Done || !slices.Equal(dry.Elsewhere, []string{one.Name, two.Name}) {
		t.Errorf("dry run: %+v", dry)
	}

	// What the message says: one kept database for all.
	tarball := filepath.Join(t.TempDir(), "back.tar.gz")
	kept := status(t, one).Kept
	export := []string{"cluster", "export-db", "--source", kept[len(kept)-1].Name, tarball}
	recoverTool(t, one, export...).want(t, 3, "insert profile since", "--yes")
	mustRecover(t, one, append(export, "--yes")...)
	for _, m := range c.Members() {
		mustRecover(t, m, "global-db-import", "--yes", "--discard-local-entries", tarball)
	}

	must(t, c.StartAll(ctx))
	wantRows(t, []string{"before"}, c.Members()...)
	if slices.Contains(profiles(t, three), "since") {
		t.Error("what was given up is there")
	}

	wantWorking(t, c, []string{one.IP() + ":9393", two.IP() + ":9393", three.IP() + ":9393"}, c.Members()...)
}
