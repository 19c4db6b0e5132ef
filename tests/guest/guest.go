// SPDX-License-Identifier: AGPL-3.0-only

// Package guest boots throwaway machines for tests: each is a Debian with a real systemd, snapd and LXD in namespaces of this
// machine, by systemd-nspawn, without a virtual machine, an image server or a snap store. A guest is up in about two seconds.
// Guests can share a network, and then be the members of a cluster.
//
// It needs root, systemd-nspawn (package systemd-container), and /dev/fuse. An LXD, snapd or systemd of this machine is never
// touched: nothing is registered with it, and /run is another one where systemd-nspawn looks.
//
// Nothing outlives the process. Close removes everything; and should the process die first, even by SIGKILL, then the kernel
// kills the guest, and with it go its mounts and its network, which have no names. What stays is a directory and an empty
// cgroup, which the next Boot removes.
//
// # What a guest is not
//
// It has this machine's kernel, without AppArmor, and one CPU: on Linux 6.18 the ids of mount namespaces grow by CPU, and
// snap-confine fails at random when a new one was made on a CPU whose ids are lower ("cannot preserve mount namespace").
// snapd is told that the store is offline, so that it does not spend half a minute on finding out.
package guest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/netns"
	"github.com/lxd-recover/lxd-recover/tests/progress"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// Options says what Boot makes. The zero value is a guest with everything in it running, alone on its network.
type Options struct {
	Name    string        // host name; "" means guest
	Mask    []string      // units that must not run, such as lxd.socket
	Network *netns.Switch // nil means one of its own
	Address string        // of eth0, such as 10.78.0.1/16; "" means none

	WithoutLXD bool // Debian's LXD is not there: LXD is to be a snap, or nothing

	Dir   string // where the guest's own directory is made, not on an overlay; "" means the system's temporary directory
	Image string // root file system; "" means Image
	Log   io.Writer
}

// Guest is a booted machine. Its methods may be used by several goroutines.
type Guest struct {
	Name string

	opts    Options
	dir     string        // everything of this guest: up, work and root of the overlay, console.log, notify
	lock    *os.File      // held open: dir has an owner
	own     *netns.Switch // nil if the network is shared
	ns      *netns.Namespace
	cpu     string
	started time.Time

	nspawn *exec.Cmd     // the first process of the outer PID namespace
	gone   chan struct{} // closed after nspawn.Wait
	leader int           // pid of the guest's systemd, as this process sees it
}

// Boot boots a guest and returns when its systemd has started all that is enabled. On an error nothing is left.
func Boot(ctx context.Context, opts Options) (*Guest, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a guest needs root: it makes namespaces and mounts")
	}

	if opts.Name == "" {
		opts.Name = "guest"
	}

	if opts.Dir == "" {
		opts.Dir = os.TempDir()
	}

	if opts.Log == nil {
		opts.Log = io.Discard
	}

	var err error
	if opts.Image == "" {
		opts.Image, err = Image(ctx)
		if err != nil {
			return nil, err
		}
	}

	parent, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}

	g := &Guest{Name: opts.Name, opts: opts, started: time.Now()}
	err = sweep(parent)
	if err != nil {
		g.logf("leftovers of an earlier run: %v", err)
	}

	g.dir, g.lock, err = tied.Dir(parent, dirPrefix, 0o700)
	if err != nil {
		return nil, err
	}

	err = g.boot(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("boot %s: %w", g.Name, err), g.Close())
	}

	return g, nil
}

func (g *Guest) boot(ctx context.Context) (err error) {
	if err := g.prepare(); err != nil {
		return err
	}

	network := g.opts.Network
	if network == nil {
		g.own, err = netns.NewSwitch(ctx)
		if err != nil {
			return err
		}

		network = g.own
	}

	g.ns, err = network.Plug(ctx, g.opts.Address)
	if err != nil {
		return err
	}

	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(g.dir, "notify")})
	if err != nil {
		return err
	}

	defer ready.Close()
	err = g.spawn()
	if err != nil {
		return err
	}

	err = g.waitUp(ctx, ready)
	if err != nil {
		return fmt.Errorf("%w\nend of its console:\n%s", err, g.consoleTail())
	}

	g.leader, err = childOf(g.nspawn.Process.Pid)
	if err != nil {
		return err
	}

	if g.hasSnapd() {
		_, err = g.Exec(ctx, "snap", "set", "system", "store.access=offline")
	}

	if err == nil {
		g.logf("up")
	}

	return err
}

// hasSnapd tells whether snapd is in the guest's image; in that of Incus it is not.
func (g *Guest) hasSnapd() bool {
	_, err := os.Stat(filepath.Join(g.opts.Image, "usr/bin/snap"))
	return err == nil
}

// prepare makes the upper layer of the guest's file system.
func (g *Guest) prepare() error {
	for _, dir := range []string{"work", "root", "up/etc/systemd/system", "up/var/cache/snapd"} {
		err := os.MkdirAll(filepath.Join(g.dir, dir), 0o755)
		if err != nil {
			return err
		}
	}

	for file, content := range map[string]string{
		"etc/hostname":          g.Name + "\n",
		"etc/hosts":             "127.0.0.1 localhost\n127.0.1.1 " + g.Name + "\n",
		"etc/resolv.conf":       "", // nobody to ask
		"etc/machine-id":        "", // a new machine's
		"var/cache/snapd/names": "", // as long as it is fresh, snapd does not ask the store for one
	} {
		err := os.WriteFile(filepath.Join(g.dir, "up", file), []byte(content), 0o644)
		if err != nil {
			return err
		}
	}

	for _, unit := range g.opts.Mask {
		err := os.Symlink("/dev/null", filepath.Join(g.dir, "up/etc/systemd/system", unit))
		if err != nil {
			return err
		}
	}

	if g.opts.WithoutLXD {
		return g.hideLXD()
	}

	return nil
}

//go:embed boot.sh
var bootScript string

// guests counts the guests of this process, to spread them over the CPUs.
var guests atomic.Uint32

// spawn starts the guest and does not wait for it.
func (g *Guest) spawn() error {
	cgroups, err := makeCgroups(filepath.Base(g.dir))
	if err != nil {
		return err
	}

	g.cpu, err = nextCPU()
	if err != nil {
		return err
	}

	console, err := os.Create(filepath.Join(g.dir, "console.log"))
	if err != nil {
		return err
	}

	defer console.Close()
	cmd := exec.Command("/bin/sh", "-c", bootScript, "boot.sh")
	cmd.Dir = g.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"OWNER=" + strconv.Itoa(os.Getpid()),
		"DIR=" + g.dir,
		"IMAGE=" + g.opts.Image,
		"NAME=" + g.Name,
		"NETNS=" + g.ns.Path(),
		"CPU=" + g.cpu,
		"CGROUPS=" + strings.Join(cgroups, " "),
	}
	cmd.Stdout, cmd.Stderr = console, console
	err = startTied(cmd)
	if err != nil {
		return err
	}

	g.nspawn, g.gone = cmd, make(chan struct{})
	go func() {
		cmd.Wait()
		close(g.gone)
	}()
	return nil
}

// nextCPU is the CPU for one more guest, out of those that this process may use.
func nextCPU() (string, error) {
	var allowed unix.CPUSet
	err := unix.SchedGetaffinity(0, &allowed)
	if err != nil {
		return "", err
	}

	skip := int(guests.Add(1)-1) % allowed.Count()
	for cpu := 0; ; cpu++ {
		if allowed.IsSet(cpu) {
			if skip == 0 {
				return strconv.Itoa(cpu), nil
			}

			skip--
		}
	}
}

// waitUp waits for the message by which the guest's systemd says that its queue of jobs is empty. systemd-nspawn passes it on. The
// guest makes progress as long as it writes to its console, or its systemd makes a cgroup for a unit, or removes one.
func (g *Guest) waitUp(ctx context.Context, ready *net.UnixConn) error {
	up := make(chan struct{})
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, err := ready.Read(buffer)
			if err != nil {
				return // the socket was closed: nobody waits any more
			}

			if bytes.Contains(buffer[:n], []byte("READY=1")) {
				close(up)
				return
			}
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := progress.Watch{What: "the guest's systemd", Every: 5 * time.Millisecond, Mark: func() string {
		return progress.Files(append(g.cgroups(), filepath.Join(g.dir, "console.log"))...)
	}}
	return watch.Until(ctx, func(context.Context) (bool, error) {
		select {
		case <-up:
			return true, nil
		case <-g.gone:
			cancel(fmt.Errorf("systemd-nspawn ended: %s", g.nspawn.ProcessState))
		default:
		}

		return false, nil
	})
}

// cgroups are the cgroups in which the guest's systemd makes those of its units.
func (g *Guest) cgroups() []string {
	var found []string
	for _, dir := range hierarchies() {
		groups, _ := filepath.Glob(filepath.Join(dir, filepath.Base(g.dir), "*", "system.slice"))
		deeper, _ := filepath.Glob(filepath.Join(dir, filepath.Base(g.dir), "*", "*", "system.slice"))
		found = append(append(found, groups...), deeper...)
	}

	return found
}

// Close kills everything in the guest and removes it. It may be called twice.
func (g *Guest) Close() error {
	if g.lock == nil {
		return nil
	}

	if g.nspawn != nil {
		g.nspawn.Process.Kill()
		<-g.gone
	}

	errs := []error{removeCgroups(filepath.Base(g.dir))}
	if g.ns != nil {
		errs = append(errs, g.ns.Close())
	}

	if g.own != nil {
		errs = append(errs, g.own.Close())
	}

	errs = append(errs, os.RemoveAll(g.dir), g.lock.Close())
	g.lock = nil
	return errors.Join(errs...)
}

// consoleTail returns the last lines that the guest wrote to its console.
func (g *Guest) consoleTail() string {
	console, err := os.ReadFile(filepath.Join(g.dir, "console.log"))
	if err != nil {
		return err.Error()
	}

	lines := strings.Split(strings.TrimSpace(string(console)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// logf tells Options.Log something, with the time since Boot.
func (g *Guest) logf(format string, args ...any) {
	fmt.Fprintf(g.opts.Log, "%6.2fs  %s: %s\n", time.Since(g.started).Seconds(), g.Name, fmt.Sprintf(format, args...))
}
