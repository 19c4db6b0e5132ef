// SPDX-License-Identifier: AGPL-3.0-only

package newfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
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
