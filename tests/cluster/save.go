// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Save copies the directories of all members, whose daemons must be down, under a name for Restore. One formed cluster can
// so be the start of many scenarios. A save of the same name is replaced.
func (c *Cluster) Save(ctx context.Context, name string) error {
	begin := time.Now()
	to := filepath.Join(c.dir, "saved", name)
	err := c.allDown()
	if err != nil {
		return fmt.Errorf("save %s: %w", name, err)
	}

	err = errors.Join(os.RemoveAll(to), os.Mkdir(to, 0o700))
	if err != nil {
		return err
	}

	for _, m := range c.Members() {
		err := copyTree(ctx, m.dir, filepath.Join(to, filepath.Base(m.dir)))
		if err != nil {
			return fmt.Errorf("save %s: %w", name, err)
		}
	}

	c.logf("saved %q in %s", name, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

// Restore brings the directories of all members back to how Save found them. Members that still run are killed. Addresses
// of interfaces stay as they are.
func (c *Cluster) Restore(ctx context.Context, name string) error {
	begin := time.Now()
	from := filepath.Join(c.dir, "saved", name)
	saved, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}

	if len(saved) != len(c.Members()) {
		return fmt.Errorf("restore %s: saved with %d members, there are %d", name, len(saved), len(c.Members()))
	}

	c.KillAll()
	for _, m := range c.Members() {
		err := os.RemoveAll(m.dir)
		if err == nil {
			err = copyTree(ctx, filepath.Join(from, filepath.Base(m.dir)), m.dir)
		}

		if err != nil {
			return fmt.Errorf("restore %s: %w", name, err)
		}
	}

	c.logf("restored %q in %s", name, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

func (c *Cluster) allDown() error {
	for _, m := range c.Members() {
		if m.Running() {
			return fmt.Errorf("%s is running", m.Name)
		}
	}

	return nil
}

// copyTree copies a directory with owners, modes, times, links and holes.
func copyTree(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "--archive", "--reflink=auto", "--no-target-directory", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, bytes.TrimSpace(out))
	}

	return nil
}
