// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// errTooLate says that a time is before what a log reaches back to.
var errTooLate = errors.New("the log reaches no further back")

// IndexAt finds the last entry of a source's raft log that is not known to be later than a time. Entries have no times. But LXD's leader writes heartbeats,
// all ten seconds or so, which have: so what is told is the state before the first heartbeat that is later. A time after the last heartbeat is that of the
// last entry.
//
// source is as for [OpenDatabase], or the name of a kept database. Of an archive it is the newest part that reaches back to that time, and its directory is
// returned; else the source itself. A part that was begun later counts only if no other one does: what it goes back to may not have been in force at that time.
// reading is the digest of the reading to take where there are several.
func IndexAt(ctx context.Context, source string, at time.Time, reading string, progress Progress) (place string, index uint64, err error) {
	if at.After(time.Now()) {
		return "", 0, fmt.Errorf("%s is in the future", at.UTC().Format(time.DateTime)+" UTC")
	}

	names, err := sourcesOf(source, at)
	if err != nil {
		return "", 0, err
	}

	for _, name := range names {
		err = readSource(ctx, name, progress, func(src *Source, log *raftlog.Log) error {
			err := readAs(src.Path, log, reading)
			if err == nil && src.isApplication() && src.app.product != product.Microcluster {
				err = errors.New("its database has no heartbeats, which tell times: --at takes an index; `lxd-recover global-db-log` lists them")
			}

			if err == nil {
				index, err = indexAt(ctx, log, at)
			}

			if err != nil {
				err = fmt.Errorf("%s: %w", src.Path, err)
			}

			return err
		})
		if err == nil && archive.Is(source) {
			return name, index, nil
		}

		if !errors.Is(err, errTooLate) {
			return source, index, err
		}
	}

	return "", 0, err
}

// sourcesOf are the directories in which a source may have a time: the parts of an archive, the newest first, those that were begun later at the end; or the
// source itself.
func sourcesOf(source string, at time.Time) ([]string, error) {
	if archive.Is(source) {
		parts, err := partsOf(source)
		slices.SortStableFunc(parts, func(a, b archive.Part) int {
			return cmp.Compare(begunAfter(a, at), begunAfter(b, at))
		})
		return dirsOf(parts), err
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

// begunAfter is 1 for a part of an archive that was begun after a time, else 0.
func begunAfter(p archive.Part, at time.Time) int {
	if p.Began().After(at) {
		return 1
	}

	return 0
}

// partsOf are an archive's parts, the newest first. There is at least one.
func partsOf(dir string) ([]archive.Part, error) {
	parts, err := archive.Parts(dir)
	if err == nil && len(parts) == 0 {
		err = fmt.Errorf("the archive %s is empty", dir)
	}

	slices.Reverse(parts)
	return parts, err
}

func dirsOf(parts []archive.Part) []string {
	var dirs []string
	for _, p := range parts {
		dirs = append(dirs, p.Dir)
	}

	return dirs
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
