// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
)

// Reading changes nothing, and an LXD that does not answer is not waited for for long.
func TestReadMemberState(t *testing.T) {
	l := newVerdictLab(t)
	dir := l.dirs[1]
	before := namesAndContent(t, dir.path)
	_, err := ReadMemberState(t.Context(), MemberStateOptions{LXDDir: dir.path, At: 129})
	must(t, err)
	if after := namesAndContent(t, dir.path); after != before {
		t.Errorf("changed:\n%s\n--- before\n%s", after, before)
	}

	defer func(d time.Duration) { listTime = d }(listTime)
	listTime = 100 * time.Millisecond
	hangs, err := net.Listen("unix", dir.join("unix.socket"))
	must(t, err)
	defer hangs.Close()
	s, err := ReadMemberState(t.Context(), MemberStateOptions{LXDDir: dir.path})
	must(t, err)
	if !s.Running || s.Listed != nil || s.ListedUntold != "LXD did not answer within 100ms" || s.RowsAtFence.Rows == nil || s.RowsAt != nil {
		t.Errorf("hangs: %+v", s)
	}

	_, err = ReadMemberState(t.Context(), MemberStateOptions{LXDDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "is not the directory of an LXD") {
		t.Errorf("elsewhere: %v", err)
	}
}

// The entries since the recovery are summed as they are: the same on all members, and another sum for another entry.
func TestStateEntries(t *testing.T) {
	l := newVerdictLab(t)
	same := l.states[0].RowsAt.Entries
	if len(same) != 64 || l.states[1].RowsAt.Entries != same {
		t.Errorf("sums %q, %q", same, l.states[1].RowsAt.Entries)
	}

	states := l.again(t, func(t *testing.T, dir directory) {
		l.restoreOld(t, dir)
		l.importOn(t, dir, l.signed.tarball)
		on(dir).transact(t, "UPDATE nodes SET address = replace(address, '8443', '9394')")
	})
	if other := states[2].RowsAt.Entries; len(other) != 64 || other == same || states[0].RowsAt.Entries != same {
		t.Errorf("sums %q, %q, of another entry %q", same, states[0].RowsAt.Entries, other)
	}
}

// A run that keeps others away is not pending to itself.
func TestReadMemberStateLocked(t *testing.T) {
	l := newVerdictLab(t)
	unlock, err := l.dirs[0].lock(unix.LOCK_EX)
	must(t, err)
	defer unlock()
	for locked, want := range map[bool][]string{true: {}, false: {"another lxd-recover is at work on this member"}} {
		s, err := ReadMemberState(t.Context(), MemberStateOptions{LXDDir: l.dirs[0].path, Outline: true, Locked: locked})
		must(t, err)
		if !slices.Equal(s.Pending, want) {
			t.Errorf("locked by the caller %v: %q, want %q", locked, s.Pending, want)
		}
	}
}

// A member without a raft directory, as LXD's own loader leaves it when it is killed, has a state all the same.
func TestStateWithoutGlobal(t *testing.T) {
	l := newVerdictLab(t)
	states := l.again(t, func(t *testing.T, dir directory) { must(t, os.RemoveAll(dir.global())) })
	v := JudgeCluster(states, l.expected)
	wantFinding(t, v, "without-recovery", "node3")
	if v.Line != "Not one cluster: node3 does not have this recovery: no entry could be read of its log, although LXD says ONLINE; and 1 more." {
		t.Errorf("line %q", v.Line)
	}

	if !slices.ContainsFunc(v.Findings, func(f VerdictFinding) bool {
		return f.Code == "problem" && strings.Contains(f.Text, "global is missing")
	}) {
		t.Errorf("%+v", v)
	}
}

// A tarball of LXD's own tells everything but the recovery entry: the first import makes that.
func TestExpectedOf(t *testing.T) {
	l := newSignedLab(t)
	ours, err := ExpectedOf(t.Context(), l.tarball, Progress{})
	must(t, err)
	if ours.Fence != (bundle.Position{Index: 128, Term: 1 << 33}) || len(ours.Run) != 32 || len(ours.Members) != 3 || ours.Rows["nodes"].Rows != 3 {
		t.Errorf("ours: %+v", ours)
	}

	own, err := ExpectedOf(t.Context(), newLostLab(t).tarball, Progress{})
	must(t, err)
	if own.Fence != (bundle.Position{}) || len(own.Run) != 32 || len(own.Members) != 3 || own.Rows["nodes"].Rows != 3 {
		t.Errorf("LXD's own: %+v", own)
	}

	_, err = ExpectedOf(t.Context(), l.dir.path, Progress{})
	if err == nil || !strings.Contains(err.Error(), "is no recovery tarball (LXD directory)") {
		t.Errorf("a directory: %v", err)
	}
}

// A snapshot that hides the recovery entry tells of it by its term, unless the member comes from a later recovery.
func TestStateHas(t *testing.T) {
	fence := bundle.Position{Index: 100, Term: 50}
	later := &Record{Purpose: purposeImport, Raft: bundle.Position{Index: 150, Term: 60}}
	for name, test := range map[string]struct {
		raft   StateRaft
		record *Record
		want   Holding
	}{
		"the entry":              {StateRaft{LastIndex: 120, Terms: []TermRun{{1, 99, 2}, {100, 120, 50}}}, nil, Has},
		"another entry":          {StateRaft{LastIndex: 120, Terms: []TermRun{{1, 120, 2}}}, nil, HasNot},
		"ends before":            {StateRaft{LastIndex: 99, Terms: []TermRun{{1, 99, 2}}}, nil, HasNot},
		"nothing":                {StateRaft{}, nil, HasNot},
		"a snapshot there":       {StateRaft{LastIndex: 100, SnapshotIndex: 100, SnapshotTerm: 50}, nil, Has},
		"another one there":      {StateRaft{LastIndex: 100, SnapshotIndex: 100, SnapshotTerm: 2}, nil, HasNot},
		"a snapshot beyond":      {StateRaft{LastIndex: 200, SnapshotIndex: 180, SnapshotTerm: 51, Terms: []TermRun{{181, 200, 51}}}, nil, Has},
		"of the old history":     {StateRaft{LastIndex: 200, SnapshotIndex: 180, SnapshotTerm: 3, Terms: []TermRun{{181, 200, 3}}}, nil, HasNot},
		"after a later recovery": {StateRaft{LastIndex: 200, SnapshotIndex: 180, SnapshotTerm: 61, Terms: []TermRun{{181, 200, 61}}}, later, HasIsUnknown},
		"a hole":                 {StateRaft{LastIndex: 120, Terms: []TermRun{{1, 90, 2}, {110, 120, 50}}}, nil, HasIsUnknown},
		"the entry kept":         {StateRaft{LastIndex: 120, SnapshotIndex: 110, SnapshotTerm: 50, Terms: []TermRun{{90, 99, 2}, {100, 120, 50}}}, nil, Has},
	} {
		s := MemberState{Raft: test.raft, Record: test.record}
		if got := s.Has(fence); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}
