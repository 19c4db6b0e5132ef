// SPDX-License-Identifier: AGPL-3.0-only

package newfile

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	content := strings.Repeat("0123456789", 100_000)
	err := os.WriteFile(from, []byte(content), 0o644)
	if err != nil {
		t.Fatal(err)
	}

	err = Copy(from, to)
	if err != nil {
		t.Fatal(err)
	}

	data, err := os.ReadFile(to)
	if err != nil || string(data) != content {
		t.Errorf("%d bytes, %v", len(data), err)
	}

	info, err := os.Stat(to)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	err = os.WriteFile(to, []byte("somebody's"), 0o600)
	if err != nil {
		t.Fatal(err)
	}

	err = Copy(from, to)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}

	data, err = os.ReadFile(to)
	if err != nil || string(data) != "somebody's" {
		t.Errorf("a file that was there now has %q, %v", data, err)
	}

	err = Copy(filepath.Join(dir, "missing"), filepath.Join(dir, "new"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("from nothing: %v", err)
	}

	_, err = os.Lstat(filepath.Join(dir, "new"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was made of nothing: %v", err)
	}
}

func TestWriteReadError(t *testing.T) {
	failed := errors.New("the disk is ill")
	err := Write(filepath.Join(t.TempDir(), "new"), iotest.ErrReader(failed))
	if !errors.Is(err, failed) {
		t.Errorf("%v, want %v", err, failed)
	}
}

// What is no regular file is told at once, whoever may or may not be at its other end.
func TestOpenNotRegular(t *testing.T) {
	dir := t.TempDir()
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(fifo, link))
	if err != nil {
		t.Fatal(err)
	}

	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}

	defer socket.Close()

	for _, path := range []string{fifo, link, dir, "/dev/zero", socket.Addr().String()} {
		ended := make(chan error, 2)
		go func() {
			_, err := Read(path)
			ended <- err
			ended <- Copy(path, filepath.Join(dir, "copy"))
		}()

		for range 2 {
			select {
			case err := <-ended:
				if !errors.Is(err, ErrNotRegular) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: %v", path, err)
				}

			case <-time.After(30 * time.Second):
				t.Fatalf("%s: still waiting", path)
			}
		}
	}

	_, err = os.Lstat(filepath.Join(dir, "copy"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a copy was begun: %v", err)
	}
}
