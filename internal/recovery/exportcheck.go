// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// exportCheck reads the raft directory that is exported, in two steps: what takes long, the data of the snapshots, comes last,
// so that libdqlite, which takes longest of all, can begin before; unless it matters which of the snapshots are sound. end must be
// called.
type exportCheck struct {
	ctx     context.Context
	global  string
	accept  bool   // damage
	reading string // digest of the one to take
	opts    raftlog.Options
	bar     Progress
	log     *raftlog.Log
	done    func() // with the progress
}

func newExportCheck(ctx context.Context, global string, opts ExportOptions) *exportCheck {
	read := engineOptions(ctx, global, raftlog.Options{Sums: true, AllSums: opts.At > 0, Progress: opts.Progress.add})
	read.Later = !opts.AcceptDamage && opts.At == 0 && !read.Engine.RawSnapshots() // what has to be packed anew is read before
	return &exportCheck{ctx: ctx, global: global, accept: opts.AcceptDamage, reading: opts.Reading, bar: opts.Progress, done: func() {}, opts: read}
}

// outline returns the log as it is if the snapshots are sound; where something else is damaged, it reads them, too, and does what rest
// does.
func (c *exportCheck) outline() (*raftlog.Log, error) {
	err := checkGlobal(c.global)
	if err != nil {
		return nil, err
	}

	c.done = sync.OnceFunc(c.bar.start("Checking "+c.global, dirSize(c.global)))
	err = c.read()
	if err != nil || c.log.HealthySoFar() && c.opts.Later {
		return c.log, err
	}

	return c.rest()
}

// rest reads what outline has left, and returns the whole log. Damage is an error unless it is accepted.
func (c *exportCheck) rest() (*raftlog.Log, error) {
	if c.opts.Later {
		c.opts.Later, c.opts.Known = false, c.log
		err := c.read()
		if err != nil {
			return nil, err
		}
	}

	c.done()
	log, err := settle(c.ctx, os.DirFS(c.global), c.log, c.opts)
	if err == nil {
		c.log = log
		err = readAs("the global database in "+c.global, c.log, c.reading)
	}

	if err != nil {
		return nil, err
	}

	if !c.log.Healthy() && !c.accept {
		return nil, &DamageError{What: "the global database in " + c.global, Problems: c.log.Problems,
			Advice: fmt.Sprintf("Export from another member, whose database is sound. "+
				"If there is none: --accept-damage exports what is sound, which is all up to index %d.", c.log.SoundIndex)}
	}

	return c.log, nil
}

func (c *exportCheck) read() error {
	var err error
	c.log, err = raftlog.Open(c.ctx, os.DirFS(c.global), c.opts)
	return err
}

// orDamage returns an error of the examination, or, as that has seen an outline only, the damage that is found in the rest: who is told
// to do something about the former could lose data for it.
func (c *exportCheck) orDamage(err error) error {
	if c.log == nil {
		return err
	}

	var damage *DamageError
	_, restErr := c.rest()
	if errors.As(restErr, &damage) {
		return restErr
	}

	return err
}

// end ends the progress where an error came first.
func (c *exportCheck) end() { c.done() }

// takeSum completes the pieces that were listed before the snapshot's data was read.
func takeSum(pieces []bundle.Piece, snapshot *raftlog.Snapshot) {
	for i := range pieces {
		if snapshot != nil && pieces[i].Name == snapshot.File && pieces[i].SHA256 == "" { // one that was packed has the sum of that
			pieces[i].SHA256 = snapshot.SHA256
		}
	}
}
