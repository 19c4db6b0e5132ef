// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Where the segment that ended with the snapshot is gone, the indexes of what comes after it are not proven, and the export has no
// segments: libdqlite serves the same rows from one snapshot, at an index that no member has.
func TestSnapshotFence(t *testing.T) {
	const snapshot, last = 2048, 2433
	global := filepath.Join(solo(t), "database", "global")
	must(t, os.Remove(filepath.Join(global, raftlog.SegmentName(1705, snapshot))))
	log := openDir(t, global)
	if log.LastIndex != last || log.Unproven() != snapshot+1 || len(log.Readings) != 1 || log.Healthy() {
		t.Fatalf("the log ends at %d, unproven from %d, %d readings, healthy %v", log.LastIndex, log.Unproven(), len(log.Readings), log.Healthy())
	}

	pieces, fence, err := snapshotFence(t.Context(), log, log.LastIndex, snapshotPlace{term: 5000, made: time.UnixMilli(777)}, t.TempDir())
	must(t, err)
	name := fmt.Sprintf("snapshot-5000-%d-777", last+snapshotStep)
	if fence.Index != last+snapshotStep || fence.Term != 5000 || !slices.ContainsFunc(pieces, func(p bundle.Piece) bool { return p.Name == name }) {
		t.Errorf("the fence is %v, of %v", fence, pieces)
	}

	served := serve(t.Context(), pieces, fence)
	defer served.end()

	verified := startVerification(t.Context(), replayed{log: log, upTo: log.LastIndex, what: "the database"}, served)
	must(t, verified.wait())

	dir := filepath.Join(t.TempDir(), "global")
	must(t, writePieces(dir, pieces))
	got := openDir(t, dir)
	if !got.Healthy() || got.LastIndex != fence.Index || got.LastTerm != fence.Term || len(got.Segments) != 0 || got.Term != fence.Term+1 {
		t.Errorf("healthy %v, index %d, term %d, %d segments, %v", got.Healthy(), got.LastIndex, got.LastTerm, len(got.Segments), got.Problems)
	}

	differ := fingerprintAt(t, log).Differ(fingerprintAt(t, got))
	if len(differ) > 0 {
		t.Errorf("other rows in %v", differ)
	}
}

func fingerprintAt(t *testing.T, log *raftlog.Log) globaldb.Fingerprint {
	t.Helper()
	db, err := globaldb.Open(t.Context(), log, log.LastIndex)
	must(t, err)
	defer db.Close()

	print, err := db.Fingerprint(t.Context())
	must(t, err)
	return print
}
