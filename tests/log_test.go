// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"encoding/csv"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// entries are what global-db-log lists of a source, as JSON.
func entries(t testing.TB, source string, args ...string) []recovery.HistoryEntry {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.CommandContext(t.Context(), tool, append([]string{"global-db-log", "-f", "json", source}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("global-db-log %s %q: %v: %s", source, args, err, stderr.String())
	}

	return decode[[]recovery.HistoryEntry](t, result{stdout: string(out)})
}

// profileChange finds the one entry that inserted or deleted a profile.
func profileChange(t testing.TB, all []recovery.HistoryEntry, what string, name string) uint64 {
	t.Helper()
	var found []uint64
	for _, e := range all {
		for _, row := range e.Rows {
			values, gone := row.After, row.Before == nil
			if what == "delete" {
				values, gone = row.Before, row.After == nil
			}

			if row.Table == "profiles" && gone && values["name"] == "'"+name+"'" {
				found = append(found, e.Index)
			}
		}
	}

	if len(found) != 1 {
		t.Fatalf("%s of profile %s is in the entries %v", what, name, found)
	}

	return found[0]
}

// logLab is what the steps of TestLog share: a member that is down, and its log.
type logLab struct {
	m          *cluster.Member
	all        []recovery.HistoryEntry // with their rows
	born, died uint64                  // the indexes at which profile one was created and deleted
}

// The log of a real member: every entry is there, the rows are those that LXD's users changed, and the indexes are those at
// which they did.
func TestLog(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 2*time.Minute)
	m := c.Member(1)
	lxc(t, m, "profile", "create", "before")
	must(t, c.MakeSnapshot(ctx))
	lxc(t, m, "profile", "create", "one")
	lxc(t, m, "profile", "set", "one", "user.color=red")
	lxc(t, m, "profile", "create", "two")
	lxc(t, m, "profile", "delete", "one")
	besideFrozen(t, m, func() {
		r := recoverTool(t, m, "global-db-log", "--rows", "--last", "30")
		if r.status != 0 || !strings.Contains(r.stderr, "may not belong together") || !strings.Contains(r.stdout, "insert profile two in project default") {
			t.Errorf("beside a daemon: %+v", r)
		}
	})
	c.KillAll()
	check := unchanged(t, m.Dir())
	all := entries(t, m.Dir(), "--rows")
	wantEveryEntry(t, m, all)

	l := logLab{m: m, all: all, born: profileChange(t, all, "insert", "one"), died: profileChange(t, all, "delete", "one")}
	l.wantInOrder(t)
	l.wantFound(t)
	l.wantFormats(t)
	recoverTool(t, m, "global-db-log", "--from", "9999999").want(t, 1, "there is no index 9999999")
	recoverTool(t, m, "global-db-log", "--from", "9", "--to", "8").want(t, 2, "after --to")
	check()

	must(t, m.EditReplace(ctx, ":8443", ":9393"))
	last := entries(t, m.Dir(), "-n", "1")[0]
	if last.Kind != "configuration" || !last.Recovery || len(last.Members) != 3 || last.Members[1].Name != "node2" ||
		!strings.HasSuffix(last.Members[1].NewAddress, ":9393") ||
		!strings.HasSuffix(last.Members[1].OldAddress, ":8443") {
		t.Errorf("edited: %+v", last)
	}
}

// wantInOrder checks that what was changed is listed in that order, and that the database has profile one at just the indexes from
// the one at which it was created to the one before it was deleted.
func (l logLab) wantInOrder(t testing.TB) {
	t.Helper()
	set := uint64(0)
	for _, e := range l.all {
		for _, row := range e.Rows {
			if row.Table == "profiles_config" && row.After["value"] == "'red'" {
				set = e.Index
			}
		}
	}

	two, early := profileChange(t, l.all, "insert", "two"), profileChange(t, l.all, "insert", "before")
	if early >= l.born || l.born >= set || set >= two || two >= l.died {
		t.Errorf("created before %d, created one %d, set %d, created two %d, deleted one %d", early, l.born, set, two, l.died)
	}

	for index, there := range map[uint64]bool{l.born - 1: false, l.born: true, l.died - 1: true, l.died: false} {
		if slices.Contains(at(t, l.m, index), "one") != there {
			t.Errorf("profile one is there at index %d: %v", index, !there)
		}
	}
}

// wantFound checks the ways to ask for some of the entries.
func (l logLab) wantFound(t testing.TB) {
	t.Helper()
	born, died := fmt.Sprint(l.born), fmt.Sprint(l.died)
	got := entries(t, l.m.Dir(), "--from", born, "--to", died)
	if got[0].Index != l.born || got[len(got)-1].Index != l.died || got[0].Rows != nil {
		t.Errorf("from %d to %d: %+v", l.born, l.died, got)
	}

	if got := entries(t, l.m.Dir(), "--find", "Delete PROFILE one in"); len(got) != 1 || got[0].Index != l.died || len(got[0].Rows) == 0 {
		t.Errorf("found %+v", got)
	}

	if got := entries(t, l.m.Dir(), "--find", "profile one", "--to", born); len(got) != 1 || got[0].Index != l.born {
		t.Errorf("found up to %d: %+v", l.born, got)
	}

	if r := mustRecover(t, l.m, "global-db-log", "-f", "csv", "--find", "profile three"); strings.Count(r.stdout, "\n") != 1 {
		t.Errorf("found what is not there: %s", r.stdout)
	}

	if got := entries(t, l.m.Dir(), "-n", "3", "--to", died, "--rows"); len(got) != 3 || got[2].Index != l.died || len(got[2].Rows) == 0 {
		t.Errorf("the last three up to %d: %+v", l.died, got)
	}
}

// wantFormats checks an entry as CSV and one in a table.
func (l logLab) wantFormats(t testing.TB) {
	t.Helper()
	born, died := fmt.Sprint(l.born), fmt.Sprint(l.died)
	r := mustRecover(t, l.m, "global-db-log", "-f", "csv", "--rows", "--from", died, "--to", died)
	rows, err := csv.NewReader(strings.NewReader(r.stdout)).ReadAll()
	if err != nil || len(rows) != 2 || rows[1][0] != died || rows[1][2] != "transaction" ||
		!strings.Contains(rows[1][5], "delete profile one in project default") {
		t.Errorf("%v %q", err, rows)
	}

	r = mustRecover(t, l.m, "global-db-log", "--rows", "--from", born, "--to", born)
	if !strings.Contains(r.stdout, "insert profile one in project default") {
		t.Errorf("table: %s", r.stdout)
	}
}

// wantEveryEntry checks the list against the log as raftlog reads it, and the times against the files.
func wantEveryEntry(t testing.TB, m *cluster.Member, all []recovery.HistoryEntry) {
	t.Helper()
	global := filepath.Join(m.Dir(), "database", "global")
	log := openLog(t, global)
	var n, rows, joined int
	for entry, err := range log.Entries(t.Context(), log.FirstIndex) {
		must(t, err)
		if n >= len(all) {
			break
		}

		e := all[n]
		n++
		info, err := os.Stat(filepath.Join(global, e.File))
		must(t, err)
		if e.Index != entry.Index || e.Term != entry.Term || e.Size != int64(len(entry.Data)) || e.File != entry.File ||
			e.Written == nil || !e.Written.Equal(info.ModTime()) {
			t.Errorf("%+v is not %d", e, entry.Index)
		}

		kind := map[raftlog.EntryType]string{raftlog.BarrierEntry: "barrier", raftlog.ChangeEntry: "configuration"}[entry.Type]
		if kind == "" {
			cmd, err := raftlog.ParseCommand(entry.Data)
			must(t, err)
			kind = strings.Replace(cmd.Kind.String(), "frames", "transaction", 1)
		}

		if e.Kind != kind || (e.Kind != "transaction" && e.Rows != nil) || e.Unknown != "" || e.Recovery {
			t.Errorf("%+v is no %s", e, kind)
		}

		rows += len(e.Rows)
		for _, change := range e.Members {
			if change.OldAddress == "" {
				joined++
			}
		}
	}

	if uint64(n) != log.LastIndex || n != len(all) || rows < n || joined != 3 {
		t.Errorf("%d of %d entries with %d rows up to index %d, %d members joined", n, len(all), rows, log.LastIndex, joined)
	}
}

// The fixtures, LXD 6.9: the two rows that only n1 and n2 have are their last entries; a tarball has no times; damage ends the
// list where it begins.
func TestLogFixtures(t *testing.T) {
	dir := unpackFixtures(t)
	before := tree(t, dir)
	source := filepath.Join(dir, "forgotten/n1-preedit")
	all := entries(t, source, "--rows")
	if profileChange(t, all, "insert", "lostrow") != 187 || profileChange(t, all, "insert", "lostrow2") != 188 || all[len(all)-1].Index != 188 {
		t.Errorf("entries up to %+v", all[len(all)-1])
	}

	if created := entries(t, source, "--find", "create table auth_groups"); len(created) != 1 || created[0].Index > 3 {
		t.Errorf("the schema's entries: %+v", created)
	}

	fromTarball := entries(t, filepath.Join(dir, "small/lxd_recovery_db.tar.gz"))
	if last := fromTarball[len(fromTarball)-1]; last.Index != 128 || last.Written != nil || !last.Recovery {
		t.Errorf("the tarball's last entry %+v", last)
	}

	report := filepath.Join(t.TempDir(), "report.json")
	must(t, os.WriteFile(report, []byte(run(t, exec.CommandContext(t.Context(), tool, "global-db-inspect", "-f", "json", source)).stdout), 0o600))
	run(t, exec.CommandContext(t.Context(), tool, "global-db-log", report)).want(t, 4, "report.json")
	if tree(t, dir) != before {
		t.Error("the fixtures were changed")
	}

	global := filepath.Join(source, "database", "global")
	index := damageLast(t, global)
	check := tree(t, dir)
	r := run(t, exec.CommandContext(t.Context(), tool, "global-db-log", "--rows", "-f", "json", "-n", "2", source))
	r.want(t, 4, "damaged", fmt.Sprintf("up to index %d", index-1))
	if cut := decode[[]recovery.HistoryEntry](t, r); len(cut) != 2 || cut[1].Index != index-1 {
		t.Errorf("damaged: %+v", cut)
	}

	if tree(t, dir) != check {
		t.Error("the damaged directory was changed")
	}
}
