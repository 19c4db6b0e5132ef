// SPDX-License-Identifier: AGPL-3.0-only

// Command bench measures lxd-recover against named tools, in one run and on one set of files, and writes the page
// docs/performance.md: ratios, because seconds alone say little on machines that others share. `make bench` runs it, as root.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

func main() {
	opts := options{}
	flag.Int64Var(&opts.size, "size", 1024, "size of the raft directory, MiB")
	flag.Func("sizes", "sizes of the second curve, MiB, with commas between", opts.setSizes)
	flag.IntVar(&opts.runs, "runs", 3, "runs of each; the fastest counts")
	flag.StringVar(&opts.page, "page", "", "write the page to this file, too")
	flag.BoolVar(&opts.whole, "whole", false, "measure whole clusters only")
	flag.BoolVar(&opts.last, "last", false, "of whole clusters, measure the one with the largest database only")
	flag.BoolVar(&opts.backup, "backup", false, "measure backups only")
	child := flag.String("child", "", "internal: what a child process does")
	flag.Parse()
	err := run(context.Background(), opts, *child, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	size   int64
	sizes  []int64
	runs   int
	page   string
	whole  bool
	last   bool
	backup bool
}

func (o *options) setSizes(list string) error {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}

		o.sizes = append(o.sizes, n)
	}

	return nil
}

func run(ctx context.Context, opts options, child string, args []string) error {
	size := opts.size << 20
	switch child {
	case "":
		return bench(ctx, opts)
	case "make":
		return makeDirectory(args[0], size)
	case "grow":
		return grow(ctx, args[0], size)
	case "crc32":
		return sumFiles(args)
	case "verify":
		log, err := raftlog.Open(ctx, os.DirFS(args[0]), raftlog.Options{})
		if err == nil && !log.Healthy() {
			err = fmt.Errorf("not healthy: %v", log.Problems)
		}

		return err
	}

	return errors.New("unknown child")
}

// bench measures everything. The page is written to its file at the end only, so that a run that fails leaves the last one.
func bench(ctx context.Context, opts options) error {
	tool, err := filepath.Abs(filepath.Join("bin", "lxd-recover"))
	if err != nil {
		return err
	}

	dir, err := os.MkdirTemp("", "lxd-recover-bench-")
	if err != nil {
		return err
	}

	defer os.RemoveAll(dir)
	var text bytes.Buffer
	p := &page{w: io.MultiWriter(os.Stdout, &text)}
	err = p.introduce()
	if err != nil {
		return err
	}

	switch {
	case opts.whole:
		return benchWhole(ctx, p, opts, tool)
	case opts.backup:
		return benchBackup(ctx, p, opts, tool, dir)
	}

	err = benchRecovery(ctx, p, opts, tool, dir)
	if err != nil {
		return err
	}

	err = benchWhole(ctx, p, opts, tool)
	if err == nil {
		err = benchBackup(ctx, p, opts, tool, dir)
	}

	if err != nil {
		return err
	}

	err = benchReading(ctx, p, opts, tool)
	if err != nil {
		return err
	}

	if opts.page == "" {
		return nil
	}

	return os.WriteFile(opts.page, text.Bytes(), 0o644)
}
