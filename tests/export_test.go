// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// The data of the snapshot is read last, when libdqlite has begun with a copy of it. What is found wrong in it is said by us, before
// anything that is to be refused, and neither a tarball nor a scratch copy is left; the same snapshot without the damage is exported.
func TestExportDamagedSnapshot(t *testing.T) {
	member := filepath.Join(unpackFixtures(t), "small", "n2-preimport")
	must(t, os.WriteFile(filepath.Join(member, "cluster.crt"), anyCertificate(t), 0o600))
	global := filepath.Join(member, "database", "global")
	must(t, os.RemoveAll(global))
	must(t, os.Rename(raftlogtest.Make(t, raftlogtest.Snapshot), global))
	output := filepath.Join(t.TempDir(), "tarball")
	scratch := t.TempDir()
	export := func(args ...string) result {
		cmd := exec.CommandContext(t.Context(), tool, append([]string{"cluster", "export-db", "--unsigned", output}, args...)...)
		cmd.Env = append(os.Environ(), "LXD_DIR="+member, "TMPDIR="+scratch)
		return run(t, cmd)
	}
	export().want(t, 3, "--unedited")
	if r := export("--unedited"); r.status != 0 {
		t.Fatalf("%+v", r)
	}

	must(t, os.Remove(output))

	snapshot := filepath.Join(global, raftlogtest.NewerSnapshot)
	data, err := os.ReadFile(snapshot)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.WriteFile(snapshot, data, 0o600))
	check := unchanged(t, member)
	for _, args := range [][]string{nil, {"--unedited"}, {"--unedited", "--no-verify"}, {"--unedited", "--at", "140", "--yes"}} {
		export(args...).want(t, 4, raftlogtest.NewerSnapshot, "damaged", "--accept-damage")
		wantMissing(t, output)
		wantEmpty(t, scratch)
	}

	check()
}

// libdqlite's child, which takes as much memory as the database, is what the kernel is to kill first where memory runs out. The
// export says so then, and leaves nothing.
func TestExportVerifyKilled(t *testing.T) {
	member := filepath.Join(unpackFixtures(t), "small", "n1-afteredit")
	must(t, os.WriteFile(filepath.Join(member, "cluster.crt"), anyCertificate(t), 0o600))
	output, scratch := filepath.Join(t.TempDir(), "tarball"), t.TempDir()
	var screen bytes.Buffer
	cmd := exec.CommandContext(t.Context(), tool, "cluster", "export-db", "--unsigned", output)
	cmd.Env = append(os.Environ(), "LXD_DIR="+member, "TMPDIR="+scratch)
	cmd.Stderr = &screen
	must(t, cmd.Start())
	must(t, syscall.Kill(offered(t, cmd.Process.Pid), syscall.SIGKILL))
	_ = cmd.Wait()
	if text := screen.String(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(text, "memory runs out") || !strings.Contains(text, "--no-verify") {
		t.Errorf("exit status %d: %s", cmd.ProcessState.ExitCode(), text)
	}

	wantMissing(t, output)
	wantEmpty(t, scratch)
}

// What an export leaves that is killed while libdqlite looks at its scratch copy and the tarball is packed, the next one removes.
func TestExportKilled(t *testing.T) {
	member := filepath.Join(unpackFixtures(t), "small", "n1-afteredit")
	must(t, os.WriteFile(filepath.Join(member, "cluster.crt"), anyCertificate(t), 0o600))
	output, scratch := filepath.Join(t.TempDir(), "tarball"), t.TempDir()
	export := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), tool, "cluster", "export-db", "--unsigned", output)
		cmd.Env = append(os.Environ(), "LXD_DIR="+member, "TMPDIR="+scratch)
		return cmd
	}
	cmd := export()
	must(t, cmd.Start())
	offered(t, cmd.Process.Pid)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	left, err := os.ReadDir(scratch)
	must(t, err)
	if len(left) == 0 {
		t.Fatal("the killed export has left nothing")
	}

	wantMissing(t, output)
	part := filepath.Join(filepath.Dir(output), ".lxd-recover-1.part") // whether it was begun by then is a matter of luck
	must(t, os.WriteFile(part, []byte("half a tarball"), 0o600))
	must(t, export().Run())
	wantEmpty(t, scratch)
	must(t, os.Remove(output))
	wantEmpty(t, filepath.Dir(output))
}

// wantEmpty checks that nothing is left in a directory.
func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("%v is left in %s", left, dir)
	}
}

// offered waits for a child of a process that has offered itself to the kernel, and returns its pid.
func offered(t *testing.T, parent int) int {
	t.Helper()
	ctx := within(t, 30*time.Second)
	for ctx.Err() == nil {
		children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
		for _, file := range children {
			list, _ := os.ReadFile(file)
			for _, pid := range strings.Fields(string(list)) {
				score, _ := os.ReadFile(filepath.Join("/proc", pid, "oom_score_adj"))
				if strings.TrimSpace(string(score)) == "1000" {
					n := 0
					_, err := fmt.Sscan(pid, &n)
					must(t, err)
					return n
				}
			}
		}

		time.Sleep(time.Millisecond)
	}

	t.Fatal("no child has offered itself")
	return 0
}
