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

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// VerifyCommand is the hidden command whose child process opens a scratch copy with libdqlite and prints a fingerprint.
const VerifyCommand = "verify-copy"

// verification shows, while the tarball is packed, that what is packed is a whole database: SQLite checks what our replay makes of the
// log, and libdqlite gets the same rows out of it.
type verification struct {
	ctx     context.Context // of the packing: ends when the verification fails
	stop    context.CancelFunc
	done    chan struct{}
	summary *globaldb.Summary
	rows    globaldb.Fingerprint // that libdqlite serves as well; nil if that was not asked
	err     error
}

// replayed is the database that a log makes up to an index.
type replayed struct {
	log  *raftlog.Log
	upTo uint64
	what string // names it in an error

	// look has a look at it when it is sound; nil where there is nothing else to be known.
	look func(context.Context, *globaldb.DB) error
}

// startVerification begins the verification of a database, with what libdqlite serves; without that where served is nil. end must be called.
func startVerification(ctx context.Context, database replayed, served *serving) *verification {
	p := &verification{done: make(chan struct{})}
	p.ctx, p.stop = context.WithCancel(ctx)
	go func() {
		defer close(p.done)

		p.err = p.run(database, served)
		if p.err != nil {
			p.stop()
		}
	}()
	return p
}

// wait returns how the verification ended.
func (p *verification) wait() error {
	<-p.done
	return p.err
}

// end ends the verification, and returns its error unless it was ended before it was done: then there is a better one.
func (p *verification) end() error {
	p.stop()
	err := p.wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}

	return err
}

// run replays the log and compares what comes out with what libdqlite serves. Should both find something wrong, ours is said: it
// names the file.
func (p *verification) run(database replayed, served *serving) error {
	summary, print, err := summarize(p.ctx, database, served != nil)
	if err != nil {
		return err
	}

	p.summary = summary
	if served == nil {
		return nil
	}

	theirs, err := served.wait(p.ctx)
	if err == nil {
		differ := print.Differ(theirs)
		if len(differ) > 0 {
			err = fmt.Errorf("its rows differ in %s", strings.Join(differ, ", "))
		}
	}

	p.rows = print

	switch {
	case err == nil || p.ctx.Err() != nil:
		return err
	case errors.Is(err, engine.ErrKilled):
		return fmt.Errorf("open a scratch copy: %w; nothing was written; free some memory, or skip this check with --no-verify", err)
	case machineFault(err):
		return fmt.Errorf("make a scratch copy for libdqlite: %w; nothing was written; TMPDIR names another place for it, --no-verify skips this check", err)
	}

	return fmt.Errorf("libdqlite does not get this database out of what would be exported, so nothing was written: %w; "+
		"please report this, --no-verify skips the check", err)
}

// summarize replays a log up to an index and checks the database that comes out.
func summarize(ctx context.Context, database replayed, printed bool) (*globaldb.Summary, globaldb.Fingerprint, error) {
	db, err := globaldb.Open(ctx, database.log, database.upTo)
	if err != nil {
		return nil, nil, replayError(database.what, err)
	}

	defer db.Close()

	var summary *globaldb.Summary
	var print globaldb.Fingerprint
	if printed {
		summary, print, err = db.SummaryAndFingerprint(ctx)
	} else {
		summary, err = db.Summary(ctx)
	}

	err = soundSummary(summary, err, database.what)
	if err == nil && database.look != nil {
		err = database.look(ctx, db)
	}

	return summary, print, err
}

// soleVoter is a segment after the fence's, as LXD's own recovery would append it: a configuration with a single voter, who
// can lead without asking anybody.
func soleVoter(address string, fence bundle.Position) bundle.Piece {
	self := raftlog.Configuration{{ID: engine.ServeID, Address: address, Role: raftlog.Voter}}
	entry := raftlog.Entry{Term: fence.Term, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(self)}
	return bundle.BytesPiece(raftlog.SegmentName(fence.Index+1, fence.Index+1), raftlog.AppendBatch(raftlog.SegmentHeader(), entry))
}

// serving is libdqlite at work on a scratch copy, in a child process.
type serving struct {
	stop  context.CancelFunc
	done  chan struct{}
	print globaldb.Fingerprint
	err   error
}

// serve writes pieces, which end in the fence, to a scratch directory, and a configuration after them, and lets libdqlite open that.
// end must be called.
func serve(ctx context.Context, pieces []bundle.Piece, fence bundle.Position) *serving {
	pieces = slices.Clone(pieces)
	return serveWith(ctx, func(ctx context.Context) (globaldb.Fingerprint, error) { return fingerprintServed(ctx, pieces, fence) })
}

// serveWith is serve with another way to the scratch directory.
func serveWith(ctx context.Context, fingerprint func(context.Context) (globaldb.Fingerprint, error)) *serving {
	s := &serving{done: make(chan struct{})}
	ctx, s.stop = context.WithCancel(ctx)
	go func() {
		defer close(s.done)

		s.print, s.err = fingerprint(ctx)
	}()
	return s
}

// wait returns what the rows that libdqlite serves come to.
func (s *serving) wait(ctx context.Context) (globaldb.Fingerprint, error) {
	select {
	case <-s.done:
		return s.print, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// end ends libdqlite's process and removes its scratch copy.
func (s *serving) end() {
	s.stop()
	<-s.done
}

func fingerprintServed(ctx context.Context, pieces []bundle.Piece, fence bundle.Position) (globaldb.Fingerprint, error) {
	dir, remove, err := scratch.Dir("verify")
	if err != nil {
		return nil, err
	}

	defer remove()

	address := "@" + filepath.Base(dir)
	for _, p := range append(pieces, soleVoter(address, fence)) {
		err = ctx.Err()
		if err == nil {
			err = writePiece(filepath.Join(dir, p.Name), p)
		}

		if err != nil {
			return nil, err
		}
	}

	return fingerprintOf(ctx, dir, address)
}

// fingerprintOf has libdqlite serve a scratch directory, whose log ends in a configuration with this address as the single voter.
func fingerprintOf(ctx context.Context, dir string, address string) (globaldb.Fingerprint, error) {
	out, err := engine.Run(ctx, VerifyCommand, dir, address)
	if err != nil {
		return nil, err
	}

	var print globaldb.Fingerprint
	return print, json.Unmarshal(out, &print)
}
