// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/frontend"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// versionTimeout bounds how long LXD's program may take to print its version.
const versionTimeout = 5 * time.Second

// snapDirectory is LXD's directory in a snap, whose name is in it. snapRoots are where snaps are mounted.
var (
	snapDirectory = regexp.MustCompile(`^/var/snap/([a-z0-9_-]+)/common/lxd$`)
	snapRoots     = []string{"/snap", "/var/lib/snapd/snap"}
)

// Installed finds the LXD that would be started on an LXD directory: that of the snap whose directory it is, else the `lxd` of this
// PATH that is LXD's own. What is not found out stays empty. It neither starts nor wakes a daemon.
func Installed(ctx context.Context, lxdDir string) LXD {
	resolved, err := filepath.EvalSymlinks(lxdDir)
	if err == nil {
		lxdDir = resolved
	}

	parts := snapDirectory.FindStringSubmatch(lxdDir)
	if parts != nil {
		return installedSnap(parts[1])
	}

	program, err := frontend.Next()
	if err != nil {
		return LXD{}
	}

	target, err := filepath.EvalSymlinks(program)
	if err != nil || filepath.Base(target) == "snap" { // the LXD of a snap is not that of this directory
		return LXD{}
	}

	l := LXD{Program: program, Version: printedVersion(ctx, program)}
	l.Schema, _ = SchemaOf(program)
	return l
}

func installedSnap(name string) LXD {
	for _, root := range snapRoots {
		dir := filepath.Join(root, name, "current")
		data, err := os.ReadFile(filepath.Join(dir, "meta/snap.yaml"))
		if err != nil {
			continue
		}

		var meta struct {
			Version string `yaml:"version"`
		}
		_ = yaml.Unmarshal(data, &meta)
		l := LXD{Program: filepath.Join(dir, "bin/lxd"), Version: meta.Version}
		l.Schema, _ = SchemaOf(l.Program)
		return l
	}

	return LXD{}
}

// printedVersion is what a program prints as its version, empty where that fails.
func printedVersion(ctx context.Context, program string) string {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()

	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.WaitDelay = time.Second // for a child of it that keeps the pipe
	out, err := cmd.Output()
	if err != nil {
		return ""
	}

	fields := strings.Fields(string(out))
	if len(fields) == 0 || !versionNumber.MatchString(fields[0]) {
		return ""
	}

	return fields[0]
}

var versionNumber = regexp.MustCompile(`^[0-9]+(\.[0-9a-z~+-]+)*$`)

// schemaUpdate is the name of a function in LXD's program that brings the schema of the global database from one version to the next. Go
// programs have the names of their functions in them, stripped ones, too.
var schemaUpdate = regexp.MustCompile(`(?:lxd|server)/db/cluster\.updateFromV([0-9]+)\x00`)

// ErrNoSchema says that a program does not tell which schema it makes.
var ErrNoSchema error = product.Error("no function of LXD's that updates the schema of its global database is in this program")

// SchemaOf is the version of the global database's schema that an LXD program makes, which it does not print: one more than the highest
// that it can update from.
func SchemaOf(program string) (int, error) {
	f, err := os.Open(program)
	if err != nil {
		return 0, err
	}

	defer f.Close()

	return schemaIn(f)
}

// overlap is more than the longest name that is looked for, so that none is cut in two.
const overlap = 128

func schemaIn(r io.Reader) (int, error) {
	newest := -1
	in := bufio.NewReaderSize(r, 1<<20)
	buffer := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := io.ReadFull(in, buffer[kept:])
		data := buffer[:kept+n]
		if bytes.Contains(data, []byte("/db/cluster.updateFromV")) {
			for _, parts := range schemaUpdate.FindAllSubmatch(data, -1) {
				version, numErr := strconv.Atoi(string(parts[1]))
				if numErr == nil {
					newest = max(newest, version)
				}
			}
		}

		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}

		if err != nil {
			return 0, err
		}

		kept = copy(buffer, data[len(data)-overlap:])
	}

	if newest < 0 {
		return 0, ErrNoSchema
	}

	return newest + 1, nil
}
