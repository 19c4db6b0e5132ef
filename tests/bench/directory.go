// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"database/sql"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	_ "github.com/mattn/go-sqlite3"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

const (
	pageSize  = 4096
	rows      = 32 << 10 // of 2 KiB each
	batchRows = 64       // changed by one transaction
	segment   = 8 << 20
)

// makeDirectory fills dir with a raft log of about size bytes. The transactions are real ones: SQLite makes them, rows of
// random text inserted and then changed, and its write-ahead log is cut into the entries that dqlite would have made of it.
func makeDirectory(dir string, size int64) error {
	scratch, err := os.MkdirTemp("", "lxd-recover-bench-db-")
	if err != nil {
		return err
	}

	defer os.RemoveAll(scratch)
	w := &writer{dir: dir, first: 1, next: 1}
	server := raftlog.Configuration{{ID: 1, Address: "1", Role: raftlog.Voter}}
	err = w.add(raftlog.ChangeEntry, raftlog.EncodeConfiguration(server))
	if err != nil {
		return err
	}

	file := filepath.Join(scratch, "db.bin")
	db, err := sql.Open("sqlite3", "file:"+file+"?_journal_mode=WAL&_synchronous=OFF")
	if err != nil {
		return err
	}

	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range []string{"PRAGMA wal_autocheckpoint=0", "CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)"} {
		_, err := db.Exec(statement)
		if err != nil {
			return err
		}
	}

	random := rand.New(rand.NewPCG(1, 2))
	for i := 0; w.total < size; i += batchRows {
		if err := change(db, random, i); err != nil {
			return err
		}

		err := w.transactions(db, file)
		if err != nil {
			return err
		}
	}

	err = w.flush()
	if err != nil {
		return err
	}

	meta := raftlog.Metadata{Version: 1, Term: 1, Vote: 1}
	return os.WriteFile(filepath.Join(dir, meta.FileName()), meta.Encode(), 0o600)
}

// change writes one batch of rows.
func change(db *sql.DB, random *rand.Rand, from int) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}

	defer tx.Rollback()
	for i := from; i < from+batchRows; i++ {
		text := make([]byte, 2<<10)
		for n := range text {
			text[n] = 'a' + byte(random.IntN(26))
		}

		_, err := tx.Exec("INSERT OR REPLACE INTO t VALUES (?, ?)", i%rows, string(text))
		if err != nil {
			return err
		}
	}

	return tx.Commit()
}

// writer writes closed segments.
type writer struct {
	dir         string
	buf         []byte // the segment under way
	first, next uint64
	total       int64
}

func (w *writer) add(kind raftlog.EntryType, data []byte) error {
	if w.buf == nil {
		w.buf = raftlog.SegmentHeader()
	}

	w.buf = raftlog.AppendBatch(w.buf, raftlog.Entry{Term: 1, Type: kind, Data: data})
	w.next++
	if len(w.buf) < segment-1<<20 {
		return nil
	}

	return w.flush()
}

func (w *writer) flush() error {
	if w.buf == nil {
		return nil
	}

	name := filepath.Join(w.dir, raftlog.SegmentName(w.first, w.next-1))
	w.total += int64(len(w.buf))
	w.first = w.next
	data := w.buf
	w.buf = nil
	return os.WriteFile(name, data, 0o600)
}

// transactions turns what is in SQLite's WAL into entries and empties it. A frame is a header of 24 bytes, big endian, of
// which the first word is the page number and the second is not 0 in the last frame of a transaction, and a page.
func (w *writer) transactions(db *sql.DB, file string) error {
	wal, err := os.ReadFile(file + "-wal")
	if err != nil {
		return err
	}

	var numbers []uint64
	var pages []byte
	for p := wal[min(32, len(wal)):]; len(p) >= 24+pageSize; p = p[24+pageSize:] {
		numbers = append(numbers, uint64(binary.BigEndian.Uint32(p)))
		pages = append(pages, p[24:24+pageSize]...)
		if binary.BigEndian.Uint32(p[4:]) == 0 {
			continue
		}

		err := w.add(raftlog.CommandEntry, frames(numbers, pages))
		if err != nil {
			return err
		}

		numbers, pages = nil, nil
	}

	var busy, log, done int
	err = db.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done)
	if err != nil {
		return err
	}

	if busy != 0 {
		return fmt.Errorf("the WAL cannot be emptied")
	}

	return nil
}

// frames encodes a transaction as dqlite does (docs/raft-directory.md, Commands), little endian.
func frames(numbers []uint64, pages []byte) []byte {
	data := []byte{1, 2, 0, 0, 0, 0, 0, 0}
	data = append(data, "db.bin\x00\x00"...)
	data = binary.LittleEndian.AppendUint64(data, 0) // transaction id
	data = binary.LittleEndian.AppendUint32(data, 0) // truncate
	data = append(data, 1, 0, 0, 0)                  // is_commit
	data = binary.LittleEndian.AppendUint32(data, uint32(len(numbers)))
	data = binary.LittleEndian.AppendUint16(data, pageSize)
	data = append(data, 0, 0)
	for _, n := range numbers {
		data = binary.LittleEndian.AppendUint64(data, n)
	}

	return append(data, pages...)
}
