// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// How long the latency of a writer is looked at, and how long an idle cluster is.
const (
	writeTime = 15 * time.Second
	idleTime  = 2 * time.Minute
)

// benchBackup measures backups of a cluster that works, what a writer notices of them, and what an archive costs an idle cluster.
func benchBackup(ctx context.Context, p *page, opts options, tool string, dir string) error {
	lxd, err := cluster.LXD6()
	if err != nil {
		return err
	}

	l, err := newLab(ctx, lxd, tool, dir)
	if err != nil {
		return err
	}

	defer l.Close()
	err = l.grow(ctx, opts.size)
	if err == nil {
		err = errors.Join(os.RemoveAll(global(l.Member(3))), copyTree(ctx, global(l.Member(1)), global(l.Member(3))))
	}

	if err == nil {
		err = l.StartAll(ctx)
	}

	if err != nil {
		return err
	}

	p.text("## Backing up a cluster that works")
	p.text("A cluster of three, %s, works, with a database of %d MiB; all members share this machine. A backup waits for a transaction of the "+
		"leader, which it asks for itself (`--nonce`). The writer creates profiles through LXD's API of another member, one after the other.",
		lxd.Name, opts.size)
	err = l.backups(ctx, p, opts.runs)
	if err == nil {
		err = l.writers(ctx, p)
	}

	if err == nil {
		err = l.idle(ctx, p)
	}

	return err
}

// backups measures backups beside common tools.
func (l *lab) backups(ctx context.Context, p *page, runs int) error {
	whole, err := l.into(l.tarball(), runs, l.backup(ctx))
	if err != nil {
		return err
	}

	bare, err := l.into(l.tarball(), runs, l.backup(ctx, "--no-verify"))
	if err != nil {
		return err
	}

	rows := []exportRow{{"`lxd-recover global-db-backup --nonce`", whole}, {"the same with `--no-verify`", bare}}
	copied := filepath.Join(l.dir, "copied")
	plain, err := best(runs, func() (*exec.Cmd, error) {
		return exec.CommandContext(ctx, "sh", "-c", `cp -a "$1" "$2" && sync "$2"/*`, "sh", global(l.Member(1)), copied), os.RemoveAll(copied)
	})
	if err != nil {
		return err
	}

	size, err := treeSize(copied)
	p.exports(append(rows, exportRow{"`cp -a` of the raft directory, which is no backup", result{measure: plain, size: size}}))
	return err
}

func (l *lab) backup(ctx context.Context, flags ...string) func() (*exec.Cmd, error) {
	args := append([]string{"global-db-backup", "--nonce", "--force", l.tarball()}, flags...)
	return func() (*exec.Cmd, error) { return l.Member(1).Command(ctx, l.tool, args...), nil }
}

// writers measures what a writer notices of backups.
func (l *lab) writers(ctx context.Context, p *page) error {
	alone, err := l.latencies(ctx, "alone", func(context.Context) error { return nil })
	if err != nil {
		return err
	}

	beside, err := l.latencies(ctx, "beside", func(ctx context.Context) error {
		for ctx.Err() == nil {
			cmd, err := l.backup(ctx)()
			if err == nil {
				_, err = once(cmd)
			}

			if err != nil && ctx.Err() == nil {
				return err
			}
		}

		return nil
	})
	if err != nil {
		return err
	}

	row := func(what string, all []time.Duration) []string {
		slices.Sort(all)
		return []string{what, fmt.Sprint(len(all)), seconds(all[len(all)/2]), seconds(all[len(all)*99/100]), seconds(all[len(all)-1])}
	}
	p.table([]string{"a writer", fmt.Sprintf("writes in %d s", int(writeTime.Seconds())), "median", "99 of 100", "longest"},
		[][]string{row("alone", alone), row("beside one backup after the other", beside)})
	return nil
}

// latencies are how long writes took while something else was done.
func (l *lab) latencies(ctx context.Context, name string, beside func(context.Context) error) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()

	done := make(chan error, 1)
	go func() { done <- beside(ctx) }()
	var all []time.Duration
	for n := 0; ; n++ {
		began := time.Now()
		err := l.Member(2).CreateProfile(ctx, fmt.Sprintf("%s-%d", name, n))
		if ctx.Err() != nil {
			break
		}

		if err != nil {
			return nil, err
		}

		all = append(all, time.Since(began))
	}

	err := <-done
	if err == nil && len(all) == 0 {
		err = errors.New("nothing was written")
	}

	return all, err
}

// idle measures how much an archive grows by a cluster that has nothing to do.
func (l *lab) idle(ctx context.Context, p *page) error {
	dir := filepath.Join(l.dir, "archive")
	m, err := once(l.Member(1).Command(ctx, l.tool, "global-db-backup", "--archive", dir))
	if err != nil {
		return err
	}

	var before, after uint64
	err = readLog(ctx, global(l.Member(1)), func(log *raftlog.Log) error {
		before = log.LastIndex
		return nil
	})
	if err != nil {
		return err
	}

	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleTime): // what is measured is a time
	}

	sum, n := int64(0), int64(0) // of the entries since, in bytes
	err = readLog(ctx, global(l.Member(1)), func(log *raftlog.Log) error {
		after = log.LastIndex
		for e, err := range log.Entries(ctx, before+1) {
			if err != nil {
				return err
			}

			sum, n = sum+int64(len(e.Data)), n+1
		}

		return nil
	})
	if err != nil {
		return err
	}

	each := sum / max(n, 1)
	perDay := float64(after-before) * float64(24*time.Hour) / float64(idleTime)
	p.text("The first run of `global-db-backup --archive` took %s. In %d s without work the log grew by %d entries of "+
		"%d bytes on average: %.0f entries and %s a day, and a snapshot for every 1024 of them. The next run copies what has been closed since.",
		seconds(m.wall), int(idleTime.Seconds()), after-before, each, perDay, mib(int64(perDay)*each))
	return nil
}

// readLog reads the raft log of a directory, even while LXD is running.
func readLog(ctx context.Context, dir string, use func(*raftlog.Log) error) error {
	held, err := raftlog.Hold(ctx, dir)
	if err != nil {
		return err
	}

	defer held.Close()

	log, err := raftlog.Open(ctx, held, raftlog.Options{Later: true})
	if err != nil {
		return err
	}

	return use(log)
}
