package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Network is a bridge that guests are plugged into. It has no address and no way out, and two networks do not see each
// other, whatever addresses they use.
type Network struct {
	sw *namespace

	mu    sync.Mutex
	ports int // plugged so far
}

// NewNetwork makes a bridge in a network namespace without a name, which ends with this process at the latest.
func NewNetwork(ctx context.Context) (*Network, error) {
	sw, err := newNamespace()
	if err != nil {
		return nil, err
	}
	if err := sw.ip(ctx, "link set lo up", "link add br0 type bridge", "link set br0 up"); err != nil {
		sw.close()
		return nil, err
	}
	return &Network{sw: sw}, nil
}

// NetworkForTest is NewNetwork for tests: it fails t on an error, and the network is closed when t ends.
func NetworkForTest(t testing.TB) *Network {
	t.Helper()
	n, err := NewNetwork(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close network: %v", err)
		}
	})
	return n
}

// Close cuts the guests off from each other.
func (n *Network) Close() error { return n.sw.close() }

// plug makes a guest's namespace, whose eth0 is on the bridge. cidr is its address; "" means none.
func (n *Network) plug(ctx context.Context, cidr string) (*namespace, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.ports++
	port := fmt.Sprintf("port%d", n.ports)
	n.mu.Unlock()

	err = n.sw.ip(ctx,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", port, ns.path()),
		"link set "+port+" master br0 up")
	commands := []string{"link set lo up", "link set eth0 up"}
	if cidr != "" {
		commands = append(commands, "addr add "+cidr+" dev eth0")
	}
	if err == nil {
		err = ns.ip(ctx, commands...)
	}
	if err != nil {
		ns.close()
		return nil, err
	}
	return ns, nil
}

// namespace is a network namespace without a name: it exists as long as this file descriptor or a process in it does.
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
		panic(fmt.Sprintf("guest: thread cannot return to its network namespace: %v", err))
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
