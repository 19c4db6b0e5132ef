// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// A resync gives one broken member of a working cluster the log of another one. What makes that safe is told in docs/why-resync-is-safe.md and decided by
// survivor.Resync: LXD here is stopped first, then the leader writes a nonce that nobody knew before, and the log that is taken has to have it.

// ResyncOptions say how a member gets the cluster's database.
type ResyncOptions struct {
	LXDDir  string
	Version string        // of lxd-recover
	Timeout time.Duration // of a stop and a start of LXD

	// Fetch takes a backup with this nonce on another member, while LXD is stopped here, and returns its file. Without Fetch there is a Backup that was
	// made with the nonce of an earlier PrepareResync.
	Fetch  func(ctx context.Context, nonce string) (file string, err error)
	Backup string

	NodeDB       string // the file of another member's node database, where this one's is lost
	DiscardLocal bool   // give up what this member has, even if it is of another history
	NoStart      bool

	// Follow bounds how long to wait until this member's directory follows the leader's.
	Follow time.Duration

	// Confirm is shown what is about to happen before LXD is stopped; an error ends the run with nothing changed.
	Confirm func(*ResyncReport) error

	Progress Progress
}

// ResyncReport is what a resync will do, or did.
type ResyncReport struct {
	Member    member.Member    `json:"member" yaml:"member"`
	Local     *bundle.Position `json:"local_raft" yaml:"local_raft"` // last sound entry of this member's own log; null if it cannot be read
	Broken    string           `json:"broken" yaml:"broken"`         // what is wrong with it; empty if nothing is
	Nonce     string           `json:"nonce" yaml:"nonce"`
	Source    string           `json:"source" yaml:"source"`       // name of the member whose log was taken
	Raft      bundle.Position  `json:"raft" yaml:"raft"`           // its last entry
	Committed bundle.Position  `json:"committed" yaml:"committed"` // transaction that was committed after LXD had stopped here
	Term      uint64           `json:"term" yaml:"term"`           // of the metadata
	Kept      string           `json:"kept" yaml:"kept"`           // directory with the database that was replaced
	Discarded []Discarded      `json:"discarded" yaml:"discarded"` // transactions that only this member had
	Daemon    string           `json:"daemon" yaml:"daemon"`       // LXD before
	Warnings  []string         `json:"warnings" yaml:"warnings"`
	Done      bool             `json:"done" yaml:"done"` // the new database is in place
	Started   bool             `json:"started" yaml:"started"`
	Ready     bool             `json:"ready" yaml:"ready"`

	// Follows is true once this member's directory has gone on with the leader's.
	Follows bool `json:"follows" yaml:"follows"`
}

func (r *ResyncReport) warn(texts ...string) { r.Warnings = append(r.Warnings, texts...) }

func (r *ResyncReport) daemonIs(result startResult) {
	r.Started, r.Ready = result.started, result.ready
	r.warn(result.warnings...)
}

// PrepareResync stops LXD here, and returns the nonce that a backup on another member has to be made with. Resync goes on with that backup. LXD stays down:
// if it is started meanwhile, it is begun anew.
func PrepareResync(ctx context.Context, opts ResyncOptions) (*ResyncReport, error) {
	opts.NoStart = true
	rs, end, err := beginResync(ctx, opts)
	if err != nil {
		return nil, err
	}

	defer end()

	cycle, err := rs.stopFor(ctx)
	if err != nil {
		return nil, err
	}

	err = rs.dir.noteNonce(pendingResync{Nonce: rs.report.Nonce, Since: time.Now().UTC().Truncate(time.Second), Signature: rs.down})
	if err != nil {
		return nil, errors.Join(err, cycle.startAfterFailure(ctx))
	}

	return rs.report, nil
}

// Resync replaces this member's database by the log of another one, all or nothing, and keeps the replaced one. When an error is returned the old database
// is in place, unless the report says Done.
func Resync(ctx context.Context, opts ResyncOptions) (*ResyncReport, error) {
	rs, end, err := beginResync(ctx, opts)
	if err != nil {
		return nil, err
	}

	defer end()
	defer rs.unstageUnless(&rs.report.Done)

	cycle, err := rs.stopFor(ctx)
	if err != nil {
		return nil, err
	}

	err = rs.take(ctx)
	if err != nil {
		if rs.report.Done {
			err = fmt.Errorf("the new database is in place, but not all is done: %w; run the command again", err)
		}

		if rs.prepared && !rs.report.Done {
			return rs.report, err // LXD stays stopped: another backup may be the right one
		}

		return rs.report, errors.Join(err, cycle.startAfterFailure(ctx))
	}

	rs.dir.forgetNonce()
	opts.Progress.step("The new database is in place; the old one is kept in " + rs.report.Kept)
	if !opts.NoStart {
		err = cycle.wantUp(ctx)
	}

	if err == nil {
		err = rs.start(ctx, cycle, rs.members, rs.report)
	}

	rs.keepReport(rs.report, err)
	if err == nil && rs.report.Started {
		rs.report.Follows, err = rs.follow(ctx)
	}

	return rs.report, err
}

// resync is one under way.
type resync struct {
	*run
	opts   ResyncOptions
	report *ResyncReport

	node *nodedb.Node
	lost *lostNode // nil if the node database is not lost
	own  *raftlog.Log
	down string // signature of the raft directory when LXD had stopped

	// prepared is true if LXD was stopped by PrepareResync, and has not run since.
	prepared bool

	others  otherFiles
	backup  *bundle.Extracted
	log     *raftlog.Log // of the backup
	holds   string       // the nonce that its database has
	taken   survivor.Taken
	members member.List
	trusted []nodedb.Certificate // see importer
}

// beginResync looks at this member, and asks.
func beginResync(ctx context.Context, opts ResyncOptions) (*resync, func(), error) {
	r, end, err := beginRun(opts.LXDDir, runOptions{
		purpose: purposeResync, version: opts.Version, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress,
	})
	if err != nil {
		return nil, nil, err
	}

	rs := &resync{run: r, opts: opts, report: &ResyncReport{Nonce: bundle.NewRun(), Discarded: []Discarded{}, Warnings: []string{}}}
	rs.tellFinished(rs.report)
	err = rs.examine(ctx)
	if err == nil && opts.Confirm != nil {
		err = opts.Confirm(rs.report)
	}

	if err != nil {
		end()
		return nil, nil, err
	}

	return rs, end, nil
}

// examine finds out who this member is, and what is wrong with it.
func (rs *resync) examine(ctx context.Context) error {
	err := rs.dir.importable(ctx)
	if err != nil {
		return err
	}

	status, err := daemon.Inspect(ctx, rs.dir.path)
	if err != nil {
		return err
	}

	rs.report.Daemon = status.String()
	err = stoppable(status)
	if err != nil {
		return err
	}

	node, lost, err := rs.dir.readNode(ctx, status.Running())
	if err != nil {
		return err
	}

	rs.node = node
	if lost != nil {
		rs.lost, err = newLostNode(ctx, lost, rs.opts.NodeDB)
	}

	if err != nil {
		return err
	}

	rs.report.Member = node.Self
	return rs.readOwn(ctx)
}

// readOwn reads what can be read of this member's own log.
func (rs *resync) readOwn(ctx context.Context) error {
	rs.own, rs.report.Local, rs.report.Broken = nil, nil, ""
	log, err := readLog(ctx, rs.dir.global(), rs.opts.Progress)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		rs.report.Broken = err.Error()
		return nil
	}

	rs.own = log
	if log.SoundIndex > 0 {
		rs.report.Local = &bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	}

	if !log.Healthy() {
		damage := &DamageError{What: rs.dir.global(), Problems: log.Problems}
		rs.report.Broken = damage.Error()
	}

	return nil
}

// stopFor stops LXD. What it had before is then what it has.
func (rs *resync) stopFor(ctx context.Context) (*daemonCycle, error) {
	var err error
	rs.others, err = rs.dir.copyOtherFiles(ctx, nil)
	if err != nil {
		return nil, err
	}

	cycle, err := rs.stop(ctx)
	if err != nil {
		return nil, err
	}

	rs.down = signature(rs.dir.global())
	return cycle, nil
}

// take takes the log of another member, and puts it in place.
func (rs *resync) take(ctx context.Context) error {
	err := rs.readOwn(ctx) // LXD is down: this is how it stays
	if err != nil {
		return err
	}

	file := rs.opts.Backup
	if rs.opts.Fetch != nil {
		file, err = rs.opts.Fetch(ctx, rs.report.Nonce)
	} else {
		rs.report.Nonce, err = rs.dir.preparedNonce(rs.down)
		rs.prepared = err == nil
	}

	if err != nil {
		return err
	}

	err = rs.unpack(ctx, file)
	if err == nil {
		err = rs.decide(ctx)
	}

	if err == nil {
		err = rs.writeMetadata()
	}

	if err == nil {
		err = rs.dir.syncStaged()
	}

	if err == nil {
		err = rs.dir.noteTerms(ctx, rs.taken.Term)
	}

	if err != nil {
		return err
	}

	return rs.exchange(ctx)
}

// exchange puts the staged database in place.
func (rs *resync) exchange(ctx context.Context) error {
	unlock, err := lockDqlite(rs.dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	if signature(rs.dir.global()) != rs.down {
		return errors.New(product.Text("LXD has run here since it was stopped: what was taken from the other member is too old by now. " +
			"Nothing was changed; run the command again"))
	}

	staged := &replacement{
		dir: rs.dir, update: rs.update(), lost: rs.lost, sameNode: rs.lost == nil && rs.node.Self.ID != 0, others: rs.others, reporter: rs.reporter,
		record: Record{Purpose: purposeResync, Version: rs.opts.Version, Run: rs.backup.Run(), Digest: rs.backup.Digest, Source: rs.report.Source,
			Raft: rs.report.Raft},
		report: func(kept string) any {
			report := *rs.report
			report.Kept, report.Done = kept, true
			return report
		},
	}
	rs.report.Kept, rs.report.Done, err = staged.takePlace(ctx)
	return err
}

// update is what is written into a node database that is made anew, or that does not know this member.
func (rs *resync) update() nodedb.Update {
	update := nodeUpdate(rs.node, rs.members, rs.report.Member, rs.report.Raft, nil)
	update.Certificates = rs.trusted
	return update
}

// unpack unpacks the backup into the staging directory, and reads it.
func (rs *resync) unpack(ctx context.Context, file string) error {
	im := &importer{run: rs.run, opts: ImportOptions{Tarball: file, Progress: rs.opts.Progress, NodeDB: rs.opts.NodeDB}, report: newImportReport(file),
		node: rs.node, lost: rs.lost, resync: true}
	var err error
	im.certificate, err = rs.dir.clusterCertificate()
	if err == nil {
		err = im.readSigners()
	}

	if err == nil {
		err = im.unpack(ctx)
	}

	if err != nil {
		return err
	}

	rs.backup = im.tarball
	im.log, err = readLog(ctx, rs.dir.join(stagingName, globalName), rs.opts.Progress)
	if err == nil {
		err = im.checkLog(im.log)
	}

	if err == nil {
		err = im.checkCluster()
	}

	if err == nil {
		err = im.checkDatabase(ctx)
	}

	rs.log, rs.members, rs.trusted, rs.holds = im.log, im.tarball.Members, im.trusted, im.nonce
	rs.report.warn(im.report.Warnings...)
	rs.report.Member, rs.report.Raft, rs.report.Source = im.report.Member, im.report.Raft, im.report.Source
	return err
}

// decide decides whether the log may be taken, and with which metadata.
func (rs *resync) decide(ctx context.Context) error {
	made := rs.backup.Manifest.Backup
	log, err := survivorOf(ctx, rs.log)
	if err != nil {
		return err
	}

	source := survivor.Source{Log: log}
	source.Cluster = rs.backup.Manifest.Cluster.Certificate
	if rs.holds == rs.report.Nonce && made.Nonce == rs.report.Nonce && made.Next.Term == rs.report.Raft.Term && made.Next.Index > rs.report.Raft.Index {
		source.Nonce, source.Proven = rs.report.Raft.Index, survivor.Position{Index: rs.report.Raft.Index, Term: rs.report.Raft.Term}
	}

	own := survivor.Own{ID: rs.report.Member.ID, Address: rs.node.ClusterAddress, GivenUp: rs.opts.DiscardLocal, Cluster: source.Cluster}
	if rs.own != nil {
		own.Metadata = metadataOf(rs.own)
		own.Log, err = survivorOf(ctx, rs.own)
	}

	if err != nil { // it is looked at for signs of another history only, and may be damaged in any way
		own.Log = nil
	}

	if ctx.Err() != nil {
		return ctx.Err()
	}

	rs.taken, err = survivor.Resync(source, own)
	var refusal *survivor.ResyncRefusal
	if errors.As(err, &refusal) {
		err = rs.refusal(refusal)
	}

	if err != nil {
		return err
	}

	rs.report.Committed = bundle.Position{Index: rs.taken.Committed.Index, Term: rs.taken.Committed.Term}
	rs.report.Term = rs.taken.Term
	return rs.tellDiscarded(ctx)
}

// refusal is the decision's, with the flag that overrides it if one does.
func (rs *resync) refusal(r *survivor.ResyncRefusal) *Refusal {
	refusal := &Refusal{Code: string(r.Code), Member: rs.report.Member.Name, Reason: r.Reason}
	if r.Code == survivor.OwnTermAbove || r.Code == survivor.TwoHistories {
		refusal.Flag = "--discard-local-entries"
	}

	return refusal
}

// tellDiscarded tells what this member's own log had and the other one lacks: none of it can have been committed.
func (rs *resync) tellDiscarded(ctx context.Context) error {
	if rs.own == nil {
		return nil
	}

	found, err := discarded(ctx, rs.own, counterpartOf(rs.log), nil)
	if err != nil && ctx.Err() == nil {
		rs.report.warn("what only this member had cannot be told: " + err.Error())
		return nil
	}

	if err == nil {
		rs.report.Discarded = found.found
	}

	return err
}

// metadataOf are a member's own, nil where they are lost.
func metadataOf(log *raftlog.Log) *raftlog.Metadata {
	if log.Metadata == [2]*raftlog.Metadata{} {
		return nil
	}

	return &raftlog.Metadata{Term: log.Term, Vote: log.Vote}
}

// writeMetadata gives the staged raft directory the term and the vote that were decided.
func (rs *resync) writeMetadata() error {
	global := rs.dir.join(stagingName, globalName)
	for _, p := range votedPieces(rs.log, rs.taken.Term, rs.taken.Vote) {
		err := replaceFile(filepath.Join(global, p.Name), p)
		if err != nil {
			return err
		}
	}

	return nil
}

// spareFollow is how long to wait for LXD to give a spare another role, as it does with its heartbeats if there are not enough others.
const spareFollow = 30 * time.Second

// follow waits until this member's directory has gone on after what was taken. A spare gets no entries, until LXD gives it another role: LXD makes a voter that
// does not answer a spare.
func (rs *resync) follow(ctx context.Context) (bool, error) {
	rs.opts.Progress.step("Waiting until this member's database follows the leader's")
	spare := rs.taken.Role == raftlog.Spare
	bound := rs.opts.Follow
	if spare {
		bound = min(bound, spareFollow)
	}

	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()

	next := rs.backup.Manifest.Backup.Next.Index
	var known *raftlog.Log
	for {
		last, log, err := rs.lastLive(ctx, known)
		if err == nil && last >= next {
			return true, nil
		}

		known = log
		select {
		case <-ctx.Done():
			if spare {
				rs.report.warn(product.Text("this member is a spare: it gets no log from the leader, and its directory stays as it is until LXD gives " +
					"it another role"))
				return false, nil
			}

			return false, product.Errorf("the new database is in place and LXD was started, but this member's log has not gone on within %s: it ends at "+
				"index %d, and the leader's had index %d. Is LXD running here, and on the leader? `journalctl` tells; "+
				"`lxd-recover global-db-inspect` shows when it goes on",
				rs.opts.Follow, last, next)
		case <-time.After(proofPause):
		}
	}
}

// lastLive is the last sound entry of the log on which LXD works.
func (rs *resync) lastLive(ctx context.Context, known *raftlog.Log) (uint64, *raftlog.Log, error) {
	held, err := raftlog.Hold(ctx, rs.dir.global())
	if err != nil {
		return 0, known, err
	}

	defer held.Close()

	log, err := raftlog.Open(ctx, held, engineOptions(ctx, rs.dir.global(), raftlog.Options{Live: true, Known: known}))
	if err != nil {
		return 0, known, err
	}

	return log.SoundIndex, log, nil
}

// AbandonResync gives up what PrepareResync has begun here: LXD is started again if it ran before, on the database that is in place.
func AbandonResync(ctx context.Context, opts ResumeOptions) (*ResumeReport, error) {
	report, err := Resume(ctx, opts)
	if err != nil {
		return report, err
	}

	dir, err := openDirectory(opts.LXDDir)
	if err == nil {
		dir.forgetNonce()
	}

	return report, err
}

// resyncing tells whether LXD is stopped here for a resync: one that waits for a backup, is under way, or was cut off.
func (d directory) resyncing() (bool, error) {
	stopped, err := d.readStopped()
	return stopped != nil && stopped.Purpose == purposeResync || exists(d.join(pendingName)), err
}
