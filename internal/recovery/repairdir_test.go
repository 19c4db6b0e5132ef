// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// Servers of the raft logs here.
// standaloneLog is the configuration of a standalone server.
var standaloneLog = raftlog.Configuration{{ID: 1, Address: "1", Role: raftlog.Voter}}

// Files of a repairDir. Its entries have the indexes 1 to 126, and there is a snapshot where the third of the closed segments ends.
const (
	firstClosed  = "0000000000000001-0000000000000001"
	secondClosed = "0000000000000002-0000000000000060"
	thirdClosed  = "0000000000000061-0000000000000100"
	lastClosed   = "0000000000000101-0000000000000120"
	openSegment  = "open-1"
	repairEnd    = 126
	repairTerm   = 2
	repairBase   = "snapshot-2-100-1000"
	repairVote   = 1
	rowsEnd      = 122 // index of the last transaction but one
)

// repairDir makes the directory of an LXD with these servers in its raft log, and those members in its node database: a real member's
// entries, in closed segments, a snapshot and an open segment.
func repairDir(t testing.TB, servers raftlog.Configuration, members member.List) string {
	t.Helper()
	lxd := t.TempDir()
	global := filepath.Join(lxd, databaseName, globalName)
	must(t, os.MkdirAll(global, 0o700))
	entries := repairEntries(t, servers)
	put := func(name string, data []byte) { must(t, os.WriteFile(filepath.Join(global, name), data, 0o600)) }
	for name, to := range map[string][2]int{firstClosed: {0, 1}, secondClosed: {1, 60}, thirdClosed: {60, 100}, lastClosed: {100, 120}} {
		put(name, batches(0, entries[to[0]:to[1]]))
	}

	put(openSegment, batches(8<<20, entries[120:]))
	put("metadata1", raftlog.Metadata{Version: 3, Term: repairTerm, Vote: repairVote}.Encode())
	put("metadata2", raftlog.Metadata{Version: 2, Term: repairTerm}.Encode())
	log := openDir(t, global)
	db, err := globaldb.Open(t.Context(), log, 100)
	must(t, err)
	defer db.Close()
	image, err := os.ReadFile(db.File)
	must(t, err)
	put(repairBase, raftlogtest.Compress(raftlogtest.EncodeSnapshot(globaldb.Name, image, nil)))
	put(repairBase+".meta", raftlog.EncodeSnapshotMeta(log.ConfigurationIndex, servers))
	if log := openDir(t, global); !log.Healthy() || log.LastIndex != repairEnd {
		t.Fatalf("not healthy, or ends at %d: %v", log.LastIndex, log.Problems)
	}

	nodeDatabase(t, filepath.Join(lxd, databaseName), members)
	return lxd
}

// repairEntries are the entries of a real member with other servers.
func repairEntries(t testing.TB, servers raftlog.Configuration) []raftlog.Entry {
	t.Helper()
	var all []raftlog.Entry
	for e, err := range openDir(t, raftlogtest.Global(t, "small/n2-preimport")).Entries(t.Context(), 1) {
		must(t, err)
		e.Data = bytes.Clone(e.Data)
		if e.Index > 1 {
			e.Term = repairTerm
		}

		if e.Type == raftlog.ChangeEntry {
			e.Data = raftlog.EncodeConfiguration(servers)
		}

		all = append(all, e)
	}

	return all
}

// batches is a segment with every entry in a batch of its own, filled with zeros.
func batches(size int, entries []raftlog.Entry) []byte {
	var all [][]raftlog.Entry
	for _, e := range entries {
		all = append(all, []raftlog.Entry{e})
	}

	return raftlogtest.Segment(size, all...)
}

// nodeDatabase makes a node database with these members, of which the first is this one; without any it is a standalone server's.
func nodeDatabase(t testing.TB, dir string, members member.List) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, nodedb.File))
	must(t, err)
	defer db.Close()
	run := func(statement string, args ...any) {
		_, err := db.Exec(statement, args...)
		must(t, err)
	}
	run("CREATE TABLE raft_nodes (id INTEGER PRIMARY KEY, address TEXT NOT NULL, role INTEGER NOT NULL, name TEXT NOT NULL)")
	run("CREATE TABLE config (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT)")
	run("CREATE TABLE other (value TEXT)")
	run("INSERT INTO other VALUES ('kept')")
	for i, m := range members {
		run("INSERT INTO raft_nodes VALUES (?, ?, ?, ?)", m.ID, m.Address, m.Role.API(), m.Name)
		if i == 0 {
			run("INSERT INTO config (key, value) VALUES ('cluster.https_address', ?)", m.Address)
		}
	}
}

// diskBlock is what libdqlite writes open segments in, bytes.
const diskBlock = 4096

// damageFunc damages a raft directory.
type damageFunc func(t testing.TB, global string)

// flipIn inverts a bit in the middle of a file.
func flipIn(name string) damageFunc {
	return rewrite(name, func(p []byte) []byte { p[len(p)/2] ^= 1; return p })
}

// flipEntry111 damages that entry, after the preamble and the header of its batch, of 16 bytes each.
func flipEntry111(t testing.TB, global string) {
	before := len(batches(0, repairEntries(t, standaloneLog)[100:110]))
	rewrite(lastClosed, func(p []byte) []byte { p[before+16+16+1] ^= 1; return p })(t, global)
}

func rewrite(name string, change func([]byte) []byte) damageFunc {
	return func(t testing.TB, global string) {
		t.Helper()
		path := filepath.Join(global, name)
		p, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, change(p), 0o600))
	}
}

func removeFiles(names ...string) damageFunc {
	return func(t testing.TB, global string) {
		t.Helper()
		for _, name := range names {
			must(t, os.Remove(filepath.Join(global, name)))
		}
	}
}

func copyAs(from, to string) damageFunc {
	return func(t testing.TB, global string) {
		t.Helper()
		p, err := os.ReadFile(filepath.Join(global, from))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(global, to), p, 0o600))
	}
}

// endOf is where the last sound batch of the open segment ends.
func endOf(t testing.TB, global string) int64 {
	t.Helper()
	for _, s := range openDir(t, global).Segments {
		if s.File == openSegment {
			return s.End
		}
	}

	t.Fatal("no " + openSegment)
	return 0
}

// halfBatch writes a batch after the last one, of which only the first block gets to the disk.
func halfBatch(t testing.TB, global string) {
	t.Helper()
	end := endOf(t, global)
	batch := raftlog.AppendBatch(nil, raftlog.Entry{Term: repairTerm, Type: raftlog.CommandEntry, Data: bytes.Repeat([]byte{1}, 3*diskBlock)})
	rewrite(openSegment, func(p []byte) []byte {
		copy(p[end:], batch)
		clear(p[(end/diskBlock+1)*diskBlock:])
		return p
	})(t, global)
}

// garbageTail writes something after the last batch.
func garbageTail(t testing.TB, global string) {
	t.Helper()
	end := endOf(t, global)
	rewrite(openSegment, func(p []byte) []byte {
		copy(p[end:], bytes.Repeat([]byte{0xa5}, 2*diskBlock))
		return p
	})(t, global)
}

// rowsAt is what the rows of an undamaged member's database come to at an index.
func rowsAt(t testing.TB, lxd string, index uint64) globaldb.Fingerprint {
	t.Helper()
	db, err := globaldb.Open(t.Context(), openDir(t, filepath.Join(lxd, databaseName, globalName)), index)
	must(t, err)
	defer db.Close()
	print, err := db.Fingerprint(t.Context())
	must(t, err)
	return print
}

func repair(t testing.TB, lxd string, change func(*RepairOptions)) (*RepairReport, error) {
	t.Helper()
	opts := RepairOptions{LXDDir: lxd, Version: "test", Timeout: time.Minute, Confirm: func(*RepairReport) error { return nil }}
	if change != nil {
		change(&opts)
	}

	return Repair(t.Context(), opts)
}

// reconfigureInChild is what the hidden command does.
func reconfigureInChild(dir string, list string) int {
	var nodes []engine.Node
	err := json.Unmarshal([]byte(list), &nodes)
	if err == nil {
		err = engine.Reconfigure(dir, nodes)
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		return 1
	}

	return 0
}
