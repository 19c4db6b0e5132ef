// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// stage makes the staging directory with the repaired raft directory in it: metadata, the snapshot that leads to the last entry, and the
// segments after it, all closed. libdqlite of any version loads that without changing a file.
func (rp *repairer) stage(ctx context.Context) error {
	rp.opts.Progress.step("Writing the repaired database")
	staging, err := rp.dir.makeStaging(ctx)
	if err != nil {
		return err
	}

	pieces, err := plain(ctx, rp.log, rp.report.Raft.Index, rp.files())
	if err != nil {
		return err
	}

	kept, err := rp.dir.seenBeside(ctx, rp.log.EntryTerm)
	if err != nil {
		return err
	}

	noted, err := rp.dir.readHighWater()
	if err != nil {
		return err
	}

	m := repairedMetadata(rp.log, fate{alone: rp.alone, given: rp.givesUp(), kept: max(kept, noted.Term)})
	rp.report.Metadata = m
	global := filepath.Join(staging, globalName)
	err = writePieces(global, append(votedPieces(rp.log, m.Term, m.Vote), pieces...))
	if err != nil {
		return err
	}

	rp.staged, err = openLog(ctx, global, Progress{}, raftlog.Options{AllSums: true, Sums: true})
	if err != nil {
		return err
	}

	err = rp.checkStaged(ctx)
	if err != nil || rp.opts.DryRun {
		return err
	}

	return rp.dir.syncStaged()
}

// fate is what decides in which term a repaired database goes on.
type fate struct {
	alone bool   // the member decides alone
	given bool   // entries are given up, or have other indexes than they may have had
	kept  uint64 // highest term of the kept databases, and of the high-water file
}

// givesUp tells whether the repaired database goes on from another state than this member has been in: so far its log may have been longer, or
// another one.
func (rp *repairer) givesUp() bool {
	r := rp.report
	return r.Raft != r.Local || r.Lost.Some || r.Uncertain
}

// lostTermStep is how far the term of a member whose metadata are lost lies above every known one: above those of the elections that others may
// have held since, and as little above the leader's as can be, who gives way to it.
const lostTermStep = 1000

// repairedMetadata are the term and the vote of a repaired database.
//
// A member among others keeps both: it must not vote a second time in a term. Where they are lost, it goes on in a term above all that a member
// nobody asked may have gone through meanwhile. A server that decides alone stays in one term for life, and its next entries take the term of
// its metadata: where it gives entries up, a higher one has the same index and term never mean two things, neither here nor in a backup
// or on a stand-by that has the old ones.
func repairedMetadata(log *raftlog.Log, f fate) RepairedMetadata {
	highest, doubt := seenTerm(log)
	whole := metadataWhole(log) && doubt == ""

	switch {
	case f.alone && (f.given || !whole):
		return RepairedMetadata{Term: max(highest, f.kept) + 1}
	case !whole:
		return RepairedMetadata{Term: max(highest, f.kept) + lostTermStep}
	}

	return RepairedMetadata{Term: log.Term, Vote: log.Vote, Kept: true}
}

// metadataWhole tells whether term and vote are known for certain: both files are there, and one follows the other; or only the first one that
// a new member writes. Where a file is lost that may have been the newer one, a vote may be forgotten. A term below that of an entry
// is that of an older file which has come back.
func metadataWhole(log *raftlog.Log) bool {
	a, b := log.Metadata[0], log.Metadata[1]
	switch {
	case log.Term == 0 || log.Term < logTerm(log):
		return false
	case a != nil && b != nil:
		return a.Version+1 == b.Version || b.Version+1 == a.Version
	case a != nil:
		return a.Version == 1 && !slices.ContainsFunc(log.Files, func(f raftlog.File) bool { return f.Name == "metadata2" })
	}

	return false
}

// logTerm is the highest term in segments and snapshots.
func logTerm(log *raftlog.Log) uint64 {
	var highest uint64
	for _, s := range log.Segments {
		highest = max(highest, s.MaxTerm)
	}

	for _, s := range log.Snapshots {
		highest = max(highest, s.Term)
	}

	return highest
}

// sameSnapshot tells whether a snapshot was written as it was read. What was packed on the way had its sum compared then.
func sameSnapshot(before, after *raftlog.Snapshot) bool {
	packed := after.Compressed && !before.Compressed
	return (before.SHA256 == after.SHA256 || packed) && before.MetaSHA256 == after.MetaSHA256
}

// checkStaged makes sure of what was written: the entries and the snapshot are those that were read, and there is nothing to be repaired.
func (rp *repairer) checkStaged(ctx context.Context) error {
	r, log := rp.report, rp.staged
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("what was written is not what it should be, nothing was changed: "+format+"; please report this", args...)
	}

	switch {
	case !log.Healthy(): // by what is in its entries
		return &DamageError{What: "the global database in " + rp.dir.global(), Problems: log.Problems, Advice: rp.takeBack()}
	case log.LastIndex != r.Raft.Index || log.LastTerm != r.Raft.Term:
		return wrong("it ends at index %d, term %d, not at %s", log.LastIndex, log.LastTerm, r.Raft)
	case log.Term != r.Metadata.Term || log.Vote != r.Metadata.Vote:
		return wrong("its metadata have term %d and the vote %d, not %d and %d", log.Term, log.Vote, r.Metadata.Term, r.Metadata.Vote)
	}

	before, err := globaldb.Base(ctx, rp.log, r.Raft.Index)
	if err != nil {
		return err
	}

	after := log.Snapshot()
	if (before == nil) != (after == nil) || before != nil && !sameSnapshot(before, after) {
		return wrong("its snapshot is another one")
	}

	index, err := differentEntry(ctx, rp.log, log, r.Raft.Index)
	if err == nil && index > 0 {
		err = wrong("entry %d is another one", index)
	}

	return err
}

// verify has SQLite check the database that the repaired raft directory makes, and libdqlite start on a copy of that: it must end where it
// should, and serve the same rows.
func (rp *repairer) verify(ctx context.Context) error {
	rp.opts.Progress.step("Opening a scratch copy with libdqlite")
	served := serveWith(ctx, func(ctx context.Context) (globaldb.Fingerprint, error) {
		return fingerprintCopy(ctx, rp.staged, rp.dir.join(stagingName, globalName))
	})
	defer served.end()

	repaired := replayed{log: rp.staged, upTo: rp.report.Raft.Index, what: "the global database in " + rp.dir.global(), look: rp.lookAtNeeds}
	summary, print, err := summarize(ctx, repaired, true)
	if err != nil {
		return withAdvice(err, rp.takeBack())
	}

	rp.report.Database = summary
	for _, finding := range summary.ForeignKeys {
		rp.report.warn("the database has a row without its parent: " + finding)
	}

	theirs, err := served.wait(ctx)
	if err == nil {
		differ := print.Differ(theirs)
		if len(differ) > 0 {
			err = fmt.Errorf("its rows differ in %s", strings.Join(differ, ", "))
		}
	}

	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case errors.Is(err, engine.ErrKilled):
		return fmt.Errorf("open a scratch copy of the repaired database: %w; nothing was changed; free some memory", err)
	case machineFault(err):
		return fmt.Errorf("make a scratch copy of the repaired database: %w; nothing was changed; TMPDIR names another place for it", err)
	}

	return fmt.Errorf("libdqlite does not get the database out of the repaired raft directory, so nothing was changed: %w; please report this", err)
}

// fingerprintCopy has libdqlite load a copy of a raft directory as it is, append a configuration with a single voter after its last entry,
// and serve its database.
func fingerprintCopy(ctx context.Context, log *raftlog.Log, global string) (globaldb.Fingerprint, error) {
	dir, remove, err := scratch.Dir("verify")
	if err != nil {
		return nil, err
	}

	defer remove()

	names, err := raftFiles(global)
	if err != nil {
		return nil, err
	}

	for _, name := range names {
		err = ctx.Err()
		if err == nil {
			err = newfile.Copy(filepath.Join(global, name), filepath.Join(dir, name))
		}

		if err != nil {
			return nil, err
		}
	}

	address := "@" + filepath.Base(dir)
	nodes, err := json.Marshal([]engine.Node{engine.NewNode(engine.ServeID, address, raftlog.Voter.API())})
	if err != nil {
		return nil, err
	}

	_, err = engine.Run(ctx, ReconfigureCommand, dir, string(nodes))
	if err != nil {
		return nil, err
	}

	loaded, err := readLog(ctx, dir, Progress{})
	if err != nil {
		return nil, err
	}

	index, err := differentEntry(ctx, log, loaded, log.LastIndex)
	switch {
	case err != nil:
		return nil, err
	case loaded.LastIndex != log.LastIndex+1:
		return nil, fmt.Errorf("it takes the log to end at index %d, not at %d", loaded.LastIndex-1, log.LastIndex)
	case index > 0:
		return nil, fmt.Errorf("it makes another entry of the one with index %d", index)
	}

	return fingerprintOf(ctx, dir, address)
}
