// SPDX-License-Identifier: AGPL-3.0-only

// Package tests holds the tests that need real peers: LXD clusters, systemd, faults. Each one runs the built
// bin/lxd-recover as its user would.
package tests

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// tool is the path of the program under test.
var tool string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serviceHelper {
		os.Exit(helpService(os.Args[2:]))
	}

	err := findTool()
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("these tests must run as root")
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		os.Exit(1)
	}

	// Under nohup a hangup is ignored, by children too; one that this process listens to is not.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	restore := guest.FairProcessors()
	status := m.Run()
	restore()
	os.Exit(status)
}

// findTool finds bin/lxd-recover and refuses one that is older than its source: it would not be what is tested.
func findTool() error {
	root, err := filepath.Abs("..")
	if err != nil {
		return err
	}

	tool = filepath.Join(root, "bin", "lxd-recover")
	info, err := os.Stat(tool)
	if err != nil {
		return fmt.Errorf("%w: run make", err)
	}

	for _, dir := range []string{"cmd", "internal"} {
		err = filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}

			source, err := e.Info()
			if err == nil && source.ModTime().After(info.ModTime()) {
				return fmt.Errorf("%s is newer than %s: run make", path, tool)
			}

			return err
		})
		if err != nil {
			return err
		}
	}

	return nil
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int
}

// run runs a command and returns how it ended.
func run(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}

	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	t.Logf("%s: exit status %d\n%s%s", strings.Join(cmd.Args, " "), r.status, r.stdout, r.stderr)
	return r
}

// recover runs lxd-recover on a member.
func recoverTool(t testing.TB, m *cluster.Member, args ...string) result {
	t.Helper()
	return run(t, m.Command(t.Context(), tool, args...))
}

// mustRecover is recoverTool where anything but success ends the test.
func mustRecover(t testing.TB, m *cluster.Member, args ...string) result {
	t.Helper()
	r := recoverTool(t, m, args...)
	if r.status != 0 {
		t.Fatalf("lxd-recover %s on %s: exit status %d: %s", strings.Join(args, " "), m.Name, r.status, r.stderr)
	}

	return r
}

// want checks a refusal: its exit status, and that its one error says each of these.
func (r result) want(t testing.TB, status int, says ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d: %s", r.status, status, r.stderr)
	}

	if strings.Count(r.stderr, "Error: ") != 1 {
		t.Errorf("not one error on standard error: %q", r.stderr)
	}

	for _, s := range says {
		if !strings.Contains(r.stderr, s) {
			t.Errorf("%q does not say %q", r.stderr, s)
		}
	}
}

// decode reads the JSON that a command printed.
func decode[T any](t testing.TB, r result) T {
	t.Helper()
	var v T
	err := json.Unmarshal([]byte(r.stdout), &v)
	if err != nil {
		t.Fatalf("%v in %q", err, r.stdout)
	}

	return v
}

// tree describes a directory to the byte: names, modes, owners, times and content of everything in it.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		info, err := e.Info()
		if err != nil {
			return err
		}

		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %s %d %s", name, info.Mode(), info.Size(), info.ModTime().Format(time.RFC3339Nano))
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}

			fmt.Fprintf(&b, " %x", sha256.Sum256(data))
		}

		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	return b.String()
}

// unchanged notes how a member's LXD directory looks and returns a check that it looks the same.
func unchanged(t testing.TB, dir string) (check func()) {
	t.Helper()
	look := func() string {
		names, err := filepath.Glob(filepath.Join(dir, "database*"))
		if err != nil {
			t.Fatal(err)
		}

		// What a run that goes through has seen of raft's terms stays, whatever becomes of it.
		names = slices.DeleteFunc(names, func(name string) bool { return filepath.Base(name) == "database.high-water.yaml" })
		return strings.Join(names, "\n") + "\n" + tree(t, filepath.Join(dir, "database"))
	}
	before := look()
	return func() {
		t.Helper()
		if after := look(); after != before {
			t.Errorf("the database was changed:\n%s\n--- before\n%s", after, before)
		}
	}
}

// within bounds a step of a test, in time as the machine has it to give.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := progress.Within(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
