// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// What a member's disk proves.
//
// A leader begins a transaction only when the one before is applied, and so committed. Two transactions of one term therefore prove that the first of them,
// and all entries before it, were committed; this holds on any member's disk, and for every version of libraft. A leader's disk is no better than others:
// what it has sent and not yet written itself may be committed without it.
//
// That the log then has all that was confirmed before the backup began takes a committed transaction that was made after it: its leader had all committed
// entries in its log when it appended it, so they are before it. What shows that it was made later is a heartbeat with a later time, or a key with a random
// value that was written through the leader after the beginning.
//
// The only voter commits by writing its own disk: there whatever was confirmed before the directory was read is in it.

// How long to wait before the directory is looked at again.
const proofPause = 250 * time.Millisecond

// backtrack is how many entries before the end of the first look are looked through: those that came between the beginning and it.
const backtrack = 64

// prover looks for a transaction that proves a backup.
type prover struct {
	backup *backup
	begun  bool
	from   uint64    // first index to look at
	later  time.Time // a heartbeat has to be later than this
	looked uint64    // transactions up to this index were looked at in vain
	damage error     // what was wrong when the log was last looked at: it may be in the middle of being written
}

// awaitProof waits until the disk holds a proof, and returns the directory as it was then. The caller closes it.
func (b *backup) awaitProof(ctx context.Context) (*view, error) {
	bound, cancel := context.WithTimeout(ctx, b.opts.Wait)
	defer cancel()

	p := &prover{backup: b, later: b.report.Began}
	var known *raftlog.Log
	for {
		v, err := b.look(ctx, known)
		if err != nil {
			return nil, err
		}

		found, err := p.look(bound, v)
		if found || err != nil && bound.Err() == nil {
			if err != nil {
				v.held.Close()
			}

			return v, err
		}

		known = v.log
		v.held.Close()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-bound.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}

			return nil, b.noProof(p)
		case <-time.After(proofPause):
		}
	}
}

// look takes hold of the raft directory and reads it.
func (b *backup) look(ctx context.Context, known *raftlog.Log) (*view, error) {
	err := checkGlobal(b.dir.global())
	if err != nil {
		return nil, err
	}

	held, err := raftlog.Hold(ctx, b.dir.global())
	if err != nil {
		return nil, err
	}

	opts := engineOptions(ctx, b.dir.global(), raftlog.Options{Sums: true, AllSums: b.opts.Trailing, Live: true, Known: known})
	if known == nil {
		done := b.opts.Progress.start("Checking "+b.dir.global(), dirSize(b.dir.global()))
		defer done()

		opts.Progress = b.opts.Progress.add
	}

	log, err := raftlog.Open(ctx, held, opts)
	if err == nil {
		err = globaldb.Judge(ctx, log)
	}

	if err != nil {
		held.Close()
		return nil, err
	}

	return &view{held: held, log: log}, nil
}

// look looks for the proof in one view.
func (p *prover) look(ctx context.Context, v *view) (bool, error) {
	b, log := p.backup, v.log
	p.damage = nil
	if !log.Healthy() {
		p.damage = &DamageError{What: b.dir.global(), Problems: log.Problems,
			Advice: "Back up another member, and see what `lxd-recover global-db-inspect` says here."}
	}

	if log.Undecided() || log.SoundIndex == 0 {
		return false, nil
	}

	if hasSoleVoter(log.Configuration) {
		return true, p.takeSoleVoter(log)
	}

	if !p.begun {
		return false, p.begin(ctx, log)
	}

	last, next, holder, err := p.transactions(ctx, log)
	if err != nil || last.Index <= p.looked {
		return false, err
	}

	b.report.Raft, b.report.Next, b.report.Proof = last, next, bundle.ProofHeartbeat
	if p.backup.nonce != "" {
		b.report.Proof = bundle.ProofNonce
		return holder, nil
	}

	heartbeat, err := heartbeatAt(ctx, log, last.Index)
	p.looked = last.Index
	return heartbeat.After(p.later), err
}

// takeSoleVoter takes the log of a cluster with one voter up to its end, if it is this member's.
func (p *prover) takeSoleVoter(log *raftlog.Log) error {
	b := p.backup
	for _, s := range log.Configuration {
		if s.Role == raftlog.Voter && s.ID != b.node.Self.ID {
			return &Refusal{Code: "not-the-voter", Member: b.node.Self.Name,
				Reason: fmt.Sprintf("the only voter of this cluster is the member at %s: run the command there, where all that was confirmed is on the disk",
					s.Address)}
		}
	}

	b.report.Raft, b.report.Proof = bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, bundle.ProofSoleVoter
	return nil
}

// begin notes where the log stands, and has the leader write something.
func (p *prover) begin(ctx context.Context, log *raftlog.Log) error {
	b := p.backup
	p.begun, p.from = true, max(log.LastIndex, backtrack)-backtrack+1
	status, err := daemon.Inspect(ctx, b.dir.path)
	if err != nil {
		return err
	}

	if !status.Running() {
		return &Refusal{Code: "not-running", Member: b.node.Self.Name, Reason: product.Text("LXD does not run on ") + b.node.Self.Name +
			product.Text(": its disk does not follow the leader, and lacks what the others have confirmed since. Run the command on a member whose "+
				"LXD runs. ") +
			"If it runs on none, `lxd-recover cluster export-db` takes the database of stopped members"}
	}

	if b.nonce != "" {
		return b.writeNonce(ctx)
	}

	b.opts.Progress.step("Waiting for the leader's next heartbeat")
	had, err := heartbeatAt(ctx, log, log.LastIndex)
	if err == nil && had.After(p.later) { // the leader's clock is ahead of this one
		p.later = had
	}

	return err
}

// transactions finds the last transaction that another one of the same term comes after; with a nonce, the first one that has it, and whether it is so.
func (p *prover) transactions(ctx context.Context, log *raftlog.Log) (last, next bundle.Position, holder bool, err error) {
	var before bundle.Position // the transaction before
	has := false               // whether it is the first one with the nonce
	for entry, err := range log.Entries(ctx, max(p.from, log.FirstIndex)) {
		if err != nil {
			return last, next, holder, err
		}

		if entry.Index > log.SoundIndex || !isTransaction(entry) {
			continue
		}

		at := bundle.Position{Index: entry.Index, Term: entry.Term}
		if before.Term == at.Term {
			last, next, holder = before, at, has
			if has {
				break
			}
		}

		before = at
		has = p.backup.nonce != "" && bytes.Contains(entry.Data, []byte(p.backup.nonce))
	}

	return last, next, holder, nil
}

// heartbeatAt is the newest heartbeat of the database at an index; zero if there is none.
func heartbeatAt(ctx context.Context, log *raftlog.Log, index uint64) (time.Time, error) {
	db, err := globaldb.Open(ctx, log, index)
	if errors.Is(err, globaldb.ErrNoDatabase) {
		return time.Time{}, nil
	}

	if err != nil {
		return time.Time{}, replayError(fmt.Sprintf("the database at index %d", index), err)
	}

	defer db.Close()

	return db.NewestHeartbeat(ctx)
}

// noProof says why nothing was written.
func (b *backup) noProof(p *prover) error {
	if p.damage != nil {
		return p.damage
	}

	what := "a heartbeat of its leader"
	if p.backup.nonce != "" {
		what = "the key that was written through its leader"
	}

	return &Refusal{Code: "no-leader", Member: b.node.Self.Name, Reason: product.Sprintf(
		"%s did not reach this member's disk within %s, with another transaction after it: "+
			"nothing shows that all that the cluster has confirmed is here, so nothing was written. Is LXD running here, and does `lxc cluster list` answer? "+
			"A cluster that has lost its quorum is recovered with `lxd-recover cluster recover`", what, b.opts.Wait)}
}
