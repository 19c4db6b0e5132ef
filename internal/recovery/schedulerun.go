// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
)

// RunBackupOptions say how to take the backup that is due.
type RunBackupOptions struct {
	LXDDir   string
	Version  string // of lxd-recover, for the manifest
	IfDue    bool   // do nothing where the last one is younger than the interval
	NoVerify bool   // see BackupOptions
	Wait     time.Duration
	Progress Progress
}

// RunBackupReport is what one run has done.
type RunBackupReport struct {
	Due       bool           `json:"due" yaml:"due"`             // false if nothing was to be done
	Backup    *BackupReport  `json:"backup" yaml:"backup"`       // null if none was taken
	Archived  *ArchiveReport `json:"archived" yaml:"archived"`   // null if the raft log is not kept
	Forgotten *ForgetReport  `json:"forgotten" yaml:"forgotten"` // null if nothing was forgotten, as the run has failed before
}

// dueSlack is how much earlier than after an interval a backup is due: timers are not exact.
const dueSlack = 30 * time.Minute

// RunBackup takes the backup that EnableBackups has scheduled, and then forgets what the policy does not keep. It writes down how that went, for Status. After
// any failure nothing is forgotten.
func RunBackup(ctx context.Context, opts RunBackupOptions) (*RunBackupReport, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}

	schedule, err := readSchedule()
	if err != nil {
		return nil, err
	}

	if schedule == nil {
		return nil, errors.New("no backups are scheduled here: `lxd-recover backup enable DIR` does that")
	}

	unlock, free, err := lockBackupRun()
	if err != nil {
		return nil, err
	}

	if !free {
		return nil, &Refusal{Code: "backup-at-work", Reason: "another `lxd-recover backup run` is at work here: wait until it is done"}
	}

	defer unlock()

	state, err := readBackupState()
	if err != nil {
		state = &BackupState{} // it is written anew
	}

	report := &RunBackupReport{}
	now := time.Now().UTC()
	if opts.IfDue && !schedule.due(state, now) {
		return report, nil
	}

	report.Due = true
	*state = BackupState{Began: now, LastSuccess: state.LastSuccess, LastFile: state.LastFile}
	unwritten := state.write() // a backup that nobody can note is better than none
	err = schedule.run(ctx, opts, report)
	if report.Backup != nil {
		state.File, state.Size = report.Backup.File, report.Backup.Size
	}

	state.Ended = time.Now().UTC()
	switch {
	case err == nil:
		state.LastSuccess, state.LastFile = now, state.File
	case errors.Is(err, context.Canceled):
		state.Error = "it was interrupted"
	default:
		state.Error = strings.Join(strings.Fields(err.Error()), " ")
	}

	unwritten = errors.Join(unwritten, state.write())
	if unwritten != nil {
		err = errors.Join(err, fmt.Errorf("`lxd-recover global-db-status` cannot tell how this went: %w", unwritten))
	}

	return report, err
}

// due tells whether an interval has passed since the last backup that was done.
func (s *Schedule) due(state *BackupState, now time.Time) bool {
	age := now.Sub(state.LastSuccess)
	return age < 0 || age >= intervals[s.Every]-dueSlack
}

// run does what is to be done, and reports what was.
func (s *Schedule) run(ctx context.Context, opts RunBackupOptions, report *RunBackupReport) error {
	dir, err := openDirectory(opts.LXDDir)
	if err == nil {
		err = dir.keepBackupsOut(s.Directory)
	}

	if err != nil {
		return err
	}

	if !exists(filepath.Join(s.Directory, backupMarkName)) {
		return fmt.Errorf("%s is missing: is what is to be mounted there mounted? If it is the right directory, `lxd-recover backup enable %s` makes the file",
			filepath.Join(s.Directory, backupMarkName), s.Directory)
	}

	node, err := nodedb.Read(ctx, dir.database())
	if err != nil {
		return err
	}

	lock, err := s.lock()
	if err != nil {
		return err
	}

	taken, err := Backup(ctx, BackupOptions{LXDDir: dir.path, Output: s.nextFile(node.Self.Name, time.Now()), Identity: lock,
		Version: opts.Version, Wait: opts.Wait, NoVerify: opts.NoVerify, Progress: opts.Progress})
	if err != nil {
		return err
	}

	report.Backup = taken
	if s.Archive {
		report.Archived, err = Archive(ctx, ArchiveOptions{LXDDir: dir.path, Dir: filepath.Join(s.Directory, backupArchiveDir+node.Self.Name),
			Keep: archive.Keep{Age: time.Duration(s.ArchiveDays) * 24 * time.Hour, Size: s.ArchiveSize}, Progress: opts.Progress})
		if err != nil {
			return fmt.Errorf("a backup was taken, %s; but the raft log was not kept, and no backup was removed: %w", taken.File, err)
		}
	}

	forgotten, err := Forget(ctx, ForgetOptions{Directory: s.Directory, Keep: s.Keep, member: node.Self.Name, cluster: taken.Cluster})
	if err != nil {
		return fmt.Errorf("a backup was taken, %s; but not all were removed that are not to be kept: %w", taken.File, err)
	}

	report.Forgotten = forgotten
	return nil
}

// nextFile is the name of a backup that is begun now, in a second of its own.
func (s *Schedule) nextFile(member string, now time.Time) string {
	for {
		path := filepath.Join(s.Directory, scheduledFileName(member, now))
		_, err := os.Lstat(path)
		if err != nil {
			return path
		}

		now = now.Add(time.Second)
	}
}
