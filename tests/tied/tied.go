// SPDX-License-Identifier: AGPL-3.0-only

// Package tied ties what tests start and make to the process that does: its children die with it, and its directories can be told
// from those of a process that is dead.
package tied

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// starter starts the children. The kernel delivers Pdeathsig when the thread that forked ends, not the process, and Go ends
// threads when it likes; so one thread, which lives as long as the process, does all the forking.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for start := range work {
			start()
		}
	}()
	return work
})

// Start starts cmd, in a session of its own, so that it is killed when this process ends in whatever way. What else
// cmd.SysProcAttr asks for is kept.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}

	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error)
	starter() <- func() { result <- cmd.Start() }
	return <-result
}

// StartIn is Start in a PID namespace whose first process was started by Start: it ends with that one. The child is this process's own all the
// same, no other process stands between them.
func StartIn(cmd *exec.Cmd, pids *os.File) error {
	own, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		return err
	}

	defer own.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}

	cmd.SysProcAttr.Setsid = true // and no Pdeathsig: the child does not see its parent there, and would take it for dead
	result := make(chan error)
	starter() <- func() {
		err := unix.Setns(int(pids.Fd()), unix.CLONE_NEWPID) // of the children of this thread
		if err == nil {
			err = cmd.Start()
			back := unix.Setns(int(own.Fd()), unix.CLONE_NEWPID)
			if back != nil {
				panic(fmt.Sprintf("tied: thread cannot return to its PID namespace: %v", back))
			}
		}

		result <- err
	}
	return <-result
}

// Dir makes a directory whose name begins with prefix, and that is this process's as long as it holds the returned file
// open, which is locked.
func Dir(parent string, prefix string, mode os.FileMode) (dir string, lock *os.File, err error) {
	// Prepared under a hidden name, so that nobody else's Sweep meets it before it is locked.
	hidden, err := os.MkdirTemp(parent, "."+prefix)
	if err != nil {
		return "", nil, err
	}

	lock, err = os.Open(hidden)
	if err != nil {
		return "", nil, err
	}

	dir = filepath.Join(parent, filepath.Base(hidden)[1:])
	err = errors.Join(
		unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB),
		os.Chmod(hidden, mode),
		os.Rename(hidden, dir))
	if err != nil {
		lock.Close()
		os.RemoveAll(hidden)
		return "", nil, err
	}

	return dir, lock, nil
}

// Sweep calls remove for each directory that a dead process made with Dir. One that cannot be removed does not keep it from
// the others.
func Sweep(parent string, prefix string, remove func(dir string) error) error {
	dirs, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return err
	}

	var errs []error
	for _, dir := range dirs {
		lock, err := os.Open(dir)
		if err != nil {
			continue // removed by somebody else in the meantime
		}

		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, remove(dir))
		}

		lock.Close()
	}

	return errors.Join(errs...)
}
