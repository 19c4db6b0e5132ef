// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// errGivenUp ends an import that was staged in vain.
var errGivenUp = errors.New("the run was given up before the exchange")

// pendingImport is the import of a run over the whole cluster: it stages everything, and then waits to be told to go on.
type pendingImport struct {
	confirm chan error // nil: go on with the exchange
	end     context.CancelFunc
	done    chan struct{}    // closed when the import has returned
	local   *bundle.Position // end of the database in force; null if it cannot be read
	report  *ImportReport    // when done
	err     error
}

// TarballPath is where the tarball of a run lies on this member.
func (p *Part) TarballPath() string { return p.dir.join(runTarballName) }

// ReceiveTarball writes the tarball of the run to this member's disk. digest is the SHA-256 that it must have, in hexadecimal.
func (p *Part) ReceiveTarball(r io.Reader, digest string) (err error) {
	err = p.in(PhaseStopped, PhaseStaged, PhaseArmed)
	if err != nil {
		return err
	}

	f, err := os.OpenFile(p.TarballPath(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), r)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != digest {
		err = fmt.Errorf("the tarball has arrived damaged: its SHA-256 is %x, not %s", sum.Sum(nil), digest)
	}

	if err != nil {
		_ = os.Remove(p.TarballPath())
		return err
	}

	p.run.Digest = digest
	return errors.Join(swapdir.SyncDir(p.dir.path), p.note())
}

// StageOptions say what an import of a run does besides.
type StageOptions struct {
	SQL           string `json:"sql"`            // see ImportOptions
	AddressAbsent bool   `json:"address_absent"` // the same

	// Plan takes the place of the one that the member knows, if it has changed since; see OpenRun.Plan.
	Plan string `json:"plan,omitempty"`
}

// Stage unpacks the tarball beside the database in force, checks it completely, and keeps a copy of that database. What is in the database and not in
// the tarball is in the report, and no reason to refuse: the giver asks. The report says NothingToDo if the tarball's database is in place
// already.
func (p *Part) Stage(ctx context.Context, opts StageOptions) (*ImportReport, error) {
	err := p.in(PhaseStopped, PhaseStaged, PhaseArmed)
	if err != nil {
		return nil, err
	}

	p.giveUp()
	p.run.SQL, p.run.AddressAbsent, p.run.Plan = opts.SQL, opts.AddressAbsent, cmp.Or(opts.Plan, p.run.Plan)
	err = p.save(ctx)
	if err != nil {
		return nil, err
	}

	report, err := p.startImport(ctx, opts)
	if err != nil {
		return nil, err
	}

	if report.NothingToDo {
		return report, errors.New("the tarball's database is in place already") // settle knows one of this run
	}

	if p.run.Phase == PhaseStopped {
		err = p.reach(PhaseStaged)
	}

	return report, err
}

// save copies the database: whatever happened to it while the run is cut off, this is what the member had. Files that are never written to again are linked.
func (p *Part) save(ctx context.Context) error {
	saved := p.dir.join(runSavedName)
	if p.run.Phase != PhaseStopped && exists(saved) {
		return nil // of before; from PhaseArmed on it stays
	}

	err := os.RemoveAll(saved)
	if err != nil {
		return err
	}

	err = saveTree(ctx, p.dir.database(), saved)
	if err == nil {
		err = swapdir.SyncTree(saved)
	}

	if err != nil {
		_ = os.RemoveAll(saved)
	}

	return err
}

// saveTree is copyTree for a database directory on the same file system, and links the files of raft that are never written to again. Where they cannot be
// linked they are copied.
func saveTree(ctx context.Context, from string, to string) error {
	global := filepath.Join(from, globalName)
	return copyTreeBy(ctx, from, to, func(from string, to string) error {
		if filepath.Dir(from) == global && raftlog.Final(filepath.Base(from)) {
			err := os.Link(from, to)
			if err == nil || errors.Is(err, fs.ErrExist) {
				return err
			}
		}

		return newfile.CopyContext(ctx, from, to)
	})
}

// startImport begins the import, and returns what it has found when it is ready for the exchange.
func (p *Part) startImport(ctx context.Context, opts StageOptions) (*ImportReport, error) {
	staged := make(chan *ImportReport, 1)
	background, end := context.WithCancel(context.WithoutCancel(ctx))
	pending := &pendingImport{confirm: make(chan error, 1), end: end, done: make(chan struct{})}
	go func() {
		defer close(pending.done)

		pending.report, pending.err = Import(background, ImportOptions{
			LXDDir: p.dir.path, Tarball: p.TarballPath(), Version: p.opts.Version, NoStart: true, DiscardLocal: true, BesideCluster: true,
			Timeout: p.opts.Timeout, Progress: p.opts.Progress, part: p,
			SQL: opts.SQL, AddressAbsent: opts.AddressAbsent,
			Confirm: func(r *ImportReport) error {
				staged <- r
				select {
				case err := <-pending.confirm:
					return err
				case <-background.Done():
					return background.Err()
				}
			},
		})
	}()
	select {
	case r := <-staged:
		p.pending, pending.local = pending, r.Local
		return r, nil
	case <-pending.done:
		end()
		return pending.report, pending.err
	case <-ctx.Done():
		end()
		<-pending.done
		return nil, ctx.Err()
	}
}

// Exchange puts the staged database in place. It is refused if LXD has written since the member was armed, unless accepted is the state of what it has
// written: see WrittenSince.
func (p *Part) Exchange(ctx context.Context, accepted string) (*ImportReport, error) {
	err := errors.Join(p.in(PhaseArmed), p.forward())
	if err == nil {
		err = p.refuseWritten(ctx, accepted)
	}

	if err != nil {
		return nil, err
	}

	if p.pending == nil {
		_, err = p.Stage(ctx, StageOptions{SQL: p.run.SQL, AddressAbsent: p.run.AddressAbsent}) // again: what was staged ended with an agent
		if err != nil {
			return nil, err
		}
	}

	pending := p.pending
	p.pending = nil
	pending.confirm <- nil
	<-pending.done
	pending.end()
	if pending.report == nil || !pending.report.Done {
		return pending.report, errors.Join(errors.New("the databases were not exchanged"), pending.err)
	}

	record, err := readRecord(p.dir.database())
	if err != nil {
		return pending.report, err
	}

	return pending.report, errors.Join(p.exchanged(record.Kept), pending.err)
}

// giveUp ends a staged import that waits.
func (p *Part) giveUp() {
	if p.pending == nil {
		return
	}

	p.pending.confirm <- errGivenUp
	<-p.pending.done
	p.pending.end()
	p.pending = nil
}
