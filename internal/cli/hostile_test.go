// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// evil hides what follows it on a terminal, in seven bits and in eight, and turns letters around.
const evil = "\x1b[8m\u009b8m\u202e\x7f\r"

// shown is how its beginning is shown: in tables and messages, in JSON, and in YAML.
var shown = []string{`\x1b[8m`, `\u001b[8m`, `\e[8m`}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hostileLab is an LXD directory with hostile text wherever text can be, and what commands may be given besides.
type hostileLab struct {
	lxd, good string // LXD directories: the hostile one, and one to compare it with
	report    string // a saved report
	scratch   string
}

func newHostileLab(t *testing.T) hostileLab {
	t.Helper()
	from := filepath.Join(raftlogtest.Fixtures(t), "small", "n2-preimport", "database")
	l := hostileLab{lxd: t.TempDir(), good: t.TempDir(), scratch: t.TempDir()}
	key := bundletest.Key(t)
	certificate := bundletest.Certificate(t, key, time.Now().Add(-time.Hour))
	for _, lxd := range []string{l.lxd, l.good} {
		must(t, os.CopyFS(filepath.Join(lxd, "database"), os.DirFS(from)))
		for _, name := range []string{"cluster", "server"} {
			bundletest.WritePair(t, lxd, name, certificate, key)
		}
	}

	database := filepath.Join(l.lxd, "database")
	execSQL(t, filepath.Join(database, "local.db"), "UPDATE raft_nodes SET name = name || ?", "UPDATE config SET value = value || ?")
	global := filepath.Join(database, "global")
	main, servers := hostileRows(t, global)
	must(t, os.RemoveAll(global))
	must(t, os.Mkdir(global, 0o700))
	for i := range servers {
		servers[i].Address += evil
	}

	later := slices.Clone(servers)
	later[0].Address += "!"
	configuration := raftlog.Entry{Term: 2, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(later)}
	for name, data := range map[string][]byte{
		"metadata1":                   raftlog.Metadata{Version: 1, Term: 2}.Encode(),
		"metadata2":                   raftlog.Metadata{Version: 2, Term: 2}.Encode(),
		"snapshot-2-126-1":            raftlogtest.Compress(raftlogtest.EncodeSnapshot(globaldb.Name, main, nil)),
		"snapshot-2-126-1.meta":       raftlog.EncodeSnapshotMeta(126, servers),
		raftlog.SegmentName(127, 127): raftlogtest.Segment(0, []raftlog.Entry{configuration}),
		"stray" + evil:                nil,
	} {
		must(t, os.WriteFile(filepath.Join(global, name), data, 0o600))
	}

	record, err := encodeYAML(recovery.Record{Purpose: "import", Source: "n1" + evil, Kept: "x" + evil, Patch: "-- " + evil})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(database, "lxd-recover.yaml"), record, 0o600))
	must(t, os.CopyFS(filepath.Join(l.lxd, "database.before-import-20260101T000000Z"), os.DirFS(database)))
	l.report = filepath.Join(l.scratch, "report.json")
	data, err := json.Marshal(recovery.InspectReport{Format: 2, Kind: evil, Source: evil, Problems: []raftlog.Problem{{Severity: raftlog.Error, Text: evil}}})
	must(t, err)
	must(t, os.WriteFile(l.report, data, 0o600))
	return l
}

// execSQL runs statements with evil as their parameter.
func execSQL(t *testing.T, file string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file)
	must(t, err)
	defer db.Close()
	for _, statement := range statements {
		_, err = db.Exec(statement, evil)
		must(t, err)
	}
}

// hostileRows is the global database of a raft directory, changed, and its servers.
func hostileRows(t *testing.T, global string) ([]byte, raftlog.Configuration) {
	t.Helper()
	log, err := raftlog.Open(t.Context(), os.DirFS(global), raftlog.Options{})
	must(t, err)
	db, err := globaldb.Open(t.Context(), log, 0)
	must(t, err)
	defer db.Close()
	execSQL(t, db.File, "UPDATE nodes SET name = name || ?", "UPDATE profiles SET description = ?",
		"INSERT INTO config (key, value) VALUES ('user.evil', ?)", `CREATE TABLE "evil`+evil+`" AS SELECT ? AS "column`+evil+`"`)
	data, err := os.ReadFile(db.File)
	must(t, err)
	return data, log.Configuration
}

// run runs a command and returns what it wrote to standard output and to standard error.
func (l hostileLab) run(t *testing.T, args ...string) (stdout string, stderr string) {
	t.Helper()
	t.Setenv("LXD_DIR", l.lxd)
	outputs := []**os.File{&os.Stdout, &os.Stderr, &os.Stdin}
	var files []*os.File
	for _, output := range outputs {
		f, err := os.CreateTemp(l.scratch, "output")
		must(t, err)
		old := *output
		*output = f
		if output == &os.Stdin {
			list, err := json.Marshal(map[string]any{"members": []map[string]any{{"id": 1, "name": evil, "address": evil, "role": "voter"}}})
			must(t, err)
			_, err = f.WriteAt(list, 0)
			must(t, err)
		}

		files = append(files, f)
		defer func() { *output = old; _ = f.Close() }()
	}

	Main(append([]string{"lxd-recover"}, args...))
	var texts []string
	for _, f := range files {
		data, err := os.ReadFile(f.Name())
		must(t, err)
		texts = append(texts, string(data))
	}

	return texts[0], texts[1]
}

// TestHostile gives all commands hostile sources. What they print, where it has what is hostile, shows it, and never is it.
func TestHostile(t *testing.T) {
	l := newHostileLab(t)
	for _, args := range l.commands(t) {
		stdout, stderr := l.run(t, args...)
		raw := slices.Contains(args, formatCSV) || slices.Contains(args, ".dump")
		if raw && !strings.Contains(stdout, "\x1b[8m") {
			t.Errorf("%q: what is for programs is not as it is:\n%q", args, stdout)
		}

		if raw {
			stdout = ""
		}

		for _, text := range []string{stdout, stderr} {
			if !printable.AllHarmless([]byte(text)) {
				t.Errorf("%q: a terminal would obey:\n%q", args, text)
			}
		}

		seen := func(form string) bool { return strings.Contains(stdout+stderr, form) }
		if !raw && !slices.ContainsFunc(shown, seen) {
			t.Errorf("%q: nothing hostile was printed:\n%s%s", args, stdout, stderr)
		}
	}
}

// commands are those that print something hostile.
func (l hostileLab) commands(t *testing.T) [][]string {
	t.Helper()
	all := [][]string{
		{"global-db-compare", l.good, l.report}, {"global-db-compare", l.lxd, l.report},
		{"global-db-sql", ".tables"}, {"global-db-sql", ".schema"}, {"global-db-sql", ".dump"}, {"global-db-sql", "SELECT '" + evil},
		{"global-db-sql", "SELECT * FROM profiles; SELECT * FROM \"evil" + evil + "\"", "--format", formatCompact},
		{"cluster", "export-db", "--unedited", filepath.Join(l.scratch, "x"+evil)}, {"cluster", "export-db", "--unedited", "--survivor", l.report},
		{"global-db-rollback", "--yes", "database" + evil}, {"global-db-kept", "remove", "database" + evil},
		{"cluster", "edit"}, {"global-db-import", "--dry-run", filepath.Join(l.scratch, evil)}, {"global-db-import", "--yes", l.tarball(t)},
		{"global-db-repair", "--dry-run"}, {"unknown" + evil}, {"global-db-log", "--from", evil}, {"global-db-status", "--" + evil},
		{"hook", "unknown" + evil}, {"frontend", "install", evil}, {"verify-copy", evil, evil}, {"global-db-inspect", "--log-file", "/" + evil + "/x"},
		{"global-db-status", "--format", evil},
	}
	for _, format := range reportFormats {
		all = append(all, []string{"global-db-status", "--format", format}, []string{"global-db-inspect", "--verbose", "--format", format},
			[]string{"global-db-compare", l.good, l.lxd, "--format", format})
	}

	for _, format := range listFormats {
		all = append(all, []string{"global-db-log", "--format", format}, []string{"global-db-sql", "SELECT * FROM profiles", "--format", format})
	}

	return all
}

// tarball is one whose manifest is not YAML, and says so with what is in it.
func (l hostileLab) tarball(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	manifest := &bundle.Manifest{
		Run: bundle.NewRun(), Cluster: bundle.Cluster{Certificate: strings.Repeat("0", 64)},
		Members: member.List{{ID: 1, Name: "n1", Address: "a:1", Role: raftlog.Voter}},
	}
	must(t, bundle.Write(t.Context(), &b, bundle.Content{
		Manifest: manifest, Pieces: []bundle.Piece{bundle.BytesPiece("metadata1", raftlog.Metadata{Version: 1, Term: 1}.Encode())},
	}))
	path := filepath.Join(l.scratch, "hostile"+evil+".tar.gz")
	must(t, os.WriteFile(path, b.Bytes()[:b.Len()/2], 0o600))
	return path
}

// captured is what a function prints to standard error.
func captured(t *testing.T, print func(f *os.File)) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "stderr")
	must(t, err)
	defer f.Close()
	old := os.Stderr
	os.Stderr = f
	defer func() { os.Stderr = old }()

	print(f)
	data, err := os.ReadFile(f.Name())
	must(t, err)
	return string(data)
}

// TestHostileQuestion asks about what is hostile, and tells of it while it works.
func TestHostileQuestion(t *testing.T) {
	report := &recovery.ImportReport{
		Tarball: evil, Source: evil, Member: member.Member{Name: evil}, Database: &globaldb.Summary{},
		Settings: []recovery.Change{{Key: evil, Old: evil, New: evil}},
		Members:  []recovery.MemberChange{{Name: evil, OldAddress: evil, NewAddress: evil}}, Patch: evil, Warnings: []string{evil}, Unchecked: []string{evil},
		Discarded: []recovery.Discarded{{Index: 1, Unknown: evil}},
	}
	log := filepath.Join(t.TempDir(), "log")
	texts := map[string]string{
		"question": captured(t, func(*os.File) {
			plan := func(w io.Writer, r *recovery.ImportReport) { printImportPlan(w, r, &toldOnce{}) }
			err := confirmPlan(t.Context(), confirmation{question: evil}, plan)(report)
			if err == nil {
				t.Error("confirmed")
			}
		}),
		"steps":  captured(t, func(f *os.File) { newProgress(t.Context(), f).Step("one\n" + evil) }),
		"status": statusText(evil, evil, []string{evil}),
		"log": captured(t, func(*os.File) {
			f, err := os.Create(log)
			must(t, err)
			defer f.Close()
			newLogger(f).Info("step", "what", evil)
			data, err := os.ReadFile(log)
			must(t, err)
			_, err = os.Stderr.Write(data)
			must(t, err)
		}),
	}
	for name, text := range texts {
		if !printable.AllHarmless([]byte(text)) || !strings.Contains(text, shown[0]) {
			t.Errorf("%s: %q", name, text)
		}
	}

	if strings.Count(texts["steps"], "\n") != 1 {
		t.Errorf("a step of several lines: %q", texts["steps"])
	}
}

// TestTerminal has what is for programs go to a terminal as what it is, too, and not as it is.
func TestTerminal(t *testing.T) {
	terminal, master := openTerminal(t, 132)
	old := os.Stdout
	os.Stdout = terminal
	defer func() { os.Stdout = old }()

	for _, format := range append([]string{formatDump}, listFormats...) {
		fmt.Fprintln(stdoutFor(format), evil)
		line, err := bufio.NewReader(master).ReadString('\n')
		must(t, err)
		if !strings.HasPrefix(line, shown[0]) {
			t.Errorf("%s: %q", format, line)
		}
	}
}

// TestHostileAsked asks a question with what is hostile in it, on a terminal.
func TestHostileAsked(t *testing.T) {
	terminal, master := openTerminal(t, 80)
	_, err := master.WriteString("no\n")
	must(t, err)
	old := os.Stdin
	os.Stdin = terminal
	defer func() { os.Stdin = old }()

	text := captured(t, func(*os.File) { err = confirmation{what: "import", question: evil}.ask(t.Context()) })
	if err == nil || !printable.AllHarmless([]byte(text)) || !strings.Contains(text, shown[0]) {
		t.Errorf("%v: %q", err, text)
	}
}

// TestHostileTable wants no cell to feign another row.
func TestHostileTable(t *testing.T) {
	var one, two strings.Builder
	writeTable(&one, []string{"id", "name"}, [][]string{{"1", "a |\n| 2 | b"}})
	writeTable(&two, []string{"id", "name"}, [][]string{{"1", `a |\n| 2 | b`}})
	if one.String() != two.String() {
		t.Errorf("%s", one.String())
	}
}

// TestEncodeYAML wants what only double quotes can hold to come back as it was, and all else to be as the encoder has it.
func TestEncodeYAML(t *testing.T) {
	for _, value := range []map[string]string{{"a": "turned\u202earound", "key\u200b": "two\nlines\u2066"}, {"a": "two\nlines", "b": "true"}} {
		data, err := encodeYAML(value)
		must(t, err)
		var got map[string]string
		must(t, yaml.Unmarshal(data, &got))
		if !maps.Equal(got, value) || !printable.AllHarmless(data) {
			t.Errorf("%q: %q", value, data)
		}

		plain, err := yaml.Marshal(value)
		must(t, err)
		if printable.AllHarmless(plain) && !bytes.Equal(plain, data) {
			t.Errorf("%q, want %q", data, plain)
		}
	}
}
