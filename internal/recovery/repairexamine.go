// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// examine finds out what the disk proves, whose database it is, and what of it is given up.
func (rp *repairer) examine(ctx context.Context) error {
	status, err := daemon.Inspect(ctx, rp.dir.path)
	if err != nil {
		return err
	}

	rp.report.Daemon, rp.report.Startable = status.String(), status.Service != nil
	if !rp.opts.DryRun {
		err = stoppable(status)
		if err != nil {
			return err
		}
	}

	err = rp.readLog(ctx, status.Running())
	if err != nil {
		return err
	}

	err = rp.takeReading(ctx)
	if err != nil {
		return err
	}

	err = rp.whose(ctx)
	if err != nil {
		return err
	}

	if rp.nothingToDo() {
		return rp.examineWhole(ctx)
	}

	return rp.givenUp(ctx)
}

// readLog reads the raft directory, with the sums of its files.
func (rp *repairer) readLog(ctx context.Context, live bool) error {
	err := whileLive(ctx, live, func(bool) (bool, error) {
		var err error
		rp.read = signature(rp.dir.global())
		rp.letGo()
		rp.log, rp.letGo, err = openLive(ctx, rp.dir.global(), live, rp.opts.Progress, raftlog.Options{AllSums: true, Sums: true})
		return err == nil && rp.log.Healthy(), err
	})
	if err != nil {
		return err
	}

	for _, p := range rp.log.Problems {
		if p.Severity == raftlog.Error {
			rp.report.Problems = append(rp.report.Problems, p.String())
		}
	}

	rp.report.Libdqlite = libdqliteOf(rp.log)
	return nil
}

// takeReading notes where the log ends, by what the disk proves, and which entry is to be the last one.
func (rp *repairer) takeReading(ctx context.Context) error {
	what := "the global database in " + rp.dir.global()
	err := readAs(what, rp.log, rp.opts.Reading)
	if err != nil {
		return err
	}

	last, err := provenEnd(rp.log, what)
	if err != nil {
		return err
	}

	rp.report.Local, rp.report.Raft = last, last
	if at := rp.opts.At; at > 0 {
		if at > last.Index {
			return fmt.Errorf("what is on the disk ends at index %d: there is no index %d; `lxd-recover global-db-log` lists what there is", last.Index, at)
		}

		rp.report.Raft, err = positionAt(ctx, rp.log, at)
		if err != nil {
			return err
		}
	}

	rp.report.Uncertain = uncertain(rp.log, rp.report.Raft.Index)
	rp.servers, err = configurationAt(ctx, rp.log, rp.report.Raft.Index)
	if err != nil || rp.opts.At == 0 {
		return err
	}

	now, err := configurationAt(ctx, rp.log, last.Index)
	if err == nil && !namedServers(now, nil).SameServers(rp.servers) {
		err = fmt.Errorf("the member list has changed since index %d: the database of that time belongs to other members, or to other addresses. "+
			"Choose a later index; `lxd-recover global-db-log` shows where it changed", rp.opts.At)
	}

	return err
}

// configurationAt is the configuration in force at an index.
func configurationAt(ctx context.Context, log *raftlog.Log, index uint64) (raftlog.Configuration, error) {
	var servers raftlog.Configuration
	first := max(log.FirstIndex, 1)
	s, err := globaldb.Base(ctx, log, index)
	if err != nil {
		return nil, err
	}

	if s != nil {
		servers, first = s.Configuration, s.Index+1
	}

	for entry, err := range log.Entries(ctx, first) {
		if err != nil {
			return nil, err
		}

		if entry.Index > index {
			break
		}

		if entry.Type != raftlog.ChangeEntry {
			continue
		}

		servers, err = raftlog.ParseConfiguration(entry.Data)
		if err != nil {
			return nil, fmt.Errorf("%s: entry with index %d: %w", entry.File, entry.Index, err)
		}
	}

	return servers, nil
}

// whose finds out which member this is, and whether it decides alone.
func (rp *repairer) whose(ctx context.Context) error {
	self, err := rp.self(ctx)
	if err != nil {
		return err
	}

	known, _ := namedServers(rp.servers, rp.node.Members).ByID(self.ID)
	if known.ID == 0 { // not in the configuration
		known = self
	}

	rp.report.Member = known
	rp.alone = decidesAlone(self.ID, rp.servers, rp.node.Members)
	return nil
}

// self is this member, as the node database has it; where that does not say which member it is, as its certificate has it.
func (rp *repairer) self(ctx context.Context) (member.Member, error) {
	var err error
	rp.node, err = nodedb.Read(ctx, rp.dir.database())
	alone, why := standalone(rp.dir.path, rp.node, rp.servers)
	if rp.node == nil {
		rp.node = &nodedb.Node{}
	}

	switch {
	case alone:
		rp.report.Standalone = true
		damage := nodedb.Check(ctx, rp.dir.database())
		if isLost(damage) {
			rp.report.warn(standaloneNodeText(damage))
		}

		return namedServers(rp.servers, nil)[0], ctx.Err()
	case why != nil:
		return member.Member{}, why
	case err == nil:
		return rp.node.Self, nil
	case !errors.Is(err, nodedb.ErrUnknownMember):
		return member.Member{}, err
	}

	self, ok, ownErr := rp.byCertificate(ctx)
	if ownErr != nil || ok {
		return self, ownErr
	}

	return member.Member{}, err
}

// byCertificate finds this member in the global database.
func (rp *repairer) byCertificate(ctx context.Context) (self member.Member, ok bool, err error) {
	own, err := rp.dir.serverCertificate()
	if errors.Is(err, os.ErrNotExist) {
		return self, false, nil
	}

	if err != nil {
		return self, false, err
	}

	db, err := globaldb.Open(ctx, rp.log, rp.report.Raft.Index)
	if err != nil {
		return self, false, replayError("the global database in "+rp.dir.global(), err)
	}

	defer db.Close()

	nodes, err := db.Nodes(ctx)
	if err != nil {
		return self, false, err
	}

	var known member.List
	for _, n := range nodes {
		known = append(known, member.Member{ID: n.ID, Name: n.Name, Address: n.Address})
	}

	return withCertificate(ctx, db, known, own)
}

// decidesAlone tells whether a member is the only voter, by the raft log and by the node database: where the log has lost its end, the
// latter may know voters that were added there.
func decidesAlone(id uint64, servers raftlog.Configuration, node member.List) bool {
	voter := false
	for _, s := range servers {
		if s.Role == raftlog.Voter && s.ID != id {
			return false
		}

		voter = voter || s.Role == raftlog.Voter
	}

	for _, m := range node {
		if m.Role == raftlog.Voter && m.ID != id {
			return false
		}
	}

	return voter
}

// nothingToDo tells whether LXD would start on the database as it is and have all of it, and nothing is to be taken back.
func (rp *repairer) nothingToDo() bool {
	return rp.log.Healthy() && (rp.opts.At == 0 || rp.opts.At == rp.report.Local.Index)
}

// examineWhole makes sure of a database that seems to be whole. SQLite may find it damaged all the same: then the log is not to blame, and an
// earlier state of it the only remedy.
func (rp *repairer) examineWhole(ctx context.Context) error {
	rp.opts.Progress.step("Replaying the raft log")
	what := "the global database in " + rp.dir.global()
	db, err := globaldb.Open(ctx, rp.log, rp.report.Local.Index)
	if errors.Is(err, globaldb.ErrNoDatabase) {
		rp.report.NothingToDo = true
		rp.report.Checked = append(rp.report.Checked, "the raft log, which has no transaction yet")
		return nil
	}

	if err != nil {
		return replayError(what, err)
	}

	defer db.Close()

	rp.report.Database, err = sound(ctx, db, what)
	if err != nil {
		return withAdvice(err, rp.takeBack())
	}

	rp.report.NothingToDo = true
	rp.report.Checked = append(rp.report.Checked, checkedText(rp.log), "the database that they make, by SQLite: "+
		fmt.Sprintf("%d rows in %d tables", rp.report.Database.Rows, len(rp.report.Database.Tables)))
	return nil
}

// takeBack is the advice where the raft log is whole, and what it makes is not.
func (rp *repairer) takeBack() string {
	text := "The raft log is whole, so there is nothing to repair in it: the damage came with one of its transactions, which " +
		"`lxd-recover global-db-log` lists. "
	if rp.alone {
		return text + "--at INDEX goes back to before it."
	}

	return text + "Recover from another member, or take all back to before it with `lxd-recover cluster export-db --at INDEX`."
}

// withAdvice gives damage an advice.
func withAdvice(err error, advice string) error {
	var damage *DamageError
	if errors.As(err, &damage) {
		damage.Advice = advice
	}

	return err
}

// checkedText says what of a log was checked.
func checkedText(log *raftlog.Log) string {
	text := "every checksum in the raft directory"
	if s := log.Snapshot(); s != nil {
		text += fmt.Sprintf(", the snapshot at index %d", s.Index)
		if !s.Compressed {
			text += ", which has no checksum"
		}
	}

	if log.FirstIndex > 0 {
		text += fmt.Sprintf(", the entries from index %d to %d", log.FirstIndex, log.LastIndex)
	}

	return text
}

// givenUp lists what the repaired database will not have.
func (rp *repairer) givenUp(ctx context.Context) error {
	r := rp.report
	r.Size, r.KeptSpace = treeSize(rp.dir.database()), rp.dir.space()
	rp.tellPending()
	r.Lost = lostOf(rp.log)
	rp.opts.Progress.step("Working out the rows that are given up")
	after, err := givenUp(ctx, rp.log, r.Raft.Index)
	if err != nil {
		return err
	}

	lost, untold, err := leftOut(ctx, rp.log)
	r.GivenUp, r.Untold = append(after, lost...), untold
	return err
}

// tellPending tells what becomes of what LXD is to do when it next starts.
func (rp *repairer) tellPending() {
	if exists(filepath.Join(rp.dir.database(), patchName)) {
		rp.report.warn(patchName + product.Text(" is taken over: LXD runs it when it next starts"))
	}

	if tarball := rp.dir.loads(); tarball != "" {
		rp.report.warn(filepath.Base(tarball) + product.Text(", which LXD would load when it next starts, in place of the repaired database, "+
			"stays with the old one"))
	}
}

// pendingPatch is the content of patch.global.sql, which LXD would run when it next starts, and does so after the repair as well.
func (rp *repairer) pendingPatch() (string, error) {
	data, err := newfile.Read(filepath.Join(rp.dir.database(), patchName))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}

	return string(data), err
}
