// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// noneOfItsOwn is why it cannot be told what a member lacks that has no database.
const noneOfItsOwn = "this member has no database of its own, and gets all of it"

// gains are what the tarball has and this member lacks: what an import brings. On a member that lags it is what the others did in the
// meantime; it is also where everything is that somebody has put into a tarball that is not signed.
type gains struct {
	compared *branching // of the tarball's log with the local one
	exported bool       // the tarball says that it was exported here, and this member's log has what it says it ended with

	// rewritten are rows at an entry that both have: they differ only if one of the two databases was not made by this log.
	rewritten []Discarded
	content   bool // they were looked for
}

// compareGained finds what the tarball has and a member's own log lacks. Errors of the local log are told, and no reason to stop: what
// would be lost is compared for itself.
func (im *importer) compareGained(ctx context.Context, local *raftlog.Log) error {
	r := im.report
	r.Gained, r.GainedUntold = []Discarded{}, im.incomparable(local)
	im.gains.exported = false
	if r.GainedUntold != "" {
		return nil
	}

	err := im.gainedEntries(ctx, local)
	if err != nil {
		if ctx.Err() == nil {
			r.GainedUntold, err = "it cannot be compared: "+err.Error(), nil
		}

		return err
	}

	r.Gained = append(slices.Clone(im.gains.rewritten), im.gains.compared.found...)
	snapshot := im.counterpart().snapshot
	if snapshot.Index > local.LastIndex {
		r.GainedUntold = fmt.Sprintf("this member's log ends at index %d, and what came after it is, up to index %d, in the tarball's snapshot, "+
			"where one transaction cannot be told from another", local.LastIndex, snapshot.Index)
	}

	if r.GainedUntold == "" && im.log.FirstIndex == 0 && snapshot.Index > 0 {
		r.GainedUntold = "the tarball has its database as a snapshot, without the transactions that led to it"
	}

	return nil
}

// incomparable says why a member's own log cannot tell what the tarball has beyond it; empty if it can.
func (im *importer) incomparable(local *raftlog.Log) string {
	switch {
	case local.Undecided():
		return "this member's files can be read as several logs"
	case local.SoundIndex == 0 && local.LastIndex > 0:
		return "this member's own log has no beginning"
	case local.LastIndex == 0 || local.Snapshot() == nil && local.LastIndex <= 1:
		return noneOfItsOwn
	}

	return ""
}

// rows is what an earlier comparison is good for after the other log has changed: rows that are known are not worked out again.
func (c *branching) rows() *branching {
	if c == nil {
		return nil
	}

	return &branching{local: &raftlog.Log{}, branch: c.branch, found: c.found}
}

func (im *importer) gainedEntries(ctx context.Context, local *raftlog.Log) error {
	var err error
	im.gains.compared, err = discarded(ctx, im.log, counterpartOf(local), im.gains.compared.rows())
	if err != nil {
		return err
	}

	im.gains.exported, err = im.exportedFrom(ctx, local)
	if err != nil || im.report.Signature == SignatureValid || im.gains.content {
		return err
	}

	im.gains.rewritten, err = im.rewritten(ctx, local, im.gains.compared.branch)
	im.gains.content = err == nil
	return err
}

// exportedFrom tells whether the tarball says that it was exported on this member, and the member's log has its last entry.
func (im *importer) exportedFrom(ctx context.Context, local *raftlog.Log) (bool, error) {
	manifest := im.tarball.Manifest
	if manifest == nil || manifest.Source.ID != im.report.Member.ID || manifest.Source.Name != im.report.Member.Name {
		return false, nil
	}

	before := manifest.Raft.Before
	s := local.Snapshot()
	if s != nil && (bundle.Position{Index: s.Index, Term: s.Term}) == before {
		return true, nil
	}

	for entry, err := range local.Entries(ctx, before.Index) {
		return err == nil && entry.Index == before.Index && entry.Term == before.Term, err
	}

	return false, nil
}

// rewritten compares the databases at the oldest entry at which both can be told, if both logs have it. The entries after that were
// compared one by one; this finds what was put into a snapshot.
func (im *importer) rewritten(ctx context.Context, local *raftlog.Log, branch uint64) ([]Discarded, error) {
	theirs := im.log.Snapshot()
	if theirs != nil && theirs.Index != im.counterpart().snapshot.Index {
		return nil, nil // a snapshot fence: its index is not that of its last entry
	}

	at := globaldb.Oldest(local)
	if theirs != nil {
		at = max(at, theirs.Index)
	}

	if at == 0 || at >= branch || at > local.SoundIndex || at > im.log.SoundIndex {
		return nil, nil
	}

	im.opts.Progress.step("Comparing the tarball's rows with this member's")
	place, err := positionAt(ctx, local, at)
	if err != nil {
		return nil, err
	}

	ours, err := globaldb.Open(ctx, local, at)
	if err != nil {
		return nil, err
	}

	defer ours.Close()

	staged, err := globaldb.Open(ctx, im.log, at)
	if err != nil {
		return nil, err
	}

	defer staged.Close()

	return rowsBetween(ctx, ours, staged, place)
}

// rowsBetween are the rows by which two databases differ that should be the same.
func rowsBetween(ctx context.Context, ours *globaldb.DB, theirs *globaldb.DB, at bundle.Position) ([]Discarded, error) {
	one, err := ours.Fingerprint(ctx)
	if err != nil {
		return nil, err
	}

	two, err := theirs.Fingerprint(ctx)
	if err != nil || reflect.DeepEqual(one, two) {
		return nil, err
	}

	rows, more, err := globaldb.Diff(ctx, ours.File, theirs.File)
	if err != nil {
		return nil, err
	}

	d := Discarded{Index: at.Index, Term: at.Term, Rows: rows, Unknown: "both logs have this entry, and the databases differ after it: " +
		"one of them was changed by hand, or the two histories are different ones"}
	if len(more) > 0 {
		d.Unknown += "; " + moreRows
	}

	return []Discarded{d}, nil
}

// checkExported refuses a tarball that says it was exported here and has what this member never had.
func (im *importer) checkExported() error {
	r := im.report
	if !im.gains.exported || len(r.Gained) == 0 {
		return nil
	}

	return &Refusal{
		Code: "not-what-was-exported", Member: r.Member.Name, Entries: r.Gained,
		Reason: fmt.Sprintf("the tarball says that it was exported on %s, up to %s, and it has what was never in this member's database: %s",
			r.Member.Name, im.tarball.Manifest.Raft.Before, Count(r.Gained)),
		Use: "it was changed since, or is not of this member: do not use it. Make a new one with `lxd-recover cluster export-db`",
	}
}
