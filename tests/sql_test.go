// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"database/sql"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// sqlRows asks a database through global-db-sql and returns the rows as text.
func sqlRows(t testing.TB, source string, args ...string) [][]string {
	t.Helper()
	r := run(t, exec.CommandContext(t.Context(), tool, append([]string{"global-db-sql", "--format", "csv", "--source", source}, args...)...))
	if r.status != 0 {
		t.Fatalf("%s %q: exit status %d: %s", source, args, r.status, r.stderr)
	}

	rows, err := csv.NewReader(strings.NewReader(r.stdout)).ReadAll()
	must(t, err)
	return rows[1:]
}

// tableQueries are queries that return every value of every table with its type, of a database that ask asks.
func tableQueries(t testing.TB, ask func(query string) [][]string) map[string]string {
	t.Helper()
	queries := map[string]string{}
	for _, table := range ask("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name") {
		var columns []string
		for _, c := range ask(fmt.Sprintf("SELECT name FROM pragma_table_info('%s') ORDER BY cid", table[0])) {
			if c[0] != "heartbeat" { // written every few seconds
				columns = append(columns, fmt.Sprintf(`typeof("%s") || ' ' || quote("%s")`, c[0], c[0]))
			}
		}

		if len(columns) > 0 {
			queries[table[0]] = fmt.Sprintf(`SELECT %s FROM "%s"`, strings.Join(columns, ", "), table[0])
		}
	}

	return queries
}

// What the running LXD says is what global-db-sql says once it is dead: now, and at every index before.
func TestSQL(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	m := c.Member(1)
	must(t, m.CreateProfile(ctx, "before-snapshot"))
	must(t, c.MakeSnapshot(ctx))
	first := frozenLast(t, m)
	steps := changeProfiles(t, m)
	live := askLive(t, m)
	besideFrozen(t, m, func() {
		r := recoverTool(t, m, "global-db-sql", "SELECT count(*) FROM nodes")
		if r.status != 0 || !strings.Contains(r.stderr, "may not belong together") {
			t.Errorf("beside a daemon: %+v", r)
		}
	})
	c.KillAll()
	check := unchanged(t, m.Dir())
	defer check()

	offline := func(query string) [][]string { return sqlRows(t, m.Dir(), query) }
	if ours := tableQueries(t, offline); len(ours) < 30 || fmt.Sprint(ours) != fmt.Sprint(live.queries) {
		t.Errorf("tables\n%v\nwant\n%v", ours, live.queries)
	}

	log := openLog(t, globalOf(m))
	for table := range live.queries {
		live.wantTable(t, m, table, log.LastIndex)
	}

	snapshot := log.Snapshot()
	if snapshot == nil {
		t.Fatal("no snapshot")
	}

	seen := profilesFrom(t, m, first, log.LastIndex)
	if fmt.Sprint(seen) != fmt.Sprint(steps) {
		t.Errorf("profiles at each index\n%q\nLXD said\n%q", seen, steps)
	}

	oldest := globaldb.Oldest(log)
	if got := at(t, m, oldest+20); slices.Contains(got, "one") || snapshot.Index <= oldest+20 {
		t.Errorf("oldest index %d, profiles %q", oldest, got)
	}

	recoverTool(t, m, "global-db-sql", "--at", fmt.Sprint(log.LastIndex+1), "SELECT 1").want(t, 1, fmt.Sprintf("ends at index %d", log.LastIndex))

	wantDump(t, m.Dir())
	wantFormats(t, m)
	wantRefused(t, m)
}

// changeProfiles has LXD change its database in several ways. It returns the profiles as they were before, and after each change of
// them.
func changeProfiles(t testing.TB, m *cluster.Member) [][]string {
	t.Helper()
	steps := [][]string{profiles(t, m)}
	for _, change := range [][]string{
		{"profile", "create", "one"}, {"profile", "set", "one", "user.text=it's;\nünï \"quoted\""}, {"project", "create", "p"},
		{"profile", "create", "two"}, {"profile", "delete", "one"}, {"profile", "rename", "two", "three"}, {"network", "create", "net", "--target", "node1"},
	} {
		lxc(t, m, change...)
		steps = appendChanged(steps, profiles(t, m))
	}

	return steps
}

// profilesFrom are the profiles at the first index, and at each one up to the last at which they are others, as global-db-sql has it.
func profilesFrom(t testing.TB, m *cluster.Member, first, last uint64) [][]string {
	t.Helper()
	var steps [][]string
	for index := first; index <= last; index++ {
		steps = appendChanged(steps, at(t, m, index))
	}

	return steps
}

// appendChanged appends a list unless it is the last one again.
func appendChanged(steps [][]string, now []string) [][]string {
	if len(steps) > 0 && slices.Equal(now, steps[len(steps)-1]) {
		return steps
	}

	return append(steps, now)
}

// liveTables is what a running LXD says that its tables have.
type liveTables struct {
	queries map[string]string     // by table: what it was asked
	rows    map[string][][]string // by table
	from    uint64                // the last index of its log before it was asked for the rows
}

func askLive(t testing.TB, m *cluster.Member) liveTables {
	t.Helper()
	ctx := within(t, 3*time.Minute)
	ask := func(query string) [][]string {
		rows, err := m.SQL(ctx, query)
		must(t, err)
		return rows
	}
	live := liveTables{queries: tableQueries(t, ask), rows: map[string][][]string{}}
	live.from = frozenLast(t, m)
	for table, query := range live.queries {
		live.rows[table] = ask(query)
	}

	return live
}

// wantTable checks that a table had what LXD said at one of the indexes since it was asked, beginning with the last: LXD notes
// its own operations and warnings whenever it likes, also while it is asked.
func (l liveTables) wantTable(t testing.TB, m *cluster.Member, table string, last uint64) {
	t.Helper()
	want := sorted(l.rows[table])
	var got [][]string
	for index := last; index >= l.from; index-- {
		got = sorted(sqlRows(t, m.Dir(), "--at", fmt.Sprint(index), l.queries[table]))
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
	}

	t.Errorf("table %s:\nat index %d\n%q\nLXD said\n%q", table, l.from, got, want)
}

// frozenLast is the last index in the log of a running member.
func frozenLast(t testing.TB, m *cluster.Member) uint64 {
	t.Helper()
	defer freeze(t, m)()
	return openLog(t, filepath.Join(m.Dir(), "database", "global")).LastIndex
}

func sorted(rows [][]string) [][]string {
	slices.SortFunc(rows, slices.Compare)
	return rows
}

// at are the profiles at an index.
func at(t testing.TB, m *cluster.Member, index uint64) []string {
	t.Helper()
	r := mustRecover(t, m, "global-db-sql", "-f", "json", "--at", fmt.Sprint(index), "SELECT name FROM profiles ORDER BY name")
	var names []string
	for _, row := range decode[[]struct{ Name string }](t, r) {
		names = append(names, row.Name)
	}

	slices.Sort(names)
	return names
}

// wantDump checks that a dump read by SQLite has the rows of the file that --output keeps, and that of our replay.
func wantDump(t testing.TB, source string) {
	t.Helper()
	must(t, globaldb.RegisterSums()) // before the connections that sum are opened
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept.db")
	r := run(t, exec.CommandContext(t.Context(), tool, "global-db-sql", source, "--output", kept, ".dump"))
	if r.status != 0 {
		t.Fatalf("exit status %d: %s", r.status, r.stderr)
	}

	copied := filepath.Join(dir, "copied.db")
	db, err := sql.Open("sqlite3", "file:"+copied)
	must(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec(r.stdout)
	must(t, err)
	got, err := globaldb.FingerprintOf(t.Context(), db)
	must(t, err)

	whole, err := sql.Open("sqlite3", "file:"+kept+"?mode=ro")
	must(t, err)
	defer whole.Close()
	want, err := globaldb.FingerprintOf(t.Context(), whole)
	must(t, err)
	if differ := want.Differ(got); len(differ) > 0 || len(want) < 30 {
		t.Errorf("%s: the dump of %d tables differs in %v", source, len(want), differ)
	}

	names := func(db *sql.DB) (all string) {
		must(t, db.QueryRow("SELECT group_concat(type || name || coalesce(sql, ''), x'0a') FROM (SELECT * FROM sqlite_master ORDER BY type, name)").Scan(&all))
		return all
	}
	if names(db) != names(whole) {
		t.Errorf("%s: the dump has another schema", source)
	}

	run(t, exec.CommandContext(t.Context(), tool, "global-db-sql", source, "--output", kept)).want(t, 3, "exists already", "--force")
	if r := run(t, exec.CommandContext(t.Context(), tool, "global-db-sql", source, "--output", kept, "--force")); r.status != 0 {
		t.Errorf("--force: exit status %d: %s", r.status, r.stderr)
	}
}

// wantFormats checks the formats and ways of asking.
func wantFormats(t testing.TB, m *cluster.Member) {
	t.Helper()
	query := "SELECT NULL AS n, '' AS e, 'a\"b' AS t, x'00ff' AS b, 1 AS i, 2.0 AS r, char(27) || '[2J' AS c"
	for format, want := range map[string]string{
		"csv":     "n,e,t,b,i,r,c\n,\"\",\"a\"\"b\",x'00ff',1,2.0,\x1b[2J\n",
		"json":    "[\n  {\"n\": null, \"e\": \"\", \"t\": \"a\\\"b\", \"b\": \"00ff\", \"i\": 1, \"r\": 2.0, \"c\": \"\\u001b[2J\"}\n]\n",
		"yaml":    "- n: null\n  e: \"\"\n  t: \"a\\\"b\"\n  b: \"00ff\"\n  i: 1\n  r: 2.0\n  c: \"\\e[2J\"\n",
		"compact": "  n     e  t    b        i  r    c        \n  NULL     a\"b  x'00ff'  1  2.0  \\x1b[2J  \n",
	} {
		if r := recoverTool(t, m, "global-db-sql", "-f", format, query); r.stdout != want || r.status != 0 {
			t.Errorf("%s:\n%q\nwant\n%q", format, r.stdout, want)
		}
	}

	cmd := m.Command(t.Context(), tool, "global-db-sql", "-f", "csv", m.Dir(), "SELECT 1 AS a", "-", ".schema", "projects")
	cmd.Stdin = strings.NewReader("SELECT 2 AS b; -- two\n.tables\nSELECT 3 AS c")
	r := run(t, cmd)
	if !strings.HasPrefix(r.stdout, "a\n1\n\nb\n2\n\nname,type\n") || !strings.Contains(r.stdout, "\n\nc\n3\n\ntype,name,table,sql\ntable,projects,") {
		t.Errorf("several statements:\n%s", r.stdout)
	}
}

// wantRefused checks that nothing but reading is possible, and that every mistake is one error.
func wantRefused(t testing.TB, m *cluster.Member) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "x")
	for _, query := range []string{
		"DELETE FROM profiles", "ATTACH '" + target + "' AS x", "PRAGMA writable_schema = 1", "SELECT load_extension('x')", "VACUUM INTO '" + target + "'",
	} {
		recoverTool(t, m, "global-db-sql", query).want(t, 1, "only reading is possible", query)
	}

	_, err := os.Lstat(target)
	if err == nil {
		t.Error("a file was written")
	}

	recoverTool(t, m, "global-db-sql", "SELECT nosuch").want(t, 1, "no such column: nosuch")
	recoverTool(t, m, "global-db-sql", ".nosuch").want(t, 2, ".schema")
	recoverTool(t, m, "global-db-sql", m.Dir()).want(t, 2, "there is no query")
	recoverTool(t, m, "global-db-sql", "./nosuch/database", "SELECT 1").want(t, 1, "./nosuch/database", "no such file")

	cmd := m.Command(t.Context(), tool, "global-db-sql", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	waitBusy(t, cmd.Process.Pid)
	must(t, cmd.Process.Signal(os.Interrupt))
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 || stderr.String() != "Error: interrupted\n" {
		t.Errorf("interrupted: exit status %d, %q", cmd.ProcessState.ExitCode(), stderr.String())
	}
}

// waitBusy waits until a process has computed for half a second: it is in its endless query then.
func waitBusy(t testing.TB, pid int) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(t, err)
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		var ticks int
		_, err = fmt.Sscan(fields[11], &ticks) // user time, 1/100 s
		must(t, err)
		if ticks > 50 {
			return
		}

		select {
		case <-ctx.Done():
			t.Fatal("the query never ran")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// The fixtures, LXD 6.9: directories, tarballs and backups give the same rows; a damaged directory gives those that are sound,
// and says so.
func TestSQLFixtures(t *testing.T) {
	dir := unpackFixtures(t)
	before := tree(t, dir)
	backups, err := filepath.Glob(filepath.Join(dir, "small/n1-afteredit/db_backup.*.tar.gz"))
	must(t, err)
	for _, source := range []string{"small/n1-afteredit", "small/n2-preimport/database", "small/n3-preimport/database/global", "small/lxd_recovery_db.tar.gz",
		"small/n1-afteredit/" + filepath.Base(backups[0])} {
		rows := sqlRows(t, filepath.Join(dir, source), "SELECT name FROM nodes ORDER BY id")
		if fmt.Sprint(rows) != "[[node1] [node2] [node3]]" {
			t.Errorf("%s: %v", source, rows)
		}
	}

	wantDump(t, filepath.Join(dir, "forgotten/n1-preedit"))
	lost := "SELECT name FROM profiles WHERE name LIKE 'lostrow%' ORDER BY name"
	source := filepath.Join(dir, "forgotten/n1-preedit")
	if rows := sqlRows(t, source, lost); fmt.Sprint(rows) != "[[lostrow] [lostrow2]]" {
		t.Errorf("lost rows %v", rows)
	}

	if tree(t, dir) != before {
		t.Error("the fixtures were changed")
	}

	global := filepath.Join(source, "database", "global")
	index := damageLast(t, global)
	check := tree(t, dir)
	r := run(t, exec.CommandContext(t.Context(), tool, "global-db-sql", "-f", "json", source, lost))
	r.want(t, 4, "damaged", fmt.Sprintf("up to index %d", index-1))
	var rows []map[string]string
	err = json.Unmarshal([]byte(r.stdout), &rows)
	if err != nil || len(rows) != 1 {
		t.Errorf("damaged: %v, %s", err, r.stdout)
	}

	run(t, exec.CommandContext(t.Context(), tool, "global-db-sql", "--at", fmt.Sprint(index-1), source, lost)).want(t, 4, "damaged")
	if tree(t, dir) != check {
		t.Error("the damaged directory was changed")
	}
}

// unpackFixtures unpacks the members of a real LXD 6.9 cluster.
func unpackFixtures(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("tar", "-xJf", "fixtures/lxd-6.9-members.tar.xz", "-C", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	return dir
}
