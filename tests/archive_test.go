// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// An archive of a member that writes, takes snapshots, deletes segments and is started again has every entry that the member has ever had, and goes back to
// any of them.
func TestArchive(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, archiveLog)
}

func archiveLog(t *testing.T, lxd cluster.LXD) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 15*time.Minute)
	m := c.Member(1)
	dir := filepath.Join(t.TempDir(), "archive")
	truth, rnd := map[uint64]raftlog.Entry{}, rand.New(rand.NewPCG(15, 15))
	rounds, restored := 3, 6
	if os.Getenv("CAMPAIGN") != "" {
		rounds, restored = 12, 50
	}

	var added archive.Added
	var middle time.Time // half of the rows were confirmed by then
	for i := range rounds {
		must(t, m.CreateProfile(ctx, fmt.Sprintf("row-%02d", i)))
		must(t, c.MakeSnapshot(ctx))
		if i == rounds/2 {
			middle = time.Now()
			must(t, c.StopAll(ctx))
			must(t, c.StartAll(ctx))
		}

		remember(t, m, truth)
		added = decode[archive.Added](t, mustRecover(t, m, "global-db-backup", "--archive", dir, "--format", "json"))
		if len(added.Gaps) > 0 {
			t.Errorf("round %d: %+v", i, added)
		}
	}

	c.KillAll()
	log, err := raftlog.Open(ctx, os.DirFS(added.Lineage), raftlog.Options{})
	must(t, err)
	if log.FirstIndex != 1 || log.LastIndex != added.Last || log.Undecided() {
		t.Fatalf("the archive has the entries %d to %d: %v", log.FirstIndex, log.LastIndex, log.Problems)
	}

	for e, err := range log.Entries(ctx, 1) {
		must(t, err)
		if !raftlog.SameEntry(e, truth[e.Index]) {
			t.Errorf("entry %d is another one", e.Index)
		}
	}

	exportFromArchive(t, m, dir, middle, rounds/2+1)
	for range restored {
		backTo(t, m, dir, truth, 200+rnd.Uint64N(log.LastIndex-200))
	}

	t.Logf("sample: %s: archive of %d entries over %d snapshots, %d of them restored to", lxd.Name, log.LastIndex, rounds, restored)
}

// exportFromArchive makes a recovery tarball of the state at a time: it has all rows that were confirmed by then.
func exportFromArchive(t *testing.T, m *cluster.Member, dir string, at time.Time, rows int) {
	t.Helper()
	tarball := filepath.Join(t.TempDir(), "db.tar.gz")
	mustRecover(t, m, "cluster", "export-db", "--yes", "--source", dir, "--at", at.Add(time.Second).UTC().Format(time.RFC3339), tarball)
	r := mustRecover(t, m, "global-db-sql", "--format", "csv", "--source", tarball, "SELECT name FROM profiles WHERE name LIKE 'row-%' ORDER BY id")
	have := strings.Fields(r.stdout)[1:]
	for i := range rows {
		if !slices.Contains(have, fmt.Sprintf("row-%02d", i)) {
			t.Errorf("at %s row %d was there: %v", at, i, have)
		}
	}
}

// backTo goes back to an index: the database has the rows that were written by then, and no others.
func backTo(t *testing.T, m *cluster.Member, dir string, truth map[uint64]raftlog.Entry, at uint64) {
	t.Helper()
	r := mustRecover(t, m, "global-db-sql", "--format", "csv", "--source", dir, "--at", fmt.Sprint(at),
		"SELECT name FROM profiles WHERE name LIKE 'row-%' ORDER BY id")
	have := strings.Fields(r.stdout)[1:]
	want := []string{}
	for index := uint64(1); index <= at; index++ {
		for row := range 100 {
			name := fmt.Sprintf("row-%02d", row)
			if len(want) == row && bytes.Contains(truth[index].Data, []byte(name)) {
				want = append(want, name)
			}
		}
	}

	if strings.Join(have, " ") != strings.Join(want, " ") {
		t.Errorf("at %d: %v, want %v", at, have, want)
	}
}

// remember keeps the entries that a member's disk has now.
func remember(t *testing.T, m *cluster.Member, truth map[uint64]raftlog.Entry) {
	t.Helper()
	held, err := raftlog.Hold(t.Context(), filepath.Join(m.Dir(), "database/global"))
	must(t, err)
	defer held.Close()

	log, err := raftlog.Open(t.Context(), held, raftlog.Options{})
	must(t, err)
	for e, err := range log.Entries(t.Context(), max(log.FirstIndex, 1)) {
		must(t, err)
		e.Data = bytes.Clone(e.Data)
		truth[e.Index] = e
	}
}
