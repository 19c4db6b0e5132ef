// SPDX-License-Identifier: AGPL-3.0-only

// Package repository finds the files of this repository from a test, wherever its package is.
package repository

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// Root is the directory of this module's go.mod, at or above the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}

	for {
		file, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(file), "module github.com/lxd-recover/lxd-recover\n") {
			return dir, nil
		}

		if dir == filepath.Dir(dir) {
			return "", errors.New("the working directory is not in the repository of lxd-recover")
		}

		dir = filepath.Dir(dir)
	}
}
