// SPDX-License-Identifier: AGPL-3.0-only

// Package raftlogtest makes raft directories to test with: real members unpacked from the project's fixtures, directories built entry
// by entry, and every kind of damage applied to copies of them. It is for tests only.
package raftlogtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// fixtureArchive is the file with the members of Fixtures.
const fixtureArchive = "lxd-6.9-members.tar.xz"

// fixtureDir is where the archives are.
func fixtureDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "../../../tests/fixtures")
}

var unpack = sync.OnceValues(func() (string, error) {
	archive := filepath.Join(fixtureDir(), fixtureArchive)
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

// applications are members of real clusters of go-dqlite's applications, all killed hard: microcluster-v3/stopped-hard/m1 to m3 and k8s-dqlite/k1 to k3, of
// which the third lacks the last row; microcluster-v3/edited/m1 after microcluster's own edit; and
// incus-6.0.4-member, of a cluster of Incus, with a raw snapshot, without its keys.
var applications = sync.OnceValues(func() (string, error) {
	dir, err := unpack()
	if err != nil {
		return "", err
	}

	for _, name := range []string{"go-dqlite-members.tar.xz", "incus-6.0.4-member.tar.xz"} {
		archive := filepath.Join(fixtureDir(), name)
		out, err := exec.Command("tar", "-xJf", archive, "-C", dir).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("unpack %s: %w: %s", archive, err, out)
		}
	}

	return dir, nil
})

// Application returns the directory of a member of one of go-dqlite's applications, such as "k8s-dqlite/k1", or "incus-6.0.4-member", to be read only.
func Application(t testing.TB, member string) string {
	t.Helper()
	dir, err := applications()
	if err != nil {
		t.Fatal(err)
	}

	return filepath.Join(dir, filepath.FromSlash(member))
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

// Copy copies the regular files of a directory into a new one. What is zero at their end becomes a hole.
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

// content is what a file holds, without the zeros at its end.
type content struct {
	data []byte
	size int
}

// fixtureFiles are the files of the fixtures that were read already, by path: they do not change, and hundreds of cases copy them.
var fixtureFiles sync.Map

// copyFile copies a file, and makes a hole of the zeros at its end.
func copyFile(from, to string) error {
	dir, err := unpack()
	fixture := err == nil && strings.HasPrefix(from, dir)
	if known, ok := fixtureFiles.Load(from); fixture && ok {
		return known.(content).write(to)
	}

	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}

	c := content{data: trimZeros(data), size: len(data)}
	if fixture {
		c.data = bytes.Clone(c.data) // most of an open segment is zeros
		fixtureFiles.Store(from, c)
	}

	return c.write(to)
}

// writeFile writes a new file, or another content to an existing one, and makes a hole of the zeros at its end: open segments are 8 MiB
// of mostly nothing.
func writeFile(path string, data []byte) error {
	return content{data: trimZeros(data), size: len(data)}.write(path)
}

func (c content) write(path string) error {
	err := os.WriteFile(path, c.data, 0o600)
	if err != nil || len(c.data) == c.size {
		return err
	}

	return os.Truncate(path, int64(c.size))
}

var zeros [64 << 10]byte

// trimZeros leaves out the zeros at the end.
func trimZeros(data []byte) []byte {
	for len(data) >= len(zeros) && bytes.Equal(data[len(data)-len(zeros):], zeros[:]) {
		data = data[:len(data)-len(zeros)]
	}

	return bytes.TrimRight(data, "\x00")
}
