// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// differs tells what distinguishes a database from the one that a clean run makes: nothing may, but for the record, and for
// the term of the fence, which is the time of the run where the job is an edit.
func (j *job) differs(live tree) (string, error) {
	live = live.without(recordName)
	diff := live.differ(j.new, false)
	if diff == "" || j.name != "edit" {
		return diff, nil
	}

	want, err := retermed(j.new, live)
	if err != nil {
		return "", err
	}

	return live.differ(want, false), nil
}

// retermed is a fenced database with the term of another one's fence in place of its own: in both metadata files, in the
// recovery entry, which has a segment of its own, and in the node database's mark. All else stays, to the byte.
func retermed(fenced tree, other tree) (tree, error) {
	term, err := other.term()
	if err != nil {
		return fenced, nil // not a fenced database: it will differ
	}

	old, err := fenced.term()
	if err != nil {
		return nil, err
	}

	want := fenced.without("")
	for _, name := range []string{"global/metadata1", "global/metadata2"} {
		m, err := raftlog.ParseMetadata(want[name].content)
		if err != nil || m.Term != old {
			return nil, errors.Join(err, fmt.Errorf("%s has the term %d, want %d", name, m.Term, old))
		}

		m.Term = term
		want.replace(name, m.Encode())
	}

	entry, err := fenced.lastEntry()
	if err != nil {
		return nil, err
	}

	entry.Term = term // there is more than one voter, so that it is that of the metadata
	want.replace("global/"+raftlog.SegmentName(entry.Index, entry.Index), raftlog.AppendBatch(raftlog.SegmentHeader(), entry))

	// SQLite's integers are big-endian, and Unix milliseconds have six bytes.
	before, after := binary.BigEndian.AppendUint64(nil, old)[2:], binary.BigEndian.AppendUint64(nil, term)[2:]
	local := want["local.db"].content
	if n := bytes.Count(local, before); n != 1 {
		return nil, fmt.Errorf("local.db has the term %d times, want once", n)
	}

	want.replace("local.db", bytes.Replace(local, before, after, 1))
	return want, nil
}

func (t tree) replace(name string, content []byte) {
	n := t[name]
	n.content = content
	t[name] = n
}

// term is the term of a database's fence.
func (t tree) term() (uint64, error) {
	m, err := raftlog.ParseMetadata(t["global/metadata1"].content)
	return m.Term, err
}

// lastEntry is the last entry of a database's raft log.
func (t tree) lastEntry() (raftlog.Entry, error) {
	files := fstest.MapFS{}
	for name, n := range t.sub("global") {
		if n.mode.IsRegular() {
			files[name] = &fstest.MapFile{Data: n.content, Mode: n.mode}
		}
	}

	log, err := raftlog.Open(context.Background(), files, raftlog.Options{})
	if err != nil {
		return raftlog.Entry{}, err
	}

	for entry, err := range log.Entries(context.Background(), log.LastIndex) {
		entry.Data = bytes.Clone(entry.Data)
		return entry, err
	}

	return raftlog.Entry{}, errors.New("the log is empty")
}
