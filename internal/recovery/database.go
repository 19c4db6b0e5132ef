// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Database is a source's global database as it was after one entry of the log, replayed to a scratch file.
type Database struct {
	*globaldb.DB
	Source string // as it was given
	Kind   string // of source
	Index  uint64 // of the last entry in it
	Last   uint64 // of the log

	// RunningDaemon is the daemon that runs on the source, empty if none does: what was read may never have been on disk together, and the newest
	// entries may not be committed yet.
	RunningDaemon string

	// Signature is that of a recovery tarball.
	Signature Signature

	// Damage says what is wrong with the source; nil where it is sound. What is in the database is sound all the same.
	Damage *DamageError
}

// DatabaseOptions say which database to open.
type DatabaseOptions struct {
	Source   string
	At       uint64 // index; 0 for all of the log that is sound
	Reading  string // digest of the reading to take where there are several
	Database string // one of several
	Progress Progress
}

// OpenDatabase replays the log of a source. The source is only read. Close removes the scratch file.
func OpenDatabase(ctx context.Context, opts DatabaseOptions) (*Database, error) {
	db := &Database{}
	source, err := partAt(opts.Source, opts.At)
	if err != nil {
		return nil, err
	}

	err = readSourceDatabase(ctx, source, opts.Database, opts.Progress, func(src *Source, log *raftlog.Log) error {
		err := readAs(src.Path, log, opts.Reading)
		if err == nil {
			err = src.oneDatabase(ctx, log)
		}

		if err != nil {
			return err
		}

		db.Signature, err = src.signature("")
		if err != nil {
			return err
		}

		db.Source, db.Kind, db.RunningDaemon, db.Last, db.Damage = src.Path, src.Kind, src.daemon, log.LastIndex, damageOf(src, log)
		db.Index = opts.At
		if opts.At == 0 {
			db.Index = log.SoundIndex
		}

		err = within(src, log, db.Index)
		if err != nil {
			return err
		}

		db.DB, err = globaldb.Open(ctx, log, db.Index)
		if errors.Is(err, globaldb.ErrNoDatabase) {
			return fmt.Errorf("%s: %w up to index %d", src.Path, globaldb.ErrNoDatabase, db.Index)
		}

		return err
	})
	if err != nil {
		return nil, err
	}

	return db, nil
}

// CopyTo copies the SQLite file to a new file; force replaces one that exists.
func (db *Database) CopyTo(path string, force bool) error {
	err := CheckOutput(path)
	if err != nil {
		return err
	}

	if !force {
		_, err := os.Lstat(path)
		if err == nil {
			return existing(path)
		}
	}

	return writeOutput(path, force, func(w io.Writer) error {
		f, err := os.Open(db.File)
		if err != nil {
			return err
		}

		defer f.Close()

		_, err = io.Copy(w, f)
		return err
	}, nil)
}
