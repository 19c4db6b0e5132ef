// SPDX-License-Identifier: AGPL-3.0-only

// Package cluster runs real LXD clusters for tests and demonstrations: every member is an LXD daemon with its own LXD_DIR,
// in its own network namespace, all of them on one bridge that leads nowhere else. A cluster of three forms in about three
// seconds, its members can be stopped, killed, edited, copied and started again at will, and clients run next to them.
//
// It needs root, and an LXD that is not installed: Debian's 5.0.2, unpacked by `make test-deps`, or 6.6, built by `make test-peers`. That makes
// a root directory with Debian 13's Incus, too: a cluster of Incus is made, and named in what follows, like one of LXD.
// An LXD or Incus that the machine has is never touched: no program, directory, socket or network of its is used.
//
// Nothing outlives the process. Close removes everything; and should the process die first, even by SIGKILL, then the kernel
// kills the daemons, and with them go their mounts and their namespaces, which have no names. What stays is a directory,
// which the next New removes.
//
// # Times
//
// Nothing waits for a fixed time: states are polled every few milliseconds. A wait ends when its context does; when nothing moves
// any more in the daemons that are waited for, neither in their logs nor in their databases; and after a far bound in any case: see
// package progress. The error shows the end of the log.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/netns"
	"github.com/lxd-recover/lxd-recover/tests/progress"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// Bounds of what nobody can see moving, in the machine's time: see progress.Within.
const (
	commandTime = 90 * time.Second // one client command: lxc gives up after 20 s without quorum
	readyTime   = 15 * time.Second // the question whether a daemon is ready, which is asked again
	closeTime   = time.Minute      // the end of killed processes
)

// Options says what cluster New makes. Only LXD has no useful zero value.
type Options struct {
	LXD        LXD               // the build to run, see Debian, LXD6 and Incus
	Members    int               // how many; 0 means 3
	Standalone bool              // one LXD that is no member of a cluster: Members does not count, and Port only if Config sets core.https_address
	Port       int               // LXD's port; 0 means 8443
	IPv6       bool              // members have IPv6 addresses, and no other ones
	Config     map[string]string // LXD's configuration from the start, for instance cluster.max_standby
	Dir        string            // where the cluster's own directory is made; "" means the system's temporary directory
	Log        io.Writer         // told what happens; nil means nobody
	Debug      bool              // daemons log everything

	// Place makes a machine for a member, before its daemon is started the first time; nil: they all run on this one.
	Place func(ctx context.Context, c *Cluster, m *Member) (*Place, error)
}

// Cluster is a running LXD cluster. Its methods may be used by several goroutines, but one member should not be started and
// stopped at the same time.
type Cluster struct {
	opts    Options
	dir     string   // everything of this cluster
	lock    *os.File // held open: dir has an owner
	sw      *netns.Switch
	started time.Time

	mu      sync.Mutex // guards members and Log
	members []*Member
}

// New forms a cluster, unless Options.Standalone: the first member is bootstrapped, the others join by token, one after the other, and New returns
// when all are online and as many of them are voters and stand-bys as LXD wants. On an error nothing is left.
func New(ctx context.Context, opts Options) (*Cluster, error) {
	if opts.Members == 0 {
		opts.Members = 3
	}

	if opts.Standalone {
		opts.Members = 1
	}

	if opts.Port == 0 {
		opts.Port = 8443
	}

	if opts.Dir == "" {
		opts.Dir = os.TempDir()
	}

	if opts.Log == nil {
		opts.Log = io.Discard
	}

	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster needs root: it makes network namespaces and runs LXD")
	}

	err := opts.LXD.check()
	if err != nil {
		return nil, err
	}

	parent, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}

	c := &Cluster{opts: opts, started: time.Now()}
	err = sweep(ctx, parent)
	if err != nil {
		c.logf("leftovers of an earlier run: %v", err)
	}

	c.dir, c.lock, err = tied.Dir(parent, dirPrefix, 0o711)
	if err != nil {
		return nil, err
	}

	err = c.form(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("form cluster: %w", err), c.Close())
	}

	return c, nil
}

func (c *Cluster) form(ctx context.Context) (err error) {
	for _, name := range []string{"conf", "home", "log", "saved"} {
		err := os.Mkdir(filepath.Join(c.dir, name), 0o700)
		if err != nil {
			return err
		}
	}

	c.sw, err = netns.NewSwitch(ctx)
	if err != nil {
		return err
	}

	for range c.opts.Members {
		_, err := c.newMember(ctx)
		if err != nil {
			return err
		}
	}

	// Daemons start side by side; after that everything goes through the one that leads.
	err = c.StartAll(ctx)
	if err != nil {
		return err
	}

	if c.opts.Standalone {
		return c.Member(1).preseed(ctx, map[string]any{"config": c.config()})
	}

	err = c.Member(1).bootstrap(ctx)
	if err != nil {
		return err
	}

	for _, m := range c.Members()[1:] {
		err := m.join(ctx, c.Member(1))
		if err != nil {
			return err
		}
	}

	err = c.WaitFormed(ctx)
	if err != nil {
		return err
	}

	c.logf("cluster of %d formed", c.opts.Members)
	return nil
}

// AddMember starts one more daemon and joins it through the first member that runs.
func (c *Cluster) AddMember(ctx context.Context) (*Member, error) {
	through, err := c.anyRunning()
	if err != nil {
		return nil, err
	}

	m, err := c.newMember(ctx)
	if err != nil {
		return nil, err
	}

	err = m.Start(ctx)
	if err != nil {
		return nil, err
	}

	return m, m.join(ctx, through)
}

// Dir is the cluster's directory. Tests may put files of their own into it; Close removes it.
func (c *Cluster) Dir() string { return c.dir }

// Members returns all members in the order in which they joined: number i of the slice is Member(i+1).
func (c *Cluster) Members() []*Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Member(nil), c.members...)
}

// Member returns the member with that ID. The first is 1, as in LXD.
func (c *Cluster) Member(id int) *Member { return c.Members()[id-1] }

// anyRunning returns the first member whose daemon runs.
func (c *Cluster) anyRunning() (*Member, error) {
	for _, m := range c.Members() {
		if m.Running() {
			return m, nil
		}
	}

	return nil, errors.New("no member of the cluster is running")
}

// StartAll spawns the daemons of the given members, or of all, and waits until every one is ready. When quorum was lost
// this is the only way: none of them becomes ready alone. Members that run already are just waited for.
func (c *Cluster) StartAll(ctx context.Context, members ...*Member) error {
	members = c.orAll(members)
	for _, m := range members {
		if m.Running() {
			continue
		}

		err := m.Spawn()
		if err != nil {
			return err
		}
	}

	// One that cannot be started may be what the others wait for.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return each(members, func(m *Member) error {
		err := m.WaitReady(ctx)
		if err != nil {
			cancel(fmt.Errorf("%s has failed", m.Name))
		}

		return err
	})
}

// StopAll ends the daemons of the given members, or of all, cleanly and at the same time.
func (c *Cluster) StopAll(ctx context.Context, members ...*Member) error {
	return each(c.orAll(members), func(m *Member) error { return m.Stop(ctx) })
}

// KillAll sends SIGKILL to the daemons of the given members, or of all, within microseconds of each other, and waits until
// they are gone.
func (c *Cluster) KillAll(members ...*Member) {
	members = c.orAll(members)
	for _, m := range members {
		m.sigkill()
	}

	for _, m := range members {
		m.Kill()
	}
}

func (c *Cluster) orAll(members []*Member) []*Member {
	if len(members) == 0 {
		return c.Members()
	}

	return members
}

// each calls do for all members at the same time.
func each(members []*Member, do func(*Member) error) error {
	errs := make([]error, len(members))
	var group sync.WaitGroup
	for i, m := range members {
		group.Go(func() { errs[i] = do(m) })
	}

	group.Wait()
	return errors.Join(errs...)
}

// Close kills all daemons and whatever else was started in the cluster, and removes its namespaces and its directory.
// It may be called twice.
func (c *Cluster) Close() error {
	if c.lock == nil {
		return nil
	}

	c.KillAll()
	ctx, cancel := progress.Within(context.Background(), closeTime)
	defer cancel()
	errs := []error{killMarked(ctx, c.dir)}
	for _, m := range c.Members() {
		errs = append(errs, m.ns.Close())
	}

	if c.sw != nil {
		errs = append(errs, c.sw.Close())
	}

	errs = append(errs, os.RemoveAll(c.dir), c.lock.Close())
	c.lock = nil
	return errors.Join(errs...)
}

// logf tells Options.Log something, with the time since New.
func (c *Cluster) logf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.opts.Log, "%6.2fs  %s\n", time.Since(c.started).Seconds(), fmt.Sprintf(format, args...))
}

// wait calls done until it reports true, for as long as anything moves in the members, and no longer than ctx allows.
func (c *Cluster) wait(ctx context.Context, every time.Duration, what string, done func(context.Context) (bool, error)) error {
	return progress.Watch{What: what, Every: every, Mark: c.mark}.Until(ctx, done)
}

// mark is where all members stand.
func (c *Cluster) mark() string {
	var mark strings.Builder
	for _, m := range c.Members() {
		mark.WriteString(m.mark())
	}

	return mark.String()
}
