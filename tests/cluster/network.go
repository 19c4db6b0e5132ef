package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a name: it exists as long as this file descriptor or a process in it does. When
// the test process dies, however it dies, so do its namespaces and everything in them.
type namespace struct{ fd int }

func newNamespace() (*namespace, error) {
	// Namespaces belong to threads. This one is given back its own afterwards instead of being ended with its goroutine:
	// the end of a thread kills the children that it started with Pdeathsig.
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer unix.Close(own)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("create network namespace: %w", err)
	}
	fd, openErr := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err := unix.Setns(own, unix.CLONE_NEWNET); err != nil {
		panic(fmt.Sprintf("cluster: thread cannot return to its network namespace: %v", err))
	}
	runtime.UnlockOSThread()
	if openErr != nil {
		return nil, fmt.Errorf("open network namespace: %w", openErr)
	}
	return &namespace{fd: fd}, nil
}

// path works for any process of root's while this process lives: nsenter --net=PATH.
func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

func (n *namespace) close() error { return unix.Close(n.fd) }

// ip runs ip(8) commands, one a line, inside the namespace.
func (n *namespace) ip(ctx context.Context, commands ...string) error {
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+n.path(), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(commands, "; ip "), err, bytes.TrimSpace(out))
	}
	return nil
}

// newSwitch makes the namespace that holds the bridge between the members. It has no address and no way out.
func newSwitch(ctx context.Context) (*namespace, error) {
	sw, err := newNamespace()
	if err != nil {
		return nil, err
	}
	if err := sw.ip(ctx, "link set lo up", "link add br0 type bridge", "link set br0 up"); err != nil {
		sw.close()
		return nil, err
	}
	return sw, nil
}

// plug makes a namespace with one interface, eth0, on port number id of the switch.
func (sw *namespace) plug(ctx context.Context, id int, cidr string) (*namespace, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	port := fmt.Sprintf("port%d", id)
	err = sw.ip(ctx,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", port, ns.path()),
		"link set "+port+" master br0 up")
	if err == nil {
		err = ns.ip(ctx, "link set lo up", "addr add "+cidr+" dev eth0", "link set eth0 up")
	}
	if err != nil {
		ns.close()
		return nil, err
	}
	return ns, nil
}
