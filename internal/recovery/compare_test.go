// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// threeVoters are the members of the cluster whose reports are compared.
var threeVoters = member.List{
	{ID: 1, Name: "node1", Address: "10.0.0.1:8443", Role: raftlog.Voter}, {ID: 2, Name: "node2", Address: "10.0.0.2:8443", Role: raftlog.Voter},
	{ID: 3, Name: "node3", Address: "10.0.0.3:8443", Role: raftlog.Voter},
}

// reportWith is a member's report with a log of these terms after the first entry. Every transaction makes a profile with its term and index.
func reportWith(id uint64, terms ...uint64) *InspectReport {
	r := &InspectReport{Format: inspectFormat, Kind: kindLXD, Members: threeVoters, Healthy: true,
		Raft: InspectRaft{Whole: true, FirstIndex: 1}, LastEntriesFrom: 1}
	self, _ := threeVoters.ByID(id)
	r.Member = &InspectMember{ID: id, Name: self.Name, Address: self.Address}
	r.add(1, threeVoters)
	for _, term := range terms {
		r.add(term, nil)
	}

	return r
}

// add adds an entry: a transaction, or a configuration.
func (r *InspectReport) add(term uint64, servers member.List) *InspectReport {
	index := uint64(len(r.Entries)) + 1
	e := InspectEntry{Index: index, Term: term, Type: raftlog.CommandEntry.String(), Checksum: fmt.Sprintf("%016x%016x", term, index)}
	if servers != nil {
		e.Type, e.Members = raftlog.ChangeEntry.String(), servers
	} else {
		r.LastEntries = append(r.LastEntries, InspectTransaction{Index: index, Term: term, Changes: []string{fmt.Sprintf("insert profile %d-%d", term, index)}})
	}

	r.Entries = append(r.Entries, e)
	r.Raft.LastIndex, r.Raft.LastTerm, r.Raft.SoundIndex = index, term, index
	r.Raft.MetadataTerm = max(r.Raft.MetadataTerm, term)
	return r
}

// without removes entries, and gives those after them their indexes.
func (r *InspectReport) without(first, last uint64) *InspectReport {
	r.Entries = slices.Delete(r.Entries, int(first-1), int(last))
	for i := range r.Entries {
		r.Entries[i].Index = uint64(i) + 1
	}

	r.Raft.LastIndex, r.Raft.SoundIndex = uint64(len(r.Entries)), uint64(len(r.Entries))
	return r
}

// with changes a report.
func (r *InspectReport) with(change func(r *InspectReport)) *InspectReport {
	change(r)
	return r
}

// compared compares reports, as they are saved.
func compared(t *testing.T, reports ...*InspectReport) *CompareReport {
	t.Helper()
	dir := t.TempDir()
	var files []string
	for i, r := range reports {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}

		file := filepath.Join(dir, fmt.Sprintf("%d.json", i))
		err = os.WriteFile(file, data, 0o600)
		if err != nil {
			t.Fatal(err)
		}

		files = append(files, file)
	}

	r, err := Compare(t.Context(), CompareOptions{Sources: files})
	if err != nil {
		t.Fatal(err)
	}

	return r
}

// alone is the configuration of a recovery from quorum loss on node1.
var alone = threeVoters[:1]

func running(r *InspectReport) *InspectReport {
	return r.with(func(r *InspectReport) { r.RunningDaemon, r.Raft.Whole = "process 7", false })
}

func TestCompareVerdicts(t *testing.T) {
	for _, test := range []struct {
		name        string
		reports     []*InspectReport
		recommended string // label; empty for none
		certain     bool
		verdict     survivor.Verdict // of the refusal or the doubt
		says        []string         // in it
	}{
		{"all alike", []*InspectReport{reportWith(1, 2, 2), reportWith(2, 2, 2), reportWith(3, 2)}, "node1", true, "", nil},
		{"one of three", []*InspectReport{reportWith(1, 2, 2), reportWith(1, 2)}, "node1", false, survivor.TooFew,
			[]string{"1 of the 3 voters", "not seen: node2, node3"}},
		{"recovered, and the others went on with old data", []*InspectReport{
			reportWith(1, 2, 2).add(1000, alone).add(1000, nil), reportWith(2, 2, 2, 1001), reportWith(3, 2, 2, 1001)},
			"", false, survivor.Split, []string{"node1 was recovered at index 4", "node2, which lacks that recovery"}},
		{"recovered, and the others were not seen", []*InspectReport{reportWith(1, 2, 2).add(1000, alone).add(1000, nil), reportWith(1, 2)},
			"node1", false, survivor.LeftOut, []string{"node2, node3 were not seen whole", "since the recovery at index 4"}},
		{"a running one, and two that are not", []*InspectReport{running(reportWith(1, 2, 2)), reportWith(2, 2, 2), reportWith(3, 2, 2)},
			"node2", true, "", nil},
		{"running ones", []*InspectReport{running(reportWith(1, 2, 2)), running(reportWith(2, 2, 2)), reportWith(3, 2, 2)},
			"", false, survivor.Running, []string{"LXD runs on node1, node2", "Stop LXD"}},
		{"a damaged one and the best one", []*InspectReport{reportWith(1, 2, 2), reportWith(2, 2).with(func(r *InspectReport) { r.Raft.Whole = false })},
			"node1", false, survivor.Damaged, []string{"not seen: node3", "not known where it ended", "node2"}},
		{"a damaged one that has more", []*InspectReport{reportWith(1, 2), reportWith(2, 2, 2).with(func(r *InspectReport) { r.Raft.Whole = false })},
			"", false, survivor.Damaged, []string{"the newest of these logs has node2, sound up to index 3"}},
		{"a copy that has more", []*InspectReport{reportWith(1, 2), reportWith(2, 2, 2).with(func(r *InspectReport) { r.Copy = true })},
			"", false, survivor.TooFew, []string{"a kept database"}},
		{"a segment is gone", []*InspectReport{reportWith(1, 2, 2, 2, 2, 2), reportWith(2, 2, 2, 2, 2, 2).without(3, 4), reportWith(3, 2, 2, 2, 2, 2)},
			"node1", true, "", nil},
		{"a segment is gone, of two", []*InspectReport{reportWith(1, 2, 2, 2, 2, 2), reportWith(2, 2, 2, 2, 2, 2).without(3, 4)},
			"node1", false, survivor.Damaged, []string{"missing files", "node2"}},
		{"started apart", []*InspectReport{reportWith(1, 2, 2), reportWith(2, 2, 2).with(func(r *InspectReport) {
			r.Entries[2].Checksum = strings.Repeat("f", 32)
		})}, "", false, survivor.Conflict, []string{"node1 and node2", "edited or started apart"}},
		{"a snapshot of more", []*InspectReport{reportWith(1, 2, 3), reportWith(2, 2, 2).with(func(r *InspectReport) {
			r.Entries, r.Raft.SnapshotIndex, r.Raft.SnapshotTerm, r.Raft.SnapshotMembers = nil, 3, 2, threeVoters
		}), reportWith(3, 2)}, "", false, survivor.Conflict, []string{"node2 has a snapshot at index 3", "files of it are missing"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := compared(t, test.reports...)
			label, verdict, reason := "", survivor.Verdict(""), ""
			if r.Recommendation != nil {
				label, _, _ = strings.Cut(r.Recommendation.Label, " ")
			}

			for _, why := range []*CompareRefusal{r.Refusal, r.Doubt} {
				if why != nil {
					verdict, reason = why.Verdict, why.Reason
				}
			}

			if label != test.recommended || r.Certain != test.certain || verdict != test.verdict || (r.Recommendation == nil) != (r.Refusal != nil) {
				t.Errorf("%q, certain %v, %q (%s), want %q, %v, %q", label, r.Certain, verdict, reason, test.recommended, test.certain, test.verdict)
			}

			for _, text := range test.says {
				if !strings.Contains(reason, text) {
					t.Errorf("%q does not say %q", reason, text)
				}
			}
		})
	}
}

// Of several with the same log one is picked, and the reason is said.
func TestComparePicks(t *testing.T) {
	of := func(id uint64, change func(r *InspectReport)) *InspectReport {
		return reportWith(id, 2, 2).with(change)
	}
	nothing := func(*InspectReport) {}
	unhealthy := func(r *InspectReport) {
		r.Healthy, r.Problems = false, []raftlog.Problem{{Severity: raftlog.Error, Text: "SQLite finds it damaged"}}
	}
	recent := func(r *InspectReport) { r.Raft.MetadataTerm = 9 }
	for _, test := range []struct {
		name    string
		reports []*InspectReport
		label   string
		why     string
	}{
		{"the lowest id", []*InspectReport{of(3, nothing), of(2, nothing), of(1, nothing)}, "node1", "its id is the lowest"},
		{"the most recent term", []*InspectReport{of(1, nothing), of(2, recent), of(3, nothing)}, "node2", "its current raft term is the most recent"},
		{"health", []*InspectReport{of(1, unhealthy), of(2, nothing), of(3, nothing)}, "node2", "its database is healthy"},
		{"health before the term", []*InspectReport{of(1, nothing), of(2, recent), of(3, func(r *InspectReport) { recent(r); unhealthy(r) })}, "node2",
			"its database is healthy"},
		{"only one", []*InspectReport{of(1, nothing), reportWith(2, 2)}, "node1", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := compared(t, test.reports...)
			if r.Recommendation == nil || r.Recommendation.Label != test.label || r.Recommendation.Chosen != test.why {
				t.Errorf("%+v, %+v", r.Recommendation, r.Refusal)
			}
		})
	}
}

// Reports alone tell which transactions would be lost and come back.
func TestCompareReportsNameRows(t *testing.T) {
	words := func(list []InspectTransaction) string {
		var all []string
		for _, t := range list {
			all = append(all, t.Changes...)
		}

		return strings.Join(all, "|")
	}
	r := compared(t, reportWith(1, 2, 2, 3), reportWith(2, 2, 2, 3), reportWith(3, 2, 2, 2, 2))
	if len(r.Rows) != 1 || words(r.Rows[0].Has) != "insert profile 2-4|insert profile 2-5" || words(r.Rows[0].Lacks) != "insert profile 3-4" ||
		r.Rows[0].HasFrom != 0 || r.Rows[0].LacksFrom != 0 {
		t.Errorf("%+v", r.Rows)
	}

	bounded := reportWith(3, 2, 2, 2, 2)
	bounded.LastEntries, bounded.LastEntriesFrom = bounded.LastEntries[3:], 5
	r = compared(t, reportWith(1, 2, 2, 3), reportWith(2, 2, 2, 3), bounded)
	if len(r.Rows) != 1 || words(r.Rows[0].Has) != "insert profile 2-5" || r.Rows[0].HasFrom != 5 {
		t.Errorf("%+v", r.Rows)
	}

	old := reportWith(3, 2)
	old.LastEntries, old.LastEntriesFrom = nil, 0 // of a version before
	r = compared(t, reportWith(1, 2, 2, 3), reportWith(2, 2, 2, 3), old)
	if len(r.Rows) != 1 || len(r.Rows[0].Has)+len(r.Rows[0].Lacks) != 0 {
		t.Errorf("%+v", r.Rows)
	}

	r = compared(t, reportWith(1, 2, 2, 2, 2, 2), reportWith(2, 2, 2, 2, 2, 2).without(3, 4), reportWith(3, 2, 2, 2, 2, 2))
	if len(r.Gaps) != 1 || r.Gaps[0] != (CompareGap{Source: "node2", First: 3, Last: 4, From: "node1"}) || len(r.Rows) != 1 || len(r.Rows[0].Has) > 0 {
		t.Errorf("%+v, %+v", r.Gaps, r.Rows)
	}
}

// A report tells as many of the last transactions as there is room for, and from where on.
func TestLastEntriesBounded(t *testing.T) {
	for _, test := range []struct {
		name                string
		transactions, bytes int // bytes of each
		first               uint64
		from                uint64
	}{
		{"few", 3, 10, 2, 1},
		{"as many as there may be", maxLastEntries, 10, 2, 1},
		{"one too many", maxLastEntries + 1, 10, 3, 3},
		{"long ones", 5, maxLastText / 2, 5, 5},
		{"one that is too long", 1, maxLastText + 1, 0, 3},
	} {
		r := reportWith(1)
		for range test.transactions {
			r.add(2, nil)
			r.LastEntries[len(r.LastEntries)-1].Changes[0] = strings.Repeat("x", test.bytes)
		}

		told := Transactions{List: r.LastEntries, From: r.LastEntriesFrom}
		told.bound()
		first := uint64(0)
		if len(told.List) > 0 {
			first = told.List[0].Index
		}

		if first != test.first || told.From != test.from {
			t.Errorf("%s: told from index %d, all from %d; want %d, %d", test.name, first, told.From, test.first, test.from)
		}
	}

	many := make([]globaldb.RowChange, maxLastRows+1)
	for i := range many {
		many[i] = globaldb.RowChange{Table: "profiles", Words: "profile x", After: map[string]string{}}
	}

	var transaction InspectTransaction
	transaction.tell(append(many, globaldb.RowChange{Table: "operations", After: map[string]string{}}), "")
	if len(transaction.Changes) != maxLastRows || transaction.Unknown != moreLastRows || transaction.Changes[0] != "insert profile x" {
		t.Errorf("%+v", transaction)
	}
}

// Of two directories with the same log this machine's is taken.
func TestComparePicksThisMachine(t *testing.T) {
	one, two := solo(t), solo(t)
	for _, here := range []string{one, two} {
		t.Setenv("LXD_DIR", here)
		r, err := Compare(t.Context(), CompareOptions{Sources: []string{one, two}})
		must(t, err)
		if r.Recommendation == nil || r.Recommendation.Source != here || r.Recommendation.Chosen != "it is this machine's" || !r.Certain {
			t.Errorf("%+v, %+v", r.Recommendation, r.Refusal)
		}
	}
}
