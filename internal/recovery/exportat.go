// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// reaches checks that a log reaches an index. Whether it reaches back to there, as a snapshot cannot be taken apart, positionAt finds.
func reaches(log *raftlog.Log, at uint64) error {
	switch {
	case log.SoundIndex == 0:
		return errNothingSound
	case at > log.SoundIndex && !log.Healthy():
		return fmt.Errorf("the log is damaged, and sound up to index %d only: it cannot be exported up to index %d", log.SoundIndex, at)
	case at > log.SoundIndex:
		return fmt.Errorf("the log ends at index %d: there is no index %d; `lxd-recover global-db-log` lists what there is", log.SoundIndex, at)
	}

	return nil
}

// lastPosition is the last entry that is exported: the one that was asked for, else that of the log, unless it is damaged.
func lastPosition(ctx context.Context, log *raftlog.Log, at uint64) (bundle.Position, error) {
	if at == 0 {
		return soundPosition(log)
	}

	err := reaches(log, at)
	if err != nil {
		return bundle.Position{}, err
	}

	return positionAt(ctx, log, at)
}

// positionAt is an entry's place in the log; one that the log does not reach back to is an error.
func positionAt(ctx context.Context, log *raftlog.Log, index uint64) (bundle.Position, error) {
	s, err := globaldb.Base(ctx, log, index)
	if err != nil {
		return bundle.Position{}, err
	}

	if s != nil && s.Index == index {
		return bundle.Position{Index: s.Index, Term: s.Term}, nil
	}

	for entry, err := range log.Entries(ctx, index) {
		return bundle.Position{Index: entry.Index, Term: entry.Term}, err
	}

	return bundle.Position{}, fmt.Errorf("the log has no entry with index %d", index)
}

// givenUp are the transactions after an index, with their rows.
func givenUp(ctx context.Context, log *raftlog.Log, at uint64) ([]Discarded, error) {
	found := []Discarded{}
	for entry, err := range log.Entries(ctx, at+1) {
		if err != nil {
			return nil, err
		}

		if changesRows(entry) {
			found = append(found, Discarded{Index: entry.Index, Term: entry.Term, Rows: []globaldb.RowChange{}})
		}
	}

	return found, describeRows(ctx, log, found)
}

// knowsMembers checks that the database at an index knows the members that the tarball will have: one that joined after it
// has no row in the table nodes, and could not start. It returns what is odd and no reason to stop.
func knowsMembers(ctx context.Context, log *raftlog.Log, at uint64, members member.List) (warnings []string, err error) {
	db, err := globaldb.Open(ctx, log, at)
	if errors.Is(err, globaldb.ErrNoDatabase) {
		return nil, fmt.Errorf("at index %d there was no database yet", at)
	}

	if err != nil {
		return nil, replayError(fmt.Sprintf("the database at index %d", at), err)
	}

	defer db.Close()

	nodes, err := db.Nodes(ctx)
	if err != nil {
		return nil, replayError(fmt.Sprintf("the database at index %d", at), err)
	}

	known := map[uint64]bool{}
	for _, n := range nodes {
		known[n.ID] = true
		_, ok := members.ByID(n.ID)
		if !ok {
			warnings = append(warnings, product.Sprintf("at index %d %s (id %d) was a member and is none any more: "+
				"`lxc cluster remove --force %s` removes it again", at, n.Name, n.ID, printable.Word(n.Name)))
		}
	}

	for _, m := range members {
		if !known[m.ID] {
			return warnings, fmt.Errorf("%s (id %d) joined the cluster after index %d, where the database does not know it: it could not start. "+
				"Choose a later index", m.Name, m.ID, at)
		}
	}

	return warnings, nil
}

// giveUp lists what the export leaves out. An older state is exported only if that is confirmed: an earlier index, or a kept database. What damage
// has taken away is only announced.
func (ex *exporter) giveUp(ctx context.Context) error {
	r, log, at := ex.report, ex.log, ex.opts.At
	var damaged, after, live []Discarded // in the log's own files, in it after the index, and in the live database
	var err error
	if len(log.LeftOut) > 0 {
		damaged, r.Untold, err = leftOut(ctx, log)
		if err != nil {
			return err
		}
	}

	if at == 0 && ex.source == "" {
		r.GivenUp = append(r.GivenUp, damaged...)
		if len(r.GivenUp)+len(r.Untold) > 0 && ex.opts.Announce != nil {
			ex.opts.Announce(r)
		}

		return nil
	}

	odd, err := knowsMembers(ctx, log, r.Before.Index, r.Members)
	if err != nil && !ex.opts.UnknownMembers {
		return err
	}

	r.Warnings = append(r.Warnings, odd...)
	ex.opts.Progress.step("Working out the rows that are given up")
	if at > 0 {
		after, err = givenUp(ctx, log, at)
		if err != nil {
			return err
		}
	}

	if ex.source != "" {
		live, err = ex.giveUpLive(ctx)
		if err != nil {
			return err
		}
	}

	r.GivenUp = slices.Concat(r.GivenUp, after, live, damaged)
	return ex.confirmGivenUp()
}

var errNothingSound = errors.New("nothing in the global database of this member is sound: export from another one")

// soundPosition is the last entry that is exported: that of the log.
func soundPosition(log *raftlog.Log) (bundle.Position, error) {
	if log.SoundIndex == 0 {
		return bundle.Position{}, errNothingSound
	}

	return bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, nil
}
