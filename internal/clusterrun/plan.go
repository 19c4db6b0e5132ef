// SPDX-License-Identifier: AGPL-3.0-only

// Package clusterrun recovers a whole cluster in one run, from one machine: every member is looked at, stopped, given the same database and
// started, all of them or none. What happens on a member is its agent's (package agent); this package decides, asks and keeps the order.
//
// MakePlan looks and decides, and stops nothing. Apply carries a plan out. Resume finishes what was cut off, or takes it back, and Undo takes all
// members back to before a run. In which order the phases follow, and why each point is safe at which they can be cut off, is told in
// docs/architecture.md.
package clusterrun

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// PlanFile is the name of a plan's file if the user gives none.
const PlanFile = "recovery-plan.yaml"

const planFormat = 1

// maxPlan bounds what is read of a plan, in bytes.
const maxPlan = 4 << 20

// Plan is what a run does, and what was seen when it was decided. It can be kept, read by somebody else, and applied later: what has changed since
// then is noticed.
type Plan struct {
	Format  int       `json:"format" yaml:"format"`
	ID      string    `json:"id" yaml:"id"` // of the run
	Created time.Time `json:"created" yaml:"created"`
	Version string    `json:"version" yaml:"version"` // of lxd-recover
	Giver   string    `json:"giver" yaml:"giver"`     // the machine that it was made on

	// From is the name of the member whose database all get. Reason says why, Certain that it has all that the cluster has ever confirmed; else
	// Doubt says what cannot be known.
	From    string `json:"from" yaml:"from"`
	Reason  string `json:"reason" yaml:"reason"`
	Certain bool   `json:"certain" yaml:"certain"`
	Doubt   string `json:"doubt,omitempty" yaml:"doubt,omitempty"`

	// Source is the name of a kept database of From that all get in place of the one in force: the run takes the cluster back to it. Undoes is the
	// id of the run that is undone by this one, UndoesSQL what that one had LXD run on its database.
	Source    string `json:"source,omitempty" yaml:"source,omitempty"`
	Undoes    string `json:"undoes,omitempty" yaml:"undoes,omitempty"`
	UndoesSQL string `json:"undoes_sql,omitempty" yaml:"undoes_sql,omitempty"`

	Move    bool `json:"move" yaml:"move"`         // the cluster works, and is to be given new addresses
	NoStart bool `json:"no_start" yaml:"no_start"` // LXD stays down in the end

	Members []Member `json:"members" yaml:"members"` // in the order of their ids

	SQL      string   `json:"sql,omitempty" yaml:"sql,omitempty"` // that runs on the new database when LXD starts
	Losses   []Loss   `json:"losses" yaml:"losses"`               // what members have, and the database that all get lacks
	Warnings []string `json:"warnings" yaml:"warnings"`
}

// Member is one member of the cluster, as the plan has seen it and as it will be.
type Member struct {
	ID   uint64 `json:"id" yaml:"id"`
	Name string `json:"name" yaml:"name"`

	// Host is where ssh reaches it; empty for the machine that the run is given on. Lost says that it is lost, and not part of the run.
	Host string `json:"host" yaml:"host"`
	Lost bool   `json:"lost" yaml:"lost"`

	Address    string `json:"address" yaml:"address"` // so far
	NewAddress string `json:"new_address" yaml:"new_address"`
	Role       string `json:"role" yaml:"role"` // so far
	NewRole    string `json:"new_role" yaml:"new_role"`

	Seen *Seen `json:"seen" yaml:"seen"` // null for a lost one
}

// Seen is what was found on a member.
type Seen struct {
	Machine   string `json:"machine" yaml:"machine"`         // host name
	Boot      string `json:"boot_id" yaml:"boot_id"`         // of the kernel
	Cluster   string `json:"certificate" yaml:"certificate"` // SHA-256 of the cluster certificate
	Index     uint64 `json:"index" yaml:"index"`             // last entry of its log; 0 on a spare that has none
	Term      uint64 `json:"term" yaml:"term"`               // of that entry
	Checksum  string `json:"checksum" yaml:"checksum"`       // of that entry
	Healthy   bool   `json:"healthy" yaml:"healthy"`
	LXD       string `json:"lxd" yaml:"lxd"`         // version that is installed; empty if it is not known
	Daemon    string `json:"daemon" yaml:"daemon"`   // in words
	Up        bool   `json:"up" yaml:"up"`           // LXD runs
	Service   string `json:"service" yaml:"service"` // what starts it
	Instances int    `json:"instances" yaml:"instances"`
	Volumes   int    `json:"volumes" yaml:"volumes"`
}

// Loss is what one member has and the others will not get.
type Loss struct {
	Member string   `json:"member" yaml:"member"`
	Count  string   `json:"count" yaml:"count"` // in words: changes by users, and by LXD itself
	Lines  []string `json:"lines" yaml:"lines"` // one a transaction, in words
}

// List is the new member list.
func (p *Plan) List() (member.List, error) {
	list := make(member.List, len(p.Members))
	for i, m := range p.Members {
		role, err := raftlog.ParseRole(m.NewRole)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", m.Name, err)
		}

		list[i] = member.Member{ID: m.ID, Name: m.Name, Address: m.NewAddress, Role: role}
	}

	return list, list.Validate()
}

// Lost are the names of the members that are lost.
func (p *Plan) Lost() []string {
	names := []string{}
	for _, m := range p.Members {
		if m.Lost {
			names = append(names, m.Name)
		}
	}

	return names
}

// without is the plan with more members that are lost: since the run began.
func (p *Plan) without(lost []string) (*Plan, error) {
	less := *p
	less.Members = slices.Clone(p.Members)
	for _, name := range lost {
		m := less.member(name)
		if m == nil {
			return nil, fmt.Errorf("--lost %s: the run has no such member: it has %s", name, strings.Join(namesOfPlan(p), ", "))
		}

		m.Lost = true
	}

	return &less, nil
}

func namesOfPlan(p *Plan) (names []string) {
	for _, m := range p.Members {
		names = append(names, m.Name)
	}

	return names
}

// member finds one by its name.
func (p *Plan) member(name string) *Member {
	for i := range p.Members {
		if p.Members[i].Name == name {
			return &p.Members[i]
		}
	}

	return nil
}

// Marshal is the plan as YAML.
func (p *Plan) Marshal() ([]byte, error) {
	p.Format = planFormat
	return yaml.Marshal(p)
}

// header says in a plan's file what it is.
const header = `# A plan of lxd-recover for the whole cluster. It was made on %s at %s.
# Nothing has been stopped or changed by it. Read it, and then, on a machine that reaches the members:
#
#   lxd-recover cluster recover apply %s
#
# --plan-id %s makes sure that it is this plan.
# Once it was carried out, the same file goes to verify, resume and undo.
#
# What is edited here is carried out as it stands. Names of members and ids cannot be changed.

`

// Write writes the plan to a file that only its owner can read, all or nothing: it has members' addresses and users' changes.
func (p *Plan) Write(path string) error {
	data, err := p.Marshal()
	if err != nil {
		return err
	}

	head := fmt.Sprintf(header, comment(p.Giver), p.Created.Format(time.RFC3339), comment(printable.Word(path)), p.ID)
	return swapdir.WriteFile(path, append([]byte(head), data...))
}

// comment is a text that stays in its line of a comment.
func comment(text string) string { return printable.Line(text) }

// ReadPlan reads a plan from a file.
func ReadPlan(path string) (*Plan, error) {
	f, err := newfile.Open(path)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	data, err := io.ReadAll(io.LimitReader(f, maxPlan+1))
	if err == nil && len(data) > maxPlan {
		err = errors.New("it is too large")
	}

	var p *Plan
	if err == nil {
		p, err = ParsePlan(data)
	}

	if err != nil {
		return nil, fmt.Errorf("%s is no plan of lxd-recover: %w", path, err)
	}

	return p, nil
}

// ParsePlan reads a plan, and checks that it can be one.
func ParsePlan(data []byte) (*Plan, error) {
	p := &Plan{}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	err := decoder.Decode(p)
	if err != nil {
		return nil, err
	}

	if p.Format != planFormat {
		return nil, fmt.Errorf("its format is %d, and only %d is known", p.Format, planFormat)
	}

	_, err = p.List()
	for _, m := range p.Members {
		err = cmp.Or(err, checkName(m.Name))
	}

	if err == nil && !bundle.IsRun(p.ID) { // files are named by it
		err = fmt.Errorf("%q is no id of a run", p.ID)
	}

	if err == nil && (p.ID == "" || p.member(p.From) == nil || p.member(p.From).Lost) {
		err = errors.New("it does not say which member's database all get")
	}

	return p, err
}
