// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// compareMemory is what global-db-compare may take, whatever it is given, bytes.
const compareMemory = 128 << 20

// compareMembers measures global-db-compare: on a directory and one that lacks its last segment, and on a hundred small ones.
func compareMembers(p *page, big string, runs int, tool string) error {
	shorter, err := os.MkdirTemp("", "lxd-recover-bench-")
	if err != nil {
		return err
	}

	defer os.RemoveAll(shorter)
	err = linkMember(big, shorter, 1)
	if err != nil {
		return err
	}

	small, err := os.MkdirTemp("", "lxd-recover-bench-")
	if err != nil {
		return err
	}

	defer os.RemoveAll(small)
	var hundred []string
	for _, size := range []int64{1 << 20, 900 << 10} {
		first := filepath.Join(small, fmt.Sprintf("made-%d", size))
		if err := errors.Join(os.Mkdir(first, 0o700), makeDirectory(first, size)); err != nil {
			return err
		}

		for i := range 50 {
			dir := filepath.Join(small, fmt.Sprintf("%d-%d", size, i))
			err := errors.Join(os.Mkdir(dir, 0o700), linkMember(first, dir, 0))
			if err != nil {
				return err
			}

			hundred = append(hundred, dir)
		}
	}

	var rows [][]string
	for _, test := range []struct {
		what    string
		sources []string
	}{
		{"2 sources, the big one and one that lacks its last segment", []string{big, shorter}},
		{"100 sources of 1 MiB", hundred},
	} {
		m, err := best(runs, command(tool, append([]string{"global-db-compare"}, test.sources...)...))
		if err != nil {
			return fmt.Errorf("%s: %w", test.what, err)
		}

		if m.peak > compareMemory {
			return fmt.Errorf("%s: global-db-compare took %d MiB of memory, more than %d", test.what, m.peak>>20, compareMemory>>20)
		}

		rows = append(rows, []string{test.what, seconds(m.wall), seconds(m.cpu), mib(m.peak)})
	}

	p.table([]string{"`global-db-compare`", "wall", "CPU", "peak memory"}, rows)
	return nil
}

// linkMember makes a directory with the files of another, but for so many of its newest segments.
func linkMember(from string, to string, without int) error {
	files, err := filepath.Glob(filepath.Join(from, "*"))
	if err != nil {
		return err
	}

	segments, err := filepath.Glob(filepath.Join(from, "0*-0*"))
	if err != nil {
		return err
	}

	slices.Sort(segments)
	for _, f := range files {
		if slices.Contains(segments[len(segments)-without:], f) {
			continue
		}

		err := os.Link(f, filepath.Join(to, filepath.Base(f)))
		if err != nil {
			return err
		}
	}

	return nil
}
