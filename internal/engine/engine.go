// SPDX-License-Identifier: AGPL-3.0-only

// Package engine runs the real libdqlite, to see what it makes of a raft directory.
//
// libdqlite deletes, renames and truncates files while it loads a directory, and it can take the process down. So it must never see the
// only copy, and never run in a process that matters: Run starts this very program again as a child, and Serve is what that child does,
// on a scratch copy that is worthless afterwards.
package engine

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/canonical/go-dqlite/v3/client"
	"github.com/canonical/go-dqlite/v3/driver"
)

// ErrCrashed says that libdqlite took its process down.
var ErrCrashed = errors.New("libdqlite crashed")

// ErrKilled says that somebody killed the child: the kernel, in most cases, because memory ran out.
var ErrKilled = errors.New("libdqlite was killed, as the kernel does where memory runs out: it holds the whole database in memory")

// Run runs this program with args as a child and returns what it wrote to standard output. When it fails, the error is what it wrote to
// standard error; ErrCrashed when a signal ended it, ErrKilled when that was SIGKILL.
func Run(ctx context.Context, args ...string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Args[0] = "lxd-recover" // should the file be called lxd, the child would take itself for the front-end
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), withTunables())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig comes when the thread ends that started the child
	defer runtime.UnlockOSThread()

	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}

	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status, _ := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() && status.Signal() == syscall.SIGKILL {
			return nil, ErrKilled
		}

		text := lastLine(stderr.String())
		if exit.ExitCode() < 0 || exit.ExitCode() > 2 {
			return nil, fmt.Errorf("%w: %s: %s", ErrCrashed, exit.ProcessState, text)
		}

		return nil, errors.New(strings.TrimPrefix(text, "Error: "))
	}

	return stdout.Bytes(), err
}

// mallocTunables has the C library take memory for a database, which libdqlite holds page by page, in large steps: other threads'
// arenas grow by a system call for every few pages (glibc manual, "Memory Allocation Tunables").
const mallocTunables = "glibc.malloc.arena_max=1:glibc.malloc.top_pad=16777216"

// withTunables is the variable with these, and with those that it has already: they come last, and count.
func withTunables() string {
	const name = "GLIBC_TUNABLES"
	return name + "=" + strings.TrimSuffix(mallocTunables+":"+os.Getenv(name), ":")
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// serveTimeout bounds how long a single voter may take to lead; it takes milliseconds.
const serveTimeout = 30 * time.Second

// ServeID is the raft id of the single voter that Serve is.
const ServeID = 1

// Serve starts libdqlite on the raft directory dir and hands its database of that name to use. The log must end in a configuration with
// a single voter, with the id ServeID and that address: "@" and a name, an abstract socket, of which nothing is left to clean up. The
// directory is changed: it must be a scratch copy. Call it in a child process only.
func Serve(ctx context.Context, dir string, address string, database string, use func(context.Context, *sql.DB) error) error {
	offerToKernel()
	server, err := Open(ServeID, address, dir)
	if err != nil {
		return fmt.Errorf("libdqlite refuses the directory: %w", err)
	}

	err = server.Start(address)
	if err != nil {
		return fmt.Errorf("libdqlite does not start on the directory: %w", err) // not closed: as in Open, and the process ends
	}

	defer server.Close()

	db, err := Connect(ctx, address, database)
	if err != nil {
		return err
	}

	defer db.Close()

	waitCtx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()

	err = db.PingContext(waitCtx)
	if err != nil {
		return fmt.Errorf("libdqlite does not serve the database: %w", err)
	}

	return use(ctx, db)
}

// Connect returns the database of that name of a cluster with a single voter, which serves address in this process. It waits for
// nothing.
func Connect(ctx context.Context, address string, database string) (*sql.DB, error) {
	store := client.NewInmemNodeStore()
	err := store.Set(ctx, []client.NodeInfo{NewNode(ServeID, address, 0)})
	if err != nil {
		return nil, err
	}

	d, err := driver.New(store)
	if err != nil {
		return nil, err
	}

	connector, err := d.OpenConnector(database)
	if err != nil {
		return nil, err
	}

	return sql.OpenDB(connector), nil
}

// offerToKernel makes this process the first to be killed where memory runs out: libdqlite holds the whole database in memory, and
// beside it there may be instances that work.
func offerToKernel() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
}

// Reconfigure makes nodes the configuration of the raft directory dir, the way LXD's own edit does: it appends a configuration entry,
// with term 1, to the log. The directory is changed, and repaired the way libdqlite does that: it must be a scratch copy. Call it in a
// child process only.
func Reconfigure(dir string, nodes []Node) error {
	offerToKernel()
	server, err := Open(ServeID, "1", dir) // neither of them gets anywhere
	if err != nil {
		return fmt.Errorf("libdqlite refuses the directory: %w", err)
	}

	defer server.Close()

	err = server.reconfigure(nodes)
	if err != nil {
		return fmt.Errorf("libdqlite refuses the directory: %w", err)
	}

	return nil
}
