// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// wantError wants an error that says something, or none.
func wantError(t testing.TB, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestErrorTexts(t *testing.T) {
	damage := &DamageError{What: "the database", Advice: "Take another.", Problems: []raftlog.Problem{
		{Severity: raftlog.Warning, Offset: -1, Text: "a warning"}, {Severity: raftlog.Error, Offset: -1, Text: "an error"},
	}}
	for _, test := range []struct {
		err  error
		want string
	}{
		{&Refusal{Reason: "it exists", Flag: "--force"}, "it exists; --force overrides this"},
		{&Refusal{Reason: "these", Entries: []Discarded{{Index: 5, Term: 2, Unknown: "why"}}, Flag: "--yes"},
			"these\n  index 5, term 2 (why)\n--yes overrides this"},
		{&Refusal{Reason: "these", Entries: []Discarded{{Index: 5, Term: 2, Unknown: "why"}}}, "these\n  index 5, term 2 (why)"},
		{&Refusal{Reason: "these", Entries: []Discarded{{Index: 5, Term: 2}}, Flag: "--yes"}, "these; --yes overrides this"},
		{&Refusal{Reason: "so", Use: "do it"}, "so; do it"},
		{existing("a.tar.gz"), "a.tar.gz exists already; --force overrides this"},
		{damage, "the database is damaged\n  error: an error\nTake another."},
		{wrongCluster("it is %s's", "n9"), "this tarball is not for this member: it is n9's"},
		{inPlace(context.Canceled), "the database is in place, but context canceled"},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}

	if !errors.Is(wrongCluster("x"), ErrWrongCluster) {
		t.Error("a wrong cluster cannot be told from other errors")
	}

	if errors.Is(inPlace(context.Canceled), context.Canceled) {
		t.Error("an interruption after the exchange would be told as one before it")
	}
}

// What the machine is to blame for is no damage.
func TestReplayError(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		damage bool
	}{
		"full disk":   {&fs.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}, false},
		"interrupted": {fmt.Errorf("replay: %w", context.Canceled), false},
		"timed out":   {context.DeadlineExceeded, false},
		"content":     {errors.New("page 7 is missing"), true},
	} {
		t.Run(name, func(t *testing.T) {
			var damage *DamageError
			if errors.As(replayError("x", test.err), &damage) != test.damage {
				t.Errorf("damage: %v", damage)
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	voters := member.List{one, movedTo(one, "b"), movedTo(one, "c")}
	if got := notReady(false, voters); !strings.HasSuffix(got, "it does once 2 of the 3 voters are up") {
		t.Errorf("%q", got)
	}

	if got := notReady(false, nil); !strings.HasSuffix(got, "a majority of the voters is up") {
		t.Errorf("%q", got)
	}

	if got := notReady(true, nil); strings.Contains(got, "voters") || !strings.HasSuffix(got, "its journal tells what it is at") {
		t.Errorf("a standalone server: %q", got)
	}
}

// A running LXD that nothing could start again is not stopped.
func TestStoppable(t *testing.T) {
	wantError(t, stoppable(&daemon.Status{}), "")
	wantError(t, stoppable(&daemon.Status{Answers: true}), "neither systemd nor snapd runs it")
}

func TestFinishedText(t *testing.T) {
	d := directory{path: "/lxd"}
	made := time.Date(2026, 11, 26, 7, 0, 0, 0, time.UTC)
	got := d.finishedText(&swapdir.Plan{Purpose: purposeEdit, Created: made, Keep: "database.before-edit-x"})
	want := "finished the edit of 2026-11-26T07:00:00Z, which had been interrupted; the database it replaced is kept in /lxd/database.before-edit-x"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}

	got = d.finishedText(&swapdir.Plan{Purpose: purposeUndo, Created: made})
	if !strings.Contains(got, "taking back the exchange of 2026-11-26T07:00:00Z") {
		t.Errorf("%q", got)
	}
}

func TestIsMark(t *testing.T) {
	im := &importer{report: &ImportReport{}}
	im.report.Raft.Index, im.report.Raft.Term = 128, 1_800_000_000
	for _, test := range []struct {
		row  []any
		want bool
	}{
		{[]any{128.0, 1_800_000_000.0}, true},
		{[]any{129.0, 1_800_000_000.0}, false},
		{[]any{128.0, 1_800_000_001.0}, false},
		{[]any{128.0}, false},
		{[]any{"128", "1800000000"}, false},
		{nil, false},
	} {
		if im.isMark(test.row) != test.want {
			t.Errorf("%v: %v", test.row, !test.want)
		}
	}
}

func TestBounds(t *testing.T) {
	src := &Source{Path: "x"}
	for name, test := range map[string]struct {
		opts        HistoryOptions
		log         raftlog.Log
		first, last uint64
		want        string
	}{
		"all":                {HistoryOptions{}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 10, 20, ""},
		"some":               {HistoryOptions{From: 12, To: 15}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 12, 15, ""},
		"from before it":     {HistoryOptions{From: 1, To: 11}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 10, 11, ""},
		"to after it":        {HistoryOptions{To: 99}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 10, 20, ""},
		"the newest three":   {HistoryOptions{Last: 3}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 18, 20, ""},
		"the newest of few":  {HistoryOptions{Last: 30}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 10, 20, ""},
		"newest of an end":   {HistoryOptions{Last: 2, To: 15}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 14, 15, ""},
		"what is sound":      {HistoryOptions{}, raftlog.Log{FirstIndex: 10, SoundIndex: 15, LastIndex: 20}, 10, 15, ""},
		"from after its end": {HistoryOptions{From: 21}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 0, 0, "there is no index 21"},
		"to before it":       {HistoryOptions{To: 9}, raftlog.Log{FirstIndex: 10, SoundIndex: 20, LastIndex: 20}, 0, 0, "there is no index 9 any more"},
		"a snapshot only":    {HistoryOptions{}, raftlog.Log{SoundIndex: 20, LastIndex: 20}, 0, 0, "only a snapshot at index 20"},
		"nothing is sound":   {HistoryOptions{}, raftlog.Log{FirstIndex: 10, LastIndex: 20}, 0, 0, "Nothing in its log is sound"},
		"nothing at all":     {HistoryOptions{}, raftlog.Log{}, 1, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			first, last, err := test.opts.bounds(src, &test.log)
			wantError(t, err, test.want)
			if first != test.first || last != test.last {
				t.Errorf("%d to %d, want %d to %d", first, last, test.first, test.last)
			}
		})
	}
}

// Raft files count by name and content, other files do not.
func TestSameRaftFiles(t *testing.T) {
	make := func(files map[string]string) string {
		dir := t.TempDir()
		for name, content := range files {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
		}

		return dir
	}
	const segment = "0000000000000001-0000000000000002"
	base := make(map[string]string{"metadata1": "m", segment: "entries", "db.bin": "x"})
	for name, test := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"the same, another dump": {map[string]string{"metadata1": "m", segment: "entries", "db.bin": "other"}, true},
		"no dump":                {map[string]string{"metadata1": "m", segment: "entries"}, true},
		"other content":          {map[string]string{"metadata1": "m", segment: "entrieS"}, false},
		"longer":                 {map[string]string{"metadata1": "m", segment: "entries."}, false},
		"a file less":            {map[string]string{"metadata1": "m"}, false},
		"a file more":            {map[string]string{"metadata1": "m", "metadata2": "m", segment: "entries"}, false},
		"another name":           {map[string]string{"metadata2": "m", segment: "entries"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := sameRaftFiles(base, make(test.files))
			if err != nil || got != test.want {
				t.Errorf("%v, %v, want %v", got, err, test.want)
			}
		})
	}
}

// Any write gives a directory another signature, a look does not.
func TestSignature(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "metadata1")
	must(t, os.WriteFile(file, []byte("one"), 0o600))
	before := signature(dir)
	_, err := os.ReadFile(file)
	must(t, err)
	if before == "" || signature(dir) != before {
		t.Errorf("%q became %q", before, signature(dir))
	}

	must(t, os.Chtimes(file, time.Time{}, time.Unix(1, 0)))
	touched := signature(dir)
	if touched == before {
		t.Error("a write to a file is not noticed")
	}

	must(t, os.Rename(file, filepath.Join(dir, "metadata2")))
	if signature(dir) == touched {
		t.Error("another name is not noticed")
	}

	if signature(filepath.Join(dir, "gone")) != "" {
		t.Error("what cannot be read has a signature")
	}
}

// An empty directory in the options is this machine's.
func TestOpenThisMachines(t *testing.T) {
	lxd := makeKept(t)
	t.Setenv("LXD_DIR", lxd)
	report, err := ListKept(t.Context(), "", Progress{})
	must(t, err)
	if report.Directory != lxd || len(report.Kept) == 0 {
		t.Errorf("%+v, want those of %s", report, lxd)
	}
}
