// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

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

// unprovenText says what is done about that.
func unprovenText(log *raftlog.Log) string {
	return fmt.Sprintf("the files that would prove the indexes from %d on are gone: the database goes on from a snapshot, without the entries", log.Unproven())
}

// snapshotFence is a directory with no entries at all: a snapshot of the database after the entry with index last, at an index and a term
// that no member has, and the metadata. Entries whose indexes are not proven never leave a member as segments: where another member
// has others with the same index and term, raft would take them for the same. The directory scratch is for the snapshot's file, which
// must stay until the pieces are read.
func snapshotFence(ctx context.Context, log *raftlog.Log, last, term uint64, scratch string) ([]bundle.Piece, bundle.Position, error) {
	at := bundle.Position{Index: last + snapshotStep, Term: term}
	name := fmt.Sprintf("snapshot-%d-%d-1", at.Term, at.Index)
	size, err := writeSnapshot(ctx, log, last, filepath.Join(scratch, name))
	if err != nil {
		return nil, at, err
	}

	fsys := os.DirFS(scratch)
	pieces := append(metadataPieces(log, term),
		bundle.BytesPiece(name+".meta", raftlog.EncodeSnapshotMeta(at.Index, log.Configuration)),
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
	w := lz4.NewWriter(f)
	err = w.Apply(lz4.SizeOption(uint64(len(head))+uint64(info.Size())), lz4.ChecksumOption(true), lz4.BlockSizeOption(lz4.Block64Kb))
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
