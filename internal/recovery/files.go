// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
)

// sameRaftFiles tells whether two directories hold the same raft files with the same content. Other files do not count.
func sameRaftFiles(one string, two string) (bool, error) {
	namesOne, err := raftFiles(one)
	if err != nil {
		return false, err
	}

	namesTwo, err := raftFiles(two)
	if err != nil || len(namesOne) != len(namesTwo) {
		return false, err
	}

	for i, name := range namesOne {
		if name != namesTwo[i] {
			return false, nil
		}

		same, err := sameContent(filepath.Join(one, name), filepath.Join(two, name))
		if err != nil || !same {
			return false, err
		}
	}

	return true, nil
}

// signature is the names, sizes and times of a directory's files: another one means that somebody has written there.
func signature(dir string) string {
	var text strings.Builder
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		info, infoErr := e.Info()
		if infoErr == nil {
			fmt.Fprintln(&text, e.Name(), info.Size(), info.ModTime().UnixNano())
		}

		err = errors.Join(err, infoErr)
	}

	if err != nil {
		return "" // unlike any other
	}

	return text.String()
}

func raftFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	var names []string
	for _, e := range entries {
		if bundle.IsRaftFile(e.Name()) {
			names = append(names, e.Name())
		}
	}

	return names, nil
}

func sameContent(one string, two string) (bool, error) {
	f, err := os.Open(one)
	if err != nil {
		return false, err
	}

	defer f.Close()

	g, err := os.Open(two)
	if err != nil {
		return false, err
	}

	defer g.Close()

	bufF, bufG := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, errF := io.ReadFull(f, bufF)
		m, errG := io.ReadFull(g, bufG)
		if n != m || !bytes.Equal(bufF[:n], bufG[:m]) {
			return false, nil
		}

		for _, err := range []error{errF, errG} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}

		if errF != nil {
			return true, nil
		}
	}
}

// chownTree gives everything below path, and path itself, to one owner.
func chownTree(path string, info fs.FileInfo) error {
	return filepath.WalkDir(path, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		return chown(name, info)
	})
}

// chown gives path the owner of another file.
func chown(path string, info fs.FileInfo) error {
	st := info.Sys().(*syscall.Stat_t)
	return os.Lchown(path, int(st.Uid), int(st.Gid))
}

// identity is what changes with every change of a file: its number, mode, owner, size, and the times of the last change of its
// content and of all else.
func identity(info fs.FileInfo) string {
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprint(st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, st.Size, st.Mtim, st.Ctim)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// gone tells whether a path is known not to exist.
func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// fingerprint returns the SHA-256 of the first certificate in a PEM file (of its DER form), lower-case hexadecimal. This is
// how LXD itself names a certificate.
func fingerprint(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}

	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", fmt.Errorf("%s holds no certificate: put back a copy of it (cluster.crt is the same on all members)", path)
	}

	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}

// dirSize is the sum of the sizes of the files directly in dir, in bytes; for progress bars only.
func dirSize(dir string) int64 {
	entries, _ := os.ReadDir(dir)
	var n int64
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
	}

	return n
}

// treeSize is the sum of the sizes of all files below dir, in bytes.
func treeSize(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}

		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}

		return nil
	})

	return n
}
