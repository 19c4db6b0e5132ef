// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// CompareOptions say what to compare.
type CompareOptions struct {
	Sources   []string // as the commands take them, or saved reports of Inspect
	Survivors string   // directory for the sources' reports; empty for none
	Database  string   // whose rows are compared, where there are several
	Progress  Progress
}

// CompareReport is what comparing several members' databases found out. Sources are named by their labels.
type CompareReport struct {
	Sources []CompareSource `json:"sources" yaml:"sources"`

	Recommendation *Recommendation `json:"recommendation" yaml:"recommendation"` // null where there is none
	Refusal        *CompareRefusal `json:"refusal" yaml:"refusal"`               // why there is none

	// Certain says that the recommended source holds every change that the cluster has ever confirmed, as far as a recovery has not given
	// it up. Doubt says why that cannot be known, where a source is recommended all the same; else it is null.
	Certain bool            `json:"certain" yaml:"certain"`
	Doubt   *CompareRefusal `json:"doubt" yaml:"doubt"`

	Preferred []string        `json:"preferred_by_raft" yaml:"preferred_by_raft"` // the sources whose log an election would prefer
	Longest   []string        `json:"longest" yaml:"longest"`                     // the sources that hold most, their ends in doubt or not
	Common    uint64          `json:"common_index" yaml:"common_index"`           // up to it, all logs are the same
	Branches  []CompareBranch `json:"branches" yaml:"branches"`
	Gaps      []CompareGap    `json:"gaps" yaml:"gaps"`
	Committed uint64          `json:"committed_index" yaml:"committed_index"` // up to it, the preferred log was committed for certain
	Uncertain []CompareRun    `json:"uncertain" yaml:"uncertain"`
	Voters    []CompareVoter  `json:"voters" yaml:"voters"` // of the configuration in force at the end of the preferred log
	Rows      []CompareRows   `json:"rows" yaml:"rows"`     // by which the sources differ from the preferred one
	Survivors []string        `json:"survivor_files,omitempty" yaml:"survivor_files,omitempty"`
}

// CompareSource is one of the sources.
type CompareSource struct {
	Label     string    `json:"label" yaml:"label"` // the member's name where that is enough, else as it was given
	Source    string    `json:"source" yaml:"source"`
	Kind      string    `json:"kind" yaml:"kind"`
	Time      time.Time `json:"time" yaml:"time"` // of which it is; UTC
	Copy      bool      `json:"copy" yaml:"copy"` // it does not tell where the member's log ended
	Signature `yaml:",inline"`

	Product string `json:"product,omitempty" yaml:"product,omitempty"` // as in InspectReport

	Member   *InspectMember `json:"member" yaml:"member"`
	Role     string         `json:"role,omitempty" yaml:"role,omitempty"` // in the configuration in force, of the preferred log
	Raft     InspectRaft    `json:"raft" yaml:"raft"`
	End      raftPosition   `json:"end" yaml:"end"` // the last entry without recovery entries added since
	Healthy  bool           `json:"healthy" yaml:"healthy"`
	Problems []string       `json:"problems" yaml:"problems"` // the errors among them
	Gap      bool           `json:"gap" yaml:"gap"`           // entries are missing in it, see CompareReport.Gaps

	// Machine is the one that the source was read on, null where that is not known. Schema is that of the database, 0 where it is not.
	Machine *InspectMachine `json:"machine" yaml:"machine"`
	Schema  int             `json:"schema_version" yaml:"schema_version"`

	RunningDaemon string `json:"torn,omitempty" yaml:"torn,omitempty"`

	report bool // a saved one: there is no database
	here   bool // this machine's LXD
}

type raftPosition = survivor.Position

// Recommendation is the member to recover from.
type Recommendation struct {
	Label  string   `json:"label" yaml:"label"`
	Source string   `json:"source" yaml:"source"`
	Same   []string `json:"same" yaml:"same"` // other sources with the very same log
	Reason string   `json:"reason" yaml:"reason"`
	Chosen string   `json:"chosen,omitempty" yaml:"chosen,omitempty"` // why it is this one of those with the same log
}

// CompareRefusal says why nothing is recommended.
type CompareRefusal struct {
	Verdict survivor.Verdict `json:"verdict" yaml:"verdict"`
	Reason  string           `json:"reason" yaml:"reason"`
}

// CompareBranch is where logs leave the preferred one.
type CompareBranch struct {
	Index         uint64   `json:"index" yaml:"index"`
	OrBefore      bool     `json:"or_before" yaml:"or_before"` // a snapshot hides where exactly
	PreferredTerm uint64   `json:"preferred_term" yaml:"preferred_term"`
	Term          uint64   `json:"term" yaml:"term"`
	Sources       []string `json:"sources" yaml:"sources"`
}

// CompareGap is a place in a log at which files are missing: the entries after it are those of another one, at too low indexes.
type CompareGap struct {
	Source string `json:"source" yaml:"source"`
	First  uint64 `json:"first" yaml:"first"` // missing index
	Last   uint64 `json:"last" yaml:"last"`
	From   string `json:"from" yaml:"from"` // the source that has them
}

// CompareRun is a run of entries that were not committed for certain.
type CompareRun struct {
	First   raftPosition `json:"first" yaml:"first"`
	Last    raftPosition `json:"last" yaml:"last"`
	Sources []string     `json:"sources" yaml:"sources"`
	Holding int          `json:"voters_holding" yaml:"voters_holding"`
	Voters  int          `json:"voters" yaml:"voters"`
	Never   bool         `json:"never_committed" yaml:"never_committed"`
}

// CompareVoter is a voter whose log counts.
type CompareVoter struct {
	member.Member `yaml:",inline"`
	Seen          bool `json:"seen" yaml:"seen"` // its log was given, and its end is beyond doubt
}

// Compare compares the databases of several members and recommends the one to recover from. It changes nothing.
func Compare(ctx context.Context, opts CompareOptions) (*CompareReport, error) {
	c := comparison{opts: opts, addresses: map[uint64]string{}}
	c.report = &CompareReport{Branches: []CompareBranch{}, Gaps: []CompareGap{}, Uncertain: []CompareRun{},
		Rows: []CompareRows{}, Preferred: []string{}, Longest: []string{}}
	for _, source := range opts.Sources {
		err := c.read(ctx, source)
		if err != nil {
			for _, file := range c.report.Survivors { // all of them or none
				_ = os.Remove(file)
			}

			return nil, err
		}
	}

	c.label()
	c.result = survivor.Compare(c.logs)
	c.positions()
	c.decide()
	return c.report, c.rows(ctx)
}

// comparison is the work on one report.
type comparison struct {
	opts  CompareOptions
	logs  []*survivor.Log
	names member.List // of all members that any source names

	addresses map[uint64]string // of members of an application that knows no names

	last   []lastTransactions
	result survivor.Result
	report *CompareReport
}

// label names the sources: by member, and by path where two are of one member or it is not known.
func (c *comparison) label() {
	count := map[string]int{}
	for _, s := range c.report.Sources {
		count[s.memberName()]++
	}

	for i := range c.report.Sources {
		s := &c.report.Sources[i]
		s.Label = s.Source
		if name := s.memberName(); name != "" {
			s.Label = name
			if count[s.Label] > 1 {
				s.Label += " (" + s.Source + ")"
			}
		}
	}
}

// memberName is the name of the member that a source is of; the address, where the application knows no names. It is empty if the member is not known.
func (s *CompareSource) memberName() string {
	switch {
	case s.Member == nil:
		return ""
	case !product.IsApplication(s.Product):
		return s.Member.Name
	}

	return cmp.Or(s.Member.Name, s.Member.Address)
}

func (c *comparison) labels(indexes []int) []string {
	labels := []string{}
	for _, i := range indexes {
		labels = append(labels, c.report.Sources[i].Label)
	}

	return labels
}

func (c *comparison) name(id uint64) string {
	m, ok := c.names.ByID(id)
	if !ok || m.Name == "" {
		address, ok := c.addresses[id]
		if ok {
			return address
		}

		return fmt.Sprintf("member %d", id)
	}

	return m.Name
}

// positions fills in what the logs alone tell.
func (c *comparison) positions() {
	r, result := c.report, c.result
	r.Preferred, r.Longest, r.Common, r.Committed = c.labels(result.Best), c.labels(result.Longest), result.Common, result.Committed
	for _, m := range namedServers(result.Configuration, c.names) {
		if m.Role == raftlog.Voter {
			r.Voters = append(r.Voters, CompareVoter{Member: m, Seen: slices.Contains(result.Seen, m.ID)})
		}

		for i, s := range r.Sources {
			if s.Member != nil && s.Member.ID == m.ID {
				r.Sources[i].Role = m.Role.String()
			}
		}
	}

	for i := range r.Sources {
		r.Sources[i].End = result.Ends[i]
	}

	for _, b := range result.Branches {
		r.Branches = append(r.Branches, CompareBranch{Index: b.Index, OrBefore: b.Hidden, PreferredTerm: b.BestTerm, Term: b.Term, Sources: c.labels(b.Logs)})
	}

	for _, g := range result.Gaps {
		r.Sources[g.Log].Gap = true
		r.Gaps = append(r.Gaps, CompareGap{Source: r.Sources[g.Log].Label, First: g.Index, Last: g.Index + g.Entries - 1, From: r.Sources[g.From].Label})
	}

	for _, t := range result.Tails {
		r.Uncertain = append(r.Uncertain, CompareRun{First: t.First, Last: t.Last, Sources: c.labels(t.Logs), Holding: len(t.Voters), Voters: len(r.Voters),
			Never: t.Never})
	}
}
