// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// TestLives reads histories as they were found, and lived once more, without any damage: all is there, and nothing is wrong.
func TestLives(t *testing.T) {
	const each = 10
	for _, name := range raftlogtest.HistoryNames() {
		h := raftlogtest.HistoryOf(t, name)
		t.Run(string(name), func(t *testing.T) {
			t.Parallel()
			wholeAndHealthy(t, h.Real())
		})

		for number := range uint64(each) {
			t.Run(fmt.Sprintf("%s %d", name, number), func(t *testing.T) {
				t.Parallel()
				wholeAndHealthy(t, h.Live(rand.New(rand.NewPCG(number, 3))))
			})
		}
	}
}

func wholeAndHealthy(t *testing.T, d *raftlogtest.Directory) {
	t.Helper()
	log := open(t, d.FS())
	if !log.Healthy() || log.LastIndex != d.Last || d.Truth().Last != d.Last {
		t.Errorf("healthy %v, last index %d, proven %d, want %d: %v in %v", log.Healthy(), log.LastIndex, d.Truth().Last, d.Last, log.Problems, d.Names())
	}

	next := sameEntries(t, log, d.History)
	if next != d.Last+1 {
		t.Errorf("the entries end before index %d, not %d", next, d.Last+1)
	}
}

// sameEntries compares all entries of a log with the history, and returns the index after the last one.
func sameEntries(t *testing.T, log *raftlog.Log, h *raftlogtest.History) uint64 {
	t.Helper()
	next := log.FirstIndex
	for e, err := range log.Entries(t.Context(), 0) {
		must(t, err)
		next = e.Index + 1
		if e.Index > h.Last() {
			t.Errorf("entry %d, after the end of the history", e.Index)
			break
		}

		want := h.At(e.Index)
		if e.Term != want.Term || e.Type != want.Type || !bytes.Equal(e.Data, want.Data) {
			t.Errorf("entry %d of %s is not that of the history", e.Index, e.File)
			break
		}
	}

	return next
}
