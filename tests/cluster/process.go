// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// Every process of a cluster carries this variable in its environment, with the cluster's directory as its value. That is
// how the ones that nobody waits for are found: what LXD or a command left behind, also after the owner's death.
const markVariable = "LXD_RECOVER_TEST_CLUSTER"

// killMarked kills every process that carries the mark, and returns when they are gone.
func killMarked(ctx context.Context, mark string) error {
	for {
		left := 0
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}

		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err != nil || pid == os.Getpid() || !hasMark(pid, mark) {
				continue
			}

			left++
			// The handle is a pidfd: looking again after taking it makes sure that it is still the process seen above.
			process, err := os.FindProcess(pid)
			if err != nil {
				continue
			}

			if hasMark(pid, mark) {
				process.Kill()
			}

			process.Release()
		}

		if left == 0 {
			return nil
		}

		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of %s would not die: %w", left, mark, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func hasMark(pid int, mark string) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // empty for a zombie
	if err != nil {
		return false
	}

	want := []byte(markVariable + "=" + mark)
	for variable := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.Equal(variable, want) {
			return true
		}
	}

	return false
}

// dirPrefix begins the names of clusters' directories. Short, because a Unix socket's path has at most 107 bytes.
const dirPrefix = "lxdr-"

// sweep removes what dead test processes left in parent: directories whose lock nobody holds, and processes with their mark.
func sweep(ctx context.Context, parent string) error {
	return tied.Sweep(parent, dirPrefix, func(dir string) error { return errors.Join(killMarked(ctx, dir), os.RemoveAll(dir)) })
}
