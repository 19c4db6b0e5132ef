// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
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

// TestCuts reads the directories of members that new leaders have cut the log of. If the member has removed a whole segment for that, it looks as if one were
// lost; but not to a daemon that works there, nor to who knows that one does.
func TestCuts(t *testing.T) {
	const each = 30
	removed := 0
	for _, name := range raftlogtest.HistoryNames() {
		h := raftlogtest.HistoryOf(t, name)
		for number := range uint64(each) {
			d := h.LiveWithCuts(rand.New(rand.NewPCG(number, 4)))
			log, err := raftlog.Open(t.Context(), d.FS(), raftlog.Options{Live: true})
			must(t, err)
			if next := sameEntries(t, log, d.History); !log.Healthy() || log.LastIndex != d.Last || next != d.Last+1 {
				t.Errorf("%s %d: while a daemon works there: healthy %v, last index %d, want %d: %v in %v", name, number, log.Healthy(), log.LastIndex, d.Last,
					log.Problems, d.Names())
			}

			log = open(t, d.FS())
			if d.CutAway() {
				removed++
			}

			whole := slices.ContainsFunc(log.Readings, func(r raftlog.Reading) bool { return r.Last == d.Last })
			if !d.CutAway() && (!log.Healthy() || log.LastIndex != d.Last) || d.CutAway() && !whole {
				t.Errorf("%s %d: healthy %v, last index %d, want %d: %v in %v", name, number, log.Healthy(), log.LastIndex, d.Last, log.Problems, d.Names())
			}
		}
	}

	if removed < 10 {
		t.Errorf("a whole segment was removed in %d directories only", removed)
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
