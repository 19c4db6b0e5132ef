// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// point is a place in a raft log as --at names it: an index, or a time. Both are zero if the flag is not given.
type point struct {
	number uint64
	time   time.Time
}

// timeFormats are the ways to write a time; those without a zone are UTC.
var timeFormats = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04"}

// String is the value of the flag.
func (p *point) String() string {
	switch {
	case p.number > 0:
		return strconv.FormatUint(p.number, 10)
	case !p.time.IsZero():
		return p.time.UTC().Format(time.RFC3339)
	}

	return ""
}

// Set takes the value of the flag.
func (p *point) Set(text string) error {
	number, err := strconv.ParseUint(text, 10, 64)
	if err == nil && number > 0 {
		*p = point{number: number}
		return nil
	}

	for _, format := range timeFormats {
		at, err := time.Parse(format, text)
		if err == nil {
			*p = point{time: at}
			return nil
		}
	}

	return errors.New("it is neither an index of the raft log, from 1 on, nor a time such as 2026-11-27T08:30, which is UTC")
}

// Type is what pflag calls the kind of value.
func (*point) Type() string { return "INDEX|TIME" }

func (p *point) addFlag(cmd *cobra.Command, help string) { cmd.Flags().Var(p, "at", help) }

// index is the index of the point in a source's log, 0 if the flag is not given, and the part of an archive that it is in, else the source. It says which
// index a time is.
func (p *point) index(ctx context.Context, source string, reading string) (place string, index uint64, err error) {
	if p.time.IsZero() {
		return source, p.number, nil
	}

	place, index, err = recovery.IndexAt(ctx, source, p.time, reading, newProgress(ctx, os.Stderr))
	if err == nil {
		in := ""
		if place != source {
			in = " of " + place
		}

		fmt.Fprintf(stderr(), "Index %d%s is the last one that is not known to be later than %s UTC. "+
			"The log has heartbeats, some ten seconds apart, and no other times.\n", index, in, p.time.UTC().Format(time.DateTime))
	}

	return place, index, err
}
