// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// sumFiles is what Go's own crc32 makes of the files, read the plain way.
func sumFiles(files []string) error {
	hash := crc32.NewIEEE()
	buf := make([]byte, 1<<20)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}

		_, err = io.CopyBuffer(hash, struct{ io.Reader }{f}, buf)
		err = errors.Join(err, f.Close())
		if err != nil {
			return err
		}
	}

	return nil
}

// benchReading measures what only reads, on a directory of nothing but closed segments, against sums over the same files.
func benchReading(ctx context.Context, p *page, opts options, tool string) error {
	dir, err := os.MkdirTemp("", "lxd-recover-bench-")
	if err != nil {
		return err
	}

	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}

	// In a child: what this process has ever used would count for every process that it starts.
	_, err = once(exec.CommandContext(ctx, self, "-child", "make", "-size", fmt.Sprint(opts.size), dir))
	if err != nil {
		return err
	}

	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}

	slices.Sort(files)
	total, err := sizeOf(files...)
	if err != nil {
		return err
	}

	p.text("## Reading")
	p.text("A raft directory of %d files, %s, all of them segments. raftlog is the part of lxd-recover that verifies every checksum; "+
		"`global-db-inspect` also replays the log into an SQLite file, has SQLite check it, and sums every entry.", len(files), mib(total))
	var rows [][]string
	var reference measure
	for _, test := range []struct {
		what string
		args []string
	}{
		{"Go's crc32 IEEE", append([]string{self, "-child", "crc32"}, files...)},
		{"`cksum`", append([]string{"cksum"}, files...)},
		{"raftlog", []string{self, "-child", "verify", dir}},
		{"`global-db-inspect`", []string{tool, "global-db-inspect", dir}},
	} {
		m, err := best(opts.runs, command(test.args[0], test.args[1:]...))
		if err != nil {
			return fmt.Errorf("%s: %w", test.what, err)
		}

		if reference.wall == 0 {
			reference = m
		}

		rows = append(rows, []string{
			test.what, seconds(m.wall), fmt.Sprintf("%.2f GB/s", float64(total)/1e9/m.wall.Seconds()),
			times(reference.wall, m.wall), seconds(m.cpu), mib(m.peak),
		})
	}

	p.table([]string{"", "wall", "speed", "of crc32's speed", "CPU", "peak memory"}, rows)
	return compareMembers(p, dir, opts.runs, tool)
}

// sizeOf is the sum of the sizes of files.
func sizeOf(files ...string) (int64, error) {
	var total int64
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return 0, err
		}

		total += info.Size()
	}

	return total, nil
}
