// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/progress"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// startTied starts cmd as the first process of a PID namespace, in a mount namespace, so that it is killed when this process ends in
// whatever way. The kernel takes all of the namespace with it: when cmd.Wait returns, every process in it is gone.
func startTied(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // this way Go makes all mounts private
	}
	return tied.Start(cmd)
}

// dirPrefix begins the names of guests' directories, and of their cgroups.
const dirPrefix = "lxdr.guest-"

// sweep removes what dead test processes left in parent: directories whose lock nobody holds, and the cgroups of the same names.
func sweep(parent string) error {
	return tied.Sweep(parent, dirPrefix, func(dir string) error {
		err := removeCgroups(filepath.Base(dir))
		if err != nil {
			return err // the directory's name is all that tells of them
		}

		return os.RemoveAll(dir)
	})
}

// hierarchies are the cgroup hierarchies in which systemd-nspawn and the guest's systemd make groups: the only one of
// cgroup v2, or v1's for systemd with v2's beside it.
func hierarchies() []string {
	const root = "/sys/fs/cgroup"
	var found []string
	for _, dir := range []string{root + "/unified", root + "/systemd"} {
		_, err := os.Stat(filepath.Join(dir, "cgroup.procs"))
		if err == nil {
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
		err := os.Mkdir(path, 0o755)
		if err != nil {
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
	ctx, cancel := progress.Within(context.Background(), 10*time.Second)
	defer cancel()
	for {
		err := unix.Rmdir(path)
		if err == nil || err == unix.ENOENT {
			return nil
		}

		if err != unix.EBUSY || ctx.Err() != nil {
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
