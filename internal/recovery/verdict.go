// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
)

// ClusterVerdict is the judgement over all members that could be read, and those that could not: is this one cluster, complete, from one
// recovery, with a leader, all addresses agreeing, nothing pending, the rows as exported and the same everywhere?
type ClusterVerdict struct {
	Good bool   `json:"good" yaml:"good"`
	Line string `json:"line" yaml:"line"` // one sentence for a person

	// Transient is true if all that is not good may be so for a moment only, such as a member that has not caught up yet.
	Transient bool `json:"transient" yaml:"transient"`

	Leader string          `json:"leader,omitempty" yaml:"leader,omitempty"` // name, where LXD tells
	Term   uint64          `json:"term" yaml:"term"`                         // the leader's current term; 0 where it is not known
	Run    string          `json:"run,omitempty" yaml:"run,omitempty"`       // id of the recovery
	Fence  bundle.Position `json:"fence" yaml:"fence"`                       // its entry; 0 where no recovery is known
	At     uint64          `json:"at" yaml:"at"`                             // up to it, all rows are the same; 0 where that is not known

	Findings []VerdictFinding `json:"findings" yaml:"findings"` // the worst first, notes last
}

// VerdictFinding is one thing that was found.
type VerdictFinding struct {
	Code   string `json:"code" yaml:"code"`                         // a few words in lower case with hyphens, for programs
	Member string `json:"member,omitempty" yaml:"member,omitempty"` // name of the member that it is about; empty if about none in particular
	Text   string `json:"text" yaml:"text"`
	Note   bool   `json:"note" yaml:"note"` // it is worth knowing, and nothing is wrong
}

// What a finding comes to, the worst first. The text is how the line begins with it.
const (
	isSplit = iota
	isApart
	isUnknown
	isBroken
	isFaulty
	isNote
)

var lineBegins = [...]string{"Split", "Not one cluster", "Whether this is one cluster cannot be told", "One cluster that does not work as a whole",
	"One cluster that is not in order", ""}

// findingKinds are the codes of all findings: how bad each is, and whether it may pass by itself.
var findingKinds = map[string]struct {
	weight    int
	transient bool
}{
	"split-recoveries": {weight: isSplit}, // each of two sides has a recovery that the other one lacks
	"split-leaders":    {weight: isSplit}, // each of two sides has a leader, and they have gone on apart

	"standalone":        {weight: isApart},
	"other-cluster":     {weight: isApart},                  // another cluster certificate
	"other-recovery":    {weight: isApart},                  // another run
	"without-recovery":  {weight: isApart, transient: true}, // no recovery entry
	"snapshot-beyond":   {weight: isApart},                  // nor will it ever get one
	"log-apart":         {weight: isApart, transient: true}, // it has other entries than the others
	"not-in-cluster":    {weight: isApart},                  // read, and in no raft configuration
	"member-gone":       {weight: isApart},                  // expected, and in no raft configuration
	"rows-not-exported": {weight: isApart},                  // other rows at the recovery entry than the tarball
	"rows-differ":       {weight: isApart},                  // other rows than the others

	"not-reached":      {weight: isUnknown},
	"no-configuration": {weight: isUnknown},
	"unknown-member":   {weight: isUnknown},
	"read-twice":       {weight: isUnknown},
	"recovery-untold":  {weight: isUnknown},
	"rows-untold":      {weight: isUnknown, transient: true},

	"lxd-down":              {weight: isBroken},
	"no-answer":             {weight: isBroken, transient: true},
	"no-leader":             {weight: isBroken, transient: true},
	"leaders-differ":        {weight: isBroken, transient: true},
	"stands-still":          {weight: isBroken},
	"not-caught-up":         {weight: isBroken, transient: true},
	"configuration-differs": {weight: isBroken, transient: true},
	"offline":               {weight: isBroken, transient: true},

	"address-local":   {weight: isFaulty, transient: true}, // raft_nodes in local.db, which LXD's heartbeats bring up to date
	"address-cluster": {weight: isFaulty},                  // cluster.https_address in local.db
	"address-raft":    {weight: isFaulty},                  // raft's configuration
	"address-nodes":   {weight: isFaulty},                  // the table nodes
	"address-listed":  {weight: isFaulty, transient: true}, // LXD's own list
	"pending":         {weight: isFaulty},
	"open-run":        {weight: isFaulty},
	"problem":         {weight: isFaulty},

	"no-record":       {weight: isNote}, // but the recovery entry
	"older-record":    {weight: isNote},
	"no-recovery":     {weight: isNote}, // nowhere
	"fence-untold":    {weight: isNote}, // the rows at the recovery entry
	"member-added":    {weight: isNote},
	"versions-differ": {weight: isNote},
}

// judge is a judgement under way.
type judge struct {
	states   []MemberState
	expected Expected
	verdict  *ClusterVerdict
	made     time.Time // the recovery

	aboard []*MemberState // of the cluster, and with its recovery
	best   *MemberState   // the one of them whose log an election would prefer; nil if there is none
	spares map[uint64]bool
}

// JudgeCluster judges the states of a cluster's members, which were read at about the same time. For a good verdict they have to be read
// with what CompareAt says of an earlier look.
func JudgeCluster(states []MemberState, expected Expected) *ClusterVerdict {
	j := &judge{states: states, expected: expected, verdict: &ClusterVerdict{Run: expected.Run, Findings: []VerdictFinding{}}}
	j.verdict.Fence, j.made = reference(states, expected)
	for _, s := range states {
		if s.recovered() && s.Record.Raft == j.verdict.Fence && j.verdict.Run == "" {
			j.verdict.Run = s.Record.Run
		}
	}

	ours := j.identities()
	j.recoveries(ours)
	j.best = bestOf(j.aboard)
	j.spares = sparesIn(j.best)
	j.logs()
	j.complete()
	j.leaders(ours)
	j.progress()
	j.configurations()
	j.addresses()
	j.lists()
	j.rows()
	j.leftovers()
	j.conclude()
	return j.verdict
}

// find adds a finding.
func (j *judge) find(code string, name string, format string, args ...any) {
	kind, known := findingKinds[code]
	if !known {
		panic("no kind of finding: " + code)
	}

	j.verdict.Findings = append(j.verdict.Findings, VerdictFinding{Code: code, Member: name, Text: fmt.Sprintf(format, args...), Note: kind.weight == isNote})
}

// found tells whether there is a finding of that kind.
func (j *judge) found(code string) bool {
	return slices.ContainsFunc(j.verdict.Findings, func(f VerdictFinding) bool { return f.Code == code })
}

// conclude puts the findings in order and says in a line what they come to.
func (j *judge) conclude() {
	v := j.verdict
	slices.SortStableFunc(v.Findings, func(a, b VerdictFinding) int { return findingKinds[a.Code].weight - findingKinds[b.Code].weight })
	bad := 0
	v.Transient = true
	for _, f := range v.Findings {
		if !f.Note {
			bad++
			v.Transient = v.Transient && findingKinds[f.Code].transient
		}
	}

	v.Good, v.Transient = bad == 0, v.Transient && bad > 0
	if v.Good {
		v.Line = j.goodLine()
		return
	}

	first := v.Findings[0]
	v.Line = lineBegins[findingKinds[first.Code].weight] + ": " + first.Text
	if bad > 1 {
		v.Line += fmt.Sprintf("; and %d more", bad-1)
	}

	v.Line += "."
}

// goodLine is the line where nothing is wrong.
func (j *judge) goodLine() string {
	v := j.verdict
	line := fmt.Sprintf("One cluster of %s, complete, ", count(len(j.aboard), "member"))
	if lost := j.lost(); len(lost) > 0 {
		line = fmt.Sprintf("One cluster of %s, complete but for the lost %s, ", count(len(j.aboard), "member"), strings.Join(lost, ", "))
	}

	if v.Fence == (bundle.Position{}) {
		line += "of which no recovery is known"
	} else {
		line += j.recovery()
	}

	who := "all have"
	if j.replicas() < len(j.aboard) {
		who = "all voters and stand-bys have"
	}

	return line + fmt.Sprintf(": %s the same rows up to index %d.", who, v.At)
}

// recovery names the recovery that is judged by.
func (j *judge) recovery() string {
	text := recoveryName(j.verdict.Run, j.verdict.Fence)
	if !j.made.IsZero() {
		text += " of " + j.made.UTC().Format(time.DateOnly)
	}

	return text
}

// recoveryName names a recovery by the id of the run, or, in a record of an earlier version that has none, by its entry.
func recoveryName(run string, fence bundle.Position) string {
	if run == "" {
		return fmt.Sprintf("from the recovery with the entry at %s", fence)
	}

	return fmt.Sprintf("from recovery %.8s…", run)
}

// count is a number of things.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}

	return fmt.Sprintf("%d %ss", n, what)
}

// replicas is how many members of the cluster raft sends its log to.
func (j *judge) replicas() int {
	n := 0
	for _, s := range j.aboard {
		if !j.isSpare(s) {
			n++
		}
	}

	return n
}

func (j *judge) isSpare(s *MemberState) bool { return s.Member != nil && j.spares[s.Member.ID] }

// lost are the names of the members in the raft configuration that are known to be lost.
func (j *judge) lost() []string {
	var names []string
	for _, m := range j.members() {
		if j.isLost(m) {
			names = append(names, m.Name)
		}
	}

	return names
}

func (j *judge) isLost(m member.Member) bool { return slices.Contains(j.expected.Lost, m.Name) }

// members are the members of the raft configuration in force, with the names that any of the members knows, and the addresses that they
// are to have.
func (j *judge) members() member.List {
	if j.best == nil {
		return nil
	}

	list := slices.Clone(j.best.Members)
	for i := range list {
		m := &list[i]
		known, ok := j.expected.Members.ByID(m.ID)
		if ok {
			m.Name, m.Address = known.Name, known.Address
		}

		for _, s := range j.aboard {
			if m.Name == "" {
				named, _ := s.Members.ByID(m.ID)
				m.Name = named.Name
			}
		}

		if m.Name == "" {
			m.Name = fmt.Sprintf("member %d", m.ID)
		}
	}

	return list
}
