// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// fenced turns a log into the files of a minimal directory that libdqlite 1.11 to 1.18 load without repairing anything, and
// that no member with another log can outvote:
//
//   - the newest snapshot that does not reach beyond the index last, and the segments that reach beyond it, all closed;
//   - as the last one, alone in its segment, the recovery entry, with the fence's term; a log that does not end in one gets
//     one with the configuration in force;
//   - both metadata files with the fence's term and no vote, their versions counted on; with a single voter, with the term after that, see
//     metadataTerm.
//
// The log is taken up to the index last. The result is what the directory would hold had a leader of that term written the entry. It
// returns the position of that entry.
func fenced(ctx context.Context, log *raftlog.Log, last uint64, fsys fs.FS, term uint64) ([]bundle.Piece, bundle.Position, error) {
	entry, err := recoveryEntry(ctx, log, last)
	if err != nil {
		return nil, bundle.Position{}, err
	}

	entry.Term = term
	pieces, err := plain(ctx, log, entry.Index-1, fsys)
	if err != nil {
		return nil, bundle.Position{}, err
	}

	segment := raftlog.AppendBatch(raftlog.SegmentHeader(), entry)
	pieces = append(metadataPieces(log, metadataTerm(log.Configuration, term)), pieces...)
	pieces = append(pieces, bundle.BytesPiece(raftlog.SegmentName(entry.Index, entry.Index), segment))
	return pieces, bundle.Position{Index: entry.Index, Term: term}, nil
}

// plain is the snapshot that leads to the index last, which is the newest one unless that reaches further, and the segments beyond it,
// all closed, up to that index.
func plain(ctx context.Context, log *raftlog.Log, last uint64, fsys fs.FS) ([]bundle.Piece, error) {
	var pieces []bundle.Piece
	first := uint64(1)
	s, err := globaldb.Base(ctx, log, last)
	if err != nil {
		return nil, err
	}

	if s != nil {
		first = s.Index + 1
		meta, err := fs.Stat(fsys, s.Meta)
		if err != nil {
			return nil, err
		}

		data := bundle.FilePiece(fsys, s.File, s.File, s.Size, s.SHA256)
		if log.Engine.RawSnapshots() && !s.Compressed {
			data, err = framed(ctx, data)
		}

		if err != nil {
			return nil, err
		}

		pieces = append(pieces, bundle.FilePiece(fsys, s.Meta, s.Meta, meta.Size(), s.MetaSHA256), data)
	}

	for _, run := range log.Runs() {
		if run.Last < first || run.First > last {
			continue
		}

		if run.Size > 0 && run.Last <= last {
			pieces = append(pieces, bundle.FilePiece(fsys, run.File, raftlog.SegmentName(run.First, run.Last), run.Size, run.SHA256))
			continue
		}

		piece, err := partOf(ctx, log, run.First, min(run.Last, last))
		if err != nil {
			return nil, err
		}

		pieces = append(pieces, piece)
	}

	return pieces, nil
}

// partOf encodes some entries of a segment anew, where the rest of it does not belong into the log. A segment holds 8 MiB,
// so it fits into memory.
func partOf(ctx context.Context, log *raftlog.Log, first uint64, last uint64) (bundle.Piece, error) {
	data := raftlog.SegmentHeader()
	for entry, err := range log.Entries(ctx, first) {
		if err != nil {
			return bundle.Piece{}, err
		}

		if entry.Index > last {
			break
		}

		data = raftlog.AppendBatch(data, entry)
	}

	return bundle.BytesPiece(raftlog.SegmentName(first, last), data), nil
}

// fenceStaged fences the raft directory in the staging directory, which must end in a recovery entry. fence says up to which
// index the log is taken, and the fence's term: with the last index the entry stays as it is, with the one before it is encoded
// anew, without what libdqlite's memory happened to hold after its end.
func fenceStaged(ctx context.Context, dir directory, progress Progress, fence func(*raftlog.Log) (last uint64, term uint64)) (*raftlog.Log, error) {
	global, unfenced := dir.join(stagingName, globalName), dir.join(stagingName, "global.unfenced")
	err := os.Rename(global, unfenced)
	if err != nil {
		return nil, err
	}

	log, err := readLog(ctx, unfenced, Progress{})
	if err != nil {
		return nil, err
	}

	last, term := fence(log)
	pieces, _, err := fenced(ctx, log, last, os.DirFS(unfenced), term)
	if err != nil {
		return nil, err
	}

	err = writePieces(global, pieces)
	if err != nil {
		return nil, err
	}

	err = os.RemoveAll(unfenced)
	if err != nil {
		return nil, err
	}

	return readLog(ctx, global, progress)
}

// writePieces makes a directory of the files of a raft directory.
func writePieces(dir string, pieces []bundle.Piece) error {
	err := os.Mkdir(dir, 0o700)
	if err != nil {
		return err
	}

	for _, p := range pieces {
		err = writePiece(filepath.Join(dir, p.Name), p)
		if err != nil {
			return err
		}
	}

	return nil
}

// recoveryEntry returns the recovery entry at the end of the log, or one to be put there; also where a snapshot has that entry already,
// which cannot get another term there.
func recoveryEntry(ctx context.Context, log *raftlog.Log, last uint64) (raftlog.Entry, error) {
	s := log.Snapshot()
	if !log.Edited || last < log.LastIndex || s != nil && s.Index >= log.LastIndex {
		return raftlog.Entry{Index: last + 1, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(log.Configuration)}, nil
	}

	for entry, err := range log.Entries(ctx, log.LastIndex) {
		if err != nil {
			return entry, err
		}

		entry.Data = bytes.Clone(entry.Data)
		return entry, nil
	}

	return raftlog.Entry{}, fmt.Errorf("the log has no entry with index %d", log.LastIndex)
}

// metadataTerm is the term of the metadata beside a fence with that term. Several voters elect a leader in a later term. The only voter leads
// at once, and its next entries take the term of its metadata: with the fence's own, they would be what another member could have from the
// same fence, started before, with other content.
func metadataTerm(servers raftlog.Configuration, fence uint64) uint64 {
	if hasSoleVoter(servers) {
		return fence + 1
	}

	return fence
}

// hasSoleVoter tells whether one member alone decides what is committed.
func hasSoleVoter(servers raftlog.Configuration) bool {
	voters := 0
	for _, s := range servers {
		if s.Role == raftlog.Voter {
			voters++
		}
	}

	return voters == 1
}

// metadataPieces returns both metadata files with that term and no vote.
func metadataPieces(log *raftlog.Log, term uint64) []bundle.Piece { return votedPieces(log, term, 0) }

// votedPieces returns both metadata files, each with the version whose parity belongs to it.
func votedPieces(log *raftlog.Log, term uint64, vote uint64) []bundle.Piece {
	version := uint64(0)
	for _, m := range log.Metadata {
		if m != nil {
			version = max(version, m.Version)
		}
	}

	var pieces []bundle.Piece
	for v := version + 1; v <= version+2; v++ {
		m := raftlog.Metadata{Version: v, Term: term, Vote: vote}
		pieces = append(pieces, bundle.BytesPiece(m.FileName(), m.Encode()))
	}

	slices.SortFunc(pieces, func(a, b bundle.Piece) int { return strings.Compare(a.Name, b.Name) })
	return pieces
}

func writePiece(path string, p bundle.Piece) error {
	src, err := p.Open()
	if err != nil {
		return err
	}

	defer src.Close()

	return newfile.Write(path, io.LimitReader(src, p.Size))
}
