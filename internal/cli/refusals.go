// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// refusal is a refusal as programs read it.
type refusal struct {
	Code    string               `json:"code" yaml:"code"`       // stays when the reason is worded anew
	Flag    string               `json:"flag" yaml:"flag"`       // that overrides; empty if none does
	Member  string               `json:"member" yaml:"member"`   // that it is about; empty if it is about none in particular
	Reason  string               `json:"reason" yaml:"reason"`   // for people
	Entries []recovery.Discarded `json:"entries" yaml:"entries"` // that would be lost
}

// refusals are what a report has in addition if something was refused.
type refusals struct {
	Refusals []refusal `json:"refusals" yaml:"refusals"`
}

// refusalsIn collects the refusals in an error and in those that it joins or wraps.
func refusalsIn(err error) []refusal {
	found := []refusal{}
	for e := range chain(err) {
		r, ok := e.(*recovery.Refusal) //nolint:errorlint // chain unwraps
		if ok {
			entries := append([]recovery.Discarded{}, r.Entries...)
			found = append(found, refusal{Code: r.Code, Flag: r.Flag, Member: r.Member, Reason: r.Reason, Entries: entries})
		}
	}

	return found
}

// chain goes through an error and all that it joins or wraps.
func chain(err error) iter.Seq[error] {
	return func(yield func(error) bool) {
		inside := []error{err}
		for len(inside) > 0 {
			e := inside[0]
			inside = inside[1:]
			if e == nil {
				continue
			}

			if !yield(e) {
				return
			}

			joined, ok := e.(interface{ Unwrap() []error })
			if ok {
				inside = slices.Concat(joined.Unwrap(), inside)
			} else {
				inside = slices.Concat([]error{errors.Unwrap(e)}, inside)
			}
		}
	}
}

// printed is an error whose refusals were printed with a report.
type printed struct{ error }

func (p printed) Unwrap() error { return p.error }

// printReportAnd prints the report of a run that may have been refused, and returns that error. In JSON and YAML the report has the
// refusals, too.
func printReportAnd[R any](f format, report R, people func(io.Writer, R), failed error) error {
	if f.name != formatJSON && f.name != formatYAML {
		return errors.Join(printReport(f, report, people), withoutEntries(failed))
	}

	err := printReport(f, withRefusals[R]{report, refusals{refusalsIn(failed)}}, nil)
	if failed == nil {
		return err
	}

	return errors.Join(err, printed{failed})
}

// withRefusals is a report with one more field.
type withRefusals[R any] struct {
	report R
	more   refusals
}

// MarshalJSON writes the fields of both.
func (w withRefusals[R]) MarshalJSON() ([]byte, error) {
	report, err := json.Marshal(w.report)
	if err != nil {
		return nil, err
	}

	more, err := json.Marshal(w.more)
	if err != nil {
		return nil, err
	}

	return append(append(bytes.TrimSuffix(report, []byte("}")), ','), bytes.TrimPrefix(more, []byte("{"))...), nil
}

// MarshalYAML returns the fields of both.
func (w withRefusals[R]) MarshalYAML() (any, error) {
	var report, more yaml.Node
	err := report.Encode(w.report)
	if err == nil {
		err = more.Encode(w.more)
	}

	report.Content = append(report.Content, more.Content...)
	return &report, err
}

// printRefusals prints the refusals of a command that has printed nothing else, if it was asked for a format for programs.
func printRefusals(to io.Writer, cmd *cobra.Command, failed error) error {
	found := refusalsIn(failed)
	flag := cmd.Flags().Lookup("format")
	var told printed
	if len(found) == 0 || errors.As(failed, &told) || flag == nil {
		return nil
	}

	f, ok := flag.Value.(*format)
	if !ok || f.name != formatJSON && f.name != formatYAML {
		return nil
	}

	err := writeReport(to, *f, refusals{found}, nil)
	if err != nil {
		return fmt.Errorf("the refusals cannot be printed: %w", err)
	}

	return nil
}
