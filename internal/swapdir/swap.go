// SPDX-License-Identifier: AGPL-3.0-only

package swapdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run carries out a replacement: plan.Staged takes the place of plan.Live, which is kept as plan.Keep. The staged directory
// must have been synced (SyncTree). An error from Run before the exchange leaves everything as it was; one after it leaves
// the new directory in place and the plan written, for Finish. Which of the two the returned done tells.
func Run(parent string, plan Plan) (done bool, err error) {
	plan.Format = planFormat
	plan.Created = time.Now().UTC().Truncate(time.Second)
	err = plan.validate()
	if err != nil {
		return false, err
	}

	_, err = os.Lstat(filepath.Join(parent, plan.Keep))
	if !errors.Is(err, os.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%s exists already", filepath.Join(parent, plan.Keep))
		}

		return false, err
	}

	plan.LiveInode, err = inode(filepath.Join(parent, plan.Live))
	if err != nil {
		return false, err
	}

	plan.StagedInode, err = inode(filepath.Join(parent, plan.Staged))
	if err != nil {
		return false, err
	}

	err = plan.write(parent)
	if err != nil {
		return false, errors.Join(fmt.Errorf("write the plan of the exchange: %w", err), removePlan(parent))
	}

	done, err = swapNames(parent, &plan)
	if !done {
		return false, err
	}

	return true, keep(parent, &plan)
}

// swapNames is the exchange. An error of the call does not prove that it was not carried out (it may have been
// interrupted; file systems over a network are like that anyway), so what the names stand for afterwards is what counts:
// trying again blindly could swap them back. The plan stays where even that cannot be told.
func swapNames(parent string, plan *Plan) (done bool, err error) {
	live, staged := filepath.Join(parent, plan.Live), filepath.Join(parent, plan.Staged)
	for {
		err := unix.Renameat2(unix.AT_FDCWD, live, unix.AT_FDCWD, staged, unix.RENAME_EXCHANGE)
		if err == nil {
			return true, nil
		}

		failed := fmt.Errorf("exchange %s and %s: %w", live, staged, err)
		state, err := Inspect(parent, plan)
		switch {
		case err != nil:
			return false, fmt.Errorf("%w; whether it was done cannot be told: %w; run the command again", failed, err)
		case state == Exchanged:
			return true, nil
		case !errors.Is(failed, unix.EINTR):
			return false, errors.Join(failed, removePlan(parent))
		}
	}
}

// State is how far an interrupted replacement had come.
type State int

const (
	// Planned means that the exchange did not happen: the old directory is in place.
	Planned State = iota
	// Exchanged means that it did: the new directory is in place.
	Exchanged
)

// Inspect tells how far a plan had come when its run was interrupted. It changes nothing.
func Inspect(parent string, plan *Plan) (State, error) {
	ino, err := inode(filepath.Join(parent, plan.Live))
	if err != nil {
		return 0, err
	}

	switch ino {
	case plan.LiveInode:
		return Planned, nil
	case plan.StagedInode:
		return Exchanged, nil
	}

	return 0, fmt.Errorf("%s was written for other directories than the ones found: %s was replaced by hand since; check %s and %s, then remove %s",
		filepath.Join(parent, PlanFile), filepath.Join(parent, plan.Live), plan.Live, plan.Staged, PlanFile)
}

// Finish completes or withdraws the replacement that an interrupted run left in the parent directory. It returns the plan
// and what became of it, or nil where none was left.
func Finish(parent string) (*Plan, State, error) {
	plan, err := ReadPlan(parent)
	if plan == nil || err != nil {
		return nil, 0, err
	}

	state, err := Inspect(parent, plan)
	if err != nil {
		return plan, 0, err
	}

	if state == Planned {
		return plan, state, removePlan(parent)
	}

	return plan, state, keep(parent, plan)
}

// keep does what comes after the exchange. Every step looks first whether it was done before.
func keep(parent string, plan *Plan) error {
	err := SyncDir(parent)
	if err != nil {
		return err
	}

	staged := filepath.Join(parent, plan.Staged)
	ino, err := inode(staged)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case ino == plan.LiveInode:
		target := filepath.Join(parent, plan.Keep)
		err = RenameNew(staged, target)
		if err != nil {
			return err
		}

		err = SyncDir(parent)
		if err != nil {
			return err
		}

	default:
		return fmt.Errorf("%s is not the directory that was replaced: put it aside and run the command again", staged)
	}

	return removePlan(parent)
}

// RenameNew renames a file or directory to a name that nothing has; one that something has is fs.ErrExist.
func RenameNew(from string, to string) error {
	for {
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if err == nil {
			return nil
		}

		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("rename %s to %s: %w", from, to, err)
		}
	}
}

// removePlan ends a run. That the plan is gone need not be durable: where it comes back after a power cut, Finish finds
// everything done, or nothing, and removes it again. So a failure to sync is none of the run, which has nothing left to do;
// an error here would make people repeat it, and a repeated rollback is one too many.
func removePlan(parent string) error {
	err := os.Remove(filepath.Join(parent, PlanFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}

	_ = SyncDir(parent)
	return nil
}

// SyncTree syncs every file and directory below dir, and dir itself, to disk.
func SyncTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}

	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			err = SyncTree(path)
		case e.Type().IsRegular():
			err = SyncFile(path)
		}

		if err != nil {
			return err
		}
	}

	return SyncDir(dir)
}

// SyncFile syncs a regular file to disk.
func SyncFile(path string) error { return syncPath(path, os.O_RDWR) }

// SyncDir syncs the names in a directory to disk.
func SyncDir(dir string) error { return syncPath(dir, os.O_RDONLY) }

func syncPath(path string, flag int) error {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return err
	}

	defer f.Close() // which has nothing left to fail at

	err = f.Sync()
	if err != nil {
		return fmt.Errorf("sync %s to disk: %w", path, err)
	}

	return nil
}

func inode(path string) (uint64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}

	return info.Sys().(*syscall.Stat_t).Ino, nil
}
