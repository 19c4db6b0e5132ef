// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// incus is Debian 13's Incus. Its raft writes snapshots that are not compressed, and gives a recovery entry the term of the last one.
func incus(t testing.TB) cluster.LXD {
	t.Helper()
	build, err := cluster.Incus()
	must(t, err)
	return build
}

// TestIncus has on Incus what other tests have on both generations of LXD.
func TestIncus(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(t *testing.T, build cluster.LXD){
		"recover at new addresses":       func(t *testing.T, build cluster.LXD) { recoverAtNewAddresses(t, build, 40, 60) },
		"recover without address change": recoverWithoutAddressChange,
		"edit":                           editInParts,
		"import beside a cluster":        importBesideCluster,
		"lost node database":             recoverLostNodeDatabase,
		"resync":                         resyncs,
		"backup":                         backupsUnderWriting,
		"archive":                        archiveLog,
		"every disk lost":                everyDiskLost,
		"repair of a member":             repairOfMember,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, incus(t))
		})
	}
}

// incusStarts is how often a start with a forgotten member is tried.
func incusStarts() int {
	if os.Getenv("CAMPAIGN") != "" {
		return 10
	}

	return 3
}

// lackingMember kills all members of a cluster, one of which lacks a confirmed row then, and saves it as "behind". The row's entry is the first one
// that it lacks, and it has not led: the entry has the term that its log ends with, and Incus's own edit puts a recovery entry of that term in its place.
func lackingMember(t testing.TB, c *cluster.Cluster) (lacking *cluster.Member, row string) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	for attempt := 1; ctx.Err() == nil; attempt++ {
		for range 2 {
			c.KillAll() // and elections, so that terms are above 1
			must(t, c.StartAll(ctx))
		}

		must(t, c.WaitFormed(ctx))
		leader := leaderOf(t, c)
		lacking, row = membersBut(c, leader)[1], fmt.Sprintf("lostrow%d", attempt)
		freeze(t, lacking)
		before := lastIndex(t, lacking)
		createRow(t, leader, row)
		lacking.Kill()
		killAlike(t, c, membersBut(c, lacking)...)
		must(t, c.Save(ctx, "behind"))
		if profileChange(t, entries(t, leader.Dir(), "--rows"), "insert", row) == before+1 {
			return lacking, row
		}
	}

	t.Fatal("Incus has always written something else before")
	return nil, ""
}

// TestIncusForgottenMember recovers a cluster of which all members were killed, and one lacks a confirmed row: by hand as docs/howto-recover.md has
// it, by hand without that one, and forgetting it.
func TestIncusForgottenMember(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{LXD: incus(t)})
	lacking, lost := lackingMember(t, c)
	rows := []string{"kept", lost}
	one, two := membersBut(c, lacking)[0], membersBut(c, lacking)[1]
	part := func(name string, do func(t *testing.T)) bool {
		return t.Run(name, func(t *testing.T) {
			must(t, c.Restore(within(t, time.Minute), "behind"))
			do(t)
		})
	}

	part("imported on all", func(t *testing.T) {
		mustEdit(t, one, listOf(t, one))
		importOn(t, export(t, one), c.Members()...)
		startTogether(t, c)
		wantRows(t, rows, c.Members()...)
		wantWorking(t, c, addresses(c.Members()), c.Members()...)
		wantCaughtUp(t, c, rows)
	})
	part("after Incus's own edit", func(t *testing.T) {
		must(t, one.EditReplace(t.Context()))
		importOn(t, export(t, one), c.Members()...)
		startTogether(t, c)
		wantRows(t, rows, c.Members()...)
		wantCaughtUp(t, c, rows)
	})
	part("without it", func(t *testing.T) {
		ctx := within(t, 2*time.Minute)
		mustEdit(t, one, withoutMember(t, one, lacking))
		importOn(t, export(t, one), two)
		must(t, c.StartAll(ctx, one, two))
		wantRows(t, rows, one, two)
		lxc(t, one, "cluster", "remove", "--force", "--yes", lacking.Name)
		wantWorking(t, c, addresses(c.Members()), one, two)
	})

	// Imported on all but the one, and the edited member starts last, every other time: the one must not win an election, and wipe the row that it
	// lacks.
	kept := 0
	for i := range incusStarts() {
		ok := part(fmt.Sprintf("forgotten, start %d", i+1), func(t *testing.T) {
			mustEdit(t, one, listOf(t, one))
			importOn(t, export(t, one), one, two)
			if i%2 == 1 {
				must(t, c.StartAll(within(t, 2*time.Minute), two, lacking))
			}

			startTogether(t, c)
			wantRows(t, rows, c.Members()...)
			wantCaughtUp(t, c, rows)
		})
		if ok {
			kept++
		}
	}

	t.Logf("sample: %s: starts with a forgotten member: %d of %d have kept the row that it lacks", incus(t).Name, kept, incusStarts())
	part("control: by Incus's manual", func(t *testing.T) { wantRowsLost(t, c, lacking, lost) })
}

// withoutMember is a member's list in which another one is a spare, as one that is lost.
func withoutMember(t *testing.T, m *cluster.Member, lost *cluster.Member) []byte {
	t.Helper()
	roles := []string{"voter", "voter", "voter"}
	roles[lost.ID-1] = "spare"
	return setRoles(listOf(t, m), roles...)
}

// wantRowsLost does what Incus's manual says, and wants it to lose rows: an edit on every member, and nothing is copied. All members are online, and
// one of them never gets the row that it lacks. If it did, then the recoveries had shown nothing.
func wantRowsLost(t *testing.T, c *cluster.Cluster, lacking *cluster.Member, lost string) {
	t.Helper()
	ctx := within(t, 3*time.Minute)
	for _, m := range c.Members() {
		must(t, m.EditReplace(ctx))
	}

	must(t, c.StartAll(ctx))
	must(t, c.WaitHeartbeat(ctx))
	must(t, c.WaitOnline(ctx, 3))
	wantCaughtUp(t, c, []string{"kept"}) // and no row is written: it would bring the whole page with it
	for _, m := range c.Members() {
		if slices.Contains(rowsOnDisk(t, m), lost) == (m == lacking) {
			t.Errorf("%s, and %s lacked %s: %v", m.Name, lacking.Name, lost, rowsOnDisk(t, m))
		}
	}
}

// TestIncusForgottenLeader has an entry that nobody but the former leader has, at the very index at which the others get the recovery entry, and in the
// term that Incus's own edit gives that. The leader is forgotten. Fenced, the others overrule it.
func TestIncusForgottenLeader(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{LXD: incus(t)})
	ctx := within(t, 10*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	leader, row := uncommitted(t, c)
	others := membersBut(c, leader)
	must(t, c.Save(ctx, "conflict"))
	overruled := 0
	for i := range incusStarts() {
		ok := t.Run(fmt.Sprintf("fenced, start %d", i+1), func(t *testing.T) {
			must(t, c.Restore(ctx, "conflict"))
			mustEdit(t, others[0], listOf(t, others[0]))
			importOn(t, export(t, others[0]), others...)
			startTogether(t, c)
			wantCaughtUp(t, c, []string{"kept"})
			for _, m := range c.Members() {
				if have := rowsOnDisk(t, m); slices.Contains(have, row) {
					t.Errorf("%s has a row on its disk that was never confirmed: %v", m.Name, have)
				}
			}
		})
		if ok {
			overruled++
		}
	}

	t.Logf("sample: %s: starts with a forgotten leader: %d of %d have overruled its own entry", incus(t).Name, overruled, incusStarts())
	t.Run("control without a fence", func(t *testing.T) {
		must(t, c.Restore(ctx, "conflict"))
		must(t, others[0].EditReplace(ctx))
		copyByHand(t, others[0], others[1])
		startTogether(t, c)
		wantCaughtUp(t, c, []string{"kept"})
		for _, m := range c.Members() {
			if have := rowsOnDisk(t, m); slices.Contains(have, row) != (m == leader) {
				t.Errorf("nothing diverged: %s has %v on its disk, and %s was the leader", m.Name, have, leader.Name)
			}
		}
	})
}

// TestIncusLooks looks at members of Incus with raw snapshots: what all commands say of the disk is what Incus says of its database.
func TestIncusLooks(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{LXD: incus(t)})
	ctx := within(t, 10*time.Minute)
	one, three := c.Member(1), c.Member(3)
	rows := []string{"before-snapshot", "after-snapshot"}
	must(t, one.CreateProfile(ctx, rows[0]))
	must(t, c.MakeSnapshot(ctx))
	must(t, one.CreateProfile(ctx, rows[1]))
	waitReplicated(t, c)
	wantRawSnapshots(t, c)
	s := status(t, one)
	if !s.Running || !s.Healthy || !s.Agree || len(s.Problems)+len(s.Pending) > 0 || s.Member == nil || s.Member.Name != one.Name {
		t.Errorf("status %+v", s)
	}

	queries := tableQueries(t, func(query string) [][]string {
		rows, err := one.SQL(ctx, query)
		must(t, err)
		return rows
	})
	live := map[string][][]string{}
	for table, query := range queries {
		rows, err := one.SQL(ctx, query)
		must(t, err)
		live[table] = rows
	}

	c.KillAll()
	for _, m := range c.Members() {
		check := unchanged(t, m.Dir())
		r, exit := inspectDir(t, m.Dir())
		if exit != 0 || !r.Healthy || worst(r.Problems) > raftlog.Info || r.Data.Integrity != "ok" || r.Data.Tables["nodes"] != 3 || r.Raft.Edited ||
			r.Raft.SnapshotIndex == 0 || len(r.Members) != 3 {
			t.Errorf("%s: exit status %d, %+v", m.Name, exit, r)
		}

		for table, query := range queries {
			have := sqlRows(t, m.Dir(), query)
			if table != "warnings" && table != "operations" && fmt.Sprint(have) != fmt.Sprint(live[table]) {
				t.Errorf("%s: table %s is %v, Incus said %v", m.Name, table, have, live[table])
			}
		}

		profileChange(t, entries(t, m.Dir(), "--rows"), "insert", rows[1])
		check()
	}

	report, exit := compareSources(t, c.Member(1).Dir(), c.Member(2).Dir(), three.Dir())
	wantRecommendedOne(t, report, exit)

	// Incus's own dump, of a clean stop, is our replay.
	must(t, c.StartAll(ctx))
	stopping := time.Now()
	must(t, c.StopAll(ctx))
	for _, m := range dumped(t, c, stopping) {
		wantAsDump(t, globalOf(m))
	}

	// Its member comes back from the others, with their raw snapshot.
	must(t, c.StartAll(ctx))
	must(t, c.WaitFormed(ctx))
	three.Kill()
	must(t, os.RemoveAll(globalOf(three)))
	must(t, os.Mkdir(globalOf(three), 0o700))
	resyncMember(t, c, three)
	must(t, c.StartAll(ctx, three))
	createRow(t, one, "resynced")
	waitFollows(t, three, one)
	killAlike(t, c, c.Members()...)
	rows = append(rows, "resynced")
	for _, m := range c.Members() {
		if have := rowsOnDisk(t, m); len(missing(rows, have)) > 0 {
			t.Errorf("%s has %v on its disk, want %v", m.Name, have, rows)
		}
	}

	// An edit makes a database of it that has such a snapshot, too. Its rollback brings the old one back, to the byte.
	before := tree(t, filepath.Join(one.Dir(), "database"))
	mustEdit(t, one, listOf(t, one, ":8443", ":9393"))
	mustRecover(t, one, "global-db-rollback", "--yes")
	if after := tree(t, filepath.Join(one.Dir(), "database")); after != before {
		t.Errorf("rolled back to\n%s\nwant\n%s", after, before)
	}

	mustEdit(t, one, listOf(t, one, ":8443", ":9393"))
	importOn(t, export(t, one), c.Members()...)
	startTogether(t, c)
	wantRows(t, rows, c.Members()...)
	wantWorking(t, c, newPort(c.Members()), c.Members()...)
	must(t, c.MakeSnapshot(ctx)) // at a fenced term
	c.KillAll()
	for _, m := range c.Members() {
		if r, exit := inspectDir(t, m.Dir()); exit != 0 || !r.Healthy || r.Raft.LastTerm < 1e9 {
			t.Errorf("%s after a snapshot at a fenced term: exit status %d, %+v", m.Name, exit, r)
		}
	}
}

// wantRawSnapshots wants every member to have one, or the test shows nothing.
func wantRawSnapshots(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, m := range c.Members() {
		snapshot := openLog(t, globalOf(m)).Snapshot()
		if snapshot == nil {
			t.Fatalf("%s has no snapshot", m.Name)
		}

		data, err := os.ReadFile(filepath.Join(globalOf(m), snapshot.File))
		must(t, err)
		if !strings.Contains(string(data[:min(len(data), 4096)]), "SQLite format 3") {
			t.Errorf("%s: %s is compressed", m.Name, snapshot.File)
		}
	}
}

// wantRecommendedOne wants one of the members to be recommended for certain, and all that are said to have the same to have it.
func wantRecommendedOne(t *testing.T, r recovery.CompareReport, status int) {
	t.Helper()
	if status != 0 || r.Recommendation == nil || !r.Certain || r.Doubt != nil {
		t.Errorf("exit status %d, nothing recommended for certain: %+v, %+v", status, r.Refusal, r.Doubt)
	}
}

// TestIncusRepair damages the database of a standalone Incus as LXD's is damaged in TestRepairStandalone, and repairs it.
func TestIncusRepair(t *testing.T) {
	t.Parallel()
	l := newRepairLab(t, incus(t))
	for name, test := range repairCases {
		t.Run(name, func(t *testing.T) { l.try(t, test) })
	}
}

// TestIncusStandalone looks at an Incus that is no member of a cluster.
func TestIncusStandalone(t *testing.T) {
	t.Parallel()
	standaloneLooks(t, cluster.Options{LXD: incus(t)})
}

// TestIncusClusterRecover recovers clusters of Incus by one command on a machine that is no member, over ssh.
func TestIncusClusterRecover(t *testing.T) {
	t.Parallel()
	t.Run("3, one survives, with a snapshot", func(t *testing.T) {
		t.Parallel()
		l := newSizesLab(t, incus(t), 3)
		must(t, l.MakeSnapshot(within(t, 2*time.Minute)))
		l.lossOfQuorum()
		l.recover()
		l.wantRecovered()
	})
	t.Run("5, new addresses, and again when all is stopped cleanly", func(t *testing.T) {
		t.Parallel()
		l := newSizesLab(t, incus(t), 5)
		l.lossOfQuorum()
		l.recover(l.addresses()...)
		l.moved = true
		l.wantRecovered()
		l.stopCleanly()
		l.recover()
		l.wantRecovered()
	})
}
