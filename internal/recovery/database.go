package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

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

	// Torn is set where a daemon runs on the source: what was read may never have been on disk together, and the newest
	// entries may not be committed yet.
	RunningDaemon string

	// Damage says what is wrong with the source; nil where it is sound. What is in the database is sound all the same.
	Damage *DamageError
}

// OpenDatabase replays the log of a source up to an index, 0 for all of it that is sound. The source is only read. Close
// removes the scratch file.
func OpenDatabase(ctx context.Context, source string, at uint64, progress Progress) (*Database, error) {
	db := &Database{}
	err := readSource(ctx, source, progress, func(src *Source, log *raftlog.Log) error {
		db.Source, db.Kind, db.RunningDaemon, db.Last, db.Damage = src.Path, src.Kind, src.daemon, log.LastIndex, damageOf(src, log)
		db.Index = at
		if at == 0 {
			db.Index = log.SoundIndex
		}

		err := within(src, log, db.Index)
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

// damageOf is what is wrong with a source's log, nil where it is healthy.
func damageOf(src *Source, log *raftlog.Log) *DamageError {
	if log.Healthy() {
		return nil
	}

	return &DamageError{What: src.Path, Problems: log.Problems, Advice: fmt.Sprintf("What is shown is sound, up to index %d of %d.", log.SoundIndex, log.LastIndex)}
}

// within checks that the database can be told at an index.
func within(src *Source, log *raftlog.Log, index uint64) error {
	oldest := globaldb.Oldest(log)
	switch {
	case log.SoundIndex == 0:
		return &DamageError{What: src.Path, Problems: log.Problems, Advice: "Nothing in its log is sound."}
	case index > log.LastIndex:
		return fmt.Errorf("%s ends at index %d: there is no index %d", src.Path, log.LastIndex, index)
	case index > log.SoundIndex:
		return &DamageError{What: src.Path, Problems: log.Problems, Advice: fmt.Sprintf("It is sound up to index %d: nothing can be said about index %d.", log.SoundIndex, index)}
	case index < oldest:
		return fmt.Errorf("%s reaches no further back than index %d: what was before is in its snapshot, where one entry cannot be told from another", src.Path, oldest)
	}

	return nil
}

// Looking at a directory in which a daemon works may fail for no other reason than that: files get other names.
const (
	liveTries = 5
	livePause = 50 * time.Millisecond
)

// readSource opens a source, reads its log and hands both to use; again where LXD got in the way.
func readSource(ctx context.Context, source string, progress Progress, use func(*Source, *raftlog.Log) error) error {
	src, err := OpenSource(ctx, source, progress)
	if err != nil {
		return err
	}

	defer src.Close()

	for try := 1; ; try++ {
		log, err := readLog(ctx, src.global, progress)
		if err == nil && (log.Healthy() || src.daemon == "" || try == liveTries) {
			err = use(src, log)
		}

		if src.daemon == "" || try == liveTries || err == nil && log.Healthy() || ctx.Err() != nil {
			return err
		}

		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(livePause):
		}
	}
}
