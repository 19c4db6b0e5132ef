// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// TestRepairedMetadata wants terms and votes that let nobody vote twice, and no index and term mean two things.
func TestRepairedMetadata(t *testing.T) {
	meta := func(version, term, vote uint64) *raftlog.Metadata {
		return &raftlog.Metadata{Version: version, Term: term, Vote: vote}
	}
	log := func(a, b *raftlog.Metadata) *raftlog.Log {
		l := &raftlog.Log{Metadata: [2]*raftlog.Metadata{a, b}, Segments: []raftlog.Segment{{Part: raftlog.Part{MaxTerm: 4}}},
			Snapshots: []raftlog.Snapshot{{Term: 3}}, MaxTerm: 4, EntryTerm: 4}
		for _, m := range l.Metadata {
			if m != nil && (m == a || m.Version > a.Version) {
				l.Term, l.Vote = m.Term, m.Vote
			}
		}

		l.MaxTerm = max(l.MaxTerm, l.Term)
		return l
	}
	asTheyWere := RepairedMetadata{Term: 5, Vote: 2, Kept: true}
	in := func(term uint64) RepairedMetadata { return RepairedMetadata{Term: term} }
	for name, test := range map[string]struct {
		log         *raftlog.Log
		alone       RepairedMetadata // and nothing given up
		aloneGiven  RepairedMetadata
		among       RepairedMetadata // others; what is given up changes nothing
		metadata2   bool             // is there, and unreadable
		keptHighest uint64
	}{
		"both":              {log: log(meta(3, 5, 2), meta(2, 5, 0)), alone: asTheyWere, aloneGiven: in(6), among: asTheyWere},
		"both, the other":   {log: log(meta(3, 4, 0), meta(4, 5, 2)), alone: asTheyWere, aloneGiven: in(6), among: asTheyWere},
		"a new member's":    {log: log(meta(1, 5, 2), nil), alone: asTheyWere, aloneGiven: in(6), among: asTheyWere},
		"the second lost":   {log: log(meta(3, 5, 2), nil), alone: in(6), aloneGiven: in(6), among: in(1005)},
		"it cannot be read": {log: log(meta(1, 5, 2), nil), metadata2: true, alone: in(6), aloneGiven: in(6), among: in(1005)},
		"both lost":         {log: log(nil, nil), alone: in(5), aloneGiven: in(5), among: in(1004)},
		"not in a row":      {log: log(meta(3, 5, 2), meta(8, 6, 0)), alone: in(7), aloneGiven: in(7), among: in(1006)},
		"of one version":    {log: log(meta(3, 5, 2), meta(3, 9, 0)), alone: in(10), aloneGiven: in(10), among: in(1009)},
		"older than the log": {log: log(meta(3, 2, 2), meta(2, 2, 0)), alone: in(5), aloneGiven: in(5),
			among: in(1004)},
		"of no raft": {log: log(meta(3, 1<<63, 2), meta(2, 1, 0)), alone: in(5), aloneGiven: in(5),
			among: in(1004)},
		"a kept one is higher": {log: log(meta(3, 5, 2), meta(2, 5, 0)), keptHighest: 70, alone: asTheyWere, aloneGiven: in(71), among: asTheyWere},
	} {
		if test.metadata2 {
			test.log.Files = []raftlog.File{{Name: "metadata2"}}
		}

		for _, c := range []struct {
			fate fate
			want RepairedMetadata
		}{
			{fate{alone: true, kept: test.keptHighest}, test.alone}, {fate{alone: true, given: true, kept: test.keptHighest}, test.aloneGiven},
			{fate{kept: test.keptHighest}, test.among}, {fate{given: true, kept: test.keptHighest}, test.among},
		} {
			if got := repairedMetadata(test.log, c.fate); got != c.want {
				t.Errorf("%s, %+v: %+v, want %+v", name, c.fate, got, c.want)
			}
		}
	}
}

// TestRepairCase goes through what decides whether one of several members may be repaired in place.
func TestRepairCase(t *testing.T) {
	const inPlace = ""
	silent := otherMember{Other: Other{Name: "n2", Address: "b:1", Found: "does not answer"}}
	foreign := otherMember{Other: Other{Name: "n3", Address: "c:1", Found: "something else answers"}}
	there := otherMember{Other: Other{Name: "n3", Address: "c:1", Found: "the machine is up"}, there: true}
	working := otherMember{Other: Other{Name: "n3", Address: "c:1", Found: "LXD answers"}, there: true, works: true}
	nothing, unfinished, lost := Lost{}, Lost{Entries: 1, Some: true, Unfinished: true}, Lost{Some: true}
	type o = otherMember
	for name, test := range map[string]struct {
		c    repairCase
		want string
	}{
		"nothing lost":                 {repairCase{voter: true, lost: nothing, others: []o{silent, foreign}}, inPlace},
		"unfinished":                   {repairCase{voter: true, lost: unfinished, others: []o{silent}}, inPlace},
		"lost":                         {repairCase{voter: true, lost: lost, others: []o{silent}}, "n1 has lost entries of its raft log, and"},
		"indexes not proven":           {repairCase{voter: true, uncertain: true, others: []o{silent}}, "n1 has entries in its raft log whose"},
		"unfinished and uncertain":     {repairCase{voter: true, lost: unfinished, uncertain: true}, "n1 has lost entries"},
		"a machine is up":              {repairCase{voter: true, lost: nothing, others: []o{silent, there}}, "other members can be reached: n3 (c:1: "},
		"a cluster works":              {repairCase{voter: true, lost: nothing, others: []o{there, working}}, "the cluster works without n1: LXD on n3"},
		"a stand-by, nothing lost":     {repairCase{lost: nothing, others: []o{there, working}}, inPlace},
		"a stand-by, unfinished":       {repairCase{lost: unfinished, others: []o{there}}, "other members can be reached"},
		"a stand-by alone, unfinished": {repairCase{lost: unfinished, others: []o{silent}}, inPlace},
		"a stand-by, lost":             {repairCase{lost: lost, others: []o{silent}}, "n1 has lost entries"},
		"a stand-by, cluster":          {repairCase{lost: lost, others: []o{working}}, "the cluster works without n1"},
	} {
		test.c.self = member.Member{ID: 1, Name: "n1"}
		test.c.voters = 3
		got := test.c.refusal()
		switch {
		case got == nil && test.want != inPlace, got != nil && test.want == inPlace:
			t.Errorf("%s: %v", name, got)
		case got != nil && (!strings.HasPrefix(got.Reason, test.want) || got.Flag != acceptLossFlag):
			t.Errorf("%s: %q, %s", name, got.Reason, got.Flag)
		}

		test.c.at = 7
		at := test.c.refuseAt()
		if at == nil || !strings.Contains(at.Error(), "export-db --at 7") || strings.Contains(at.Error(), "overrides") {
			t.Errorf("%s, --at: %v", name, at)
		}
	}
}

// TestRefuseShifted refuses entries at indexes that are not proven where others may have other ones there.
func TestRefuseShifted(t *testing.T) {
	server := func(id uint64, role raftlog.Role) raftlog.Server {
		return raftlog.Server{ID: id, Role: role, Address: "b:1"}
	}
	for name, test := range map[string]struct {
		uncertain bool
		servers   raftlog.Configuration
		want      bool
	}{
		"proven":            {false, raftlog.Configuration{server(1, raftlog.Voter), server(2, raftlog.StandBy)}, false},
		"beside a stand-by": {true, raftlog.Configuration{server(1, raftlog.Voter), server(2, raftlog.StandBy)}, true},
		"beside a spare":    {true, raftlog.Configuration{server(1, raftlog.Voter), server(2, raftlog.Spare)}, false},
		"alone":             {true, raftlog.Configuration{server(1, raftlog.Voter)}, false},
	} {
		r := &RepairReport{Member: member.Member{ID: 1, Name: "n1"}, Uncertain: test.uncertain}
		got := refuseShifted(r, test.servers)
		if (got != nil) != test.want || got != nil && (got.Flag != acceptLossFlag || !strings.Contains(got.Reason, "b:1 has this cluster's log")) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestDecidesAlone(t *testing.T) {
	server := func(id uint64, role raftlog.Role) raftlog.Server { return raftlog.Server{ID: id, Role: role} }
	node := func(id uint64, role raftlog.Role) member.Member { return member.Member{ID: id, Role: role} }
	for name, test := range map[string]struct {
		servers raftlog.Configuration
		node    member.List
		want    bool
	}{
		"a server without a cluster": {raftlog.Configuration{server(1, raftlog.Voter)}, nil, true},
		"beside others that do not vote": {raftlog.Configuration{server(1, raftlog.Voter), server(2, raftlog.StandBy), server(3, raftlog.Spare)},
			member.List{node(1, raftlog.Voter), node(2, raftlog.StandBy)}, true},
		"one of two":               {raftlog.Configuration{server(1, raftlog.Voter), server(2, raftlog.Voter)}, nil, false},
		"no voter":                 {raftlog.Configuration{server(1, raftlog.Spare)}, nil, false},
		"the other one votes":      {raftlog.Configuration{server(1, raftlog.StandBy), server(2, raftlog.Voter)}, nil, false},
		"not in the log":           {raftlog.Configuration{server(2, raftlog.Voter)}, nil, false},
		"the log has lost its end": {raftlog.Configuration{server(1, raftlog.Voter)}, member.List{node(1, raftlog.Voter), node(2, raftlog.Voter)}, false},
	} {
		if got := decidesAlone(1, test.servers, test.node); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// clusterFiles are the certificates that a member asks others with.
func clusterFiles(t testing.TB, lxd string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	made := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &made, &made, &key.PublicKey, key)
	must(t, err)
	private, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"cluster.crt": certificate, "server.crt": certificate,
		"server.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})} {
		must(t, os.WriteFile(filepath.Join(lxd, name), data, 0o600))
	}
}

// TestRepairMembers repairs members of a cluster: the only voter as a standalone server, one of several if nothing is lost, and with
// --accept-loss, without a start of LXD. Nobody listens at the others' addresses: on this machine that is noticed, elsewhere not.
func TestRepairMembers(t *testing.T) {
	const here, elsewhere = "127.0.0.1:1", "192.0.2.7:8443" // TEST-NET-1: nowhere
	taken := func(o *RepairOptions) { o.At, o.AcceptLoss = 110, true }
	servers := func(role raftlog.Role, other string) (raftlog.Configuration, member.List) {
		return raftlog.Configuration{{ID: 1, Address: "10.0.0.1:8443", Role: raftlog.Voter}, {ID: 2, Address: other, Role: role}},
			member.List{{ID: 1, Name: "n1", Address: "10.0.0.1:8443", Role: raftlog.Voter}, {ID: 2, Name: "n2", Address: other, Role: role}}
	}
	for name, test := range map[string]struct {
		role   raftlog.Role // of the other one
		other  string
		damage damageFunc
		change func(*RepairOptions)
		want   string // refusal
		unsafe bool
		term   uint64
	}{
		"the only voter":          {raftlog.Spare, here, flipEntry111, nil, "", false, repairTerm + 1},
		"nothing lost":            {raftlog.Voter, elsewhere, flipIn(thirdClosed), nil, "", false, repairTerm},
		"unfinished":              {raftlog.Voter, elsewhere, halfBatch, nil, "", false, repairTerm},
		"lost metadata":           {raftlog.Voter, elsewhere, removeFiles("metadata1", "metadata2"), nil, "", false, repairTerm + 1000},
		"lost":                    {raftlog.Voter, elsewhere, flipEntry111, nil, "n1 has lost entries", false, 0},
		"nothing lost, reachable": {raftlog.Voter, here, flipIn(thirdClosed), nil, "other members can be reached: n2 (127.0.0.1:1: the ", false, 0},
		"accepted":                {raftlog.Voter, elsewhere, flipEntry111, func(o *RepairOptions) { o.AcceptLoss = true }, "", true, repairTerm},
		"taken back":              {raftlog.Voter, elsewhere, nil, taken, "n1 is one of several members", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			configuration, members := servers(test.role, test.other)
			lxd := repairDir(t, configuration, members)
			clusterFiles(t, lxd)
			if test.damage != nil {
				test.damage(t, filepath.Join(lxd, databaseName, globalName))
			}

			r, err := repair(t, lxd, test.change)
			if test.want != "" {
				var refusal *Refusal
				if !errors.As(err, &refusal) || !strings.HasPrefix(refusal.Reason, test.want) {
					t.Errorf("%v", err)
				}

				return
			}

			must(t, err)
			unsafe := r.Unsafe != ""
			if r.Metadata.Term != test.term || unsafe != test.unsafe || r.WillStart == test.unsafe || !r.Done || r.Member != members[0] || r.Standalone {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestRepairKeepsMembers refuses to go back to before the member list changed: the database of that time is other members'.
func TestRepairKeepsMembers(t *testing.T) {
	self := member.Member{ID: 1, Name: "n1", Address: "10.0.0.1:8443", Role: raftlog.Voter}
	lxd := repairDir(t, standaloneLog, member.List{self})
	global := filepath.Join(lxd, databaseName, globalName)
	moved := raftlog.Configuration{{ID: 1, Address: self.Address, Role: raftlog.Voter}}
	entry := raftlog.Entry{Term: repairTerm, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(moved)}
	end := endOf(t, global)
	rewrite(openSegment, func(p []byte) []byte { copy(p[end:], raftlog.AppendBatch(nil, entry)); return p })(t, global)
	_, err := repair(t, lxd, func(o *RepairOptions) { o.At = repairEnd })
	wantError(t, err, "the member list has changed since index 126")
	r, err := repair(t, lxd, func(o *RepairOptions) { o.At = repairEnd + 1 })
	if err != nil || !r.NothingToDo {
		t.Errorf("%+v, %v", r, err)
	}
}
