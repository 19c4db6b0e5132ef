// SPDX-License-Identifier: AGPL-3.0-only

// Package microcluster runs clusters of microcluster's example daemon for tests: the framework that MicroCloud, MicroCeph and MicroOVN are built on, as
// `make test-peers` builds it. Every member has a state directory and a network namespace of its own. Nothing outlives the process.
//
// Nothing waits for a fixed time: see package progress.
package microcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/netns"
	"github.com/lxd-recover/lxd-recover/tests/progress"
	"github.com/lxd-recover/lxd-recover/tests/repository"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// dirPrefix begins the names of clusters' directories: short, as a Unix socket's path has at most 107 bytes.
const dirPrefix = "mcr-"

// heartbeat is how often the leader of a cluster gives roles to members, and notes when it has heard from them.
const heartbeat = 2 * time.Second

// stepTime bounds a step whose progress nobody can see, in the machine's time.
const stepTime = 90 * time.Second

// Cluster is a cluster of three members, which a test forms with New.
type Cluster struct {
	Members []*Member

	t    testing.TB
	bin  string // with microd and microctl
	dir  string
	lock *os.File
	sw   *netns.Switch
}

// New forms a cluster of three voters, which ends with the test.
func New(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	t.Cleanup(c.close)
	err := c.prepare(t.Context())
	if err == nil {
		err = c.form(t.Context())
	}

	if err != nil {
		c.showLogs()
		t.Fatalf("form a cluster of microcluster's: %v", err)
	}

	return c
}

func (c *Cluster) prepare(ctx context.Context) error {
	root, err := repository.Root()
	if err != nil {
		return err
	}

	c.bin = filepath.Join(root, ".deps", "microcluster", "bin")
	_, err = os.Stat(filepath.Join(c.bin, "microd"))
	if err != nil {
		return fmt.Errorf("%w: run `make test-peers` first", err)
	}

	parent := os.TempDir()
	err = tied.Sweep(parent, dirPrefix, os.RemoveAll)
	if err != nil {
		c.t.Logf("leftovers of an earlier run: %v", err)
	}

	c.dir, c.lock, err = tied.Dir(parent, dirPrefix, 0o700)
	if err != nil {
		return err
	}

	c.sw, err = netns.NewSwitch(ctx)
	if err != nil {
		return err
	}

	for i := 1; i <= 3; i++ {
		m := &Member{Name: fmt.Sprintf("m%d", i), Address: fmt.Sprintf("10.79.0.%d:9001", 10+i), cluster: c}
		m.Dir = filepath.Join(c.dir, m.Name)
		m.ns, err = c.sw.Plug(ctx, fmt.Sprintf("10.79.0.%d/16", 10+i))
		if err != nil {
			return err
		}

		c.Members = append(c.Members, m)
		err = os.Mkdir(m.Dir, 0o700)
		if err != nil {
			return err
		}
	}

	return nil
}

func (c *Cluster) form(ctx context.Context) error {
	err := c.StartAll(ctx)
	if err != nil {
		return err
	}

	first := c.Members[0]
	_, err = first.Ctl(ctx, "init", first.Name, first.Address, "--bootstrap")
	if err != nil {
		return err
	}

	for _, m := range c.Members[1:] {
		token, err := first.Ctl(ctx, "tokens", "add", m.Name)
		if err != nil {
			return err
		}

		_, err = m.Ctl(ctx, "init", m.Name, m.Address, "--token", strings.TrimSpace(token))
		if err != nil {
			return err
		}
	}

	return c.Wait(ctx, "three voters", func(ctx context.Context) (bool, error) {
		for _, m := range c.Members {
			list, err := os.ReadFile(filepath.Join(m.Dir, "database", "cluster.yaml"))
			if err != nil || strings.Count(string(list), "Role: 0") != len(c.Members) {
				return false, fmt.Errorf("%s: %w: %s", m.Name, err, list)
			}
		}

		return true, nil
	})
}

// StartAll starts the daemons of the given members, or of all, and waits until they answer.
func (c *Cluster) StartAll(ctx context.Context, members ...*Member) error {
	if len(members) == 0 {
		members = c.Members
	}

	for _, m := range members {
		err := m.Spawn()
		if err != nil {
			return err
		}
	}

	for _, m := range members {
		err := m.waitReady(ctx)
		if err != nil {
			return err
		}
	}

	return nil
}

// KillAll ends all daemons by SIGKILL, at the same time.
func (c *Cluster) KillAll() {
	for _, m := range c.Members {
		m.signal()
	}

	for _, m := range c.Members {
		m.Kill()
	}
}

// Save copies the state directories of all members, whose daemons must be down; Restore brings them back.
func (c *Cluster) Save(ctx context.Context, name string) error {
	to := filepath.Join(c.dir, "saved", name)
	err := os.MkdirAll(to, 0o700)
	for _, m := range c.Members {
		err = errors.Join(err, copyTree(ctx, m.Dir, filepath.Join(to, m.Name)))
	}

	return err
}

// Restore kills all daemons and brings the state directories back to how Save found them.
func (c *Cluster) Restore(ctx context.Context, name string) error {
	c.KillAll()
	var err error
	for _, m := range c.Members {
		err = errors.Join(err, os.RemoveAll(m.Dir), copyTree(ctx, filepath.Join(c.dir, "saved", name, m.Name), m.Dir))
	}

	return err
}

func copyTree(ctx context.Context, from string, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "-a", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}

	return nil
}

// Wait waits until done, for as long as anything moves in the members.
func (c *Cluster) Wait(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	return progress.Watch{What: what, Every: 25 * time.Millisecond, Mark: c.mark}.Until(ctx, done)
}

func (c *Cluster) mark() string {
	var mark strings.Builder
	for _, m := range c.Members {
		mark.WriteString(m.mark())
	}

	return mark.String()
}

func (c *Cluster) showLogs() {
	for _, m := range c.Members {
		c.t.Logf("the end of the log of %s:\n%s", m.Name, m.logTail())
	}
}

func (c *Cluster) close() {
	if c.t.Failed() {
		c.showLogs()
	}

	c.KillAll()
	var errs []error
	for _, m := range c.Members {
		errs = append(errs, m.ns.Close())
	}

	if c.sw != nil {
		errs = append(errs, c.sw.Close())
	}

	if c.lock != nil {
		errs = append(errs, os.RemoveAll(c.dir), c.lock.Close())
	}

	err := errors.Join(errs...)
	if err != nil {
		c.t.Error(err)
	}
}
