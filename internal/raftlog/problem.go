// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import "fmt"

// Severity says how much a problem matters.
type Severity uint8

// The severities. One Error makes the directory unhealthy.
const (
	Info    Severity = iota // worth knowing: what libdqlite would tidy up, traces of earlier events
	Warning                 // suspicious, but nothing is lost and every libdqlite starts
	Error                   // libdqlite loses something, refuses, crashes, or starts on something wrong
)

func (s Severity) String() string { return [...]string{"info", "warning", "error"}[s] }

// MarshalText makes severities readable in JSON and YAML.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Problem is one finding.
type Problem struct {
	Severity  Severity `json:"severity" yaml:"severity"`
	File      string   `json:"file,omitempty" yaml:"file,omitempty"`   // empty: the directory as a whole
	Offset    int64    `json:"offset" yaml:"offset"`                   // bytes from the start of the file, -1 when it does not apply
	Index     uint64   `json:"index,omitempty" yaml:"index,omitempty"` // raft index of the entry, 0 when it does not apply
	Text      string   `json:"text" yaml:"text"`
	Libdqlite string   `json:"libdqlite" yaml:"libdqlite"` // what libdqlite does about it
	Advice    string   `json:"advice" yaml:"advice"`       // what the operator can do
}

// adviseRepair is what the operator can do about most damage.
const adviseRepair = "`lxd-recover global-db-repair` writes the directory anew, with all that the disk holds; a cluster can recover from another member, too"

func (p Problem) String() string {
	s := p.Severity.String() + ": "
	if p.File != "" {
		s += p.File
		if p.Offset >= 0 {
			s += fmt.Sprintf(" at byte %d", p.Offset)
		}

		s += ": "
	}

	return s + p.Text
}

// Outcome is what libdqlite makes of the directory, the worst over the versions 1.11 to 1.18.
type Outcome uint8

// The outcomes, from good to bad.
const (
	LoadsClean    Outcome = iota // loads, with every entry
	LoadsButLoses                // reports success and has dropped or misplaced entries
	Refuses                      // returns an error
	Crashes                      // takes the process down
)

func (o Outcome) String() string {
	return [...]string{"loads", "loads but loses entries", "refuses", "crashes"}[o]
}

// MarshalText makes outcomes readable in JSON and YAML.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// ActionKind is what happens to a file.
type ActionKind uint8

// The kinds of action.
const (
	Delete ActionKind = iota
	Rename
	Truncate
)

func (k ActionKind) String() string { return [...]string{"delete", "rename", "truncate"}[k] }

// MarshalText makes action kinds readable in JSON and YAML.
func (k ActionKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Action is one change that libdqlite would make to the directory while loading it, in order.
type Action struct {
	Kind ActionKind `json:"kind" yaml:"kind"`
	File string     `json:"file" yaml:"file"`
	To   string     `json:"to,omitempty" yaml:"to,omitempty"`     // of Rename; "<ns>" stands for the time in nanoseconds
	Size int64      `json:"size,omitempty" yaml:"size,omitempty"` // of Truncate, bytes
}

func (a Action) String() string {
	switch a.Kind {
	case Rename:
		return fmt.Sprintf("rename %s to %s", a.File, a.To)
	case Truncate:
		return fmt.Sprintf("truncate %s to %d bytes", a.File, a.Size)
	}

	return "delete " + a.File
}

// maxProblems bounds the list: a hostile directory can hold a million of them.
const maxProblems = 1000

// problemList collects problems up to that bound. It also keeps count of the errors it had to leave out, so that health does not depend
// on the bound.
type problemList struct {
	list    []Problem
	errors  int
	dropped int
}

func (pl *problemList) add(p Problem) {
	if p.Severity == Error {
		pl.errors++
	}

	if len(pl.list) >= maxProblems {
		pl.dropped++
		return
	}

	pl.list = append(pl.list, p)
}

// result returns the list, with a last line for what was left out.
func (pl *problemList) result() []Problem {
	if pl.dropped > 0 {
		return append(pl.list, Problem{Severity: Error, Offset: -1,
			Text:      fmt.Sprintf("%d more problems", pl.dropped),
			Libdqlite: "as above", Advice: "as above"})
	}

	return pl.list
}
