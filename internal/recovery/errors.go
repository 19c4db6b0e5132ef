// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Refusal is a step that is not taken unless the administrator says so with a flag.
type Refusal struct {
	Code    string // a few words in lower case with hyphens, for programs: it stays when the reason is worded anew
	Member  string // name of the member that it is about; empty if it is about none in particular
	Reason  string
	Entries []Discarded // transactions that would be given up; Error lists them after the reason
	Flag    string      // with its dashes; empty where there is another way, which the reason names
	Use     string      // how the flag is used, where it does not just override the refusal
}

func (r *Refusal) Error() string {
	text := listed(r.Reason, r.Entries)
	if !strings.HasSuffix(text, "\n") && (r.Use != "" || r.Flag != "") {
		text += "; "
	}

	switch {
	case r.Use != "":
		return text + r.Use
	case r.Flag == "":
		return strings.TrimSuffix(text, "\n")
	}

	return text + r.Flag + " overrides this"
}

// DamageError says that a raft directory is not sound.
type DamageError struct {
	What     string // which one
	Problems []raftlog.Problem
	Advice   string
}

func (e *DamageError) Error() string {
	var text strings.Builder
	text.WriteString(e.What + " is damaged")
	for _, p := range e.Problems {
		if p.Severity == raftlog.Error {
			text.WriteString("\n  " + p.String())
		}
	}

	if e.Advice != "" {
		text.WriteString("\n" + e.Advice)
	}

	return text.String()
}

// ErrNotRoot says that a command needs root.
var ErrNotRoot = errors.New("this needs root: run it with sudo")

// ErrWrongCluster is wrapped by every error that means: tarball and member do not belong together.
var ErrWrongCluster = errors.New("this tarball is not for this member")

func wrongCluster(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrWrongCluster, fmt.Errorf(format, args...))
}

// machineFault tells whether an error is one of the machine, such as a full or failing disk, for which no data is to blame.
func machineFault(err error) bool {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return true
	}

	var failed sqlite3.Error
	if !errors.As(err, &failed) {
		return false
	}

	switch failed.Code {
	case sqlite3.ErrIoErr, sqlite3.ErrFull, sqlite3.ErrCantOpen, sqlite3.ErrReadonly, sqlite3.ErrNomem:
		return true
	}

	return false
}

func sound(ctx context.Context, db *globaldb.DB, what string) (*globaldb.Summary, error) {
	summary, err := db.Summary(ctx)
	return summary, soundSummary(summary, err, what)
}

// soundSummary is the error that a summary, or the error in its place, comes to.
func soundSummary(summary *globaldb.Summary, err error, what string) error {
	if err != nil {
		return replayError(what, err)
	}

	if summary.Integrity != "ok" {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1, Text: "SQLite: " + summary.Integrity}}}
	}

	return nil
}

// replayError tells damage from what the machine is to blame for.
func replayError(what string, err error) error {
	if machineFault(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}

	return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1, Text: err.Error()}}}
}
