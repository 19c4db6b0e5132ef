// SPDX-License-Identifier: AGPL-3.0-only

// Command table ends `make test`: it reads the events that each group of tests has left (gotestsum --jsonfile DIR/GROUP.json) and
// prints one table of them, the tests that failed or were skipped by name, and the size of each sample.
//
//	table DIR GROUP…            the table; fails if a test failed, or a group did not run or had no test
//	table -campaign DIR GROUP…  the samples only, as a list for docs/reliability.md; fails if there is none
//
// A test tells the size of its sample by a line in its log: t.Logf("sample: %s: %d of %d, seed %d", …).
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	campaign := flag.Bool("campaign", false, "print the samples only, as a list in Markdown")
	flag.Parse()
	if flag.NArg() < 2 {
		fmt.Fprintln(os.Stderr, "usage: table [-campaign] DIR GROUP…")
		os.Exit(2)
	}

	groups, err := readAll(flag.Arg(0), flag.Args()[1:])
	if err == nil && *campaign {
		err = printSamples(os.Stdout, groups)
	} else if err == nil {
		err = printTable(os.Stdout, groups)
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

// readAll reads what the groups left in a directory. A group that left nothing did not run, which is no error here.
func readAll(dir string, names []string) ([]*group, error) {
	var groups []*group
	for _, name := range names {
		g, err := readFile(filepath.Join(dir, name+".json"), name)
		if err != nil {
			return nil, err
		}

		groups = append(groups, g)
	}

	return groups, nil
}

// readFile reads the events of one group.
func readFile(path, name string) (*group, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return &group{name: name}, nil
	}

	if err != nil {
		return nil, fmt.Errorf("open what group %s left: %w", name, err)
	}

	defer file.Close()
	g, err := readGroup(name, file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}

	return g, nil
}

// printSamples prints the samples, each once.
func printSamples(w io.Writer, groups []*group) error {
	count := 0
	for _, g := range groups {
		for _, sample := range g.samples {
			count++
			_, err := fmt.Fprintf(w, "* %s\n", sample)
			if err != nil {
				return err
			}
		}
	}

	if count == 0 {
		return errors.New("no test told the size of its sample")
	}

	return nil
}
