// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// lab is what the recovery is measured on: a real cluster of three, stopped, whose global database has grown on node1, from which
// it is exported, and on node2, which imports.
type lab struct {
	*cluster.Cluster
	tool string
	dir  string // for results
}

// newLab forms the cluster.
func newLab(ctx context.Context, lxd cluster.LXD, tool string, dir string) (*lab, error) {
	c, err := cluster.New(ctx, cluster.Options{LXD: lxd, Members: 3})
	if err != nil {
		return nil, err
	}

	err = c.StopAll(ctx)
	if err == nil {
		err = c.Save(ctx, "formed")
	}

	if err != nil {
		return nil, errors.Join(err, c.Close())
	}

	return &lab{Cluster: c, tool: tool, dir: dir}, nil
}

// grow makes the raft directories of both members about so many MiB large. The log ends in a member list written by libdqlite, as
// after `lxd cluster edit`.
func (l *lab) grow(ctx context.Context, size int64) error {
	err := l.Restore(ctx, "formed")
	if err != nil {
		return err
	}

	self, err := os.Executable()
	if err != nil {
		return err
	}

	fmt.Fprintf(os.Stderr, "Growing a database to %d MiB…\n", size)
	// In a child: libdqlite holds the database in memory, and what this process has ever used would count for all it starts.
	from, to := global(l.Member(1)), global(l.Member(2))
	_, err = once(exec.CommandContext(ctx, self, "-child", "grow", "-size", fmt.Sprint(size), from))
	if err != nil {
		return err
	}

	err = os.RemoveAll(to)
	if err != nil {
		return err
	}

	return errors.Join(copyTree(ctx, from, to), flush(ctx))
}

func global(m *cluster.Member) string { return filepath.Join(m.Dir(), "database", "global") }

// flush has the disk idle before something is measured.
func flush(ctx context.Context) error { return exec.CommandContext(ctx, "sync").Run() }

// copyTree copies a directory with everything that is known of it.
func copyTree(ctx context.Context, from string, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "-a", "--no-target-directory", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}

	return nil
}

// putBack undoes an import or an edit by the copy that it has kept.
func putBack(m *cluster.Member) error {
	kept, err := filepath.Glob(filepath.Join(m.Dir(), "database.before-*[0-9Z]"))
	if err != nil || len(kept) == 0 {
		return err
	}

	database := filepath.Join(m.Dir(), "database")
	return errors.Join(os.RemoveAll(database), os.Rename(kept[0], database))
}
