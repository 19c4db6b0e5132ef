// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

func TestConfigurationRoundTrip(t *testing.T) {
	for n := range 20 {
		var c raftlog.Configuration
		for i := range n {
			c = append(c, raftlog.Server{ID: uint64(i + 1), Address: fmt.Sprintf("10.0.0.%d:8443", i*i), Role: raftlog.Role(i % 3)})
		}

		p := raftlog.EncodeConfiguration(c)
		if len(p)%8 != 0 {
			t.Errorf("%d servers take %d bytes", n, len(p))
		}

		got, err := raftlog.ParseConfiguration(append(p, 0xFF, 0x17)) // garbage after it is allowed
		if err != nil || !slices.Equal(got, c) {
			t.Errorf("%d servers: %v, %v", n, got, err)
		}

		if n == 0 {
			continue
		}

		for size := range len(p) - 7 {
			got, err = raftlog.ParseConfiguration(p[:size])
			if err == nil && !slices.Equal(got, c) {
				t.Errorf("%d servers cut to %d bytes: %v", n, size, got)
			}
		}
	}
}

func TestRoles(t *testing.T) {
	for api, word := range []string{"voter", "stand-by", "spare"} {
		role, err := raftlog.RoleFromAPI(api)
		if err != nil || role.String() != word || role.API() != api {
			t.Errorf("%d: %v, %v, back %d", api, role, err, role.API())
		}
	}

	if raftlog.StandBy != 0 || raftlog.Voter != 1 || raftlog.Spare != 2 {
		t.Error("raft numbers its roles differently")
	}

	_, err := raftlog.RoleFromAPI(3)
	if err == nil {
		t.Error("role 3 exists")
	}
}

func TestMetadataRoundTrip(t *testing.T) {
	m := raftlog.Metadata{Version: 7, Term: 1 << 40, Vote: 3}
	got, err := raftlog.ParseMetadata(m.Encode())
	if err != nil || got != m || m.FileName() != "metadata1" {
		t.Errorf("%+v in %s, %v", got, m.FileName(), err)
	}
}

// TestSegmentRoundTrip writes a log of every kind of batch and reads it back.
func TestSegmentRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var want []raftlog.Entry
	fsys := fstest.MapFS{"metadata1": {Data: raftlog.Metadata{Version: 1, Term: 9}.Encode()}}
	index := uint64(1)
	for segment := range 12 {
		first := index
		content := raftlog.SegmentHeader()
		for range 1 + rnd.IntN(5) {
			var batch []raftlog.Entry
			for range 1 + rnd.IntN(40) {
				e := raftlog.Entry{Index: index, Term: 1 + uint64(segment), Type: raftlog.BarrierEntry, Data: make([]byte, 8*rnd.IntN(200))}
				if index == 1 {
					e.Type = raftlog.ChangeEntry
					e.Data = raftlog.EncodeConfiguration(raftlog.Configuration{{ID: 1, Address: "1", Role: raftlog.Voter}})
				}

				batch = append(batch, e)
				index++
			}

			want = append(want, batch...)
			content = raftlog.AppendBatch(content, batch...)
		}

		name := raftlog.SegmentName(first, index-1)
		if segment >= 10 { // the open ones
			name = fmt.Sprintf("open-%d", segment-9)
		}

		fsys[name] = &fstest.MapFile{Data: content}
	}

	log := open(t, fsys)
	if !log.Healthy() || log.LastIndex != index-1 {
		t.Fatalf("last index %d of %d: %v", log.LastIndex, index-1, log.Problems)
	}

	for _, from := range []uint64{0, 1, 7, index / 2, index - 1, index} {
		rest := want[min(max(from, 1), index)-1:]
		for e, err := range log.Entries(context.Background(), from) {
			if err != nil {
				t.Fatal(err)
			}

			w := rest[0]
			if e.Index != w.Index || e.Term != w.Term || e.Type != w.Type || !bytes.Equal(e.Data, w.Data) {
				t.Fatalf("from %d: entry %d differs", from, e.Index)
			}

			if !bytes.Equal(fsys[e.File].Data[e.Offset:e.Offset+int64(len(e.Data))], e.Data) {
				t.Fatalf("entry %d is not at byte %d of %s", e.Index, e.Offset, e.File)
			}

			rest = rest[1:]
		}

		if len(rest) != 0 {
			t.Fatalf("from %d: %d entries are missing", from, len(rest))
		}
	}
}
