// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// repaired is a report to begin with.
func repaired() recovery.RepairReport {
	return recovery.RepairReport{
		Member: member.Member{ID: 1, Name: "n1"}, Local: bundle.Position{Index: 9, Term: 2}, Raft: bundle.Position{Index: 7, Term: 2},
		Metadata:  recovery.RepairedMetadata{Term: 3},
		Libdqlite: recovery.Libdqlite{Start: raftlog.LoadsButLoses, Dropped: 4},
		Database:  &globaldb.Summary{Rows: 5, Tables: map[string]int{"nodes": 5}},
		Problems:  []string{"error: metadata1: gone"}, Kept: "/lxd/database.before-repair-x", Daemon: "not running", WillStart: true,
		GivenUp: []recovery.Discarded{{Index: 8, Term: 2, Rows: []globaldb.RowChange{{Table: "profiles", Key: "id=3", Before: map[string]string{}}}}},
		Untold:  []string{"2 entries in open-1: they cannot be read"},
	}
}

func TestPrintRepair(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*recovery.RepairReport)
		dry    bool
		want   []string
		not    []string
	}{
		"a plan": {nil, true, []string{
			"Repair the database of n1.", "starts without 4 of the entries", "index 9, term 2 (proven)", "| index 7, term 2", "| 3 ",
			"What is wrong:\n  error: metadata1: gone\n", "Transactions that will be given up: 1 change by a user:\n  index 8, term 2",
			"cannot be told:\n  2 entries in open-1",
			"LXD is not running. Neither systemd nor snapd is known to run it here: start it by hand afterwards.\n", "Dry run: nothing was changed.",
		}, []string{"Nothing is missing"}},
		"a plan, to be started": {func(r *recovery.RepairReport) { r.Startable, r.Metadata.Kept = true, true }, true,
			[]string{"LXD is not running. It will be started on the repaired database.\n", "| 3, as now "}, nil},
		"a plan, not to be started": {func(r *recovery.RepairReport) { r.WillStart = false }, true,
			[]string{"LXD is not running. It will be left stopped.\n"}, nil},
		"a plan, unsafe": {func(r *recovery.RepairReport) { r.WillStart, r.Unsafe = false, "n1 has lost entries" }, true,
			[]string{"LXD is not running. It will be left stopped: n1 has lost entries.\n"}, nil},
		"a plan, does not start": {func(r *recovery.RepairReport) { r.Libdqlite.Start = raftlog.Crashes }, true,
			[]string{"| does not start "}, []string{"without 4"}},
		"a plan, uncertain": {func(r *recovery.RepairReport) { r.Uncertain, r.GivenUp, r.Untold = true, nil, nil }, true,
			[]string{"index 9, term 2 (not proven)"}, []string{"Nothing is missing"}},
		"done": {func(r *recovery.RepairReport) { r.GivenUp, r.Untold, r.Standalone = nil, nil, true }, false, []string{
			"Repaired the database of this server: index 7, term 2, 5 rows in 1 tables.\n",
			"is kept in /lxd/database.before-repair-x; `lxd-recover global-db-rollback`",
			"Nothing is missing, as far as the files tell.\n", "LXD was not started.\nNeither systemd nor snapd is known to run it here: start it by hand.\n",
		}, []string{"given up"}},
		"done and started": {func(r *recovery.RepairReport) { r.Startable, r.Started, r.Ready = true, true, true }, false,
			[]string{"Transactions that are given up: 1 change by a user:\n", "\nLXD is up.\n"}, []string{"Nothing is missing", "by hand"}},
		"done, unsafe": {func(r *recovery.RepairReport) { r.WillStart, r.Unsafe = false, "n1 has lost entries" }, false,
			[]string{"LXD was not started.\nDo not start it yet: n1 has lost entries. The next boot of this machine starts it by itself.\n"},
			[]string{"by hand"}},
		"nothing to do": {func(r *recovery.RepairReport) { r.NothingToDo, r.Checked = true, []string{"everything"} }, true, []string{
			"There is nothing to repair: the database of n1 is whole, and LXD would start on all of it.\n", "Checked: everything", "LXD is not running.",
		}, []string{"Dry run"}},
	} {
		r := repaired()
		if test.change != nil {
			test.change(&r)
		}

		var out strings.Builder
		printRepair(&out, formatTable, test.dry, &r, &toldOnce{})
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s does not say %q:\n%s", name, want, out.String())
			}
		}

		for _, not := range test.not {
			if strings.Contains(out.String(), not) {
				t.Errorf("%s says %q:\n%s", name, not, out.String())
			}
		}
	}
}

func TestRepairCSV(t *testing.T) {
	r := repaired()
	r.GivenUp = append(r.GivenUp, recovery.Discarded{Index: 9, Term: 2, Unknown: "too many"})
	var out strings.Builder
	err := writeRepairCSV(&out, &r)
	want := "index,term,what\n8,2," + r.GivenUp[0].Rows[0].String() + "\n9,2,(too many)\n,,2 entries in open-1: they cannot be read\n"
	if err != nil || out.String() != want {
		t.Errorf("%q, %v, want %q", out.String(), err, want)
	}
}
