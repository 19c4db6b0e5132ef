// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

func TestAgeText(t *testing.T) {
	const day = 24 * time.Hour
	for age, want := range map[time.Duration]string{
		-time.Hour: "just now", 0: "just now", 59 * time.Second: "just now", time.Minute: "1 minute", 119 * time.Second: "1 minute",
		2 * time.Hour: "2 hours", 47 * time.Hour: "1 day", 364 * day: "364 days", 400 * day: "1 year", 800 * day: "2 years",
	} {
		if got := ageText(age); got != want {
			t.Errorf("%s: %q, want %q", age, got, want)
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", 3 << 40: "3.0 TiB", 2048 << 40: "2048.0 TiB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestChangeText(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"voter", "voter", "voter"}, {"", "", ""}, {"", "spare", "(new) spare"}, {"voter", "", "voter -> (removed)"}, {"voter", "spare", "voter -> spare"},
	} {
		if got := changeText(c.from, c.to); got != c.want {
			t.Errorf("%q to %q: %q, want %q", c.from, c.to, got, c.want)
		}
	}
}

func TestKeptText(t *testing.T) {
	for _, c := range []struct {
		space               recovery.Space
		count, size, beside string
	}{
		{recovery.Space{}, "0 kept databases", "take 0 B", ""},
		{recovery.Space{Count: 1, Size: 2048}, "1 kept database", "takes 2.0 KiB", ", beside 1 kept database that takes 2.0 KiB already"},
		{recovery.Space{Count: 2, Size: 512}, "2 kept databases", "take 512 B", ", beside 2 kept databases that take 512 B already"},
	} {
		if got := keptCountText(c.space.Count); got != c.count {
			t.Errorf("%+v: %q, want %q", c.space, got, c.count)
		}

		if got := keptSizeText(c.space); got != c.size {
			t.Errorf("%+v: %q, want %q", c.space, got, c.size)
		}

		if got := keptBesideText(c.space); got != c.beside {
			t.Errorf("%+v: %q, want %q", c.space, got, c.beside)
		}
	}
}

// TestDaemonText looks at the same three states in the words of a command and of a hook.
func TestDaemonText(t *testing.T) {
	for _, c := range []struct {
		started, ready bool
		text, line     string
	}{
		{false, false, "LXD was not started", "LXD was not started. Do that when all surviving members are done.\n"},
		{true, false, "LXD was started", "LXD was started.\n"},
		{true, true, "LXD is up", "LXD is up.\n"},
		{false, true, "LXD is up", "LXD is up.\n"},
	} {
		var line strings.Builder
		printDaemon(&line, c.started, c.ready, "")
		if got := daemonText(c.started, c.ready); got != c.text || line.String() != c.line {
			t.Errorf("started %v, ready %v: %q, %q", c.started, c.ready, got, line.String())
		}
	}

	var next strings.Builder
	printDaemon(&next, false, false, "snap start lxd")
	if got := next.String(); got != "LXD was not started. Do that when all surviving members are done.\n\n    snap start lxd\n    lxc cluster list\n" {
		t.Errorf("what comes next: %q", got)
	}

	if got := statusText("imported", "LXD is up", []string{"one", "two"}); got != "imported; LXD is up; warning: one; warning: two" {
		t.Errorf("%q", got)
	}
}

func TestResumed(t *testing.T) {
	done := []string{"finished it"}
	for want, r := range map[string]recovery.ResumeReport{
		"There is nothing to resume. LXD is not running.\n": {Daemon: "not running"},
		"Finished it.\nNothing is left to resume.\n":        {Found: true, Done: done},
		"Finished it.\n\nWarning: slow\nLXD is up.\n":       {Found: true, Done: done, Warnings: []string{"slow"}, Started: true, Ready: true},
		"Finished it.\nNext.\nLXD was started.\n":           {Found: true, Done: append(done, "next"), Started: true},
	} {
		var got strings.Builder
		printResumed(&got, &r)
		if got.String() != want {
			t.Errorf("%q, want %q", got.String(), want)
		}
	}
}

func TestSourceText(t *testing.T) {
	damaged := recovery.InspectRaft{SoundIndex: 7, SnapshotIndex: 5, SnapshotTerm: 2}
	whole := recovery.InspectRaft{Whole: true}
	for _, c := range []struct {
		source recovery.CompareSource
		want   string
	}{
		{recovery.CompareSource{Healthy: true, Raft: whole}, "healthy"},
		{recovery.CompareSource{Raft: damaged, Copy: true}, "DAMAGED, sound up to index 7"},
		{recovery.CompareSource{Healthy: true, Copy: true}, "CUT by libdqlite once"},
		{recovery.CompareSource{Healthy: true, Raft: whole, Copy: true}, "a copy: the log may have gone on"},
		{recovery.CompareSource{Raft: damaged, RunningDaemon: "lxd"}, "LXD RUNS: may not belong together"},
	} {
		if got := sourceHealthText(c.source); got != c.want {
			t.Errorf("%+v: %q, want %q", c.source, got, c.want)
		}
	}

	if got := healthText(true, damaged) + "; " + healthText(false, damaged); got != "healthy; DAMAGED, sound up to index 7" {
		t.Errorf("%q", got)
	}

	if got := snapshotText(whole) + "; " + snapshotText(damaged); got != "none; index 5, term 2" {
		t.Errorf("%q", got)
	}

	clean, cut := recovery.Libdqlite{}, recovery.Libdqlite{Start: raftlog.Crashes, Dropped: 3}
	got := libdqliteText(clean) + "; " + libdqliteText(cut) + "; " + libdqliteLogText(cut)
	if got != "load: loads; load: loads, start: crashes; 3 entries lost" {
		t.Errorf("%q", got)
	}

	if got := positionText(nil) + "; " + positionText(&bundle.Position{Index: 8, Term: 3}); got != "cannot be read; index 8, term 3" {
		t.Errorf("%q", got)
	}
}

// TestProblems wants the worst first, those that are alike as they came, and those that are for information only where all are wanted.
func TestProblems(t *testing.T) {
	problems := []raftlog.Problem{
		{Severity: raftlog.Info, Text: "one"}, {Severity: raftlog.Error, Text: "two", Libdqlite: "crashes", Advice: "look"},
		{Severity: raftlog.Warning, Text: "three"}, {Severity: raftlog.Error, Text: "four"},
	}
	const worst = "\nProblems:\n  error: two\n      libdqlite: crashes\n      you can:   look\n  error: four\n  warning: three\n"
	for _, c := range []struct {
		problems []raftlog.Problem
		all      bool
		want     string
	}{
		{nil, true, ""}, {problems[:1], false, ""}, {problems[:1], true, "\nProblems:\n  info: one\n"},
		{problems, false, worst}, {problems, true, worst + "  info: one\n"},
	} {
		var got strings.Builder
		printProblems(&got, c.problems, c.all)
		if got.String() != c.want {
			t.Errorf("%v, all %t: %q, want %q", c.problems, c.all, got.String(), c.want)
		}
	}

	if len(problems) != 4 || problems[0].Text != "one" {
		t.Errorf("the problems themselves are now %v", problems)
	}
}

// TestRollbackPlan leaves out the address of a server that has none.
func TestRollbackPlan(t *testing.T) {
	for _, alone := range []bool{false, true} {
		var got strings.Builder
		r := &recovery.RollbackReport{Standalone: alone, Address: "a:1", Raft: &bundle.Position{Index: 8, Term: 3}, Daemon: "not running"}
		printRollbackPlan(&got, r, &toldOnce{})
		if strings.Contains(got.String(), "address") == alone || !strings.Contains(got.String(), "index 8, term 3") {
			t.Errorf("standalone %t: %s", alone, got.String())
		}
	}
}

// TestStatusStandalone shows the addresses of a standalone server only where something is wrong with them.
func TestStatusStandalone(t *testing.T) {
	for _, agree := range []bool{false, true} {
		var got strings.Builder
		addresses := []recovery.AddressRow{{ID: 1, Raft: "1", Nodes: "a:1"}}
		printStatus(&got, &recovery.StatusReport{Standalone: true, Agree: agree, Healthy: true, Addresses: addresses})
		shown, explained := strings.Contains(got.String(), "a:1"), strings.Contains(got.String(), "A standalone server has one row")
		if shown == agree || explained == agree || strings.Contains(got.String(), "They differ") || !strings.Contains(got.String(), standaloneText) {
			t.Errorf("agree %t: %s", agree, got.String())
		}
	}

	var got strings.Builder
	printStatus(&got, &recovery.StatusReport{})
	if !strings.Contains(got.String(), "cannot be told") || strings.Contains(got.String(), "standalone") {
		t.Errorf("a member that is not known: %s", got.String())
	}
}

func TestSurvivorsText(t *testing.T) {
	r := &recovery.EditReport{Member: member.Member{ID: 1}}
	r.Members = []recovery.MemberChange{{ID: 1, Name: "n1", NewRole: "voter"}, {ID: 2, Name: "n2", NewRole: "spare"}}
	alone := survivorsText(r)
	r.Members = append(r.Members, recovery.MemberChange{ID: 3, Name: "n3", NewRole: "stand-by"}, recovery.MemberChange{ID: 4, Name: "n4", NewRole: "voter"})
	if alone != "" || survivorsText(r) != " (n3, n4)" {
		t.Errorf("%q, %q", alone, survivorsText(r))
	}
}

// TestPatchNote wants to hear of a patch only while it is still to be run.
func TestPatchNote(t *testing.T) {
	patched, plain := &recovery.Record{Patch: "UPDATE"}, &recovery.Record{}
	for _, c := range []struct {
		report recovery.StatusReport
		want   bool
	}{
		{recovery.StatusReport{}, false}, {recovery.StatusReport{Import: plain, Edit: patched}, false}, {recovery.StatusReport{Import: patched}, true},
		{recovery.StatusReport{Edit: patched}, true}, {recovery.StatusReport{Edit: patched, Running: true}, false},
	} {
		if got := patchNote(&c.report); (got != "") != c.want {
			t.Errorf("%+v: %q", c.report, got)
		}
	}
}

func TestShorten(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{
		{"Reading a", 9, "Reading a"}, {"Reading ab", 9, "Read…g ab"}, {"Reading abc", 2, "Read… abc"}, {"é à ü ö ñ ç", 10, "é à ü… ñ ç"},
	} {
		if got := shorten(c.text, c.width); got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

// TestWhatHappened says an entry in lines.
func TestWhatHappened(t *testing.T) {
	for want, e := range map[string]recovery.HistoryEntry{
		"":                                       {},
		"1 page":                                 {Pages: 1},
		"12 pages":                               {Pages: 12},
		"(not read)":                             {Pages: 12, Unknown: "not read"},
		"a fence: the member list is as it was":  {Recovery: true},
		"an edited member list|n1 removed: a, x": {Recovery: true, Members: []recovery.MemberChange{{Name: "n1", OldAddress: "a", OldRole: "x"}}},
		"n1 added: a:1, voter":                   {Members: []recovery.MemberChange{{Name: "n1", NewAddress: "a:1", NewRole: "voter"}}},
		"member 7 removed: a, x":                 {Members: []recovery.MemberChange{{ID: 7, OldAddress: "a", OldRole: "x"}}},
		"n1: a -> b, voter": {Members: []recovery.MemberChange{
			{Name: "n1", OldAddress: "a", NewAddress: "b", OldRole: "voter", NewRole: "voter"}}},
	} {
		if got := strings.Join(whatHappened(e), "|"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
