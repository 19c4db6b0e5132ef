// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/netns"
	"github.com/lxd-recover/lxd-recover/tests/progress"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// Member is one LXD daemon's place in a cluster: its directory and its network, whether the daemon runs or not.
type Member struct {
	ID   int    // 1 for the first; the same as in LXD's tables, as long as nobody removes members
	Name string // node1, node2, …

	cluster *Cluster
	dir     string
	ns      *netns.Namespace
	http    *http.Client

	mu     sync.Mutex
	daemon *daemon // the last one started, nil before the first
	place  *Place  // where the next one is started; nil: on this machine, but for the network
}

// daemon is one run of lxd or incusd.
type daemon struct {
	cmd   *exec.Cmd
	begun time.Time
	said  int64         // size of the log file when it began
	gone  chan struct{} // closed after cmd.Wait
}

// newMember makes the place for one more member; nothing runs yet.
func (c *Cluster) newMember(ctx context.Context) (*Member, error) {
	id := len(c.Members()) + 1
	m := &Member{
		ID:      id,
		Name:    fmt.Sprintf("node%d", id),
		cluster: c,
		dir:     filepath.Join(c.dir, "n"+strconv.Itoa(id)),
	}
	// The longest path that LXD or Incus binds a socket to.
	if path := filepath.Join(m.dir, "run", "seccomp.socket"); len(path) > 107 {
		return nil, fmt.Errorf("%s is too long for a Unix socket: set Options.Dir or TMPDIR to something shorter", path)
	}

	err := os.Mkdir(m.dir, 0o711)
	if err != nil {
		return nil, err
	}

	m.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // the daemon is a different one after every start
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", filepath.Join(m.dir, "unix.socket"))
		},
	}}
	m.ns, err = c.sw.Plug(ctx, m.IP()+c.prefix())
	if err != nil {
		return nil, err
	}

	if c.opts.Place != nil {
		m.place, err = c.opts.Place(ctx, c, m)
		if err != nil {
			return nil, errors.Join(err, m.ns.Close())
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = append(c.members, m)
	return m, nil
}

// Dir is the member's LXD_DIR, or INCUS_DIR. Nothing but LXD's own files is in it.
func (m *Member) Dir() string { return m.dir }

// Build is the LXD, or Incus, that the member runs.
func (m *Member) Build() LXD { return m.cluster.opts.LXD }

// IP is the address that the member was given when it was made. It exists only inside the cluster's namespaces. All
// clusters use the same ones: 10.77.0.101 for the first member, or fd77::101, and so on.
func (m *Member) IP() string {
	if m.cluster.opts.IPv6 {
		return fmt.Sprintf("fd77::%d", 100+m.ID)
	}

	return fmt.Sprintf("10.77.0.%d", 100+m.ID)
}

// prefix is the length of the prefix of the members' network, as in 10.77.0.101/16.
func (c *Cluster) prefix() string {
	if c.opts.IPv6 {
		return "/64"
	}

	return "/16"
}

// Address is the IP and port with which the member was formed.
func (m *Member) Address() string { return net.JoinHostPort(m.IP(), strconv.Itoa(m.cluster.opts.Port)) }

// AddAddress gives the member's interface one more address, such as 10.77.1.101/16. Members reach each other at any
// address in 10.77.0.0/16. Adding one that is there is no error.
func (m *Member) AddAddress(ctx context.Context, cidr string) error {
	return m.ns.IP(ctx, "addr replace "+cidr+" dev eth0")
}

// SetAddresses gives the member's interface these addresses instead of those it has, as when a machine has moved.
func (m *Member) SetAddresses(ctx context.Context, cidrs ...string) error {
	commands := []string{"addr flush dev eth0 scope global"}
	for _, cidr := range cidrs {
		commands = append(commands, "addr add "+cidr+" dev eth0")
	}

	return m.ns.IP(ctx, commands...)
}

// Start starts the daemon and waits until it is ready, which takes quorum.
func (m *Member) Start(ctx context.Context) error {
	err := m.Spawn()
	if err != nil {
		return err
	}

	return m.WaitReady(ctx)
}

// Spawn starts the daemon and does not wait for it. The daemon's output goes to LogFile, after what is there.
func (m *Member) Spawn() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runningLocked() {
		return fmt.Errorf("%s is running already", m.Name)
	}

	output, err := os.OpenFile(m.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}

	defer output.Close()
	before, err := output.Stat()
	if err != nil {
		return err
	}

	cmd := m.DaemonCommand()
	cmd.Stdout, cmd.Stderr = output, output
	d := &daemon{cmd: cmd, begun: time.Now(), said: before.Size(), gone: make(chan struct{})}
	if m.place != nil {
		err = tied.StartIn(cmd, m.place.PIDs)
	} else {
		err = tied.Start(cmd)
	}

	if err != nil {
		return fmt.Errorf("start %s: %w", m.Name, err)
	}

	go func() {
		cmd.Wait()
		close(d.gone)
	}()
	m.daemon = d
	return nil
}

// DaemonCommand is how the daemon is started. It is for tests that do that themselves, such as under a tracer.
func (m *Member) DaemonCommand() *exec.Cmd {
	// nsenter and unshare become the daemon, they are not its parents: one process. Its mounts are in a namespace that ends with it.
	level := "--verbose"
	if m.cluster.opts.Debug {
		level = "--debug"
	}

	enter := []string{"nsenter", "--net=" + m.ns.Path()}
	if m.place != nil {
		enter = m.place.Enter
	}

	enter = append(enter[:len(enter):len(enter)], "unshare", "--mount", "--propagation", "private", m.names().Daemon, level)
	cmd := exec.Command(enter[0], enter[1:]...)
	cmd.Dir = m.cluster.dir
	cmd.Env = m.environ()
	return cmd
}

// lastWords are so many lines of a daemon's log: the error that ended it, and what others of its threads said then.
const lastWords = 3

// restarts is how often WaitReady starts a daemon again that failed as LXD.FailsWith says.
const restarts = 5

// stuckAfter is after what time without any movement WaitReady takes a daemon that is not ready for stuck, and starts it again: for
// what that is seldom needed, see docs/architecture.md, "LXD's own failing starts". Others take two or three seconds for all.
const stuckAfter = 40 * time.Second

// abortTime is how long a daemon may take to list its goroutines.
const abortTime = 10 * time.Second

// stuckRestarts is how often it does that.
const stuckRestarts = 2

// WaitReady waits until the daemon serves requests, or reports its last words if it ended. Where these are the failure that
// its LXD is known for, and no other, or where it is stuck, the daemon is started again, and Options.Log is told.
func (m *Member) WaitReady(ctx context.Context) error {
	begin := time.Now()
	left, stuckLeft := restarts, stuckRestarts
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	again := func(why string) {
		m.cluster.logf("%s started again: %s", m.Name, why)
		err := m.Spawn()
		if err != nil {
			cancel(err)
		}
	}
	watch := progress.Watch{
		What: m.Name + " to be ready", Every: 25 * time.Millisecond, Mark: m.mark,
		Seen:       func() string { return "end of its log:\n" + m.LogTail(lastWords) },
		StuckAfter: stuckAfter,
		Stuck: func() {
			if stuckLeft == 0 || ctx.Err() != nil {
				return
			}

			stuckLeft--
			again(fmt.Sprintf("nothing has moved for %s; it was waiting in:\n%s", stuckAfter, m.abort()))
		},
	}
	err := watch.Until(ctx, func(ctx context.Context) (bool, error) {
		if !m.Running() {
			if left == 0 || !m.failedAsKnown() {
				cancel(errors.New("its daemon is not running"))
				return false, nil
			}

			left--
			again("it failed as it is known to: " + m.LogTail(1))
			return false, nil
		}

		ctx, stop := progress.Within(ctx, readyTime)
		defer stop()
		_, err := m.Query(ctx, http.MethodGet, "/internal/ready", nil)
		return err == nil, err
	})
	if err != nil {
		return err
	}

	m.cluster.logf("%s ready after %s", m.Name, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

// mark is where the member stands: its log and its databases' files, and the processor time of its daemon.
func (m *Member) mark() string {
	database := filepath.Join(m.dir, "database")
	return progress.Files(m.LogFile(), database, filepath.Join(database, "global")) + progress.CPU(m.Pid())
}

// failedAsKnown tells whether the last daemon's own last words are the failure that its LXD is known for.
func (m *Member) failedAsKnown() bool {
	d, known := m.lastDaemon(), m.cluster.opts.LXD.FailsWith
	if d == nil || known == "" {
		return false
	}

	log, err := os.ReadFile(m.LogFile())
	if err != nil || d.said > int64(len(log)) {
		return false
	}

	lines := strings.Split(strings.TrimSpace(string(log[d.said:])), "\n")
	return regexp.MustCompile(known).MatchString(strings.Join(lines[max(0, len(lines)-lastWords):], "\n"))
}

// Stop ends the daemon as a service manager does, by SIGTERM, and waits until it is gone. Not running is no error.
func (m *Member) Stop(ctx context.Context) error {
	d := m.lastDaemon()
	if d == nil || !m.Running() {
		return nil
	}

	begin := time.Now()
	err := d.cmd.Process.Signal(syscall.SIGTERM)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", m.Name, err)
	}

	watch := progress.Watch{What: "the end of " + m.Name, Every: 5 * time.Millisecond, Mark: m.mark, Seen: func() string { return m.LogTail(lastWords) }}
	err = watch.Until(ctx, func(context.Context) (bool, error) { return !m.Running(), nil })
	if err == nil {
		m.cluster.logf("%s stopped after %s", m.Name, time.Since(begin).Round(10*time.Millisecond))
	}

	return err
}

// abort ends the daemon by SIGABRT, of which Go makes a list of its goroutines, and tells what they were waiting for.
func (m *Member) abort() string {
	d := m.lastDaemon()
	if d == nil || !m.Running() {
		return ""
	}

	before, _ := os.Stat(m.LogFile())
	err := d.cmd.Process.Signal(syscall.SIGABRT)
	if err != nil {
		return err.Error()
	}

	select {
	case <-d.gone:
	case <-time.After(progress.Stretched(abortTime)):
		m.Kill()
	}

	log, err := os.ReadFile(m.LogFile())
	if err != nil || before == nil {
		return fmt.Sprint(err)
	}

	return progress.Goroutines(string(log[min(before.Size(), int64(len(log))):]))
}

// Kill ends the daemon by SIGKILL and waits until it is gone. Not running is no error.
func (m *Member) Kill() {
	m.sigkill()
	if d := m.lastDaemon(); d != nil {
		<-d.gone
	}
}

// sigkill does not wait. The process handle cannot hit another process, even if this one is gone already.
func (m *Member) sigkill() {
	if d := m.lastDaemon(); d != nil {
		d.cmd.Process.Kill()
	}
}

// Wait waits until the daemon ends by itself, and returns its exit status (-1 if a signal ended it).
func (m *Member) Wait(ctx context.Context) (status int, err error) {
	d := m.lastDaemon()
	if d == nil {
		return 0, fmt.Errorf("%s was never started", m.Name)
	}

	select {
	case <-d.gone:
		return d.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for the end of %s: %w", m.Name, context.Cause(ctx))
	}
}

// Running reports whether the daemon's process exists, ready or not.
func (m *Member) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runningLocked()
}

func (m *Member) runningLocked() bool {
	if m.daemon == nil {
		return false
	}

	select {
	case <-m.daemon.gone:
		return false
	default:
		return true
	}
}

func (m *Member) lastDaemon() *daemon {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.daemon
}

// Pid is the process id of the running daemon, or 0.
func (m *Member) Pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.runningLocked() {
		return 0
	}

	return m.daemon.cmd.Process.Pid
}

// LogFile is where the output of all the daemon's runs is.
func (m *Member) LogFile() string {
	return filepath.Join(m.cluster.dir, "log", m.Name+".log")
}

// LogTail returns the last lines of LogFile.
func (m *Member) LogTail(lines int) string {
	log, err := os.ReadFile(m.LogFile())
	if err != nil {
		return err.Error()
	}

	all := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// environ is what the daemon and its clients run with.
func (m *Member) environ() []string {
	return append(m.cluster.opts.LXD.environ(),
		m.names().Dir+"="+m.dir,
		m.names().Conf+"="+filepath.Join(m.cluster.dir, "conf"),
		"HOME="+filepath.Join(m.cluster.dir, "home"),
		markVariable+"="+m.cluster.dir)
}
