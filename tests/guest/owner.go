package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// starter starts the guests. The kernel delivers Pdeathsig when the thread that forked ends, not the process, and Go ends
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

// startTied starts cmd as the first process of a PID namespace, in a mount namespace and a session of its own, so that it is
// killed when this process ends in whatever way. The kernel takes all of the namespace with it: when cmd.Wait returns, every
// process in it is gone.
func startTied(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:       true,
		Pdeathsig:    syscall.SIGKILL,
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // this way Go makes all mounts private
	}
	result := make(chan error)
	starter() <- func() { result <- cmd.Start() }
	return <-result
}

// dirPrefix begins the names of guests' directories, and of their cgroups.
const dirPrefix = "lxdr.guest-"

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
	err = errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB), os.Rename(hidden, dir))
	if err != nil {
		lock.Close()
		os.RemoveAll(hidden)
		return "", nil, err
	}
	return dir, lock, nil
}

// sweep removes what dead test processes left in parent: directories whose lock nobody holds, and the cgroups of the same
// names. One that cannot be removed does not keep it from the others.
func sweep(parent string) error {
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
			err := removeCgroups(filepath.Base(dir))
			if err == nil { // otherwise the directory's name is all that tells of them
				err = os.RemoveAll(dir)
			}
			errs = append(errs, err)
		}
		lock.Close()
	}
	return errors.Join(errs...)
}

// hierarchies are the cgroup hierarchies in which systemd-nspawn and the guest's systemd make groups: the only one of
// cgroup v2, or v1's for systemd with v2's beside it.
func hierarchies() []string {
	const root = "/sys/fs/cgroup"
	var found []string
	for _, dir := range []string{root + "/unified", root + "/systemd"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			found = append(found, dir)
		}
	}
	if found == nil {
		return []string{root}
	}
	return found
}

// makeCgroups makes a cgroup of that name in each hierarchy. Without one of its own a guest would share that of the test
// process with other guests, and each systemd would take itself for the only one in it.
func makeCgroups(name string) ([]string, error) {
	var made []string
	for _, dir := range hierarchies() {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return nil, fmt.Errorf("make a cgroup for the guest: %w", err)
		}
		made = append(made, path)
	}
	return made, nil
}

// removeCgroups removes the cgroups that makeCgroups made, with what the guest made in them.
func removeCgroups(name string) error {
	var errs []error
	for _, dir := range hierarchies() {
		var groups []string
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				groups = append(groups, path)
			}
			return err
		})
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, group := range slices.Backward(groups) { // parents came first
			errs = append(errs, removeCgroup(group))
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup whose processes have been killed. The kernel calls it busy until they are quite gone, which
// Close has waited for, but nobody has for those of a test process that was killed itself.
func removeCgroup(path string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := unix.Rmdir(path)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// childOf returns the only child of a process.
func childOf(pid int) (int, error) {
	var children []string
	// A process's children are listed by the thread that forked them. systemd-nspawn has but one.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, path := range lists {
		list, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		children = append(children, strings.Fields(string(list))...)
	}
	if len(children) != 1 {
		return 0, fmt.Errorf("process %d has children %v, want one", pid, children)
	}
	var child int
	_, err = fmt.Sscan(children[0], &child)
	return child, err
}
