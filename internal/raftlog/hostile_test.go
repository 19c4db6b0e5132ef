// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"fmt"
	"testing"
	"testing/fstest"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// A directory of thousands of segments that all overlap, and are all copies of each other, is read in bounded time: how often they are
// compared is bounded. Without the bound it takes many minutes.
func TestManyOverlaps(t *testing.T) {
	const segments = 3000
	configuration := raftlog.EncodeConfiguration(raftlog.Configuration{{ID: 1, Address: "1", Role: raftlog.Voter}})
	entry := raftlog.Entry{Term: 1, Type: raftlog.ChangeEntry, Data: configuration}
	dir := fstest.MapFS{}
	for i := range uint64(segments) {
		n := 1 + i%5
		data := raftlog.SegmentHeader()
		for range n {
			data = raftlog.AppendBatch(data, entry)
		}

		dir[raftlog.SegmentName(i+1, i+n)] = &fstest.MapFile{Data: data, Mode: 0o600}
	}

	done := make(chan error, 1)
	go func() {
		log, err := raftlog.Open(t.Context(), dir, raftlog.Options{})
		if err == nil && log.Healthy() {
			err = fmt.Errorf("it is called healthy")
		}

		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}

	case <-time.After(2 * time.Minute): // it takes a second
		t.Fatal("it takes longer than two minutes")
	}
}
