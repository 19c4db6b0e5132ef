// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// verdictLab are the directories of three members of a cluster, which was recovered from a tarball of the first one, and has gone on.
type verdictLab struct {
	signed   signedLab
	dirs     [3]directory
	old      [3]string // the databases before the import
	expected Expected
	states   []MemberState // of an LXD that runs on each
}

func newVerdictLab(t *testing.T) *verdictLab {
	t.Helper()
	l := &verdictLab{signed: newSignedLab(t)}
	var err error
	l.expected, err = ExpectedOf(t.Context(), l.signed.tarball, Progress{})
	must(t, err)
	certificates, err := openFixture(t, "small/n2-preimport").Certificates(t.Context())
	must(t, err)
	for i, name := range []string{"n1-afteredit", "n2-preimport", "n3-preimport"} {
		l.dirs[i], l.old[i] = directory{t.TempDir()}, filepath.Join(raftlogtest.Fixtures(t), "small", name, databaseName)
		must(t, os.CopyFS(l.dirs[i].database(), os.DirFS(l.old[i])))
		for _, file := range []string{clusterCertificateName, "cluster.key"} {
			data, err := os.ReadFile(l.signed.dir.join(file))
			must(t, err)
			must(t, os.WriteFile(l.dirs[i].join(file), data, 0o600))
		}

		own := slices.IndexFunc(certificates, func(c globaldb.Certificate) bool { return c.Name == nodeName(i) })
		must(t, os.WriteFile(l.dirs[i].join(serverCertificateName), []byte(certificates[own].PEM), 0o600))
		l.importOn(t, l.dirs[i], l.signed.tarball)
		l.goOn(t, l.dirs[i])
	}

	c := CompareAt(l.read(t, MemberStateOptions{Outline: true}), l.expected)
	l.states = l.read(t, MemberStateOptions{Fence: c.Fence, At: c.At})
	l.expected.Reached = c.Reached
	return l
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i+1) }

func (l *verdictLab) importOn(t *testing.T, dir directory, tarball string) {
	t.Helper()
	lab := l.signed.lostLab
	lab.dir, lab.tarball = dir, tarball
	_, err := lab.importDB(t.Context(), func(o *ImportOptions) { o.Unsigned, o.DiscardLocal = false, true })
	must(t, err)
}

// goOn does what LXD does on a member that starts: it runs the patch.
func (l *verdictLab) goOn(t *testing.T, dir directory) {
	t.Helper()
	must(t, os.Remove(filepath.Join(dir.database(), patchName)))
	on(dir).transact(t, "UPDATE nodes SET address = replace(address, '8443', '9393')")
}

// on is a lab that changes a member's log.
func on(dir directory) stateLab { return stateLab{lostLab{dir: dir}} }

// read reads all members, as if LXD ran on all.
func (l *verdictLab) read(t *testing.T, opts MemberStateOptions) []MemberState {
	t.Helper()
	var states []MemberState
	for i, dir := range l.dirs {
		opts.LXDDir = dir.path
		s, err := ReadMemberState(t.Context(), opts)
		must(t, err)
		if s.Running || s.Daemon != "not running" || s.Listed != nil || s.ListedUntold != "LXD does not run" {
			t.Fatalf("%s: %v, %q, %v, %q", nodeName(i), s.Running, s.Daemon, s.Listed, s.ListedUntold)
		}

		s.Running, s.Daemon, s.ListedUntold = true, "running", ""
		for k := range l.dirs {
			s.Listed = append(s.Listed, daemon.ListedMember{Name: nodeName(k), Address: newAddressOf(k), Status: "Online",
				Message: "Fully operational", Leader: k == 0})
		}

		states = append(states, *s)
	}

	return states
}

func newAddressOf(i int) string { return fmt.Sprintf("10.96.6.10%d:9393", i+1) }

// again gives the third member a copy of its directory, which change may break, and returns what is read of all then.
func (l *verdictLab) again(t *testing.T, change func(t *testing.T, dir directory)) []MemberState {
	t.Helper()
	broken := *l
	broken.dirs[2] = directory{t.TempDir()}
	must(t, os.CopyFS(broken.dirs[2].path, os.DirFS(l.dirs[2].path)))
	change(t, broken.dirs[2])
	c := CompareAt(broken.read(t, MemberStateOptions{Outline: true}), l.expected)
	return broken.read(t, MemberStateOptions{Fence: c.Fence, At: c.At})
}

// values are copies of the states, of which one is changed without its directory.
func (l *verdictLab) values(t *testing.T, change func(states []MemberState)) []MemberState {
	t.Helper()
	data, err := json.Marshal(l.states)
	must(t, err)
	var states []MemberState
	must(t, json.Unmarshal(data, &states))
	change(states)
	return states
}

// A recovered cluster is good, whether the recovery is known or only the members' own records tell of it; the state survives its way.
func TestVerdictGood(t *testing.T) {
	l := newVerdictLab(t)
	if travelled := l.values(t, func([]MemberState) {}); !reflect.DeepEqual(travelled, l.states) {
		t.Errorf("as JSON: %+v\nwas %+v", travelled, l.states)
	}

	one := l.states[0]
	fence := bundle.Position{Index: 128, Term: 1 << 33}
	if one.Member.Name != "node1" || one.Record.Raft != fence || one.Raft.LastIndex != 129 || one.ClusterAddress != newAddressOf(0) ||
		one.Cluster != l.signed.fingerprint || one.Has(fence) != Has || one.RowsAtFence.Position != fence || one.RowsAt.Position.Index != 129 {
		t.Errorf("state %+v", one)
	}

	if row := one.Addresses[1]; row != (AddressRow{ID: 2, Name: "node2", Local: newAddressOf(1), Raft: newAddressOf(1), Nodes: newAddressOf(1)}) {
		t.Errorf("addresses %+v", row)
	}

	day := one.Record.Made.UTC().Format(time.DateOnly)
	want := fmt.Sprintf("One cluster of 3 members, complete, from recovery %.8s… of %s: all have the same rows up to index 129.", l.expected.Run, day)
	for name, e := range map[string]Expected{"as exported": l.expected, "alone": {}, "by the run": {Run: l.expected.Run}} {
		v := JudgeCluster(l.states, e)
		if !v.Good || v.Transient || v.Line != want || len(v.Findings) != 0 ||
			v.Leader != "node1" || v.At != 129 || v.Fence != fence || v.Run != l.expected.Run {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// wantFinding checks that a verdict has a finding about a member, and that no other one is worse. It returns the verdict's line.
func wantFinding(t *testing.T, v *ClusterVerdict, code string, name string) {
	t.Helper()
	i := slices.IndexFunc(v.Findings, func(f VerdictFinding) bool { return f.Code == code && f.Member == name })
	note := findingKinds[code].weight == isNote
	if i < 0 || v.Good != note || !note && findingKinds[v.Findings[0].Code].weight < findingKinds[code].weight || v.Findings[i].Note != note {
		t.Errorf("want %s of %q: %+v", code, name, v)
	}

	t.Log(v.Line)
}

// No record anywhere, as after LXD's own recovery: one cluster all the same, and nothing is said of a recovery.
func TestVerdictWithoutRecovery(t *testing.T) {
	l := newVerdictLab(t)
	states := l.values(t, func(states []MemberState) {
		for i := range states {
			states[i].Record = nil
		}
	})
	v := JudgeCluster(states, Expected{})
	wantFinding(t, v, "no-recovery", "")
	if v.Line != "One cluster of 3 members, complete, of which no recovery is known: all have the same rows up to index 129." {
		t.Errorf("line %q", v.Line)
	}
}

// The rows are compared at the lowest end of those that have the recovery entry, but for spares.
func TestCompareAt(t *testing.T) {
	l := newVerdictLab(t)
	fence := bundle.Position{Index: 128, Term: 1 << 33}
	for name, test := range map[string]struct {
		change func(states []MemberState)
		want   Comparison
	}{
		"all alike": {func([]MemberState) {}, Comparison{fence, 129, 129}},
		"one ahead": {func(states []MemberState) { states[1].Raft.LastIndex = 140 }, Comparison{fence, 129, 140}},
		"one lags":  {func(states []MemberState) { states[1].Raft.LastIndex = 128 }, Comparison{fence, 128, 129}},
		"one without the recovery": {func(states []MemberState) {
			states[1].Raft.Terms, states[1].Raft.LastIndex = states[1].Raft.Terms[:1], 100
		}, Comparison{fence, 129, 129}},
		"a spare": {func(states []MemberState) {
			for i := range states {
				states[i].Members[1].Role = raftlog.Spare
			}

			states[1].Raft.LastIndex = 128
		}, Comparison{fence, 129, 129}},
		"no record": {func(states []MemberState) {
			for i := range states {
				states[i].Record = nil
			}
		}, Comparison{At: 129, Reached: 129}},
		"a repair since": {func(states []MemberState) {
			states[0].Record = &Record{Purpose: purposeRepair, Raft: bundle.Position{Index: 129, Term: 1 << 33}}
		}, Comparison{fence, 129, 129}},
	} {
		states := l.values(t, test.change)
		if got := CompareAt(states, Expected{}); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
