// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// snapshotStep is how far the index of a snapshot fence lies above that of the last entry: no member has an entry there.
const snapshotStep = 1000000

// unproven tells whether the indexes of entries up to one are not proven: then no segment of them may leave this member.
func unproven(log *raftlog.Log, last uint64) bool {
	return log.Unproven() > 0 && last >= log.Unproven()
}

// beyond tells whether a snapshot keeps a member from following an entry fence with that position, which stands on a log. raft never takes a
// snapshot back: one that reaches to the fence or further, or has another entry than the log at its index, stays as it is.
func beyond(snapshot bundle.Position, log *raftlog.Log, fence bundle.Position) bool {
	if snapshot.Index == 0 || snapshot.Index >= fence.Index {
		return snapshot.Index > 0
	}

	term, known := log.TermAt(snapshot.Index)
	return known && term != snapshot.Term
}

// snapshotReason says why an export is fenced by a snapshot; it is empty where it is fenced by an entry. fence is where that entry would be.
func (ex *exporter) snapshotReason(fence bundle.Position, reports []survivorReport) string {
	if ex.source != "" {
		return fmt.Sprintf("it is of an earlier database, and the members have gone on from others: %s", ex.source)
	}

	if unproven(ex.log, ex.report.Before.Index) {
		return unprovenText(ex.log)
	}

	for _, own := range ex.log.Snapshots {
		if own.Index >= fence.Index {
			return fmt.Sprintf("this member's own snapshot reaches index %d, and what is exported ends at %s", own.Index, ex.report.Before)
		}
	}

	for _, r := range reports {
		if beyond(bundle.Position{Index: r.Raft.SnapshotIndex, Term: r.Raft.SnapshotTerm}, ex.log, fence) {
			return fmt.Sprintf("the snapshot of %s, at index %d and term %d, is no part of what is exported, which ends at %s",
				r.name(), r.Raft.SnapshotIndex, r.Raft.SnapshotTerm, ex.report.Before)
		}
	}

	missing := unseen(ex.report.Members, ex.report.Source.ID, reports)
	switch {
	case len(reports) > 0 && len(missing) > 0:
		return "no --survivor report tells what snapshot these voters have: " + strings.Join(missing, ", ")
	case ex.opts.SnapshotFence:
		return "--snapshot-fence asks for it"
	}

	return ""
}

// highestIndex is the highest index that is known of these members.
func highestIndex(reports []survivorReport) uint64 {
	var highest uint64
	for _, r := range reports {
		highest = max(highest, r.Raft.LastIndex, r.Raft.SnapshotIndex)
	}

	return highest
}

// unprovenText says what is done about that.
func unprovenText(log *raftlog.Log) string {
	return fmt.Sprintf("the files that would prove the indexes from %d on are gone: the database goes on from a snapshot, without the entries", log.Unproven())
}

// snapshotPlace is where a snapshot fence goes: its term, an index that is above that of every entry and snapshot, and the time that its
// name has.
type snapshotPlace struct {
	term    uint64
	above   uint64                // the highest index that is known
	servers raftlog.Configuration // nil: the log's
	made    time.Time
}

// snapshotFence is a directory with no entries at all: a snapshot of the database after the entry with index last, at an index and a term
// that no member has, and the metadata. A member takes it whatever it has itself, a snapshot beyond the last entry too, and there is
// no pair of index and term that another member could have with other content; so entries whose indexes are not proven never leave
// a member as segments. The directory scratch is for the snapshot's file, which must stay until the pieces are read.
func snapshotFence(ctx context.Context, log *raftlog.Log, last uint64, place snapshotPlace, scratch string) ([]bundle.Piece, bundle.Position, error) {
	// The term is another one for every attempt, and so is the index: a member that has taken one fence by a snapshot takes another one.
	at := bundle.Position{Index: max(max(last, log.LastIndex, place.above)+snapshotStep, place.term), Term: place.term}
	name := fmt.Sprintf("snapshot-%d-%d-%d", at.Term, at.Index, max(place.made.UnixMilli(), 1))
	size, err := writeSnapshot(ctx, log, last, filepath.Join(scratch, name))
	if err != nil {
		return nil, at, err
	}

	servers := place.servers
	if servers == nil {
		servers = log.Configuration
	}

	fsys := os.DirFS(scratch)
	pieces := append(metadataPieces(log, metadataTerm(servers, place.term)),
		bundle.BytesPiece(name+".meta", raftlog.EncodeSnapshotMeta(at.Index, servers)),
		bundle.FilePiece(fsys, name, name, size, ""))
	return pieces, at, nil
}

// writeSnapshot writes the data of a snapshot as libdqlite does: the database after an entry, without a write-ahead log, in an LZ4
// frame with the size of its content and a checksum. It returns the size of the file, bytes.
func writeSnapshot(ctx context.Context, log *raftlog.Log, last uint64, path string) (int64, error) {
	db, err := globaldb.Open(ctx, log, last)
	if err != nil {
		return 0, err
	}

	defer db.Close()

	main, err := os.Open(db.File)
	if err != nil {
		return 0, err
	}

	defer main.Close()

	info, err := main.Stat()
	if err != nil {
		return 0, err
	}

	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}

	defer f.Close()

	head := raftlog.SnapshotHeader(globaldb.Name, info.Size())
	w, err := frameWriter(f, int64(len(head))+info.Size())
	if err == nil {
		_, err = w.Write(head)
	}

	if err == nil {
		err = copyAsWAL(w, main)
	}

	if err == nil {
		err = w.Close()
	}

	if err != nil {
		return 0, fmt.Errorf("write %s: %w", path, err)
	}

	info, err = f.Stat()
	if err != nil {
		return 0, err
	}

	return info.Size(), nil
}

// frameWriter packs what is written to it, size bytes, as libdqlite packs a snapshot: in an LZ4 frame that says its size and has a checksum.
func frameWriter(to io.Writer, size int64) (*lz4.Writer, error) {
	w := lz4.NewWriter(to)
	return w, w.Apply(lz4.SizeOption(uint64(size)), lz4.ChecksumOption(true), lz4.BlockSizeOption(lz4.Block64Kb))
}

// copyAsWAL copies a replayed database as dqlite keeps it: in WAL mode, which the bytes 18 and 19 say.
func copyAsWAL(w io.Writer, main io.Reader) error {
	page := make([]byte, 4096)
	_, err := io.ReadFull(main, page)
	if err != nil {
		return err
	}

	page[18], page[19] = 2, 2
	_, err = w.Write(page)
	if err == nil {
		_, err = io.Copy(struct{ io.Writer }{w}, main) // lz4's own ReadFrom does not follow a Write
	}

	return err
}
