// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// highWaterName is the file in LXD's directory with the highest raft term that any run has seen on this member. It lies beside database/, so
// that no exchange takes it along: a rollback goes back in everything but this.
const highWaterName = "database.high-water.yaml"

// highWaterFormat is the version of its format.
const highWaterFormat = 1

// maxHighWater bounds what is read of it, in bytes.
const maxHighWater = 4096

// highWater is what the file holds. Neither value is ever lowered.
type highWater struct {
	Format int       `yaml:"format"`
	Term   uint64    `yaml:"term"` // the highest
	Time   time.Time `yaml:"time"` // of the last run, UTC
}

// readHighWater returns the zero value where there is no file. A damaged one is an error: without it a fence could get a number that
// a database somewhere has already.
func (d directory) readHighWater() (highWater, error) {
	path := d.join(highWaterName)
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return highWater{}, nil
	}

	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxHighWater) {
		err = errors.New("it is no file of lxd-recover's")
	}

	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}

	if machineFault(err) {
		return highWater{}, err
	}

	var h highWater
	if err == nil {
		h, err = parseHighWater(data)
	}

	if err != nil {
		return highWater{}, fmt.Errorf("%s cannot be used: %w: it holds the highest raft term that this member has seen. "+
			"Put it back from a backup; or remove it, and give the next `lxd-recover cluster export-db` the option --term-above with the highest term "+
			"that `lxd-recover global-db-inspect` shows on any member", path, err)
	}

	return h, nil
}

func parseHighWater(data []byte) (highWater, error) {
	var h highWater
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	err := decoder.Decode(&h)
	switch {
	case err != nil:
		return h, err
	case h.Format != highWaterFormat:
		return h, fmt.Errorf("its format is %d, and only %d is known", h.Format, highWaterFormat)
	case h.Term == 0 || h.Term > maxProvenTerm || h.Time.IsZero():
		return h, fmt.Errorf("term %d at %s is nothing that was ever written there", h.Term, h.Time.UTC().Format(time.RFC3339))
	}

	return h, nil
}

// raiseHighWater notes that a run has seen a term. It is written first: before a tarball gets its name, and before LXD is stopped.
func (d directory) raiseHighWater(ctx context.Context, term uint64, now time.Time) error {
	unlock, err := d.lockHighWater(ctx)
	if err != nil {
		return err
	}

	defer unlock()

	h, err := d.readHighWater()
	if err != nil {
		return err
	}

	now = now.UTC().Truncate(time.Second)
	if now.Before(h.Time) {
		now = h.Time
	}

	h = highWater{Format: highWaterFormat, Term: max(h.Term, term), Time: now}
	switch {
	case h.Term == 0: // a spare that has seen nothing
		return nil
	case h.Term > maxProvenTerm:
		return fmt.Errorf("raft term %d leaves no room for a fence above it: nothing was changed", h.Term)
	}

	err = d.writeNote(highWaterName, h)
	if err != nil {
		return fmt.Errorf("write %s: %w; nothing was changed", d.join(highWaterName), err)
	}

	return nil
}

// lockHighWater keeps two exports, which only share the lock on LXD's directory, from writing the file at once. It is a flock on database/,
// for the time that it takes to write it.
func (d directory) lockHighWater(ctx context.Context) (func(), error) {
	f, err := os.Open(d.database())
	if err != nil {
		return nil, err
	}

	for range highWaterTries {
		err = flock(f, unix.LOCK_EX)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}

		if !errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil {
			break
		}

		time.Sleep(lockPause)
	}

	_ = f.Close()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}

	return nil, fmt.Errorf("lock %s: %w", d.database(), err)
}

// highWaterTries is how often the lock is tried, lockPause apart.
const highWaterTries = 250
