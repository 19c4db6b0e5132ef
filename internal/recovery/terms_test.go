// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// The fence is above every known term, the clock, and what it must lie above: by so much, to the unit.
func TestFenceTerm(t *testing.T) {
	now := time.Date(2026, 11, 26, 14, 0, 0, 5e6, time.UTC)
	const clock = 1_795_701_600_005 // of now
	for name, test := range map[string]struct{ highest, above, spread, want uint64 }{
		"nothing known":                  {0, 0, 0, clock},
		"made in seconds":                {1_795_701_599, 0, 7, clock + 7}, // as earlier versions did
		"a fence of a moment ago":        {clock - 3, 0, 0, clock + 999_997},
		"one by a clock that ran ahead":  {1 << 42, 0, 999, 1<<42 + 1_000_999},
		"to lie above":                   {0, 1 << 45, 0, 1<<45 + 1},
		"to lie above what is lower":     {clock, 17, 0, clock + 1_000_000},
		"the highest that can be proven": {1 << 61, 0, 0, 1<<61 + 1_000_000},
	} {
		got := fenceTerm(test.highest, test.above, now, test.spread)
		if got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}

	// Two members that know the same, in the same millisecond.
	drawn := map[uint64]bool{}
	for range 1000 {
		spread := randomSpread()
		drawn[fenceTerm(0, 0, now, spread)] = true
		if spread >= termSpread {
			t.Fatalf("a spread of %d", spread)
		}
	}

	if len(drawn) < 500 { // 632 are to be expected; 500 or less is one in 10^20
		t.Errorf("1000 fences have %d terms", len(drawn))
	}
}

// withTerm gives a copy of a member's raft directory other metadata.
func withTerm(t testing.TB, name string, term uint64) *raftlog.Log {
	t.Helper()
	dir := raftlogtest.Copy(t, raftlogtest.Global(t, name))
	writeTerm(t, dir, term)
	return openDir(t, dir)
}

func writeTerm(t testing.TB, global string, term uint64) {
	t.Helper()
	for i, name := range []string{"metadata1", "metadata2"} {
		must(t, os.WriteFile(filepath.Join(global, name), raftlog.Metadata{Version: uint64(101 + i), Term: term}.Encode(), 0o600))
	}
}

// A term in metadata is believed as far as raft can have counted: a flipped bit does not lift the fences for ever.
func TestSeenTerm(t *testing.T) {
	const ended = 2 // the term of the last entries
	for name, test := range map[string]struct {
		term, want uint64
		doubt      string
	}{
		"its own":                  {3, 3, ""},
		"a fence in milliseconds":  {1_795_701_600_005, 1_795_701_600_005, ""},
		"the highest believed":     {1<<48 + ended, 1<<48 + ended, ""},
		"beyond":                   {1<<48 + ended + 1, ended, "metadata2 has the raft term 281474976710659, and no raft counts that far"},
		"a flipped bit":            {1<<62 + 3, ended, "the file is damaged, and what it says is left out"},
		"below that of its entrys": {1, ended, ""},
	} {
		got, doubt := seenTerm(withTerm(t, "small/n2-preimport", test.term))
		if got != test.want || (doubt == "") != (test.doubt == "") || !strings.Contains(doubt, test.doubt) {
			t.Errorf("%s: %d, %q, want %d", name, got, doubt, test.want)
		}
	}

	// What entries have is believed, whatever an earlier version has fenced with.
	log := openDir(t, raftlogtest.Global(t, "small/n1-afteredit"))
	pieces, _, err := fenced(t.Context(), log, log.LastIndex, os.DirFS(raftlogtest.Global(t, "small/n1-afteredit")), 1<<61)
	must(t, err)
	dir := filepath.Join(t.TempDir(), "global")
	must(t, writePieces(dir, pieces))
	writeTerm(t, dir, 1<<61+5)
	if got, doubt := seenTerm(openDir(t, dir)); got != 1<<61+5 || doubt != "" {
		t.Errorf("with entries of that term: %d, %q", got, doubt)
	}
}

// savedReport writes a report as another member would save it.
func savedReport(t testing.TB, id uint64, raft InspectRaft) string {
	t.Helper()
	data, err := json.Marshal(InspectReport{Format: inspectFormat, Kind: "LXD directory", Raft: raft,
		Member: &InspectMember{ID: id, Name: fmt.Sprintf("node%d", id)}})
	must(t, err)
	file := filepath.Join(t.TempDir(), "report.json")
	must(t, os.WriteFile(file, data, 0o600))
	return file
}

// A survivor's report counts with all terms that it has, and is damaged where no raft can have counted to one.
func TestReadSurvivors(t *testing.T) {
	for name, test := range map[string]struct {
		raft   InspectRaft
		proven uint64
		want   uint64 // 0: it is damaged
	}{
		"a term anywhere":         {InspectRaft{MaxTerm: 70, MetadataTerm: 3}, 2, 70},
		"of the metadata":         {InspectRaft{MaxTerm: 3, MetadataTerm: 71}, 2, 71},
		"of the snapshot":         {InspectRaft{SnapshotTerm: 72}, 2, 72},
		"of the last entry":       {InspectRaft{LastTerm: 73}, 2, 73},
		"the highest":             {InspectRaft{MaxTerm: 1<<48 + 2}, 2, 1<<48 + 2},
		"beyond":                  {InspectRaft{MaxTerm: 1<<48 + 3}, 2, 0},
		"2^62":                    {InspectRaft{MaxTerm: 1 << 62}, 2, 0},
		"2^62 in the metadata":    {InspectRaft{MetadataTerm: 1 << 62}, 2, 0},
		"2^61, as this one has":   {InspectRaft{MaxTerm: 1<<61 + 2}, 1 << 61, 1<<61 + 2},
		"an index nobody can get": {InspectRaft{MaxTerm: 3, LastIndex: 1 << 62}, 2, 0},
	} {
		reports, err := readSurvivors([]string{savedReport(t, 2, test.raft)}, test.proven)
		var damage *DamageError
		switch {
		case test.want == 0:
			if !errors.As(err, &damage) || !strings.Contains(err.Error(), "report.json is damaged") {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || reports[0].highestTerm() != test.want:
			t.Errorf("%s: %v, %v", name, reports, err)
		}
	}
}

// The term of a database that lies beside the live one counts, wherever it is told.
func TestSeenBeside(t *testing.T) {
	for name, test := range map[string]struct {
		make func(t testing.TB, dir directory)
		want uint64
	}{
		"none": {func(testing.TB, directory) {}, 0},
		"metadata of a kept one": {func(t testing.TB, dir directory) {
			writeTerm(t, dir.join(keptImport, globalName), 700)
		}, 700},
		"a kept one without metadata": {func(t testing.TB, dir directory) {
			for _, name := range []string{"metadata1", "metadata2"} {
				must(t, os.Remove(dir.join(keptImport, globalName, name)))
			}
		}, 2},
		"metadata with a flipped bit": {func(t testing.TB, dir directory) {
			writeTerm(t, dir.join(keptImport, globalName), 1<<60)
		}, 2},
		"what an interrupted run has staged": {func(t testing.TB, dir directory) {
			must(t, os.CopyFS(dir.join(stagingName), os.DirFS(dir.join(keptImport))))
			writeTerm(t, dir.join(stagingName, globalName), 800)
		}, 800},
		"a half deleted one": {func(t testing.TB, dir directory) {
			must(t, os.MkdirAll(dir.join(removingName, globalName), 0o700))
			writeTerm(t, dir.join(removingName, globalName), 900)
		}, 900},
		"the record of a run": {func(t testing.TB, dir directory) {
			must(t, os.WriteFile(dir.join(keptImport, recordName), []byte("purpose: import\nraft:\n  index: 5\n  term: 1000\n"), 0o600))
		}, 1000},
	} {
		dir := directory{t.TempDir()}
		must(t, os.MkdirAll(dir.global(), 0o700))
		if name != "none" {
			must(t, os.CopyFS(dir.join(keptImport, globalName), os.DirFS(raftlogtest.Global(t, "small/n2-preimport"))))
		}

		test.make(t, dir)
		got, err := dir.seenBeside(t.Context(), 2)
		must(t, err)
		if got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

const writeRowCommand = "write-row"

// writeRowInChild has libdqlite write a row as the only voter of a raft directory.
func writeRowInChild(dir string, address string) int {
	err := engine.Serve(context.Background(), dir, address, globaldb.Name, func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, "INSERT INTO config (key, value) VALUES ('user.written', 'after the fence')")
		return err
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		return 1
	}

	return 0
}

// The only voter leads without an election, so what it writes has the term of its metadata: that is not the fence's own. libdqlite takes it,
// from either kind of fence.
func TestSoleVoter(t *testing.T) {
	const term = 5000
	for name, fence := range map[string]func(log *raftlog.Log, global string) ([]bundle.Piece, bundle.Position, error){
		"entry": func(log *raftlog.Log, global string) ([]bundle.Piece, bundle.Position, error) {
			return fenced(t.Context(), log, log.LastIndex, os.DirFS(global), term)
		},
		"snapshot": func(log *raftlog.Log, _ string) ([]bundle.Piece, bundle.Position, error) {
			return snapshotFence(t.Context(), log, log.LastIndex, snapshotPlace{term: term}, t.TempDir())
		},
	} {
		global := raftlogtest.Copy(t, raftlogtest.Global(t, "small/n1-afteredit"))
		address := "@" + filepath.Base(global) + name
		nodes, err := json.Marshal([]engine.Node{engine.NewNode(engine.ServeID, address, raftlog.Voter.API())})
		must(t, err)
		_, err = engine.Run(t.Context(), ReconfigureCommand, global, string(nodes))
		must(t, err)
		pieces, at, err := fence(openDir(t, global), global)
		must(t, err)
		dir := filepath.Join(t.TempDir(), "global")
		must(t, writePieces(dir, pieces))
		if log := openDir(t, dir); at.Term != term || log.LastTerm != term || log.Term != term+1 || log.LastIndex != at.Index {
			t.Errorf("%s: fence %s, last term %d, metadata %d", name, at, log.LastTerm, log.Term)
		}

		_, err = engine.Run(t.Context(), writeRowCommand, dir, address)
		must(t, err)
		var terms []uint64
		transactions := 0
		for entry, err := range openDir(t, dir).Entries(t.Context(), at.Index+1) {
			must(t, err)
			terms = append(terms, entry.Term)
			if isTransaction(entry) {
				transactions++
			}
		}

		if transactions != 1 || slices.ContainsFunc(terms, func(n uint64) bool { return n != term+1 }) {
			t.Errorf("%s: after the fence come entries with the terms %v, %d of them transactions", name, terms, transactions)
		}
	}
}

// With more than one voter the metadata have the fence's own term: an election takes the next one.
func TestMetadataTerm(t *testing.T) {
	voter, standBy := raftlog.Server{ID: 1, Role: raftlog.Voter}, raftlog.Server{ID: 2, Role: raftlog.StandBy}
	for _, test := range []struct {
		configuration raftlog.Configuration
		want          uint64
	}{{raftlog.Configuration{voter}, 6}, {raftlog.Configuration{voter, standBy}, 6}, {raftlog.Configuration{voter, {ID: 3, Role: raftlog.Voter}, standBy}, 5}} {
		if got := metadataTerm(test.configuration, 5); got != test.want {
			t.Errorf("%v: %d, want %d", test.configuration, got, test.want)
		}
	}
}

// What a fence must reach: the reason why it is a snapshot, for each of what is known of the members.
func TestSnapshotReason(t *testing.T) {
	log := openDir(t, raftlogtest.Make(t, raftlogtest.Snapshot)) // a snapshot at 126, entries up to 150, all of term 2
	members := member.List{{ID: 1, Name: "node1", Role: raftlog.Voter}, {ID: 2, Name: "node2", Role: raftlog.Voter},
		{ID: 3, Name: "node3", Role: raftlog.Spare}}
	before := bundle.Position{Index: 150, Term: 2}
	for name, test := range map[string]struct {
		before  bundle.Position
		reports []InspectRaft // of node2
		asked   bool
		want    string // empty: an entry
	}{
		"nothing known":                {before, nil, false, ""},
		"asked for":                    {before, nil, true, "--snapshot-fence asks for it"},
		"all voters, no snapshot":      {before, []InspectRaft{{}}, false, ""},
		"a snapshot of this log":       {before, []InspectRaft{{SnapshotIndex: 140, SnapshotTerm: 2}}, false, ""},
		"at the last entry":            {before, []InspectRaft{{SnapshotIndex: 150, SnapshotTerm: 2}}, false, ""},
		"where the fence would be":     {before, []InspectRaft{{SnapshotIndex: 151, SnapshotTerm: 2}}, false, "the snapshot of node2, at index 151 and term 2"},
		"of another history":           {before, []InspectRaft{{SnapshotIndex: 140, SnapshotTerm: 3}}, false, "the snapshot of node2, at index 140 and term 3"},
		"this member's own is later":   {bundle.Position{Index: 120, Term: 2}, nil, false, "this member's own snapshot reaches index 126"},
		"and it where the fence is":    {bundle.Position{Index: 125, Term: 2}, nil, false, "this member's own snapshot reaches index 126"},
		"this member's own is earlier": {bundle.Position{Index: 126, Term: 2}, nil, false, ""},
	} {
		ex := &exporter{log: log, opts: ExportOptions{SnapshotFence: test.asked},
			report: &ExportReport{Before: test.before, Members: members, Source: members[0]}}
		var reports []survivorReport
		for _, r := range test.reports {
			reports = append(reports, survivorReport{InspectReport: &InspectReport{Raft: r, Member: &InspectMember{ID: 2, Name: "node2"}}})
		}

		got := ex.snapshotReason(bundle.Position{Index: test.before.Index + 1, Term: 5000}, reports)
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}

	spare := survivorReport{InspectReport: &InspectReport{Member: &InspectMember{ID: 3}}}
	ex := &exporter{log: log, report: &ExportReport{Before: before, Members: members, Source: members[0]}}
	got := ex.snapshotReason(bundle.Position{Index: 151, Term: 5000}, []survivorReport{spare})
	if got != "no --survivor report tells what snapshot these voters have: node2" {
		t.Errorf("a voter that is not seen: %q", got)
	}
}
