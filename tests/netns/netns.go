// SPDX-License-Identifier: AGPL-3.0-only

// Package netns makes network namespaces without names for tests: each exists as long as this process holds it or a process
// in it lives. When the test process dies, however it dies, so do its namespaces and everything in them.
package netns

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

// Namespace is a network namespace, held open by a file descriptor.
type Namespace struct{ fd int }

// New makes a namespace in which nothing is up, not even the loopback interface.
func New() (*Namespace, error) {
	// Namespaces belong to threads. This one is given back its own afterwards instead of being ended with its goroutine:
	// the end of a thread kills the children that it started with Pdeathsig.
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("open network namespace: %w", err)
	}

	defer unix.Close(own)
	err = unix.Unshare(unix.CLONE_NEWNET)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("create network namespace: %w", err)
	}

	fd, openErr := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	err = unix.Setns(own, unix.CLONE_NEWNET)
	if err != nil {
		panic(fmt.Sprintf("netns: thread cannot return to its network namespace: %v", err))
	}

	runtime.UnlockOSThread()
	if openErr != nil {
		return nil, fmt.Errorf("open network namespace: %w", openErr)
	}

	return &Namespace{fd: fd}, nil
}

// Path works for any process of root's while this process lives: nsenter --net=PATH.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

// Close lets go of the namespace, which ends when the last process in it does.
func (n *Namespace) Close() error { return unix.Close(n.fd) }

// IP runs ip(8) commands, one a line, inside the namespace.
func (n *Namespace) IP(ctx context.Context, commands ...string) error {
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+n.Path(), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(commands, "; ip "), err, bytes.TrimSpace(out))
	}

	return nil
}
