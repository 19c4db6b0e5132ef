// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"database/sql"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

func sortedChanges(changes []RowChange) []string {
	var all []string
	for _, c := range changes {
		if c.Table != schemaTable {
			all = append(all, fmt.Sprintf("%s\n  %s %s\n  %v\n  %v", c, c.Table, c.Key, c.Before, c.After))
		}
	}

	slices.Sort(all)
	return all
}

// Every transaction of real logs: the rows told from the pages are those that a comparison of both whole databases finds.
func TestStepsOfFixtures(t *testing.T) {
	for _, member := range []string{"small/n1-afteredit", "forgotten/n1-preedit"} {
		t.Run(member, func(t *testing.T) {
			t.Parallel()
			stepsOfFixture(t, member)
		})
	}
}

func stepsOfFixture(t *testing.T, member string) {
	log := open(t, member)
	dir := t.TempDir()
	before, err := newReplayer(log, filepath.Join(dir, "before"))
	must(t, err)
	defer before.close()
	after, err := newReplayer(log, filepath.Join(dir, "after"))
	must(t, err)
	defer after.close()
	steps, err := OpenSteps(t.Context(), log, 1)
	must(t, err)
	defer steps.Close()
	late, err := OpenSteps(t.Context(), log, log.LastIndex-20)
	must(t, err)
	defer late.Close()
	transactions := 0
	for entry, err := range log.Entries(t.Context(), 1) {
		must(t, err)
		got, more, err := steps.Rows(t.Context(), entry.Index)
		must(t, err)
		if entry.Index >= log.LastIndex-20 && entry.Index%3 == 0 { // with some left out
			again, _, err := late.Rows(t.Context(), entry.Index)
			must(t, err)
			if !slices.Equal(sortedChanges(again), sortedChanges(got)) {
				t.Errorf("%s: index %d: begun late\n%s\nfrom the first\n%s", member, entry.Index, sortedChanges(again), sortedChanges(got))
			}
		}

		cmd, err := raftlog.ParseCommand(entry.Data)
		if entry.Type != raftlog.CommandEntry || err != nil || cmd.Kind != raftlog.Frames {
			if len(got) > 0 {
				t.Errorf("%s: index %d is no transaction and changes %v", member, entry.Index, got)
			}

			continue
		}

		transactions++
		err = before.advance(t.Context(), entry.Index-1)
		if err != nil {
			continue // the first one
		}

		must(t, after.advance(t.Context(), entry.Index))
		want, _, err := Diff(t.Context(), before.target, after.target)
		must(t, err)
		if !slices.Equal(sortedChanges(got), sortedChanges(want)) || more {
			t.Fatalf("%s: index %d:\n%s\nwant\n%s", member, entry.Index, sortedChanges(got), sortedChanges(want))
		}
	}

	t.Logf("%s: %d transactions", member, transactions)
}

// Random transactions on a database with everything that makes pages move: rows are told as the whole comparison tells them.
func TestStepDiffRandom(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			stepRandomly(t, rand.New(rand.NewPCG(seed, 7)), 120)
		})
	}
}

func stepRandomly(t *testing.T, random *rand.Rand, transactions int) {
	live := filepath.Join(t.TempDir(), "live")
	db, err := sql.Open("sqlite3", "file:"+live)
	must(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec(`PRAGMA synchronous = OFF; PRAGMA secure_delete = OFF; PRAGMA page_size = 4096;
		CREATE TABLE plain (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, data BLOB);
		CREATE TABLE keyed (k TEXT PRIMARY KEY, v TEXT);
		CREATE TABLE bare (k TEXT, n INTEGER, v TEXT, PRIMARY KEY (k, n)) WITHOUT ROWID;
		CREATE TABLE bag (rowid TEXT, v);
		CREATE INDEX byv ON keyed (v)`)
	must(t, err)

	before, err := os.Create(filepath.Join(t.TempDir(), "before"))
	must(t, err)
	defer before.Close()
	after, err := os.Create(filepath.Join(t.TempDir(), "after"))
	must(t, err)
	defer after.Close()
	copyPages(t, live, before)
	copyPages(t, live, after)
	d, err := newStepDiff(t.Context(), before, after)
	must(t, err)
	defer d.Close()

	precise := 0
	for n := range transactions {
		tx, err := db.Begin()
		must(t, err)
		var done []string
		for range 1 + random.IntN(4) {
			statement := randomStatement(random, n)
			_, err = tx.Exec(statement)
			must(t, err)
			done = append(done, statement)
		}

		must(t, tx.Commit())

		written := copyPages(t, live, after)
		got, more, err := d.step(t.Context(), written)
		must(t, err)
		want, _, err := Diff(t.Context(), before.Name(), after.Name())
		must(t, err)
		if more {
			t.Fatal("the test changes more rows than are told")
		}

		bagOnly := func(c RowChange) bool { return c.Table == "bag" } // of equal rows Diff sees one
		if !slices.Equal(sortedChanges(slices.DeleteFunc(got, bagOnly)), sortedChanges(slices.DeleteFunc(want, bagOnly))) {
			t.Fatalf("transaction %d: %s\nwrote pages %v\ngot\n%s\nwant\n%s", n, strings.Join(done, "; "), written, sortedChanges(got), sortedChanges(want))
		}

		if d.pages.strange {
			t.Fatalf("transaction %d: %s: the pages look strange", n, strings.Join(done, "; "))
		}

		if len(want) > 0 {
			precise++
		}

		copyPages(t, live, before)
	}

	if precise < transactions/3 {
		t.Errorf("only %d transactions changed a row", precise)
	}
}

// randomStatement makes trees grow and shrink, rows spill over, and tables come and go.
func randomStatement(random *rand.Rand, n int) string {
	id := random.IntN(400)
	text := strings.Repeat("x", []int{3, 40, 900, 5000, 20000}[random.IntN(5)])
	switch random.IntN(17) {
	case 0, 1:
		return fmt.Sprintf("INSERT OR IGNORE INTO plain (name, data) VALUES ('n%d', '%s')", id, text)
	case 2:
		return fmt.Sprintf("WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 60) "+
			"INSERT OR IGNORE INTO keyed SELECT 'k' || (n * 7 + %d), '%s' FROM i", id, text[:min(len(text), 900)])
	case 3:
		return fmt.Sprintf("DELETE FROM keyed WHERE rowid %% 5 = %d", n%5)
	case 4:
		if n%3 > 0 { // whole leaves become free, and are not written
			return fmt.Sprintf("DELETE FROM %s WHERE rowid BETWEEN %d AND %d", []string{"plain", "keyed"}[n%2], id, id+random.IntN(400))
		}

		return fmt.Sprintf("DELETE FROM plain WHERE id %% 3 = %d", n%2)
	case 5:
		return fmt.Sprintf("UPDATE plain SET data = substr(data, 1, length(data) - 1) || 'y' WHERE id %% 7 = %d", n%7)
	case 6:
		return fmt.Sprintf("UPDATE plain SET data = '%s' WHERE id = %d", text, id)
	case 7:
		return fmt.Sprintf("REPLACE INTO bare VALUES ('%d', %d, '%s')", id%20, id%3, text)
	case 8:
		return fmt.Sprintf("DELETE FROM bare WHERE n = %d", n%3)
	case 9:
		return fmt.Sprintf("REPLACE INTO keyed VALUES ('k%d', '%s')", id, text)
	case 10:
		return fmt.Sprintf("INSERT INTO bag VALUES ('%d', '%s')", id, text)
	case 11:
		return "DELETE FROM bag"
	case 12:
		return fmt.Sprintf("CREATE TABLE IF NOT EXISTS extra%d (id INTEGER PRIMARY KEY, v); INSERT INTO extra%d (v) VALUES ('%s')", id%4, id%4, text)
	case 13:
		return fmt.Sprintf("DROP TABLE IF EXISTS extra%d", id%4)
	case 14:
		return fmt.Sprintf("DELETE FROM %s", []string{"plain", "keyed", "bare"}[n%3])
	case 15:
		return fmt.Sprintf("CREATE INDEX IF NOT EXISTS i%d ON plain (data)", id%2)
	}

	return fmt.Sprintf("UPDATE keyed SET v = v || '!' WHERE k = 'k%d'", id)
}

// copyPages copies the pages by which two files differ, as few as a transaction can have written, and returns their numbers.
func copyPages(t *testing.T, from string, to *os.File) []uint32 {
	t.Helper()
	source, err := os.ReadFile(from)
	must(t, err)
	target, err := io.ReadAll(io.NewSectionReader(to, 0, 1<<40))
	must(t, err)
	written := map[uint32]bool{}
	for at := 0; at < len(source); at += pageSize {
		page := slices.Clone(source[at : at+pageSize])
		if at == 0 && len(target) > 0 { // our own change counter stays
			copy(page[24:28], target[24:28])
			copy(page[92:96], target[92:96])
		}

		if at+pageSize > len(target) || string(page) != string(target[at:at+pageSize]) {
			_, err = to.WriteAt(page, int64(at))
			must(t, err)
			written[uint32(at/pageSize)+1] = true
		}
	}

	must(t, to.Truncate(int64(len(source))))
	return slices.Sorted(maps.Keys(written))
}
