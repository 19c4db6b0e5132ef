// SPDX-License-Identifier: AGPL-3.0-only

package guest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// leaveBehind starts something in the guest that nobody waits for, and returns what its command line says.
func leaveBehind(t *testing.T, g *guest.Guest) string {
	t.Helper()
	seconds := fmt.Sprintf("600.%d", os.Getpid())
	_, err := g.Exec(t.Context(), "sh", "-c", "setsid --fork sleep "+seconds+" > /dev/null 2>&1 < /dev/null")
	must(t, err)
	return seconds
}

func TestCloseLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	before := outside(t)
	g := guest.ForTest(t, guest.Options{Name: "brief", Dir: parent})
	sleep := leaveBehind(t, g)
	cgroup := cgroups(t, parent)
	if len(cgroup) == 0 {
		t.Error("no cgroup while the guest runs")
	}

	inside := inPIDNamespaceOf(t, g)
	if len(inside) < 5 || len(running(t, sleep)) != 1 || len(running(t, parent)) == 0 {
		t.Errorf("processes before Close: %v", inside)
	}

	must(t, g.Close())
	for pid, begun := range inside {
		if startTime(pid) == begun {
			t.Errorf("process %s is left", pid)
		}
	}

	if left := append(running(t, sleep), running(t, parent)...); len(left) != 0 {
		t.Errorf("processes left: %v", left)
	}

	for _, path := range cgroup {
		_, err := os.Stat(path)
		if !os.IsNotExist(err) {
			t.Errorf("cgroup %s is left (%v)", path, err)
		}
	}

	if left, _ := os.ReadDir(parent); len(left) != 0 {
		t.Errorf("left in the directory: %v", left)
	}

	if now := outside(t); now != before {
		t.Errorf("this machine:\n%s\nwas\n%s", now, before)
	}

	must(t, g.Close())
}

// TestFailedBoot has an image that cannot boot.
func TestFailedBoot(t *testing.T) {
	parent, image := t.TempDir(), t.TempDir()
	before := outside(t)
	_, err := guest.Boot(t.Context(), guest.Options{Dir: parent, Image: image})
	if err == nil || !strings.Contains(err.Error(), "systemd-nspawn ended") || !strings.Contains(err.Error(), "end of its console") {
		t.Errorf("boot of an empty directory: %v", err)
	}

	if left, _ := os.ReadDir(parent); len(left) != 0 {
		t.Errorf("left in the directory: %v", left)
	}

	if now := outside(t); now != before {
		t.Errorf("this machine:\n%s\nwas\n%s", now, before)
	}
}

// TestKilledProcess kills a process that has a guest, as a test's time limit or an impatient person would.
func TestKilledProcess(t *testing.T) {
	parent := t.TempDir()
	helper := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$", "-test.count=1")
	helper.Env = append(os.Environ(), helperVariable+"="+parent)
	output, err := helper.StdoutPipe()
	must(t, err)
	must(t, helper.Start())
	var sleep string
	for lines := bufio.NewScanner(output); sleep == "" && lines.Scan(); {
		t.Log(lines.Text())
		sleep, _ = strings.CutPrefix(lines.Text(), "ready ")
		if sleep == lines.Text() {
			sleep = ""
		}
	}

	if sleep == "" || len(running(t, sleep)) != 1 || len(running(t, parent)) == 0 {
		t.Errorf("processes of the helper: %v, %v", running(t, sleep), running(t, parent))
	}

	must(t, helper.Process.Kill())
	helper.Wait()

	// The kernel takes the guest with it; directory and cgroup go with the next guest's start.
	left := func() []string { return append(running(t, sleep), running(t, parent)...) }
	must(t, progress.Watch{What: "the end of what the dead owner had", Every: time.Millisecond}.Until(t.Context(), func(context.Context) (bool, error) {
		return len(left()) == 0, fmt.Errorf("left: %v", left())
	}))
	stale := cgroups(t, parent)
	g := guest.ForTest(t, guest.Options{Dir: parent})
	for _, path := range stale {
		_, err := os.Stat(path)
		if !os.IsNotExist(err) {
			t.Errorf("cgroup %s of the dead guest is left (%v)", path, err)
		}
	}

	if dirs, _ := filepath.Glob(filepath.Join(parent, "*")); len(dirs) != 1 {
		t.Errorf("directories after the next start: %v, want one", dirs)
	}

	must(t, g.Close())
}

const helperVariable = "GUEST_TEST_HELPER"

// TestHelperProcess is not a test: TestKilledProcess runs it in a process of its own.
func TestHelperProcess(t *testing.T) {
	parent := os.Getenv(helperVariable)
	if parent == "" {
		return
	}

	g := guest.ForTest(t, guest.Options{Dir: parent})
	fmt.Println("ready", leaveBehind(t, g))
	time.Sleep(time.Minute)
}

// running lists the processes whose command line contains s.
func running(t *testing.T, s string) []string {
	t.Helper()
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	var found []string
	for _, path := range commands {
		command, err := os.ReadFile(path) // empty for a zombie
		if err == nil && strings.Contains(string(command), s) {
			found = append(found, strings.ReplaceAll(string(command), "\x00", " "))
		}
	}

	return found
}

// inPIDNamespaceOf returns the guest's processes, each with its start time: a pid alone may soon be another's.
func inPIDNamespaceOf(t *testing.T, g *guest.Guest) map[string]string {
	t.Helper()
	namespace, err := os.Readlink(filepath.Join(filepath.Dir(g.Root()), "ns/pid"))
	must(t, err)
	all, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	found := map[string]string{}
	for _, dir := range all {
		if of, err := os.Readlink(dir + "/ns/pid"); err == nil && of == namespace {
			found[filepath.Base(dir)] = startTime(filepath.Base(dir))
		}
	}

	return found
}

// startTime is the time at which a process began, in clock ticks since this machine did; "" if there is none.
func startTime(pid string) string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return ""
	}

	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return fields[19] // number 22 of proc(5), and the first two are cut off
}

// cgroups lists the cgroups of the guests in a directory.
func cgroups(t *testing.T, parent string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(parent, "*"))
	must(t, err)
	var found []string
	for _, dir := range dirs {
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			groups, err := filepath.Glob(pattern + filepath.Base(dir))
			must(t, err)
			found = append(found, groups...)
		}
	}

	return found
}

// outside describes what a guest must not change about this machine: mounts, systemd's run-time files, and the network
// namespaces that this process holds open.
func outside(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	files, err := filepath.Glob("/run/systemd/*")
	must(t, err)
	locks, err := filepath.Glob("/run/systemd/nspawn/*/*")
	must(t, err)
	descriptors, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	namespaces := 0
	for _, fd := range descriptors {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "net:") {
			namespaces++
		}
	}

	return fmt.Sprintf("%s%v\n%v\n%d network namespaces", mounts, files, locks, namespaces)
}
