// SPDX-License-Identifier: AGPL-3.0-only

// Package globaldb turns a raft log into the SQLite database it stands for, and asks it questions.
//
// LXD's global database exists nowhere as one file: it is the newest snapshot with the pages of every later transaction
// written over it. Replay writes those pages to an SQLite file; from then on it is a plain database, opened read-only.
// Nothing here touches the raft directory but through raftlog, which only reads.
package globaldb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Name is the file name by which LXD's global database goes in snapshots and log entries.
const Name = "db.bin"

const (
	pageSize     = 4096                    // dqlite knows no other page size
	pendingPage  = 0x40000000/pageSize + 1 // SQLite's lock byte page: never written, all zero
	offPages     = 28                      // page 1: number of pages, 32 bits, big endian
	offPageSize  = 16                      // page 1: page size, 16 bits, big endian
	offVersions  = 18                      // page 1: write and read version; 2 = WAL, 1 = rollback journal
	walHeader    = 32                      // bytes of a WAL without any frame
	maxPageCount = 1<<32 - 2               // SQLite's own limit
)

// ErrNoDatabase says that a log holds no transaction of LXD's global database.
var ErrNoDatabase = errors.New("the raft log holds no global database")

// Replay writes the global database as it was after the entry with index upTo to the new file target; upTo 0 means after
// the last entry. An upTo before the newest snapshot is reached from an older one, or from the log's beginning, where they are
// still there, and is refused otherwise. The memory it takes does not depend on the database's size, but for one bit a page.
//
// Whether an entry was committed cannot be told from one member's log: the newest ones are replayed, too, as a raft leader
// elected from this log would.
func Replay(ctx context.Context, log *raftlog.Log, target string, upTo uint64) error {
	r, err := newReplayer(log, target)
	if err != nil {
		return err
	}

	if upTo == 0 {
		upTo = log.LastIndex
	}

	err = r.advance(ctx, upTo)
	closeErr := r.close()
	if err == nil {
		err = closeErr
	}

	if err != nil {
		_ = os.Remove(target)
	}

	return err
}

// replayer is a replay that can stop at several places: after each advance the file is a whole database.
type replayer struct {
	log    *raftlog.Log
	target string
	file   *os.File
	pages  pageSet // pages seen
	next   uint64  // index of the next entry to replay, 0 before the snapshot
	name   string  // of the database, empty as long as any may come
}

// newReplayer begins a replay into the new file target.
func newReplayer(log *raftlog.Log, target string) (*replayer, error) {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}

	return &replayer{log: log, target: target, file: f, name: nameIn(log)}, nil
}

// close closes the file and leaves it in place.
func (r *replayer) close() error { return r.file.Close() }

// advance replays on to the entry with index upTo.
func (r *replayer) advance(ctx context.Context, upTo uint64) error {
	err := r.replay(ctx, upTo)
	if err != nil {
		return fmt.Errorf("replay the raft log: %w", err)
	}

	return nil
}

func (r *replayer) replay(ctx context.Context, upTo uint64) error {
	if r.next == 0 {
		err := r.begin(ctx, upTo)
		if err != nil {
			return err
		}
	}

	for entry, err := range r.log.Entries(ctx, r.next) {
		if err != nil {
			return err
		}

		if entry.Index > upTo {
			break
		}

		r.next = entry.Index + 1
		if entry.Type != raftlog.CommandEntry {
			continue
		}

		err = r.command(entry)
		if err != nil {
			return fmt.Errorf("%s: entry with index %d: %w", entry.File, entry.Index, err)
		}
	}

	return r.finish()
}

// begin writes the snapshot, if there is one.
func (r *replayer) begin(ctx context.Context, upTo uint64) error {
	r.next = max(r.log.FirstIndex, 1)
	snapshot, err := Base(ctx, r.log, upTo)
	if err != nil || snapshot == nil {
		return err
	}

	err = r.snapshot(ctx, snapshot)
	if err != nil {
		return fmt.Errorf("%s: %w", snapshot.File, err)
	}

	r.next = snapshot.Index + 1
	return nil
}

// snapshot writes the database image of a snapshot. Where the image comes with a WAL (libdqlite up to 1.16), SQLite itself
// brings the two together.
func (r *replayer) snapshot(ctx context.Context, s *raftlog.Snapshot) error {
	hasWAL := false
	err := r.log.SnapshotDatabases(ctx, s, func(db raftlog.SnapshotDatabase) error {
		ok, err := r.takes(db.Name)
		if err != nil || !ok {
			return err
		}

		_, err = io.Copy(r.file, db.Main)
		if err != nil {
			return err
		}

		if db.WALSize <= walHeader {
			return nil
		}

		hasWAL = true
		return newfile.Write(r.target+"-wal", db.WAL)
	})
	if err != nil {
		return err
	}

	if hasWAL {
		err = checkpoint(ctx, r.target)
		if err != nil {
			return fmt.Errorf("merge the WAL: %w", err)
		}
	}

	info, err := r.file.Stat()
	if err != nil {
		return err
	}

	for n := uint64(1); n <= uint64(info.Size())/pageSize; n++ {
		r.pages.add(n)
	}

	return nil
}

func (r *replayer) command(entry raftlog.Entry) error {
	cmd, err := raftlog.ParseCommand(entry.Data)
	if err != nil {
		return err
	}

	if cmd.Kind != raftlog.Frames {
		return nil
	}

	ok, err := r.takes(cmd.Database)
	if err != nil {
		return fmt.Errorf("transaction on %w", err)
	}

	if !ok {
		return nil
	}

	if !cmd.IsCommit {
		return errors.New("uncommitted frames of the first dqlite engine are not supported")
	}

	if cmd.PageSize != pageSize {
		return fmt.Errorf("page size %d, expected %d", cmd.PageSize, pageSize)
	}

	for i := range cmd.Len() {
		number, image := cmd.Page(i)
		if number == 0 || number > maxPageCount {
			return fmt.Errorf("bad page number %d", number)
		}

		_, err = r.file.WriteAt(image, int64(number-1)*pageSize)
		if err != nil {
			return err
		}

		r.pages.add(number)
	}

	return nil
}

// finish gives the file the size that page 1 tells, checks that no page is missing, and takes the database out of WAL mode
// so that it can be opened read-only without files beside it.
func (r *replayer) finish() error {
	if !r.pages.has(1) {
		return ErrNoDatabase
	}

	header := make([]byte, 100)
	_, err := r.file.ReadAt(header, 0)
	if err != nil {
		return err
	}

	if string(header[:16]) != "SQLite format 3\x00" || binary.BigEndian.Uint16(header[offPageSize:]) != pageSize {
		return errors.New("page 1 is not that of an SQLite database with pages of 4096 bytes")
	}

	count := uint64(binary.BigEndian.Uint32(header[offPages:]))
	for n := uint64(1); n <= count; n++ {
		if !r.pages.has(n) && n != pendingPage {
			return fmt.Errorf("page %d of %d is neither in the snapshot nor in the log", n, count)
		}
	}

	err = r.file.Truncate(int64(count) * pageSize)
	if err != nil {
		return err
	}

	_, err = r.file.WriteAt([]byte{1, 1}, offVersions)
	return err
}

// pageSet is a set of page numbers, one bit each.
type pageSet struct{ words []uint64 }

func (s *pageSet) add(n uint64) {
	word := int(n / 64)
	if word >= len(s.words) {
		s.words = append(s.words, make([]uint64, word+1-len(s.words))...)
	}

	s.words[word] |= 1 << (n % 64)
}

func (s *pageSet) has(n uint64) bool {
	word := int(n / 64)
	return word < len(s.words) && s.words[word]&(1<<(n%64)) != 0
}
