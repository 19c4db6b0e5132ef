// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// errTooLate says that a time is before what a log reaches back to.
var errTooLate = errors.New("the log reaches no further back")

// IndexAt finds the last entry of a source's raft log that is not known to be later than a time. Entries have no times. But LXD's leader writes heartbeats,
// all ten seconds or so, which have: so what is told is the state before the first heartbeat that is later. A time after the last heartbeat is that of the
// last entry.
//
// source is as for [OpenDatabase], or the name of a kept database; of an archive all parts count. reading is the digest of the reading to take where there
// are several.
func IndexAt(ctx context.Context, source string, at time.Time, reading string, progress Progress) (uint64, error) {
	if at.After(time.Now()) {
		return 0, fmt.Errorf("%s is in the future", at.UTC().Format(time.DateTime)+" UTC")
	}

	names, err := sourcesOf(source)
	if err != nil {
		return 0, err
	}

	var index uint64
	for _, name := range names {
		err = readSource(ctx, name, progress, func(src *Source, log *raftlog.Log) error {
			err := readAs(src.Path, log, reading)
			if err == nil {
				index, err = indexAt(ctx, log, at)
			}

			if err != nil {
				err = fmt.Errorf("%s: %w", src.Path, err)
			}

			return err
		})
		if !errors.Is(err, errTooLate) {
			return index, err
		}
	}

	return 0, err
}

// sourcesOf are the directories in which a source may have an index: the parts of an archive, the newest first, or the source itself.
func sourcesOf(source string) ([]string, error) {
	if archive.Is(source) {
		return partsOf(source)
	}

	_, err := os.Stat(source)
	if source == "" || err == nil {
		return []string{source}, nil
	}

	dir, err := openDirectory("")
	if err != nil {
		return nil, err
	}

	kept, err := dir.findKept(source)
	if err != nil {
		return nil, err
	}

	return []string{dir.join(kept.Name)}, nil
}

// indexAt is IndexAt for one log. Heartbeats only become later, so the first one that is too late is found by halving.
func indexAt(ctx context.Context, log *raftlog.Log, at time.Time) (uint64, error) {
	if log.SoundIndex == 0 {
		return 0, errNothingSound
	}

	heard, err := heardAt(ctx, log, log.SoundIndex)
	if err != nil {
		return 0, err
	}

	if !heard.After(at) {
		return log.SoundIndex, nil
	}

	oldest := max(globaldb.Oldest(log), 1)
	heard, err = heardAt(ctx, log, oldest)
	if err != nil {
		return 0, err
	}

	if heard.After(at) {
		return 0, fmt.Errorf("%w than %s UTC, index %d", errTooLate, heard.Format(time.DateTime), oldest)
	}

	before, after := oldest, log.SoundIndex
	for after-before > 1 {
		middle := before + (after-before)/2
		heard, err = heardAt(ctx, log, middle)
		if err != nil {
			return 0, err
		}

		if heard.After(at) {
			after = middle
		} else {
			before = middle
		}
	}

	return before, nil
}

// heardAt is the newest heartbeat that the database has at an index; zero if there is no database yet.
func heardAt(ctx context.Context, log *raftlog.Log, index uint64) (time.Time, error) {
	db, err := globaldb.Open(ctx, log, index)
	if errors.Is(err, globaldb.ErrNoDatabase) {
		return time.Time{}, nil
	}

	if err != nil {
		return time.Time{}, err
	}

	defer db.Close()

	return db.NewestHeartbeat(ctx)
}

// partsOf are the directories of an archive's parts, the one that was added to last first.
func partsOf(dir string) ([]string, error) {
	parts, err := archive.Parts(dir)
	if err != nil {
		return nil, err
	}

	if len(parts) == 0 {
		return nil, fmt.Errorf("the archive %s is empty", dir)
	}

	var names []string
	for _, p := range slices.Backward(parts) {
		names = append(names, p.Dir)
	}

	return names, nil
}

// partAt is the directory in which an archive has an index: of the parts that reach back to it, the one that was added to last. What is no archive is itself,
// and so is an archive that has no such part, or if any index will do.
func partAt(source string, index uint64) (string, error) {
	if index == 0 || !archive.Is(source) {
		return source, nil
	}

	parts, err := archive.Parts(source)
	if err != nil {
		return "", err
	}

	for i := range slices.Backward(parts) {
		p := &parts[i]
		if p.Oldest() <= index && index <= p.Newest() {
			return p.Dir, nil
		}
	}

	return source, nil
}
