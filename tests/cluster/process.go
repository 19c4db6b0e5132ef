package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Every process of a cluster carries this variable in its environment, with the cluster's directory as its value. That is
// how the ones that nobody waits for are found: what LXD or a command left behind, also after the owner's death.
const markVariable = "LXD_RECOVER_TEST_CLUSTER"

// starter starts the daemons. The kernel delivers Pdeathsig when the thread that forked ends, not the process, and Go ends
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

// startTied starts cmd, in a session of its own, so that it is killed when this process ends in whatever way.
func startTied(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	starter() <- func() { result <- cmd.Start() }
	return <-result
}

// killMarked kills every process that carries the mark, and returns when they are gone.
func killMarked(ctx context.Context, mark string) error {
	for {
		left := 0
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err != nil || pid == os.Getpid() || !hasMark(pid, mark) {
				continue
			}
			left++
			// The handle is a pidfd: looking again after taking it makes sure that it is still the process seen above.
			process, err := os.FindProcess(pid)
			if err != nil {
				continue
			}
			if hasMark(pid, mark) {
				process.Kill()
			}
			process.Release()
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of %s would not die: %w", left, mark, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func hasMark(pid int, mark string) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // empty for a zombie
	if err != nil {
		return false
	}
	want := []byte(markVariable + "=" + mark)
	for variable := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.Equal(variable, want) {
			return true
		}
	}
	return false
}

// dirPrefix begins the names of clusters' directories. Short, because a Unix socket's path has at most 107 bytes.
const dirPrefix = "lxdr-"

// newDir makes a directory that is this process's as long as it holds the returned file open, which is locked.
func newDir(parent string) (dir string, lock *os.File, err error) {
	// Prepared under a hidden name, so that nobody else's sweep meets it before it is locked.
	hidden, err := os.MkdirTemp(parent, "."+dirPrefix)
	if err != nil {
		return "", nil, err
	}
	if lock, err = os.Open(hidden); err != nil {
		return "", nil, err
	}
	dir = filepath.Join(parent, filepath.Base(hidden)[1:])
	err = errors.Join(
		unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB),
		os.Chmod(hidden, 0o711), // LXD wants to be reached by its containers' users
		os.Rename(hidden, dir))
	if err != nil {
		lock.Close()
		os.RemoveAll(hidden)
		return "", nil, err
	}
	return dir, lock, nil
}

// sweep removes what dead test processes left in parent: directories whose lock nobody holds, and processes with their mark.
// One that cannot be removed does not keep it from the others.
func sweep(ctx context.Context, parent string) error {
	dirs, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
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
			errs = append(errs, killMarked(ctx, dir), os.RemoveAll(dir))
		}
		lock.Close()
	}
	return errors.Join(errs...)
}
