// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// ownSQL is a patch as the maintainers advise it, not ended by a semicolon.
const ownSQL = "UPDATE profiles SET description='by hand' WHERE name='default'"

// moved is the lab's list with node2 at another address.
func (l stateLab) moved() member.List {
	list := l.list(raftlog.Voter, raftlog.Voter, raftlog.Voter)
	list[1].Address = "10.9.9.102:8443"
	return list
}

const movedSQL = "UPDATE nodes SET address = '10.9.9.102:8443' WHERE id = 2 AND address = '127.6.6.102:8443';\n"

// Somebody's own patch survives an edit and an import, comes before ours, and is said by each. (canonical/lxd#7920, #4808, #7857)
func TestOwnPatchCarried(t *testing.T) {
	l := newStateLab(t)
	l.pend(t, ownSQL)
	if s := l.status(t); len(s.Pending) != 1 || !strings.HasSuffix(s.Pending[0], "next starts (SQL that was written to it ("+ownSQL+"))") {
		t.Errorf("pending %q", s.Pending)
	}

	const carried = ownSQL + ";\n"
	r, err := l.edit(t, l.moved(), nil)
	must(t, err)
	if l.patch(t) != carried+movedSQL || r.Patch != carried+movedSQL || r.Carried != carried {
		t.Errorf("edit: carried %q, written %q", r.Carried, l.patch(t))
	}

	again, err := l.edit(t, l.moved(), nil)
	must(t, err)
	if !again.NothingToDo {
		t.Error("the same edit again was done again")
	}

	exported, tarball, err := l.export(t, nil)
	must(t, err)
	wantWarning(t, exported.Warnings, "patch.global.sql here has SQL that was written to it",
		"it is not in the tarball. An import on this member carries it over")
	imported, err := l.importFrom(t, tarball, nil)
	must(t, err)
	if l.patch(t) != carried+movedSQL || imported.Patch != carried+movedSQL || imported.Carried != carried || !imported.Done {
		t.Errorf("import: done %t, carried %q, written %q", imported.Done, imported.Carried, l.patch(t))
	}

	imported, err = l.importFrom(t, tarball, nil)
	must(t, err)
	if !imported.NothingToDo {
		t.Error("the same import again was done again")
	}

	dropped, err := l.importFrom(t, tarball, func(o *ImportOptions) { o.DropPatch = true })
	must(t, err)
	kept, err := os.ReadFile(filepath.Join(dropped.Kept, patchName))
	must(t, err)
	if l.patch(t) != movedSQL || dropped.Carried != "" || string(kept) != carried+movedSQL {
		t.Errorf("dropped: carried %q, written %q, kept %q", dropped.Carried, l.patch(t), kept)
	}

	wantWarning(t, dropped.Warnings, "patch.global.sql is left out, with SQL that was written to it", "it stays in the database that is kept")
}

// What our own address patch has to do is worked out for the rows that the other patch leaves.
func TestOwnPatchFirst(t *testing.T) {
	l := newStateLab(t)
	l.pend(t, "UPDATE nodes SET address='10.1.1.1:1' WHERE id=2;\nUPDATE nodes SET address = \"10.2.2.2:2\" WHERE id = 1;\n")
	r, err := l.edit(t, l.moved(), nil)
	must(t, err)
	const want = "UPDATE nodes SET address='10.1.1.1:1' WHERE id=2;\nUPDATE nodes SET address = '10.9.9.102:8443' WHERE id = 2 AND address = '10.1.1.1:1';\n"
	if l.patch(t) != want || !r.Done { // the second line is as LXD's own edit writes it: the list says where node1 is
		t.Errorf("written %q", l.patch(t))
	}
}

// A patch on which LXD would not start is refused, with the statement that fails, on the database that it will meet.
func TestOwnPatchFails(t *testing.T) {
	l := newStateLab(t)
	_, without, err := l.export(t, nil)
	must(t, err)
	l.transact(t, "CREATE TABLE since (id INTEGER PRIMARY KEY)")
	l.pend(t, ownSQL+";\nINSERT INTO since VALUES (1)")
	if s := l.status(t); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}

	refused := Refusal{Code: "patch-fails", Flag: "--drop-patch"}
	refused.Reason = fmt.Sprintf("patch.global.sql, which is pending here, does not run on the database in %s: "+
		"statement 2 fails, \"INSERT INTO since VALUES (1)\": no such table: since. LXD may not start with it", without)
	_, err = l.importFrom(t, without, func(o *ImportOptions) { o.DiscardLocal = true })
	wantRefusal(t, err, refused)
	if l.patch(t) != ownSQL+";\nINSERT INTO since VALUES (1)" {
		t.Errorf("changed to %q", l.patch(t))
	}

	l.pend(t, "UPDATE nope SET x = 1")
	_, err = l.edit(t, l.moved(), nil)
	refused.Reason = "does not run on the global database in " + l.dir.global() + ": statement 1 fails, \"UPDATE nope SET x = 1\": no such table: nope"
	wantRefusal(t, err, refused)
	if s := l.status(t); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "no such table: nope. LXD may not start with it") {
		t.Errorf("problems %q", s.Problems)
	}

	_, err = l.edit(t, l.moved(), func(o *EditOptions) { o.DropPatch = true })
	must(t, err)
	if l.patch(t) != movedSQL {
		t.Errorf("written %q", l.patch(t))
	}
}

// Patches of two members are one too many.
func TestPatchesOnTwoMembers(t *testing.T) {
	one, two := newStateLab(t), newStateLab(t)
	one.exec(t, "UPDATE config SET value = '127.6.6.101:8443' WHERE key = 'cluster.https_address'") // node1
	one.pend(t, ownSQL)
	_, tarball, err := one.export(t, nil)
	must(t, err)
	_, err = two.importFrom(t, tarball, func(o *ImportOptions) { o.DryRun = true })
	must(t, err)
	two.pend(t, ownSQL)
	_, err = two.importFrom(t, tarball, nil)
	wantRefusal(t, err, Refusal{Code: "two-patches", Member: "node2", Flag: "--drop-patch", Reason: "SQL is pending in patch.global.sql here, and on node1"})
	r, err := two.importFrom(t, tarball, func(o *ImportOptions) { o.DropPatch = true })
	must(t, err)
	if !r.Done || two.patch(t) != "" {
		t.Errorf("done %t, written %q", r.Done, two.patch(t))
	}
}

// LXD would wait for a lost member whose row is behind: the patch is offered, and written. (canonical/lxd#7540)
func TestLostMemberBehind(t *testing.T) {
	const behind = "UPDATE nodes SET schema = 87, api_extensions = 300 WHERE id = 3"
	const sql = "UPDATE nodes SET schema = 88, api_extensions = 481 WHERE id = 3 AND schema = 87 AND api_extensions = 300;\n"
	const says = "the row of node3 in the table nodes has schema 87 and 300 API extensions, behind this member's 88 and 481: " +
		"LXD here waits until node3 is upgraded, for ever if that is lost"
	l := newStateLab(t)
	l.transact(t, behind)
	if s := l.status(t); len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], says) || !strings.Contains(s.Problems[0], strings.TrimSpace(sql)) {
		t.Errorf("problems %q", s.Problems)
	}

	list := l.list(raftlog.Voter, raftlog.Voter, raftlog.Spare)
	lost := func(names ...string) func(*EditOptions) { return func(o *EditOptions) { o.Lost = names } }
	for name, want := range map[string]string{"node2": "--lost: node2 is this member", "node9": `--lost: no member is named "node9"`} {
		_, err := l.edit(t, list, lost(name))
		wantError(t, err, want)
	}

	r, err := l.edit(t, list, nil)
	must(t, err)
	wantWarning(t, r.Warnings, says, "`lxd-recover cluster edit --lost node3`")
	if l.patch(t) != "" {
		t.Errorf("written %q", l.patch(t))
	}

	r, err = l.edit(t, list, lost("node3"))
	must(t, err)
	if l.patch(t) != sql || !r.Done || r.Carried != "" {
		t.Errorf("done %t, written %q", r.Done, l.patch(t))
	}

	wantWarning(t, r.Warnings, "node3 is lost, and has schema 87 and 300 API extensions in the table nodes: LXD would wait for it")
	if s := l.status(t); len(s.Problems) > 0 || !strings.HasSuffix(s.Pending[0], "(the versions of lost members)") {
		t.Errorf("problems %q, pending %q", s.Problems, s.Pending)
	}

	// Whichever member starts first has it: LXD would wait there.
	_, tarball, err := l.export(t, nil)
	must(t, err)
	other := newStateLab(t)
	imported, err := other.importFrom(t, tarball, func(o *ImportOptions) { o.DiscardLocal = true })
	must(t, err)
	if other.patch(t) != sql || len(imported.Warnings) > 0 {
		t.Errorf("written %q, warnings %q", other.patch(t), imported.Warnings)
	}

	alone := newStateLab(t)
	alone.transact(t, behind)
	r, err = alone.edit(t, nil, func(o *EditOptions) { o.Alone = true })
	must(t, err)
	if alone.patch(t) != sql || !r.Done {
		t.Errorf("alone: done %t, written %q", r.Done, alone.patch(t))
	}
}

// A lost member is offered as a spare, and a voter it is only by the list.
func TestLostMemberRole(t *testing.T) {
	l := newStateLab(t)
	all := l.list(raftlog.Voter, raftlog.Voter, raftlog.Voter)
	var offered member.List
	r, err := l.edit(t, nil, func(o *EditOptions) {
		o.Lost = []string{"node3"}
		o.Ask = askWith(func(current member.List) member.List { offered = current; return all })
	})
	must(t, err)
	if !offered.Same(l.list(raftlog.Voter, raftlog.Voter, raftlog.Spare)) {
		t.Errorf("offered %v", offered)
	}

	wantWarning(t, r.Warnings, "node3 is lost, and stays a voter: LXD needs 2 of the 3 voters")
}
