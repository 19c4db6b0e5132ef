// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// A replay that begins with a snapshot comes to the rows of one from the log's beginning.
func TestReplayFromSnapshot(t *testing.T) {
	print := func(log *raftlog.Log) Fingerprint {
		t.Helper()
		db, err := Open(t.Context(), log, 0)
		must(t, err)
		defer db.Close()
		p, err := db.Fingerprint(t.Context())
		must(t, err)
		return p
	}

	log, err := raftlog.Open(t.Context(), os.DirFS(raftlogtest.Make(t, raftlogtest.Snapshot)), raftlog.Options{})
	must(t, err)
	differ := print(open(t, "small/n2-preimport")).Differ(print(log))
	if len(differ) > 0 {
		t.Errorf("other rows in %v", differ)
	}
}

// A row that only the write-ahead log in a snapshot has, as libdqlite up to 1.16 wrote them, is in the database.
func TestReplayMergesWAL(t *testing.T) {
	file := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite3", "file:"+file)
	must(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, s := range []string{"PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE t (v)", "INSERT INTO t VALUES ('main')",
		"PRAGMA wal_checkpoint(TRUNCATE)", "INSERT INTO t VALUES ('wal')"} {
		_, err = db.Exec(s)
		must(t, err)
	}

	main, err := os.ReadFile(file)
	must(t, err)
	wal, err := os.ReadFile(file + "-wal")
	must(t, err)
	dir := t.TempDir()
	configuration := raftlog.Configuration{{ID: 1, Address: "10.0.0.1:8443", Role: raftlog.Voter}}
	for name, data := range map[string][]byte{
		"metadata1":           raftlog.Metadata{Version: 1, Term: 1}.Encode(),
		"snapshot-1-9-1":      raftlogtest.Compress(raftlogtest.EncodeSnapshot(Name, main, wal)),
		"snapshot-1-9-1.meta": raftlog.EncodeSnapshotMeta(1, configuration),
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}

	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
	must(t, err)
	target := filepath.Join(t.TempDir(), "target")
	must(t, Replay(t.Context(), log, target, 0))
	replayed, err := openFile(target, "ro")
	must(t, err)
	defer replayed.Close()
	got := rowsOfQuery(t, &DB{sql: replayed, File: target}, "SELECT v FROM t")
	if len(got) != 2 {
		t.Errorf("rows %v", got)
	}

	left, err := filepath.Glob(target + "-*")
	must(t, err)
	if len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// frames is a transaction that writes these pages of a database.
func frames(database string, pageSize int, commit byte, numbers ...byte) raftlog.Entry {
	text := append([]byte(database), make([]byte, 8-len(database)%8)...)
	data := append([]byte{1, 2, 0, 0, 0, 0, 0, 0}, text...)
	data = append(data, make([]byte, 12)...)
	data = append(data, commit, 0, 0, 0, byte(len(numbers)), 0, 0, 0, byte(pageSize), byte(pageSize>>8), 0, 0)
	for _, n := range numbers {
		data = append(data, n, 0, 0, 0, 0, 0, 0, 0)
	}

	return raftlog.Entry{Index: 1, Term: 1, Type: raftlog.CommandEntry, Data: append(data, make([]byte, len(numbers)*pageSize)...)}
}

// What is no transaction on LXD's database is an error, and so is a database that comes out with a hole.
func TestReplayRefuses(t *testing.T) {
	for _, test := range []struct {
		entry raftlog.Entry
		want  string
	}{
		{frames("other.bin", 4096, 1, 1), `unknown database "other.bin"`},
		{frames(Name, 4096, 0, 1), "uncommitted frames"},
		{frames(Name, 512, 1, 1), "page size 512, expected 4096"},
		{frames(Name, 4096, 1, 1), "page 1 is not that of an SQLite database"},
	} {
		r, err := newReplayer(&raftlog.Log{}, filepath.Join(t.TempDir(), "target"))
		must(t, err)
		err = r.command(test.entry)
		if err == nil {
			err = r.finish()
		}

		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %s", err, test.want)
		}

		must(t, r.close())
	}

	r, err := newReplayer(&raftlog.Log{}, filepath.Join(t.TempDir(), "target"))
	must(t, err)
	defer r.close()
	page := frames(Name, 4096, 1, 1, 3)
	header := page.Data[len(page.Data)-2*4096:]
	copy(header, "SQLite format 3\x00\x10\x00\x02\x02")
	header[31] = 3 // pages
	must(t, r.command(page))
	err = r.finish()
	if err == nil || !strings.Contains(err.Error(), "page 2 of 3 is neither in the snapshot nor in the log") {
		t.Errorf("a page is missing: %v", err)
	}

	must(t, r.command(frames(Name, 4096, 1, 2)))
	must(t, r.finish())
	info, err := r.file.Stat()
	must(t, err)
	if info.Size() != 3*4096 {
		t.Errorf("%d bytes", info.Size())
	}

	empty, err := newReplayer(&raftlog.Log{}, filepath.Join(t.TempDir(), "target"))
	must(t, err)
	defer empty.close()
	if !errors.Is(empty.finish(), ErrNoDatabase) || empty.finishIfAny() != nil {
		t.Errorf("nothing at all: %v, %v", empty.finish(), empty.finishIfAny())
	}
}

// SQLite's integers: https://www.sqlite.org/fileformat2.html#varint
func TestVarint(t *testing.T) {
	for _, test := range []struct {
		data  string
		value uint64
		size  int
	}{
		{"\x00", 0, 1},
		{"\x7f", 127, 1},
		{"\x81\x00", 128, 2},
		{"\x81\x00\xff", 128, 2}, // more follows
		{"\xff\x7f", 1<<14 - 1, 2},
		{"\xff\xff\xff\xff\xff\xff\xff\x7f", 1<<56 - 1, 8},
		{"\x80\x80\x80\x80\x80\x80\x80\x80\x80", 1 << 7, 9}, // the ninth has 8 bits
		{"\xff\xff\xff\xff\xff\xff\xff\xff\xff", 1<<64 - 1, 9},
		{"", 0, 0},
		{"\x81", 0, 0},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", 0, 0},
	} {
		value, size := varint([]byte(test.data))
		if value != test.value || size != test.size {
			t.Errorf("%x is %d in %d bytes, want %d in %d", test.data, value, size, test.value, test.size)
		}
	}
}
