// SPDX-License-Identifier: AGPL-3.0-only

// Command remoteagent is an agent for TestRemoteSSH: package remote on a real machine, with nothing of LXD.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/lxd-recover/lxd-recover/internal/remote"
)

// ended is a FIFO for what the connection ended with, if it is there.
const ended = "/root/ended"

func main() {
	err := remote.LeaveSession(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}

	err = remote.Serve(context.Background(), "test", os.Stdin, os.Stdout, remote.HandlerFunc(handle))
	file, openErr := os.OpenFile(ended, os.O_WRONLY, 0)
	if openErr == nil {
		fmt.Fprintln(file, err)
	}
}

// place is what "where" replies.
type place struct {
	UID     int
	Cgroup  string
	Program string
}

func handle(ctx context.Context, call remote.Call) (any, error) {
	switch call.Method {
	case "where":
		cgroup, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return nil, err
		}

		program, err := os.Executable()
		return place{UID: os.Getuid(), Cgroup: string(cgroup), Program: program}, err
	case "wait":
		call.Progress("waiting")
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case "count":
		return io.Copy(io.Discard, call.From)
	}

	return nil, fmt.Errorf("no such method: %s", call.Method)
}
