// SPDX-License-Identifier: AGPL-3.0-only

package cluster_test

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

	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

func TestCloseLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	mounts, namespaces := mountTable(t), namespaceHandles(t)
	c := cluster.ForTest(t, cluster.Options{Members: 1, Dir: parent})
	// Something that a command leaves behind, and that holds the namespace.
	must(t, c.Member(1).Command(t.Context(), "setsid", "--fork", "sleep", "600").Run())
	if len(holders(t, parent)) != 2 {
		t.Errorf("processes before Close: %v, want lxd and sleep", holders(t, parent))
	}

	must(t, c.Close())
	if left := holders(t, parent); len(left) != 0 {
		t.Errorf("processes left: %v", left)
	}

	if left, _ := os.ReadDir(parent); len(left) != 0 {
		t.Errorf("left in the directory: %v", left)
	}

	if now := mountTable(t); now != mounts {
		t.Errorf("mounts:\n%s\nwere\n%s", now, mounts)
	}

	if now := namespaceHandles(t); now != namespaces {
		t.Errorf("%d open network namespaces, were %d", now, namespaces)
	}

	must(t, c.Close())
}

// TestKilledProcess kills a process that has a cluster, as a test's time limit or an impatient person would.
func TestKilledProcess(t *testing.T) {
	parent := t.TempDir()
	helper := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$", "-test.count=1")
	helper.Env = append(os.Environ(), helperVariable+"="+parent)
	output, err := helper.StdoutPipe()
	must(t, err)
	must(t, helper.Start())
	for lines := bufio.NewScanner(output); lines.Scan() && lines.Text() != "ready"; {
		t.Log(lines.Text())
	}

	if running := holders(t, parent); len(running) != 4 {
		t.Errorf("processes of the helper: %v, want three lxd and sleep", running)
	}

	must(t, helper.Process.Kill())
	helper.Wait()

	// The kernel takes the daemons with it; what a command had left behind goes with the next cluster's start.
	must(t, progress.Watch{What: "the daemons' end", Every: time.Millisecond}.Until(t.Context(), func(context.Context) (bool, error) {
		return len(holders(t, parent)) <= 1, nil
	}))
	if left := holders(t, parent); len(left) != 1 || !strings.Contains(left[0], "sleep") {
		t.Errorf("processes after the death of their owner: %v, want sleep alone", left)
	}

	c := cluster.ForTest(t, cluster.Options{Members: 1, Dir: parent})
	if dirs, _ := filepath.Glob(filepath.Join(parent, "*")); len(dirs) != 1 || dirs[0] != c.Dir() {
		t.Errorf("directories after the next start: %v, want %s", dirs, c.Dir())
	}

	must(t, c.Close())
	if left := holders(t, parent); len(left) != 0 {
		t.Errorf("processes left: %v", left)
	}
}

const helperVariable = "CLUSTER_TEST_HELPER"

// TestHelperProcess is not a test: TestKilledProcess runs it in a process of its own.
func TestHelperProcess(t *testing.T) {
	parent := os.Getenv(helperVariable)
	if parent == "" {
		return
	}

	c := cluster.ForTest(t, cluster.Options{Dir: parent})
	must(t, c.Member(1).Command(t.Context(), "setsid", "--fork", "sleep", "600").Run())
	fmt.Println("ready")
	time.Sleep(time.Minute)
}

// TestSideBySide has two clusters with the same names and addresses, which do not see each other.
func TestSideBySide(t *testing.T) {
	ctx := t.Context()
	one := cluster.ForTest(t, cluster.Options{Members: 1})
	two := cluster.ForTest(t, cluster.Options{Members: 1})
	must(t, one.Member(1).CreateProfile(ctx, "one"))
	must(t, two.Member(1).CreateProfile(ctx, "two"))
	out, err := two.Member(1).LXC(ctx, "profile", "list", "--format", "csv")
	if err != nil || strings.Contains(out, "one") || !strings.Contains(out, "two") {
		t.Errorf("profiles of the second cluster: %q, %v", out, err)
	}

	must(t, one.Close())
	_, err = two.List(ctx)
	if err != nil {
		t.Errorf("second cluster after the end of the first: %v", err)
	}

	// No way out of the namespaces.
	out, err = output(ctx, two.Member(1), "ip", "route", "get", "192.0.2.1")
	if err == nil {
		t.Errorf("a route leads out: %s", out)
	}
}

func output(ctx context.Context, m *cluster.Member, name string, args ...string) (string, error) {
	out, err := m.Command(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// holders lists the processes whose environment mentions an LXD_DIR in the directory.
func holders(t *testing.T, dir string) []string {
	t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	var found []string
	for _, path := range environs {
		environ, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(environ), "LXD_DIR="+dir+"/") {
			continue
		}

		command, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		found = append(found, strings.ReplaceAll(string(command), "\x00", " "))
	}

	return found
}

func mountTable(t *testing.T) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return string(table)
}

// namespaceHandles counts the network namespaces that this process holds open.
func namespaceHandles(t *testing.T) int {
	t.Helper()
	descriptors, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	count := 0
	for _, fd := range descriptors {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "net:") {
			count++
		}
	}

	return count
}
