// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/godqlite"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

const (
	firstID  = 3297041220608546238 // of the first member of every cluster that go-dqlite has made
	secondID = 10259569891570830186
	stopped  = "microcluster-v3/stopped-hard/"
	edited   = "microcluster-v3/edited/m1"
)

// applicationDir is a member's directory, as raftlogtest has it. Looking at it has this process use other words than LXD's, until the test ends.
func applicationDir(t *testing.T, member string) string {
	t.Helper()
	t.Cleanup(func() { product.Use(product.LXD) })
	return raftlogtest.Application(t, member)
}

// found are the parts of a report that tell what a source is.
func found(r *InspectReport) string {
	text := fmt.Sprintf("%s, %s, healthy %v, copy %v, index %d", r.Kind, r.Product, r.Healthy, r.Copy, r.Raft.LastIndex)
	if r.Member != nil {
		text += fmt.Sprintf(", of %d %q %s", r.Member.ID, r.Member.Name, r.Member.Address)
	}

	for _, m := range r.Members {
		text += fmt.Sprintf(", %q %s %s", m.Name, m.Address, m.Role)
	}

	for _, db := range r.Databases {
		text += fmt.Sprintf(", database %s", db.Name)
		if db.Data != nil {
			text += fmt.Sprintf(" %d rows %s", db.Data.Rows, db.Data.Integrity)
		}
	}

	if r.Fenced != nil {
		text += fmt.Sprintf(", fenced %v", *r.Fenced)
	}

	return text
}

func TestInspectApplications(t *testing.T) {
	const (
		micro  = `, "m1" 127.0.0.11:9001 voter, "m2" 127.0.0.12:9001 voter, "m3" 127.0.0.13:9001 voter, database db.bin 12 rows ok`
		moved  = `, "m1" 127.0.0.11:9009 voter, "m2" 127.0.0.12:9009 voter, "m3" 127.0.0.13:9009 voter, database db.bin 12 rows ok`
		k8s    = `, "" 127.0.0.21:19001 voter, "" 127.0.0.22:19001 voter, "" 127.0.0.23:19001 voter, database k8s %d rows ok`
		backup = "/db_backup.2026-11-26T050812Z.tar.gz"

		state    = "microcluster state directory, microcluster, healthy true, copy false"
		database = "microcluster database directory, microcluster, healthy true, copy false"
		tarball  = "recovery tarball of microcluster, microcluster, healthy true, copy false"
		copied   = "microcluster database backup, microcluster, healthy true, copy true"
		plain    = "go-dqlite directory, go-dqlite, healthy true, copy false"
	)

	for source, want := range map[string]string{
		stopped + "m1":                 state + `, index 19, of 3297041220608546238 "m1" 127.0.0.11:9001` + micro,
		stopped + "m2":                 state + `, index 19, of 10259569891570830186 "m2" 127.0.0.12:9001` + micro,
		stopped + "m2/database":        database + `, index 19, of 10259569891570830186 "m2" 127.0.0.12:9001` + micro,
		edited:                         state + `, index 20, of 3297041220608546238 "m1" 127.0.0.11:9009` + moved,
		edited + backup:                copied + `, index 19, of 3297041220608546238 "m1" 127.0.0.11:9001` + micro,
		edited + "/recovery_db.tar.gz": tarball + `, index 20` + moved + ", fenced false",
		"k8s-dqlite/k1":                plain + `, index 11, of 3297041220608546238 "" 127.0.0.21:19001` + fmt.Sprintf(k8s, 5),
		"k8s-dqlite/k2":                plain + `, index 11, of 11048426922608418828 "" 127.0.0.22:19001` + fmt.Sprintf(k8s, 5),
		"k8s-dqlite/k3":                plain + `, index 10, of 749168871086486001 "" 127.0.0.23:19001` + fmt.Sprintf(k8s, 4),
	} {
		path := applicationDir(t, source)
		r, err := Inspect(t.Context(), path, Progress{})
		must(t, err)
		if found(r) != want {
			t.Errorf("%s:\n%s, want\n%s", source, found(r), want)
		}

		info, err := os.Stat(path)
		must(t, err)
		if info.IsDir() && r.Cluster == "" && !strings.HasPrefix(source, "k8s") {
			t.Errorf("%s: nothing tells the cluster", source)
		}
	}
}

// A copy of the files of raft alone tells the members' names by the table, also if the addresses were changed since.
func TestMicroclusterNames(t *testing.T) {
	for _, from := range []string{stopped + "m1/database", edited + "/database"} {
		dir := raftlogtest.Copy(t, applicationDir(t, from))
		_ = os.Remove(filepath.Join(dir, godqlite.RecoveryFile))
		state := filepath.Join(t.TempDir(), "state")
		must(t, os.MkdirAll(filepath.Join(state, godqlite.TrustDir), 0o700))
		must(t, os.WriteFile(filepath.Join(state, godqlite.DaemonFile), nil, 0o600))
		must(t, os.Rename(dir, filepath.Join(state, godqlite.DatabaseDir)))
		r, err := Inspect(t.Context(), state, Progress{})
		must(t, err)
		names := []string{}
		for _, m := range r.Members {
			names = append(names, m.Name)
		}

		if !slices.Equal(names, []string{"m1", "m2", "m3"}) || r.Member == nil || r.Member.Name != "m1" {
			t.Errorf("%s: %q, of %+v", from, names, r.Member)
		}
	}
}

func TestCompareApplications(t *testing.T) {
	for _, test := range []struct{ dir, first, second, third, row string }{
		{stopped + "m", "m1", "m2", "m3", "lost"},
		{"k8s-dqlite/k", "127.0.0.21:19001", "127.0.0.22:19001", "127.0.0.23:19001", "'/registry/lost'"},
	} {
		var sources []string
		for i := 3; i > 0; i-- {
			sources = append(sources, applicationDir(t, fmt.Sprint(test.dir, i)))
		}

		r, err := Compare(t.Context(), CompareOptions{Sources: sources})
		must(t, err)
		if r.Recommendation == nil || r.Recommendation.Label != test.first || !slices.Equal(r.Recommendation.Same, []string{test.second}) || !r.Certain {
			t.Fatalf("%s: recommended %+v, certain %v, %+v", test.dir, r.Recommendation, r.Certain, r.Refusal)
		}

		if len(r.Rows) != 1 || !slices.Equal(r.Rows[0].Sources, []string{test.third}) || len(r.Rows[0].Rows) != 1 ||
			!strings.Contains(r.Rows[0].Rows[0].String(), test.row) {
			t.Errorf("%s: rows %+v, want the one with %s", test.dir, r.Rows, test.row)
		}

		for _, v := range r.Voters {
			if !v.Seen {
				t.Errorf("%s: voter %d was not seen", test.dir, v.ID)
			}
		}

		// Reports, carried to another machine, tell the same, but for rows that need the databases.
		var reports []string
		for i, source := range sources {
			report, err := Inspect(t.Context(), source, Progress{})
			must(t, err)
			data, err := json.Marshal(report)
			must(t, err)
			reports = append(reports, filepath.Join(t.TempDir(), fmt.Sprint(i, ".json")))
			must(t, os.WriteFile(reports[i], data, 0o600))
		}

		saved, err := Compare(t.Context(), CompareOptions{Sources: reports})
		must(t, err)
		if saved.Recommendation == nil || saved.Recommendation.Label != test.first || !saved.Certain ||
			len(saved.Rows) != 1 || len(saved.Rows[0].Lacks) != 1 || !strings.Contains(saved.Rows[0].Lacks[0].Changes[0], strings.Trim(test.row, "'")) {
			t.Errorf("%s: of reports, recommended %+v, certain %v, %+v", test.dir, saved.Recommendation, saved.Certain, saved.Rows)
		}

		// Two of three are enough, and the one that lacks a row is not taken for what it does not have.
		r, err = Compare(t.Context(), CompareOptions{Sources: sources[:2]})
		must(t, err)
		if r.Recommendation == nil || r.Recommendation.Label != test.second || !r.Certain {
			t.Errorf("%s: of two, recommended %+v, certain %v", test.dir, r.Recommendation, r.Certain)
		}

		// One alone is not.
		r, err = Compare(t.Context(), CompareOptions{Sources: []string{sources[0], sources[0]}})
		must(t, err)
		if r.Certain || r.Doubt == nil || !strings.Contains(r.Doubt.Reason, test.first) {
			t.Errorf("%s: of one, certain %v, %+v", test.dir, r.Certain, r.Doubt)
		}
	}
}

func TestApplicationDatabase(t *testing.T) {
	for source, test := range map[string]struct{ query, want string }{
		"k8s-dqlite/k1":                {"SELECT name FROM kine ORDER BY id", "/registry/health compact_rev_key /registry/a /registry/b /registry/lost"},
		"k8s-dqlite/k3":                {"SELECT name FROM kine ORDER BY id", "/registry/health compact_rev_key /registry/a /registry/b"},
		stopped + "m1":                 {"SELECT name FROM core_cluster_members ORDER BY id", "m1 m2 m3"},
		edited + "/recovery_db.tar.gz": {"SELECT address FROM core_cluster_members ORDER BY id", "127.0.0.11:9001 127.0.0.12:9001 127.0.0.13:9001"},
		edited + "/db_backup.2026-11-26T050812Z.tar.gz": {"SELECT count(*) FROM extended_table", "1"},
	} {
		if got := selected(t, DatabaseOptions{Source: applicationDir(t, source)}, test.query); got != test.want {
			t.Errorf("%s: %q, want %q", source, got, test.want)
		}
	}

	// A look at one changes nothing in it.
	dir := raftlogtest.Copy(t, applicationDir(t, "k8s-dqlite/k1"))
	before := signature(dir)
	selected(t, DatabaseOptions{Source: dir}, "SELECT 1")
	_, err := Inspect(t.Context(), dir, Progress{})
	must(t, err)
	if signature(dir) != before {
		t.Error("the directory was changed")
	}
}

// selected are the values that a query returns, with a space between them.
func selected(t *testing.T, opts DatabaseOptions, query string) string {
	t.Helper()
	db, err := OpenDatabase(t.Context(), opts)
	must(t, err)
	defer db.Close()

	var values []string
	must(t, db.Query(t.Context(), query, globaldb.Receiver{
		Columns: func([]string) error { return nil },
		Row: func(row []any) error {
			for _, v := range row {
				values = append(values, fmt.Sprint(v))
			}

			return nil
		},
	}))
	return strings.Join(values, " ")
}

// severalDatabases is the directory of an application with two databases in one log, as Juju has it: every transaction of k8s-dqlite's is on one, and all
// but the last are on the other one as well.
func severalDatabases(t *testing.T) string {
	t.Helper()
	from := applicationDir(t, "k8s-dqlite/k1")
	log, err := raftlog.Open(t.Context(), os.DirFS(from), raftlog.Options{})
	must(t, err)
	dir := filepath.Join(t.TempDir(), "dqlite")
	must(t, os.Mkdir(dir, 0o700))
	for _, name := range []string{godqlite.InfoFile, godqlite.ClusterFile, "metadata1"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}

	segment, last := raftlog.SegmentHeader(), uint64(0)
	for entry, err := range log.Entries(t.Context(), 1) {
		must(t, err)
		made := []raftlog.Entry{entry}
		if entry.Type == raftlog.CommandEntry {
			made = []raftlog.Entry{renamed(entry, "controller")}
			if entry.Index < log.LastIndex {
				made = append(made, renamed(entry, "a-model"))
			}
		}

		for _, e := range made {
			last++
			segment = raftlog.AppendBatch(segment, e)
		}
	}

	must(t, os.WriteFile(filepath.Join(dir, raftlog.SegmentName(1, last)), segment, 0o600))
	return filepath.Dir(dir)
}

// renamed is a transaction on a database of another name.
func renamed(entry raftlog.Entry, name string) raftlog.Entry {
	text := append([]byte(name), make([]byte, 8-len(name)%8)...)
	entry.Data = slices.Concat(entry.Data[:8], text, entry.Data[16:]) // after the header there is "k8s"
	return entry
}

func TestSeveralDatabases(t *testing.T) {
	dir := severalDatabases(t)
	const rows = "SELECT count(*) FROM kine"
	for database, want := range map[string]string{"controller": "5", "a-model": "4"} {
		if got := selected(t, DatabaseOptions{Source: dir, Database: database}, rows); got != want {
			t.Errorf("%s has %s rows, want %s", database, got, want)
		}

		changed := 0
		_, err := ReadHistory(t.Context(), HistoryOptions{Source: dir, Database: database, Rows: true}, func(e HistoryEntry) error {
			if e.Pages > 0 && e.Database != database {
				t.Errorf("an entry on %q is listed", e.Database)
			}

			for _, row := range e.Rows {
				if row.Table == "kine" && row.After != nil && row.Before == nil {
					changed++
				}
			}

			return nil
		})
		must(t, err)
		if fmt.Sprint(changed) != want {
			t.Errorf("the log inserts %d rows into %s, want %s", changed, database, want)
		}

		r, err := InspectWith(t.Context(), InspectOptions{Source: dir, Database: database})
		must(t, err)
		if r.Data == nil || fmt.Sprint(r.Data.Rows) != want || len(r.Databases) != 2 {
			t.Errorf("%s: %+v, %+v", database, r.Data, r.Databases)
		}
	}

	r, err := Inspect(t.Context(), dir, Progress{})
	must(t, err)
	if !r.Healthy || r.Data != nil || !strings.HasSuffix(found(r), "database a-model 4 rows ok, database controller 5 rows ok") {
		t.Errorf("%s, %+v", found(r), r.Problems)
	}

	for what, err := range map[string]error{
		"sql": errorOf(OpenDatabase(t.Context(), DatabaseOptions{Source: dir})),
		"log": errorOf(ReadHistory(t.Context(), HistoryOptions{Source: dir, Rows: true}, func(HistoryEntry) error { return nil })),
	} {
		if err == nil || !strings.Contains(err.Error(), `has several databases, "a-model", "controller": --database NAME chooses one`) {
			t.Errorf("%s: %v", what, err)
		}
	}

	for what, err := range map[string]error{
		"sql":     errorOf(OpenDatabase(t.Context(), DatabaseOptions{Source: dir, Database: "model"})),
		"inspect": errorOf(InspectWith(t.Context(), InspectOptions{Source: dir, Database: "model"})),
	} {
		if err == nil || !strings.Contains(err.Error(), `has no database "model": there is "a-model", "controller"`) {
			t.Errorf("%s: %v", what, err)
		}
	}

	lxd := filepath.Dir(filepath.Dir(raftlogtest.Global(t, "small/n2-preimport")))
	_, err = OpenDatabase(t.Context(), DatabaseOptions{Source: lxd, Database: "model"})
	wantError(t, err, `has no database "model": LXD has one only, db.bin`)
	selected(t, DatabaseOptions{Source: lxd, Database: globaldb.Name}, "SELECT 1")
}

// However the transactions of two databases come in one log, each database is at every index what its own transactions make of it.
func TestInterleavedDatabases(t *testing.T) {
	original, err := raftlog.Open(t.Context(), os.DirFS(applicationDir(t, "k8s-dqlite/k1")), raftlog.Options{Database: globaldb.AnyDatabase})
	must(t, err)
	var transactions []raftlog.Entry
	for entry, err := range original.Entries(t.Context(), 1) {
		must(t, err)
		if changesRows(entry) {
			entry.Data = bytes.Clone(entry.Data)
			transactions = append(transactions, entry)
		}
	}

	names := []string{"controller", "a-model"}
	for seed := range uint64(15) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		segment := raftlog.AppendBatch(raftlog.SegmentHeader(), raftlog.Entry{
			Term: 1, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(original.Configuration),
		})
		done := [][2]int{{}, {}} // by index: how many transactions each database has had
		for next := [2]int{}; next[0] < len(transactions) || next[1] < len(transactions); {
			which := rnd.IntN(2)
			if next[which] == len(transactions) {
				which = 1 - which
			}

			segment = raftlog.AppendBatch(segment, renamed(transactions[next[which]], names[which]))
			next[which]++
			done = append(done, next)
		}

		last := uint64(len(done) - 1)
		must(t, os.WriteFile(filepath.Join(dir, raftlog.SegmentName(1, last)), segment, 0o600))
		log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
		must(t, err)
		for index := 2 + rnd.Uint64N(3); index <= last; index += 1 + rnd.Uint64N(4) {
			for which, name := range names {
				n := done[index][which]
				db, err := globaldb.Open(t.Context(), globaldb.OnDatabase(log, name), index)
				if n == 0 {
					if !errors.Is(err, globaldb.ErrNoDatabase) {
						t.Errorf("seed %d, index %d: %s: %v", seed, index, name, err)
					}

					continue
				}

				must(t, err)
				got, err := db.Fingerprint(t.Context())
				must(t, err)
				must(t, db.Close())
				db, err = globaldb.Open(t.Context(), original, transactions[n-1].Index)
				must(t, err)
				want, err := db.Fingerprint(t.Context())
				must(t, err)
				must(t, db.Close())
				if differ := want.Differ(got); len(differ) > 0 {
					t.Errorf("seed %d, index %d: %s differs in %q", seed, index, name, differ)
				}
			}
		}
	}
}

func errorOf[T any](_ T, err error) error { return err }

// What an application's own files lack, or contradict, is said, and is no damage of the database.
func TestApplicationFiles(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(state string) error
		problem string
	}{
		"no info.yaml": {func(state string) error { return os.Remove(filepath.Join(state, "database", godqlite.InfoFile)) },
			"it is missing: whose directory this is cannot be told"},
		"a broken info.yaml": {func(state string) error {
			return os.WriteFile(filepath.Join(state, "database", godqlite.InfoFile), []byte("ID: x"), 0o600)
		}, "cannot unmarshal"},
		"a large info.yaml": {func(state string) error {
			return os.WriteFile(filepath.Join(state, "database", godqlite.InfoFile), make([]byte, 2<<20), 0o600)
		}, "has more than 1048576 bytes"},
		"a terminal's sequence": {func(state string) error {
			return os.WriteFile(filepath.Join(state, "database", godqlite.InfoFile), []byte(`{ID: 1, Address: "\x1b[8m", Role: 0}`), 0o600)
		}, "is no address of a member"},
		"another address": {func(state string) error {
			return os.WriteFile(filepath.Join(state, godqlite.DaemonFile), []byte("name: m2\naddress: 127.0.0.12:9009\n"), 0o600)
		}, "a change of addresses was cut short"},
		"a loader that was cut off": {func(state string) error { return os.Mkdir(filepath.Join(state, godqlite.UnpackDir), 0o700) },
			"microcluster's own loader was cut off"},
		"a tarball": {func(state string) error { return os.WriteFile(filepath.Join(state, godqlite.TarballFile), nil, 0o600) },
			"the daemon takes it in place of this database"},
	} {
		state := filepath.Join(t.TempDir(), "state")
		must(t, os.CopyFS(state, os.DirFS(applicationDir(t, stopped+"m2"))))
		must(t, test.change(state))
		r, err := Inspect(t.Context(), state, Progress{})
		must(t, err)
		said := slices.ContainsFunc(r.Problems, func(p raftlog.Problem) bool {
			return p.Severity == raftlog.Warning && strings.Contains(p.Text, test.problem)
		})
		if !said || !r.Healthy {
			t.Errorf("%s: healthy %v, %+v", name, r.Healthy, r.Problems)
		}
	}

	// The loader was killed between the removal of the database and the renaming of the new one.
	state := filepath.Join(t.TempDir(), "state")
	must(t, os.CopyFS(state, os.DirFS(applicationDir(t, stopped+"m2"))))
	must(t, os.Rename(filepath.Join(state, "database"), filepath.Join(state, godqlite.UnpackDir)))
	_, err := Inspect(t.Context(), state, Progress{})
	wantError(t, err, "microcluster's own loader was cut off. Its database is in "+filepath.Join(state, godqlite.UnpackDir))
	r, err := Inspect(t.Context(), filepath.Join(state, godqlite.UnpackDir), Progress{})
	must(t, err)
	if !r.Healthy || r.Member.ID != secondID {
		t.Errorf("%s", found(r))
	}
}

// A raft directory of which nothing tells whose it is can be that of any application.
func TestUnknownRaftDirectory(t *testing.T) {
	dir := raftlogtest.Copy(t, applicationDir(t, "k8s-dqlite/k1"))
	for _, name := range []string{godqlite.InfoFile, godqlite.ClusterFile} {
		must(t, os.Remove(filepath.Join(dir, name)))
	}

	r, err := Inspect(t.Context(), dir, Progress{})
	must(t, err)
	if !r.Healthy || r.Product != "" || r.Kind != kindRaft || r.Data == nil || r.Data.Rows != 5 {
		t.Errorf("%s, %+v, %+v", found(r), r.Data, r.Problems)
	}
}

// What is read is written again as it was.
func TestMicroclusterLists(t *testing.T) {
	dir := applicationDir(t, edited+"/database")
	list, err := godqlite.ReadRecovery(dir)
	must(t, err)
	if len(list) != 3 || list[0].ID != firstID || list[1].ID != secondID || list[1].Name != "m2" || list[1].Role != raftlog.Voter {
		t.Errorf("%+v", list)
	}

	for name, encode := range map[string]func() ([]byte, error){
		godqlite.RecoveryFile: func() ([]byte, error) { return godqlite.EncodeRecovery(list) },
		godqlite.ClusterFile:  func() ([]byte, error) { return godqlite.EncodeCluster(list) },
	} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		got, err := encode()
		must(t, err)
		if string(got) != string(want) {
			t.Errorf("%s:\n%s, want\n%s", name, got, want)
		}
	}

	nodes, err := godqlite.ReadCluster(dir)
	must(t, err)
	for i := range list {
		list[i].Name = ""
	}

	if !reflect.DeepEqual(nodes, list) {
		t.Errorf("%+v, want %+v", nodes, list)
	}
}

// A snapshot may have several databases, too.
func TestSeveralDatabasesInSnapshot(t *testing.T) {
	dir := severalDatabases(t)
	raft := filepath.Join(dir, "dqlite")
	log, err := raftlog.Open(t.Context(), os.DirFS(raft), raftlog.Options{})
	must(t, err)
	data := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 1), 2)
	for _, name := range []string{"a-model", "controller"} {
		db, err := globaldb.Open(t.Context(), globaldb.OnDatabase(log, name), 0)
		must(t, err)
		main, err := os.ReadFile(db.File)
		must(t, err)
		must(t, db.Close())
		main[18], main[19] = 2, 2 // in WAL mode, as dqlite has it
		data = append(data, raftlogtest.EncodeSnapshot(name, main, nil)[16:]...)
	}

	snapshot := fmt.Sprintf("snapshot-1-%d-1000", log.LastIndex)
	must(t, os.WriteFile(filepath.Join(raft, snapshot), raftlogtest.Compress(data), 0o600))
	must(t, os.WriteFile(filepath.Join(raft, snapshot+".meta"), raftlog.EncodeSnapshotMeta(1, log.Configuration), 0o600))
	must(t, os.Remove(filepath.Join(raft, raftlog.SegmentName(1, log.LastIndex))))
	r, err := Inspect(t.Context(), dir, Progress{})
	must(t, err)
	if !r.Healthy || !strings.HasSuffix(found(r), "database a-model 4 rows ok, database controller 5 rows ok") {
		t.Errorf("%s, %+v", found(r), r.Problems)
	}

	if got := selected(t, DatabaseOptions{Source: dir, Database: "controller"}, "SELECT count(*) FROM kine"); got != "5" {
		t.Errorf("%s rows, want 5", got)
	}
}
