// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// BackupState is the state of scheduled backups, as the last run has left it. Times are UTC.
type BackupState struct {
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended,omitzero"`  // zero as long as the run is at work, and if it was killed
	Error string    `json:"error,omitempty"` // of the run, in one line; empty if it was done
	File  string    `json:"file,omitempty"`  // the backup that it has taken
	Size  int64     `json:"bytes,omitempty"`

	LastSuccess time.Time `json:"last_success,omitzero"` // when the last run began that was done
	LastFile    string    `json:"last_file,omitempty"`
}

// readBackupState returns the state; an empty one where there has been no run.
func readBackupState() (*BackupState, error) {
	path := statePath(backupStateName)
	data, err := newfile.Read(path)
	if errors.Is(err, os.ErrNotExist) {
		return &BackupState{}, nil
	}

	if err != nil {
		return nil, err
	}

	state := &BackupState{}
	err = json.Unmarshal(data, state)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; the next `lxd-recover backup run` writes it anew", path, err)
	}

	return state, nil
}

func (s *BackupState) write() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}

	return replaceSmall(statePath(backupStateName), append(data, '\n'))
}

// lockBackupRun keeps other runs away until unlock is called; false if one is at work.
func lockBackupRun() (unlock func(), free bool, err error) {
	path := statePath(backupLockName)
	err = os.MkdirAll(filepath.Dir(path), 0o755)
	if err != nil {
		return nil, false, err
	}

	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) { // a backup can be taken all the same
		f, err = os.Open(path)
	}

	if err != nil {
		return nil, false, err
	}

	for range lockTries { // a look at the status locks it for a moment, too
		err = flock(f, unix.LOCK_EX)
		if err == nil {
			return func() { _ = f.Close() }, true, nil
		}

		time.Sleep(lockPause)
	}

	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, false, nil
	}

	return nil, false, fmt.Errorf("lock %s: %w", path, err)
}

// backupRunAtWork tells whether a run is at work, and changes nothing.
func backupRunAtWork() bool {
	f, err := os.Open(statePath(backupLockName))
	if err != nil {
		return false
	}

	defer f.Close()

	return errors.Is(flock(f, unix.LOCK_SH), unix.EWOULDBLOCK)
}

// removeDurably removes a file that may be there, so that it is gone after a power cut, too.
func removeDurably(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}

	if err != nil {
		return err
	}

	return swapdir.SyncDir(filepath.Dir(path))
}

// ScheduledBackup is how the backups stand that are taken at set times.
type ScheduledBackup struct {
	Directory   string     `json:"directory" yaml:"directory"`
	Every       string     `json:"every" yaml:"every"`               // see Intervals
	Running     bool       `json:"running" yaml:"running"`           // one is taken now
	LastRun     *time.Time `json:"last_run" yaml:"last_run"`         // when the last one began; null where there was none since they were enabled
	LastSuccess *time.Time `json:"last_success" yaml:"last_success"` // when the last one began that was done
	LastFile    string     `json:"last_file" yaml:"last_file"`       // the backup of that one
	Error       string     `json:"error" yaml:"error"`               // of the last run; empty if it was done, or is at work
	Overdue     bool       `json:"overdue" yaml:"overdue"`           // none was done for three intervals
}

// overdueAfter is after how many intervals without a backup something is wrong.
const overdueAfter = 3

// scheduledBackup tells of scheduled backups, where they are enabled, and warns of what is wrong with them.
func (r *StatusReport) scheduledBackup(now time.Time) {
	schedule, err := readSchedule()
	if err != nil {
		r.warn("scheduled backups: %v", err)
		return
	}

	if schedule == nil {
		return
	}

	state, err := readBackupState()
	if err != nil {
		r.warn("scheduled backups: %v", err)
		state = &BackupState{}
	}

	b := schedule.standing(state, now)
	r.Backup = b
	if b.Error != "" {
		r.warn("the scheduled backup of %s has failed: %s", b.LastRun.Format(time.RFC3339), b.Error)
	}

	if b.Overdue && b.LastSuccess == nil {
		r.warn("no scheduled backup has succeeded since they were enabled at %s, and one is to be taken %s: `lxd-recover backup run` tells why, or takes one",
			schedule.Enabled.Format(time.RFC3339), b.Every)
	} else if b.Overdue {
		r.warn("no scheduled backup has succeeded since %s, and one is to be taken %s: `lxd-recover backup run` tells why, or takes one",
			b.LastSuccess.Format(time.RFC3339), b.Every)
	}
}

// standing is how scheduled backups stand. What the state says of a time before they were enabled is of another schedule: only a success of then counts.
func (s *Schedule) standing(state *BackupState, now time.Time) *ScheduledBackup {
	b := &ScheduledBackup{Directory: s.Directory, Every: s.Every, Running: backupRunAtWork(), LastFile: state.LastFile}
	since := s.Enabled
	if !state.LastSuccess.IsZero() {
		b.LastSuccess = &state.LastSuccess
		if state.LastSuccess.After(since) {
			since = state.LastSuccess
		}
	}

	b.Overdue = now.Sub(since) > overdueAfter*intervals[s.Every]
	if state.Began.IsZero() || state.Began.Before(s.Enabled) {
		return b
	}

	b.LastRun = &state.Began
	switch {
	case state.Ended.IsZero() && !b.Running:
		b.Error = "it did not end by itself: it was killed, or the machine went down"
	case !state.Ended.IsZero():
		b.Error = state.Error
	}

	return b
}

func (r *StatusReport) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}
