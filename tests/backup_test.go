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

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// Backups are taken while somebody writes, segments are closed and snapshots taken: each has every row that was confirmed before it began. Then all
// databases are lost, and the last one brings the cluster back.
func TestBackup(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, backupsUnderWriting)
}

func backupsUnderWriting(t *testing.T, lxd cluster.LXD) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 15*time.Minute)
	one := c.Member(1)
	w := one.StartWriter("row")
	defer w.Stop()

	must(t, w.WaitConfirmed(ctx, 10))
	dir := t.TempDir()
	grown := make(chan error, 1)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		err := c.MakeSnapshot(ctx)
		for err == nil {
			select {
			case <-stop:
				grown <- nil
				return
			default:
				err = c.MakeSnapshot(ctx)
			}
		}

		grown <- err
	}()
	number := 8
	if os.Getenv("CAMPAIGN") != "" {
		number = 100
	}

	type held struct {
		file string
		rows []string
	}

	var whole []held
	last, rows := "", 0
	for i := range number {
		m := c.Member(1 + i%3)
		file := filepath.Join(dir, fmt.Sprintf("%d.tar.gz", i))
		args := []string{"global-db-backup", "--format", "json", file}
		if i > 0 { // the first one waits for a heartbeat
			args = append(args, "--nonce")
		}

		confirmed := w.Confirmed()
		r := decode[recovery.BackupReport](t, mustRecover(t, m, args...))
		if want := proofOf(i > 0); r.Proof != want || r.Source.Name != m.Name || r.Next.Term != r.Raft.Term || r.Next.Index <= r.Raft.Index {
			t.Errorf("backup %d: %+v, want proof %s", i, r, want)
		}

		have := wantBackedUp(t, m, file, confirmed)
		whole = append(whole, held{file, have})
		last, rows = file, rows+len(confirmed)
	}

	close(stop)
	<-stopped
	must(t, <-grown)
	t.Logf("sample: %s: %d of %d backups under writing, %d confirmed rows looked for, none lacking", lxd.Name, number, number, rows)
	confirmed := w.Confirmed()
	w.Stop()
	for _, h := range whole { // a row is there only with all that were confirmed before it
		end := len(h.rows)
		for i, name := range confirmed {
			if i < end && h.rows[end-1] >= name && !slices.Contains(h.rows, name) {
				t.Errorf("%s has %s, and not %s, which was confirmed before", h.file, h.rows[end-1], name)
			}
		}
	}

	if segments, _ := filepath.Glob(filepath.Join(one.Dir(), "database/global/snapshot-*")); len(segments) == 0 {
		t.Error("no snapshot was taken meanwhile")
	}

	restoreFrom(t, c, last, confirmed[0])
}

func proofOf(nonce bool) string {
	if nonce {
		return bundle.ProofNonce
	}

	return bundle.ProofHeartbeat
}

// wantBackedUp wants a backup to have all rows that were confirmed before it began, and returns those that it has.
func wantBackedUp(t *testing.T, m *cluster.Member, file string, confirmed []string) []string {
	t.Helper()
	r := mustRecover(t, m, "global-db-sql", "--format", "csv", "--source", file, "SELECT name FROM profiles WHERE name LIKE 'row-%' ORDER BY id")
	have := strings.Fields(r.stdout)[1:] // after the heading
	if !slices.IsSorted(have) {
		t.Fatalf("%s: the rows are not in the order in which they were written: %v", file, have)
	}

	var lacking []string
	for _, name := range confirmed {
		if _, found := slices.BinarySearch(have, name); !found {
			lacking = append(lacking, name)
		}
	}

	if len(lacking) > 0 {
		t.Fatalf("%s has %d rows, and lacks of the %d that were confirmed before: %v", file, len(have), len(confirmed), lacking)
	}

	return have
}

// restoreFrom has all databases lost, and brings the cluster back from a backup.
func restoreFrom(t *testing.T, c *cluster.Cluster, backup string, row string) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	one := c.Member(1)
	c.KillAll()
	for _, m := range c.Members() {
		must(t, os.RemoveAll(filepath.Join(m.Dir(), "database/global")))
	}

	recoverTool(t, one, "global-db-import", "--yes", backup).want(t, 3, "is a backup", "export-db --source")
	tarball := filepath.Join(t.TempDir(), "recovery.tar.gz")
	mustRecover(t, one, "cluster", "export-db", "--yes", "--source", backup, tarball)
	for _, m := range c.Members() {
		mustRecover(t, m, "global-db-import", "--yes", "--no-start", "--discard-local-entries", tarball)
	}

	must(t, c.StartAll(ctx))
	for _, m := range c.Members() {
		if names := profiles(t, m); !slices.Contains(names, row) {
			t.Errorf("%s lacks %s: %v", m.Name, row, names)
		}
	}
}
