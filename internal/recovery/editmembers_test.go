// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// wantRefusal wants a refusal with a code, about a member, that a flag overrides, and that says something.
func wantRefusal(t testing.TB, err error, want Refusal) {
	t.Helper()
	var got *Refusal
	if !errors.As(err, &got) || got.Code != want.Code || got.Member != want.Member || got.Flag != want.Flag || !strings.Contains(got.Reason, want.Reason) {
		t.Errorf("%#v (%v), want %#v", got, err, want)
	}
}

// rolesIn are the roles of the newest configuration in the log, by id.
func (l stateLab) rolesIn(t testing.TB) string {
	t.Helper()
	text := ""
	for _, s := range openDir(t, l.dir.global()).Configuration {
		text += fmt.Sprintf("%d %s,", s.ID, s.Role)
	}

	return text
}

func (l stateLab) status(t testing.TB) *StatusReport {
	t.Helper()
	r, err := Status(t.Context(), l.dir.path, Progress{})
	must(t, err)
	return r
}

const noVoter = "none of the 3 members in the raft log's configuration is a voter: no leader can ever be elected"

// Members that were made spares by mistake, this one and others, are made voters again: they have the log. (canonical/lxd#7540)
func TestEditNoVoter(t *testing.T) {
	l := newStateLab(t)
	if s := l.status(t); len(s.Problems) > 0 || !s.Agree {
		t.Fatalf("the lab has problems %q", s.Problems)
	}

	l.configure(t, raftlog.Spare, raftlog.Spare, raftlog.Spare)
	s := l.status(t)
	if len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], noVoter) || !s.Healthy {
		t.Errorf("status: healthy %t, problems %q", s.Healthy, s.Problems)
	}

	inspected, err := Inspect(t.Context(), l.dir.path, Progress{})
	must(t, err)
	said := slices.ContainsFunc(inspected.Problems, func(p raftlog.Problem) bool { return p.Text == noVoter && p.Severity == raftlog.Warning })
	if !inspected.Healthy || !said {
		t.Errorf("inspect: healthy %t, problems %v", inspected.Healthy, inspected.Problems)
	}

	_, _, err = l.export(t, nil)
	wantError(t, err, "no member has the role \"voter\": raft could never elect a leader: run `lxd-recover cluster edit` again")
	r, err := l.edit(t, l.list(raftlog.Voter, raftlog.Voter, raftlog.StandBy), nil)
	must(t, err)
	if got := l.rolesIn(t); !r.Done || got != "1 voter,2 voter,3 stand-by," {
		t.Errorf("done %t, roles %s", r.Done, got)
	}

	if s := l.status(t); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}
}

// The member that one recovers from is made a spare only where that is meant.
func TestEditSpareHere(t *testing.T) {
	l := newStateLab(t)
	list := l.list(raftlog.Voter, raftlog.Spare, raftlog.Voter)
	_, err := l.edit(t, list, nil)
	wantRefusal(t, err, Refusal{Code: "spare-here", Member: "node2", Flag: "--any-role",
		Reason: "as a spare it has no vote, and is sent nothing of what is written"})
	r, err := l.edit(t, list, func(o *EditOptions) { o.AnyRole = true })
	must(t, err)
	if got := l.rolesIn(t); !r.Done || got != "1 voter,2 spare,3 voter," {
		t.Errorf("done %t, roles %s", r.Done, got)
	}

	// And back again, by mistake or not: its log is there.
	r, err = l.edit(t, l.list(raftlog.Voter, raftlog.Voter, raftlog.Voter), nil)
	must(t, err)
	if got := l.rolesIn(t); !r.Done || got != "1 voter,2 voter,3 voter," {
		t.Errorf("done %t, roles %s", r.Done, got)
	}
}

// Which roles are refused: by what the log says of who has had a database.
func TestCheckRoles(t *testing.T) {
	role := func(m member.Member, role raftlog.Role) member.Member {
		m.Role = role
		return m
	}
	for name, test := range map[string]struct {
		self    uint64
		current member.List
		edited  member.List
		had     map[uint64]bool
		want    string // code of the refusal
	}{
		"as it was":                      {1, member.List{one, two, three}, member.List{one, two, three}, nil, ""},
		"a spare that had a database":    {1, member.List{one, three}, member.List{one, role(three, raftlog.Voter)}, map[uint64]bool{3: true}, ""},
		"a spare that never had one":     {1, member.List{one, three}, member.List{one, role(three, raftlog.Voter)}, nil, "spare-to-voter"},
		"a spare made stand-by":          {1, member.List{one, three}, member.List{one, role(three, raftlog.StandBy)}, nil, ""},
		"this one, a spare so far":       {3, member.List{one, three}, member.List{one, role(three, raftlog.Voter)}, nil, ""},
		"this one stays a spare":         {3, member.List{one, three}, member.List{one, three}, nil, "spare-here"},
		"this one becomes a spare":       {1, member.List{one, two}, member.List{role(one, raftlog.Spare), role(two, raftlog.Voter)}, nil, "spare-here"},
		"this one becomes a stand-by":    {1, member.List{one, two}, member.List{role(one, raftlog.StandBy), role(two, raftlog.Voter)}, nil, ""},
		"another one becomes a spare":    {1, member.List{one, two}, member.List{one, role(two, raftlog.Spare)}, nil, ""},
		"a stand-by becomes a voter":     {1, member.List{one, two}, member.List{one, role(two, raftlog.Voter)}, nil, ""},
		"another one stays a true spare": {1, member.List{one, three}, member.List{one, three}, nil, ""},
	} {
		err := checkRoles(test.current, test.edited, test.self, test.had)
		var refusal *Refusal
		if test.want == "" && err != nil || test.want != "" && (!errors.As(err, &refusal) || refusal.Code != test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// Where this member's row in the table nodes is missing LXD does not start: that is said everywhere, with the way back to before.
// (canonical/lxd#4808)
func TestOwnRowMissing(t *testing.T) {
	l := newStateLab(t)
	deleted := l.transact(t, "DELETE FROM nodes WHERE id = 2")
	l.transact(t, "UPDATE profiles SET description = 'since'")
	const noRow = "node2 (id 2) is a member in the raft log, and has no row in the table nodes of the global database: LXD does not start here"
	wayBack := fmt.Sprintf("The transaction with index %d has deleted the row: `lxd-recover cluster export-db --at %d`", deleted, deleted-1)
	if s := l.status(t); len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], noRow) || !strings.Contains(s.Problems[0], wayBack) || s.Agree {
		t.Errorf("status: problems %q", s.Problems)
	}

	refused := Refusal{Code: "no-row-in-nodes", Member: "node2", Flag: "--unknown-members", Reason: wayBack}
	all := l.list(raftlog.Voter, raftlog.Voter, raftlog.Voter)
	_, err := l.edit(t, all, nil)
	wantRefusal(t, err, refused)
	_, err = l.edit(t, nil, func(o *EditOptions) { o.Alone = true })
	wantRefusal(t, err, refused)
	_, _, err = l.export(t, nil)
	wantRefusal(t, err, refused)

	// A tarball of it is made all the same where that is asked for; the import refuses it again. It goes by the certificate of node2,
	// of which only the table nodes has forgotten who it is.
	_, tarball, err := l.export(t, func(o *ExportOptions) { o.UnknownMembers = true })
	must(t, err)
	_, err = l.importFrom(t, tarball, nil)
	refused.Reason = "the table nodes of the global database has no row of node2 (id 2), which is a member in the raft log: LXD would not start here"
	wantRefusal(t, err, refused)
	r, err := l.importFrom(t, tarball, func(o *ImportOptions) { o.UnknownMembers, o.DryRun = true, true })
	if err != nil || r.Member.ID != 2 {
		t.Errorf("%+v, %v", r, err)
	}

	// What was offered works.
	exported, tarball, err := l.export(t, func(o *ExportOptions) { o.At, o.Confirm = deleted-1, func(*ExportReport) error { return nil } })
	must(t, err)
	_, err = l.importFrom(t, tarball, func(o *ImportOptions) { o.DiscardLocal = true })
	must(t, err)
	if s := l.status(t); len(s.Problems) > 0 || exported.Before.Index != deleted-1 {
		t.Errorf("exported %+v, problems %q", exported.Before, s.Problems)
	}
}

// importFrom imports a tarball of this lab's on its member.
func (l stateLab) importFrom(t testing.TB, tarball string, with func(*ImportOptions)) (*ImportReport, error) {
	t.Helper()
	return l.importDB(t.Context(), func(o *ImportOptions) {
		o.Tarball = tarball
		if with != nil {
			with(o)
		}
	})
}

// A patch that puts the row back is enough.
func TestRowInPatch(t *testing.T) {
	l := newStateLab(t)
	l.transact(t, "CREATE TABLE saved AS SELECT * FROM nodes; DELETE FROM nodes WHERE id = 2")
	l.pend(t, "INSERT INTO nodes SELECT * FROM saved WHERE id = 2")
	if s := l.status(t); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}

	r, err := l.edit(t, l.list(raftlog.Voter, raftlog.Voter, raftlog.Spare), nil)
	must(t, err)
	const want = "INSERT INTO nodes SELECT * FROM saved WHERE id = 2;\n"
	if r.Carried != want || r.Patch != want || l.patch(t) != want {
		t.Errorf("carried %q, patch %q, written %q", r.Carried, r.Patch, l.patch(t))
	}
}

// A raft member that the database does not know is left out of a list, and stays in none by oversight. (canonical/lxd#7133)
func TestEditGhost(t *testing.T) {
	l := newStateLab(t)
	l.transact(t, "DELETE FROM nodes WHERE id = 3")
	all := l.list(raftlog.Voter, raftlog.Voter, raftlog.Voter)
	if s := l.status(t); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "`lxd-recover cluster edit` can leave it out of the list") {
		t.Errorf("status: problems %q", s.Problems)
	}

	_, err := l.edit(t, all, nil)
	wantRefusal(t, err, Refusal{Code: preflight.NoRow, Member: "node3", Flag: "--unknown-members",
		Reason: "If it is no member any more, leave it out of the list"})
	_, err = l.edit(t, all[1:], nil)
	wantError(t, err, "none can be removed here") // node1 is no ghost
	r, err := l.edit(t, all[:2], nil)
	must(t, err)
	if got := l.rolesIn(t); !r.Done || got != "1 voter,2 voter," || len(r.Members) != 3 || r.Members[2].NewAddress != "" {
		t.Errorf("done %t, roles %s, members %+v", r.Done, got, r.Members)
	}

	wantWarning(t, r.Warnings, "node3 (id 3) is left out of the member list: the global database does not know it")
	if s := l.status(t); len(s.Problems) > 0 || !s.Agree {
		t.Errorf("problems %q, %+v", s.Problems, s.Addresses)
	}
}

// A ghost that only the raft log has is in the list, too, and so is a member that is missing in raft_nodes only.
func TestEditGhostInRaft(t *testing.T) {
	l := newStateLab(t)
	l.exec(t, "DELETE FROM raft_nodes WHERE id = 3")
	var offered member.List
	keep := func(o *EditOptions) {
		o.Ask = askWith(func(current member.List) member.List { offered = current; return current[:2] })
	}
	_, err := l.edit(t, nil, keep)
	wantError(t, err, "the list has 2 members and had 3")
	if want := l.list(raftlog.Voter, raftlog.Voter, raftlog.Voter); !offered.Same(want) {
		t.Errorf("offered %v, want %v", offered, want)
	}

	l.transact(t, "DELETE FROM nodes WHERE id = 3")
	r, err := l.edit(t, nil, keep)
	must(t, err)
	if got := l.rolesIn(t); got != "1 voter,2 voter," || len(offered) != 3 || offered[2].Name != "" {
		t.Errorf("roles %s, offered %v", got, offered)
	}

	wantWarning(t, r.Warnings, "member 3 (127.6.6.103:8443) is left out of the member list")
}
