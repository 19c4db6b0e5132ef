// Package raftlogtest makes raft directories to test with: real members unpacked from the project's fixtures, directories built entry
// by entry, and every kind of damage applied to copies of them. It is for tests only.
package raftlogtest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// fixtureArchive is relative to the repository.
const fixtureArchive = "tests/fixtures/lxd-6.9-members.tar.xz"

var unpack = sync.OnceValues(func() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	archive := filepath.Join(filepath.Dir(file), "../../..", fixtureArchive)
	_, err := os.Stat(archive)
	if err != nil {
		return "", err
	}

	dir, err := os.MkdirTemp("", "raftlogtest-")
	if err != nil {
		return "", err
	}

	out, err := exec.Command("tar", "-xJf", archive, "-C", dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w: %s", archive, err, out)
	}

	return dir, nil
})

// Fixtures returns the directory with the unpacked members (small/…, forgotten/…), to be read only; it is shared by all tests of the
// process. The test fails when the archive is not there.
func Fixtures(t testing.TB) string {
	t.Helper()
	dir, err := unpack()
	if os.IsNotExist(err) {
		t.Fatalf("no fixtures: %v", err)
	}

	if err != nil {
		t.Fatal(err)
	}

	return dir
}

// Cleanup removes the unpacked fixtures; call it at the end of TestMain.
func Cleanup() {
	dir, err := unpack()
	if err == nil {
		_ = os.RemoveAll(dir)
	}
}

// Global returns the raft directory of a fixture member such as "small/n1-afteredit".
func Global(t testing.TB, member string) string {
	t.Helper()
	return filepath.Join(Fixtures(t), filepath.FromSlash(member), "database", "global")
}

// Copy copies the regular files of a directory into a new one, keeping holes.
func Copy(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	err := copyDir(from, to)
	if err != nil {
		t.Fatal(err)
	}

	return to
}

func copyDir(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}

	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}

		err = copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
		if err != nil {
			return err
		}
	}

	return nil
}

// copyFile copies up to the last byte that is not zero and makes the rest a hole: open segments are 8 MiB of mostly nothing.
func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}

	used := len(data)
	for used > 0 && data[used-1] == 0 {
		used--
	}

	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	defer f.Close()
	_, err = f.Write(data[:used])
	if err != nil && err != io.EOF {
		return err
	}

	return f.Truncate(int64(len(data)))
}
