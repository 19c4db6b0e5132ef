// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// Power cuts before every call that touches LXD's directory. Each second run, after which everything must be new, is followed
// by a power cut, too.
func TestPower(t *testing.T) {
	l := getLab(t)
	for _, j := range l.jobs() {
		t.Run(j.name, func(t *testing.T) {
			disks := newDisks(t)
			all, err := j.steps(disks[0], systrace.Change)
			must(t, err)
			var faults []fault
			for _, at := range append(sample(all, lasting), end) {
				faults = append(faults, fault{sort: j.name + ", power cut before a system call", at: at, kind: systrace.Change, power: true, action: cut})
			}

			j.injectAt(t, disks, all, faults)
		})
	}
}

// Power cuts at moments of no choice: the program goes on for a while with a disk that is gone.
func TestPowerAtAnyTime(t *testing.T) {
	l := getLab(t)
	for _, j := range l.jobs() {
		t.Run(j.name, func(t *testing.T) {
			p := newDisks(t)[0]
			must(t, p.reset(j.start))
			begin := time.Now()
			p.run(j)
			whole := time.Since(begin)
			moments := 10
			if everything {
				moments = 50
			}

			for i := range moments {
				must(t, p.reset(j.start))
				moment := whole * time.Duration(i) / time.Duration(moments)
				r := p.begin(j)
				time.Sleep(moment)
				must(t, shutDown(p.dir))
				ended := r.finish()
				must(t, p.ended())
				f := fault{sort: j.name + ", power cut at any time", power: true}
				j.verify(t, p, fmt.Sprintf("power cut after %s", moment), f, ended)
			}
		})
	}
}

// cut cuts the power, and the program dies of it.
func cut(p *place, _ *systrace.Call) systrace.Action {
	err := shutDown(p.dir)
	if err != nil {
		panic(err) // no such file system: newDisks made it
	}

	return systrace.KillBefore
}

// newDisks makes a place for each worker that is an ext4 file system of its own, mounted so that as little as possible gets to
// the disk by itself: no commits in between, no writing early what was renamed. The second one does not even write the content
// of a file before its size.
func newDisks(t *testing.T) []*place {
	t.Helper()
	var places []*place
	for i := range workers {
		dir := t.TempDir()
		image, mount := filepath.Join(dir, "disk"), filepath.Join(dir, "mount")
		must(t, os.Mkdir(mount, 0o700))
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, 128<<20))
		must(t, command("mkfs.ext4", "-q", "-F", "-m", "0", image))
		options := "loop,noauto_da_alloc,commit=600"
		if i%2 == 1 {
			options += ",data=writeback"
		}

		must(t, command("mount", "-t", "ext4", "-o", options, image, mount))
		t.Cleanup(func() {
			err := unmount(mount)
			if err != nil {
				t.Errorf("%v", errors.Join(err, command("umount", "--lazy", mount)))
			}
		})
		places = append(places, &place{dir: mount, number: i, output: filepath.Join(dir, "output"), after: func() error {
			return errors.Join(shutDown(mount), unmount(mount), command("mount", "-t", "ext4", "-o", options, image, mount))
		}})
	}

	return places
}

// shutDown makes a file system forget everything that was not synced, and fail from then on. Doing it twice is no error.
func shutDown(mount string) error {
	dir, err := os.Open(mount)
	if err != nil {
		return err
	}

	defer dir.Close()
	const (
		ioctlShutdown = 0x8004587d // EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)
		noLogFlush    = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	err = unix.IoctlSetPointerInt(int(dir.Fd()), ioctlShutdown, noLogFlush)
	if err != nil {
		return fmt.Errorf("shut down the file system in %s: %w", mount, err)
	}

	return nil
}

// unmount unmounts a file system. Programs that look through all processes' open files, as ours does, keep it busy for moments.
func unmount(mount string) error {
	var err error
	watch := progress.Watch{What: "a file system to be free", Every: time.Millisecond}
	waiting := watch.Until(context.Background(), func(context.Context) (bool, error) {
		err = unix.Unmount(mount, 0)
		return !errors.Is(err, unix.EBUSY), err
	})
	return errors.Join(waiting, err)
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}

	return nil
}
