// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"database/sql"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// stateLab is node2 of the cluster in the fixtures, with more entries in its log.
type stateLab struct{ lostLab }

// newStateLab is the member as it is in the fixtures, but that its cluster's addresses are those of this machine: where nobody answers is
// known at once.
func newStateLab(t testing.TB) stateLab {
	t.Helper()
	l := stateLab{newLostLab(t)}
	l.exec(t, "UPDATE raft_nodes SET address = replace(address, '10.96.6.', '127.6.6.')")
	l.exec(t, "UPDATE config SET value = replace(value, '10.96.6.', '127.6.6.')")
	l.transact(t, "UPDATE nodes SET address = replace(address, '10.96.6.', '127.6.6.')")
	l.configure(t, raftlog.Voter, raftlog.Voter, raftlog.Voter)
	return l
}

// addressOf is a member's address in the lab.
func addressOf(id uint64) string {
	return []string{"127.6.6.101:8443", "127.6.6.102:8443", "127.6.6.103:8443"}[id-1]
}

// append adds an entry to the log, in the term of the last one.
func (l stateLab) append(t testing.TB, kind raftlog.EntryType, data []byte) {
	t.Helper()
	l.appendIn(t, openDir(t, l.dir.global()).LastTerm, kind, data)
}

// appendIn adds an entry of a term to the log.
func (l stateLab) appendIn(t testing.TB, term uint64, kind raftlog.EntryType, data []byte) {
	t.Helper()
	log := openDir(t, l.dir.global())
	pieces, err := plain(t.Context(), log, log.LastIndex, os.DirFS(l.dir.global()))
	must(t, err)
	entry := raftlog.Entry{Index: log.LastIndex + 1, Term: term, Type: kind, Data: data}
	pieces = append(pieces, metadataPieces(log, log.Term)...)
	pieces = append(pieces, bundle.BytesPiece(raftlog.SegmentName(entry.Index, entry.Index), raftlog.AppendBatch(raftlog.SegmentHeader(), entry)))
	next := l.dir.join("next")
	must(t, writePieces(next, pieces))
	must(t, os.RemoveAll(l.dir.global()))
	must(t, os.Rename(next, l.dir.global()))
}

// configure appends a configuration with these roles.
func (l stateLab) configure(t testing.TB, roles ...raftlog.Role) {
	t.Helper()
	var servers raftlog.Configuration
	for i, role := range roles {
		servers = append(servers, raftlog.Server{ID: uint64(i + 1), Address: addressOf(uint64(i + 1)), Role: role})
	}

	l.append(t, raftlog.ChangeEntry, raftlog.EncodeConfiguration(servers))
}

// transact appends a transaction, and returns its index.
func (l stateLab) transact(t testing.TB, statements string) uint64 {
	t.Helper()
	log := openDir(t, l.dir.global())
	db, err := globaldb.Open(t.Context(), log, 0)
	must(t, err)
	defer db.Close()
	before, err := os.ReadFile(db.File)
	must(t, err)
	changed := filepath.Join(t.TempDir(), globaldb.Name)
	must(t, os.WriteFile(changed, before, 0o600))
	writer, err := sql.Open("sqlite3", "file:"+changed+"?_foreign_keys=1")
	must(t, err)
	_, err = writer.Exec(statements)
	must(t, err)
	must(t, writer.Close())
	after, err := os.ReadFile(changed)
	must(t, err)
	l.append(t, raftlog.CommandEntry, framesBetween(before, after))
	return log.LastIndex + 1
}

// framesBetween is the command that writes the pages by which two databases differ.
func framesBetween(before []byte, after []byte) []byte {
	const pageSize = 4096
	var numbers, pages []byte
	for at := 0; at < len(after); at += pageSize {
		page := after[at : at+pageSize]
		if at < len(before) && string(page) == string(before[at:at+pageSize]) {
			continue
		}

		numbers = binary.LittleEndian.AppendUint64(numbers, uint64(at/pageSize+1))
		pages = append(pages, page...)
	}

	data := append([]byte{1, byte(raftlog.Frames), 0, 0, 0, 0, 0, 0}, "db.bin\x00\x00"...)
	data = append(data, make([]byte, 12)...)
	data = append(data, 1, 0, 0, 0)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(numbers)/8))
	data = binary.LittleEndian.AppendUint32(data, pageSize)
	return append(append(data, numbers...), pages...)
}

// list is the member list with these roles.
func (l stateLab) list(roles ...raftlog.Role) member.List {
	var list member.List
	for i, role := range roles {
		id := uint64(i + 1)
		list = append(list, member.Member{ID: id, Name: []string{"node1", "node2", "node3"}[i], Address: addressOf(id), Role: role})
	}

	return list
}

// edit gives the member a list, with the options changed by with.
func (l stateLab) edit(t testing.TB, list member.List, with func(*EditOptions)) (*EditReport, error) {
	t.Helper()
	opts := EditOptions{LXDDir: l.dir.path, Version: "test",
		Ask: func(_ context.Context, _ member.List, _ bundle.Position, check func(member.List) error) (member.List, error) {
			return list, check(list)
		}}
	if with != nil {
		with(&opts)
	}

	return Edit(t.Context(), opts)
}

// patch is what patch.global.sql holds; empty where there is none.
func (l stateLab) patch(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir.database(), patchName))
	if !os.IsNotExist(err) {
		must(t, err)
	}

	return string(data)
}

// pend puts something into patch.global.sql.
func (l stateLab) pend(t testing.TB, sql string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(l.dir.database(), patchName), []byte(sql), 0o600))
}

// export writes a tarball of the member.
func (l stateLab) export(t testing.TB, with func(*ExportOptions)) (*ExportReport, string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.tar.gz")
	opts := ExportOptions{LXDDir: l.dir.path, Output: file, Version: "test", Unedited: true, NoVerify: true, Unsigned: true}
	if with != nil {
		with(&opts)
	}

	r, err := Export(t.Context(), opts)
	return r, file, err
}

// askWith answers an edit's question with what change makes of the list.
func askWith(change func(member.List) member.List) func(context.Context, member.List, bundle.Position, func(member.List) error) (member.List, error) {
	return func(_ context.Context, current member.List, _ bundle.Position, check func(member.List) error) (member.List, error) {
		list := change(current)
		return list, check(list)
	}
}
