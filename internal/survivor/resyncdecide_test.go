// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"errors"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// sourceOf is a log up to index 6, of terms 1 to 3, with transactions at 4 and 6, and a nonce at 4.
func sourceOf(change func(*Log)) Source {
	l := writes(logOf(1, 2, 2, 3, 3, 3), 4, 6)
	if change != nil {
		change(l)
	}

	return Source{Log: l, Nonce: 4}
}

func own(change func(*Own)) Own {
	o := Own{ID: 2, Metadata: &raftlog.Metadata{Version: 7, Term: 2, Vote: 3}, Log: logOf(2, 2)}
	if change != nil {
		change(&o)
	}

	return o
}

func TestResyncRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		source Source
		own    Own
		code   ResyncCode
		reason string
	}{
		{"another certificate", sourceOf(func(l *Log) { l.Cluster = "a" }), own(func(o *Own) { o.Cluster = "b" }), OtherCluster, "another cluster"},
		{"nothing there", Source{Log: &Log{}, Nonce: 1}, own(nil), SourceDamaged, "no entry"},
		{"no snapshot before the entries", sourceOf(func(l *Log) { l.First, l.Entries = 3, l.Entries[2:] }), own(nil), SourceDamaged,
			"begins with entry 3, and its snapshot ends with entry 0"},
		{"a gap after the snapshot", sourceOf(func(l *Log) { snapshotAt(l, 2); l.First, l.Entries = 4, l.Entries[1:] }), own(nil), SourceDamaged,
			"begins with entry 4"},
		{"term 0", Source{Log: &Log{First: 1, Entries: make([]Entry, 1)}, Nonce: 1}, own(nil), NoTerm, "term 0"},
		{"damage before the nonce", Source{Log: logOf(1, 2, 2), Nonce: 4, Damaged: true}, own(nil), SourceDamaged, "ends with entry 3, before the mark"},
		{"damage, no nonce", Source{Log: logOf(1, 2, 2), Damaged: true}, own(nil), SourceDamaged, "before the mark"},
		{"no nonce yet", Source{Log: sourceOf(nil).Log}, own(nil), NoNonce, "ends with entry 6 and lacks the mark"},
		{"a nonce after the end", Source{Log: sourceOf(nil).Log, Nonce: 7}, own(nil), NoNonce, "lacks the mark"},
		{"no transaction after it", Source{Log: sourceOf(nil).Log, Nonce: 5}, own(nil), NonceNotProven, "entry 5"},
		{"a transaction of a later term after it", Source{Log: writes(logOf(1, 2, 2, 2, 3), 4, 5), Nonce: 4}, own(nil), NonceNotProven, "entry 4"},
		{"in the snapshot, and nothing after it", sourceOf(func(l *Log) { snapshotAt(l, 5) }), own(nil), NonceNotProven, ""},
		{"no id", sourceOf(nil), own(func(o *Own) { o.ID = 0 }), NoID, "not known"},
		{"removed", sourceOf(nil), own(func(o *Own) { o.ID = 4 }), NotAMember, "raft id 4"},
		{"moved", sourceOf(nil), own(func(o *Own) { o.Address = "10.0.0.2:8443" }), OtherAddress, "10.0.0.2:8443"},
		{"own term above", sourceOf(nil), own(func(o *Own) { o.Log = logOf(2, 2, 4) }), OwnTermAbove, "term 4"},
		{"fenced by itself", sourceOf(nil), own(func(o *Own) { o.Log = fenced(logOf(2, 2)) }), OwnTermAbove, "term 1002"},
		{"another entry of that term", sourceOf(nil), own(func(o *Own) { o.Log = changed(logOf(2, 2, 2), 3) }), TwoHistories, "index 3"},
		{"another one committed", sourceOf(nil), own(func(o *Own) { o.Log = writes(logOf(2, 2, 2, 2, 2), 4, 5) }), TwoHistories, "entry 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Resync(c.source, c.own)
			var refusal *ResyncRefusal
			if !errors.As(err, &refusal) || refusal.Code != c.code || !strings.Contains(refusal.Error(), c.reason) {
				t.Errorf("wanted %q, %q, got %v", c.code, c.reason, err)
			}
		})
	}
}

func TestResyncTakes(t *testing.T) {
	spare := raftlog.Configuration{three[0], {ID: 2, Role: raftlog.Spare}, three[2]}
	voter := Taken{Last: Position{6, 3}, Committed: Position{4, 3}, Term: 3}
	for _, c := range []struct {
		name   string
		source Source
		own    Own
		want   func(*Taken)
	}{
		{"metadata of an earlier term", sourceOf(nil), own(nil), nil},
		{"metadata of that term", sourceOf(nil), own(func(o *Own) { o.Metadata = &raftlog.Metadata{Term: 3, Vote: 1} }),
			func(w *Taken) { w.Vote, w.Kept = 1, true }},
		{"metadata of a later term", sourceOf(nil), own(func(o *Own) { o.Metadata = &raftlog.Metadata{Term: 9, Vote: 2} }),
			func(w *Taken) { w.Term, w.Vote, w.Kept = 9, 2, true }},
		{"metadata lost", sourceOf(nil), own(func(o *Own) { o.Metadata, o.Log = nil, nil }), func(w *Taken) { w.Vote = 2 }},
		{"metadata lost, the source's term is later", sourceOf(func(l *Log) { l.Term = 5 }), own(func(o *Own) { o.Metadata = nil }),
			func(w *Taken) { w.Term, w.Vote = 5, 2 }},
		{"metadata of term 0", sourceOf(nil), own(func(o *Own) { o.Metadata = &raftlog.Metadata{} }), func(w *Taken) { w.Vote = 2 }},
		{"another history given up", sourceOf(nil), own(func(o *Own) {
			o.Log, o.GivenUp, o.Metadata = fenced(logOf(2, 2)), true, &raftlog.Metadata{Term: 1002, Vote: 0}
		}), func(w *Taken) { w.Vote = 2 }},
		{"given up, its term is as good as any", sourceOf(nil), own(func(o *Own) { o.GivenUp, o.Metadata.Term = true, 3 }),
			func(w *Taken) { w.Vote, w.Kept = 3, true }},
		{"damage after the proof", Source{Log: sourceOf(nil).Log, Nonce: 4, Damaged: true}, own(nil), nil},
		{"the nonce in the snapshot", Source{Log: snapshotAt(writes(logOf(1, 2, 2, 3, 3, 3), 5, 6), 4), Nonce: 4}, own(nil),
			func(w *Taken) { w.Committed = Position{5, 3} }},
		{"a tail of its own that was not committed", sourceOf(nil), own(func(o *Own) { o.Log = logOf(2, 2, 2, 2) }), nil},
		{"a recovery entry at the end", sourceOf(func(l *Log) { fenced(l) }), own(func(o *Own) { o.Metadata = &raftlog.Metadata{Term: 4, Vote: 1} }),
			func(w *Taken) { w.Term, w.Vote, w.Kept = 4, 1, true }},
		{"a recovery entry at the end, metadata lost", sourceOf(func(l *Log) { fenced(l) }), own(func(o *Own) { o.Metadata = nil }),
			func(w *Taken) { w.Vote = 2 }},
		{"made a spare meanwhile", sourceOf(func(l *Log) {
			l.Entries[4] = Entry{Term: 3, Type: raftlog.ChangeEntry, Change: &spare}
		}), own(nil), func(w *Taken) { w.Role = raftlog.Spare }},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := voter
			want.Role = raftlog.Voter
			if c.want != nil {
				c.want(&want)
			}

			got, err := Resync(c.source, c.own)
			if err != nil || got != want {
				t.Errorf("wanted %+v, got %+v, %v", want, got, err)
			}
		})
	}
}

func TestProven(t *testing.T) {
	alone := raftlog.Configuration{{ID: 1, Role: raftlog.Voter}, {ID: 2, Role: raftlog.StandBy}}
	onlyVoter := func(l *Log) { l.Entries[0].Change = &alone }
	for _, c := range []struct {
		name           string
		log            *Log
		proven, inTerm Position
	}{
		{"nothing", &Log{}, Position{}, Position{}},
		{"no transaction", logOf(1, 2, 2), Position{}, Position{}},
		{"one", writes(logOf(1, 2, 2), 2), Position{}, Position{}},
		{"two", writes(logOf(1, 2, 2), 2, 3), Position{2, 2}, Position{2, 2}},
		{"two of two terms", writes(logOf(1, 2, 3), 2, 3), Position{}, Position{}},
		{"two, a term and one of the next", writes(logOf(1, 2, 2, 3), 2, 3, 4), Position{2, 2}, Position{2, 2}},
		{"a snapshot", snapshotAt(logOf(1, 2, 2), 3), Position{3, 2}, Position{}},
		{"two after a snapshot", writes(snapshotAt(logOf(1, 2, 2, 2), 2), 3, 4), Position{3, 2}, Position{3, 2}},
		{"two that an earlier snapshot was made after", with(writes(logOf(1, 2, 2, 2), 2, 3), func(l *Log) {
			l.Snapshot, l.SnapshotConfiguration = Position{4, 2}, three
		}), Position{4, 2}, Position{2, 2}},
		{"of a running member", doubtful(writes(logOf(1, 2, 2, 2), 2, 3)), Position{2, 2}, Position{2, 2}},
		{"fenced", fenced(writes(logOf(1, 2, 2), 2, 3)), Position{2, 2}, Position{2, 2}},
		{"the only voter", with(logOf(1, 2, 2), onlyVoter), Position{3, 2}, Position{}},
		{"the only voter's stand-by", with(logOf(2, 2, 2), onlyVoter), Position{}, Position{}},
		{"the only voter, from a snapshot on", with(snapshotAt(logOf(1, 2, 2), 2), func(l *Log) { l.SnapshotConfiguration = alone }),
			Position{3, 2}, Position{}},
		{"the only voter, at last", with(logOf(1, 2, 2), func(l *Log) { l.Entries[1].Change = &alone }), Position{}, Position{}},
		{"a member that is not known", with(logOf(0, 2, 2), onlyVoter), Position{}, Position{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			proven, inTerm := c.log.Proven(), c.log.ProvenInTerm()
			if proven != c.proven || inTerm != c.inTerm {
				t.Errorf("proven up to %v, in its term %v; wanted %v, %v", proven, inTerm, c.proven, c.inTerm)
			}
		})
	}
}
