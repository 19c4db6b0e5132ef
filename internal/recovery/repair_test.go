// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
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
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// TestRepair damages a standalone server's directory in many ways. Each time all that the disk still holds must come back.
func TestRepair(t *testing.T) {
	truth := repairDir(t, standaloneLog, nil)
	for name, test := range map[string]struct {
		damage damageFunc
		last   uint64 // index of the last entry after the repair
		term   uint64 // of its metadata
		lost   uint64 // entries
	}{
		"a closed segment before the snapshot": {flipIn(thirdClosed), repairEnd, repairTerm, 0},
		"the one after it":                     {flipEntry111, 110, repairTerm + 1, 16},
		"lost metadata":                        {removeFiles("metadata1", "metadata2"), repairEnd, repairTerm + 1, 0},
		"short metadata": {func(t testing.TB, global string) {
			for _, name := range []string{"metadata1", "metadata2"} {
				rewrite(name, func(p []byte) []byte { return p[:16] })(t, global)
			}
		}, repairEnd, repairTerm + 1, 0},
		"metadata of term 0": {func(t testing.TB, global string) {
			removeFiles("metadata2")(t, global)
			must(t, os.WriteFile(filepath.Join(global, "metadata1"), raftlog.Metadata{Version: 1}.Encode(), 0o600))
		}, repairEnd, repairTerm + 1, 0},
		"both metadata of one version": {rewrite("metadata2", func([]byte) []byte { return raftlog.Metadata{Version: 3, Term: 9}.Encode() }), repairEnd, 10, 0},
		"segments that overlap":        {copyAs(lastClosed, "0000000000000091-0000000000000110"), repairEnd, repairTerm, 0},
		"a segment twice":              {copyAs(secondClosed, "0000000000000003-0000000000000061"), repairEnd, repairTerm, 0},
		"an unfinished batch":          {halfBatch, repairEnd, repairTerm + 1, 1},
		"a damaged snapshot":           {flipIn(repairBase), repairEnd, repairTerm, 0},
		"a gap, and no snapshot":       {removeFiles(thirdClosed, repairBase, repairBase+".meta", openSegment), 60, repairTerm + 1, 20},
		"garbage at the end":           {garbageTail, repairEnd, repairTerm + 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			lxd := copyLXD(t, truth)
			global := filepath.Join(lxd, databaseName, globalName)
			test.damage(t, global)
			if openDir(t, global).Healthy() {
				t.Fatal("healthy")
			}

			before := namesAndContent(t, filepath.Join(lxd, databaseName))
			r, err := repair(t, lxd, nil)
			must(t, err)
			wantRepaired(t, lxd, r, test.last, test.term)
			if r.Lost.Entries != test.lost {
				t.Errorf("lost: %+v, want %d", r.Lost, test.lost)
			}

			if differ := rowsAt(t, truth, test.last).Differ(rowsAt(t, lxd, 0)); len(differ) > 0 {
				t.Errorf("other rows in %v", differ)
			}

			if got := namesAndContent(t, r.Kept); got != before {
				t.Errorf("kept:\n%s\nwant\n%s", got, before)
			}

			again, err := repair(t, lxd, nil)
			if err != nil || !again.NothingToDo || again.Done {
				t.Errorf("once more: %+v, %v", again, err)
			}
		})
	}
}

// wantRepaired looks at a repaired directory and its report.
func wantRepaired(t testing.TB, lxd string, r *RepairReport, last uint64, term uint64) {
	t.Helper()
	global := filepath.Join(lxd, databaseName, globalName)
	log := openDir(t, global)
	if !log.Healthy() || log.LastIndex != last || log.Term != term {
		t.Errorf("healthy %t, ends at %d in term %d, want %d, %d: %v", log.Healthy(), log.LastIndex, log.Term, last, term, log.Problems)
	}

	kept := term == repairTerm
	if !r.Done || r.Raft.Index != last || r.Metadata.Kept != kept || r.Metadata.Term != term || kept != (log.Vote == repairVote) {
		t.Errorf("done %t, %s, metadata %+v, vote %d", r.Done, r.Raft, r.Metadata, log.Vote)
	}

	for _, s := range log.Segments {
		if s.Open {
			t.Errorf("%s is open", s.File)
		}
	}

	data, err := os.ReadFile(r.Kept + reportSuffix)
	must(t, err)
	var run RunReport
	must(t, json.Unmarshal(data, &run))
	if run.Run != purposeRepair || run.Kept != filepath.Base(r.Kept) || run.Finished == nil || !strings.HasPrefix(run.Kept, "database.before-repair-") {
		t.Errorf("the report: %s", data)
	}

	if left := namesIn(t, lxd); len(left) != 4 { // database, the kept one, its report, the high-water file
		t.Errorf("left: %q", left)
	}

	h, err := directory{lxd}.readHighWater()
	if err != nil || h.Term < log.Term {
		t.Errorf("the high-water file: %+v, %v, the repaired database has term %d", h, err, log.Term)
	}
}

// copyLXD copies an LXD directory.
func copyLXD(t testing.TB, from string) string {
	t.Helper()
	lxd := filepath.Join(t.TempDir(), "lxd")
	must(t, copyTree(t.Context(), from, lxd))
	return lxd
}

// namesAndContent describes the files below a directory.
func namesAndContent(t testing.TB, dir string) string {
	t.Helper()
	var text strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}

		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&text, "%s %d %s\n", name, len(data), checksum(raftlog.Entry{Data: data}))
		return err
	}))
	return text.String()
}

// TestRepairCarriesOver looks at what is beside the raft directory: the node database has the same rows, what LXD is to run next is still
// there, and so is everything else, but for a tarball that LXD would load in place of the repaired database.
func TestRepairCarriesOver(t *testing.T) {
	lxd := repairDir(t, standaloneLog, nil)
	database := filepath.Join(lxd, databaseName)
	removeFiles("metadata1", "metadata2")(t, filepath.Join(database, globalName))
	const patch = "UPDATE config SET value = 'x';\n"
	for name, data := range map[string]string{patchName: patch, "local.db.bak": "a copy", product.LXD.Loads: "a tarball"} {
		must(t, os.WriteFile(filepath.Join(database, name), []byte(data), 0o640))
	}

	r, err := repair(t, lxd, nil)
	must(t, err)
	for name, want := range map[string]string{patchName: patch, "local.db.bak": "a copy"} {
		got, err := os.ReadFile(filepath.Join(database, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}

	if exists(filepath.Join(database, product.LXD.Loads)) || !exists(filepath.Join(r.Kept, product.LXD.Loads)) {
		t.Error("LXD would load its tarball in place of the repaired database")
	}

	if said := strings.Join(r.Warnings, "\n"); !strings.Contains(said, product.LXD.Loads) || !strings.Contains(said, patchName) {
		t.Errorf("warnings: %s", said)
	}

	db, err := sql.Open("sqlite3", "file:"+filepath.Join(database, nodedb.File)+"?mode=ro")
	must(t, err)
	defer db.Close()
	var value string
	var tables int
	must(t, db.QueryRow("SELECT value, (SELECT count(*) FROM sqlite_master) FROM other").Scan(&value, &tables))
	if value != "kept" || tables != 3 {
		t.Errorf("%q in %d tables", value, tables)
	}

	record, err := readRecord(database)
	if err != nil || record.Purpose != purposeRepair || record.Raft != r.Raft || record.Kept != filepath.Base(r.Kept) {
		t.Errorf("record %+v, %v", record, err)
	}
}

// TestRepairLostNode repairs the global database of a server whose node database is lost, and says so; what is left of that is taken over.
func TestRepairLostNode(t *testing.T) {
	for name, damage := range map[string]func(file string) error{
		"is missing": os.Remove,
		"is damaged": func(file string) error { return os.WriteFile(file, []byte("no database"), 0o600) },
	} {
		lxd := repairDir(t, standaloneLog, nil)
		removeFiles("metadata1", "metadata2")(t, filepath.Join(lxd, databaseName, globalName))
		file := filepath.Join(lxd, databaseName, nodedb.File)
		must(t, damage(file))
		before, _ := os.ReadFile(file)
		r, err := repair(t, lxd, nil)
		must(t, err)
		after, _ := os.ReadFile(file)
		if said := strings.Join(r.Warnings, "\n"); !r.Done || !r.Standalone || !bytes.Equal(before, after) || !strings.Contains(said, name) {
			t.Errorf("%s: done %t, %q, was %q, warnings %q", name, r.Done, after, before, said)
		}
	}
}

// TestRepairAt takes a server back: what is given up is named, and its next entries are in a new term. What is given up with an earlier
// repair, and is kept, counts as well.
func TestRepairAt(t *testing.T) {
	lxd := repairDir(t, standaloneLog, nil)
	truth := copyLXD(t, lxd)
	r, err := repair(t, lxd, func(o *RepairOptions) { o.At = rowsEnd })
	must(t, err)
	wantRepaired(t, lxd, r, rowsEnd, repairTerm+1)
	if differ := rowsAt(t, truth, rowsEnd).Differ(rowsAt(t, lxd, 0)); len(differ) > 0 {
		t.Errorf("other rows in %v", differ)
	}

	if len(r.GivenUp) == 0 || r.GivenUp[0].Index <= rowsEnd || len(r.GivenUp[0].Rows) == 0 {
		t.Errorf("given up: %v", r.GivenUp)
	}

	// Back to the old database, and again to an entry before: (123, 3) was never written, but might have been.
	must(t, os.RemoveAll(filepath.Join(lxd, databaseName)))
	must(t, copyTree(t.Context(), filepath.Join(truth, databaseName), filepath.Join(lxd, databaseName)))
	must(t, os.Rename(r.Kept, filepath.Join(lxd, keptRollback)))
	for i := range 2 {
		name := fmt.Sprintf("metadata%d", i+1)
		must(t, os.WriteFile(filepath.Join(lxd, keptRollback, globalName, name), raftlog.Metadata{Version: uint64(i + 1), Term: 7}.Encode(), 0o600))
	}

	r, err = repair(t, lxd, func(o *RepairOptions) { o.At = rowsEnd })
	must(t, err)
	if r.Metadata.Term != 8 {
		t.Errorf("term %d, although a kept database has 7", r.Metadata.Term)
	}
}

// TestRepairNothing wants a healthy directory left alone, to the byte.
func TestRepairNothing(t *testing.T) {
	lxd := repairDir(t, standaloneLog, nil)
	before := namesAndContent(t, lxd)
	for _, at := range []uint64{0, repairEnd} {
		r, err := repair(t, lxd, func(o *RepairOptions) { o.At = at })
		if err != nil || !r.NothingToDo || r.Done || len(r.Checked) != 2 || !strings.Contains(r.Checked[0], "the entries from index 1 to 126") {
			t.Errorf("at %d: %+v, %v", at, r, err)
		}
	}

	if got := namesAndContent(t, lxd); got != before {
		t.Errorf("changed:\n%s\nbefore:\n%s", got, before)
	}
}

// TestRepairDryRun wants nothing changed by a dry run, by an answer that is no, and by a refusal.
func TestRepairDryRun(t *testing.T) {
	lxd := repairDir(t, standaloneLog, nil)
	flipIn(thirdClosed)(t, filepath.Join(lxd, databaseName, globalName))
	before := namesAndContent(t, lxd)
	asked := 0
	r, err := repair(t, lxd, func(o *RepairOptions) {
		o.DryRun, o.Confirm = true, func(*RepairReport) error { asked++; return nil }
	})
	if err != nil || r.Done || r.Raft.Index != repairEnd || len(r.Problems) == 0 || r.Database == nil || asked > 0 {
		t.Errorf("%+v, %v, asked %d", r, err, asked)
	}

	errNo := errors.New("no")
	_, err = repair(t, lxd, func(o *RepairOptions) { o.Confirm = func(*RepairReport) error { return errNo } })
	if !errors.Is(err, errNo) {
		t.Errorf("%v", err)
	}

	if got := namesAndContent(t, lxd); got != before {
		t.Errorf("changed:\n%s\nbefore:\n%s", got, before)
	}
}

// severalReadings leaves a segment far beyond the end of the log, which may be a stray or the log's own: the open one continues either.
func severalReadings(t testing.TB, global string) {
	var far []raftlog.Entry
	for _, e := range repairEntries(t, standaloneLog)[100:120] {
		if e.Type == raftlog.CommandEntry {
			e.Data[len(e.Data)-1] ^= 1 // no copy
			far = append(far, e)
		}
	}

	name := raftlog.SegmentName(20001, 20000+uint64(len(far)))
	must(t, os.WriteFile(filepath.Join(global, name), batches(0, far), 0o600))
}

// TestRepairRefuses wants an error, and nothing changed.
func TestRepairRefuses(t *testing.T) {
	emptied := func(t testing.TB, global string) {
		removeFiles(firstClosed, secondClosed, thirdClosed, lastClosed, openSegment, repairBase, repairBase+".meta")(t, global)
	}
	var damage *DamageError
	var refusal *Refusal
	for name, test := range map[string]struct {
		damage damageFunc
		change func(*RepairOptions)
		as     any
		want   string
	}{
		"nothing is left": {func(t testing.TB, g string) {
			emptied(t, g)
			removeFiles("metadata1", "metadata2")(t, g)
			must(t, os.WriteFile(filepath.Join(g, openSegment), []byte("nothing"), 0o600))
		}, nil, &damage, "Nothing is left"},
		"beyond the end":      {nil, func(o *RepairOptions) { o.At = repairEnd + 1 }, nil, "ends at index 126"},
		"before the snapshot": {removeFiles(firstClosed, secondClosed, thirdClosed), func(o *RepairOptions) { o.At = 99 }, nil, "no further back"},
		"no such reading":     {flipIn(thirdClosed), func(o *RepairOptions) { o.Reading = "abc" }, nil, "no reading abc"},
		"rows out of order":   {removeFiles(thirdClosed, lastClosed, repairBase, repairBase+".meta"), nil, &damage, "--at INDEX goes back"},
		"several readings":    {severalReadings, nil, &refusal, "--reading DIGEST overrides this"},
	} {
		t.Run(name, func(t *testing.T) {
			lxd := repairDir(t, standaloneLog, nil)
			if test.damage != nil {
				test.damage(t, filepath.Join(lxd, databaseName, globalName))
			}

			before := namesAndContent(t, lxd)
			_, err := repair(t, lxd, test.change)
			wantError(t, err, test.want)
			if test.as != nil && !errors.As(err, test.as) {
				t.Errorf("%T", err)
			}

			if got := namesAndContent(t, lxd); got != before {
				t.Errorf("changed:\n%s\nbefore:\n%s", got, before)
			}
		})
	}
}

// TestRepairWrittenMeanwhile has somebody write to the directory while the question is open. What is given up beyond what was confirmed is
// asked about; else the repair goes on with what is there now.
func TestRepairWrittenMeanwhile(t *testing.T) {
	appended := func(t testing.TB, lxd string) {
		global := filepath.Join(lxd, databaseName, globalName)
		end := endOf(t, global)
		batch := raftlog.AppendBatch(nil, raftlog.Entry{Term: repairTerm, Type: raftlog.BarrierEntry, Data: make([]byte, 8)})
		rewrite(openSegment, func(p []byte) []byte { copy(p[end:], batch); return p })(t, global)
		must(t, os.Chtimes(filepath.Join(global, openSegment), time.Time{}, time.Now().Add(time.Hour)))
	}
	unfinished := func(t testing.TB, lxd string) { halfBatch(t, filepath.Join(lxd, databaseName, globalName)) }
	for name, test := range map[string]struct {
		damage damageFunc
		at     uint64
		write  func(testing.TB, string)
		asked  int
		last   uint64
	}{
		"one more entry":               {flipIn(thirdClosed), 0, appended, 1, repairEnd + 1},
		"a batch that is not finished": {flipIn(thirdClosed), 0, unfinished, 2, repairEnd},
	} {
		t.Run(name, func(t *testing.T) {
			lxd := repairDir(t, standaloneLog, nil)
			test.damage(t, filepath.Join(lxd, databaseName, globalName))
			asked := 0
			r, err := repair(t, lxd, func(o *RepairOptions) {
				o.At, o.Confirm = test.at, func(*RepairReport) error {
					asked++
					if asked == 1 {
						test.write(t, lxd)
					}

					return nil
				}
			})
			must(t, err)
			if asked != test.asked || r.Raft.Index != test.last || !r.Done {
				t.Errorf("asked %d times, ends at %s", asked, r.Raft)
			}
		})
	}

	// And LXD has finished itself what looked like damage.
	lxd := repairDir(t, standaloneLog, nil)
	truth := copyLXD(t, lxd)
	halfBatch(t, filepath.Join(lxd, databaseName, globalName))
	r, err := repair(t, lxd, func(o *RepairOptions) {
		o.Confirm = func(*RepairReport) error {
			must(t, os.RemoveAll(filepath.Join(lxd, databaseName, globalName)))
			return copyTree(t.Context(), filepath.Join(truth, databaseName, globalName), filepath.Join(lxd, databaseName, globalName))
		}
	})
	if err != nil || !r.NothingToDo || r.Done {
		t.Errorf("%+v, %v", r, err)
	}

	if left := namesIn(t, lxd); !slices.Equal(left, []string{databaseName, highWaterName}) {
		t.Errorf("left: %q", left)
	}
}

// TestRepairProof has something else written than was planned, or something that libdqlite makes something else of. Neither takes the place
// of a database.
func TestRepairProof(t *testing.T) {
	lxd := repairDir(t, standaloneLog, nil)
	global := filepath.Join(lxd, databaseName, globalName)
	summed := func(dir string) *raftlog.Log {
		log, err := openLog(t.Context(), dir, Progress{}, raftlog.Options{AllSums: true, Sums: true})
		must(t, err)
		return log
	}
	log := summed(global)
	end := bundle.Position{Index: repairEnd, Term: repairTerm}
	proof := func(staged string, change func(*RepairReport)) error {
		r := newRepairReport()
		r.Local, r.Raft, r.Metadata = end, end, RepairedMetadata{Term: repairTerm, Vote: repairVote}
		if change != nil {
			change(r)
		}

		rp := &repairer{run: &run{dir: directory{path: lxd}}, report: r, log: log, staged: summed(staged), alone: true}
		return rp.checkStaged(t.Context())
	}
	wantError(t, proof(global, nil), "")
	wantError(t, proof(global, func(r *RepairReport) { r.Raft.Index-- }), "it ends at index 126, term 2, not at index 125")
	wantError(t, proof(global, func(r *RepairReport) { r.Metadata.Vote = 0 }), "have term 2 and the vote 1, not 2 and 0")
	for name, test := range map[string]struct {
		damage damageFunc
		want   string
	}{
		"another entry": {rewrite(openSegment, func([]byte) []byte {
			all := repairEntries(t, standaloneLog)[120:]
			all[0].Data = all[1].Data
			return batches(1<<20, all)
		}), "entry 121 is another one"},
		"another snapshot": {rewrite(repairBase+".meta", func([]byte) []byte {
			return raftlog.EncodeSnapshotMeta(1, raftlog.Configuration{{ID: 1, Address: "2", Role: raftlog.Voter}})
		}), "its snapshot is another one"},
		"damage": {flipIn(lastClosed), "is damaged"},
	} {
		other := copyLXD(t, lxd)
		test.damage(t, filepath.Join(other, databaseName, globalName))
		err := proof(filepath.Join(other, databaseName, globalName), nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	_, err := fingerprintCopy(t.Context(), log, global)
	must(t, err)
	glued := copyLXD(t, lxd)
	removeFiles(lastClosed)(t, filepath.Join(glued, databaseName, globalName)) // libdqlite gives the open segment the indexes from 101 on
	_, err = fingerprintCopy(t.Context(), log, filepath.Join(glued, databaseName, globalName))
	wantError(t, err, "it takes the log to end at index 106, not at 126")
	refused := copyLXD(t, lxd)
	flipIn(thirdClosed)(t, filepath.Join(refused, databaseName, globalName))
	_, err = fingerprintCopy(t.Context(), log, filepath.Join(refused, databaseName, globalName))
	wantError(t, err, "libdqlite refuses the directory")
}
