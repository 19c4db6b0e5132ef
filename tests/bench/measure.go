// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/machines"
)

// measure is the fastest of several runs of a command, and the most memory that one of them took.
type measure struct {
	wall, cpu time.Duration
	own       int64 // peak of resident memory of the process itself, bytes
	peak      int64 // of the largest of the process and all that it started
}

// refused is the exit status of a comparison that recommends nothing: whose bare raft directories are is not known.
const refused = 3

// best runs a command several times. prepare makes the command, and, before each run, what it works on.
func best(runs int, prepare func() (*exec.Cmd, error)) (measure, error) {
	var m measure
	for range runs {
		cmd, err := prepare()
		if err != nil {
			return m, err
		}

		one, err := once(cmd)
		if err != nil {
			return m, err
		}

		m.peak, m.own = max(m.peak, one.peak), max(m.own, one.own)
		if m.wall == 0 || one.wall < m.wall {
			m.wall, m.cpu = one.wall, one.cpu
		}
	}

	return m, nil
}

// command is a prepare for what needs no preparation.
func command(name string, args ...string) func() (*exec.Cmd, error) {
	return func() (*exec.Cmd, error) { return exec.Command(name, args...), nil }
}

// once runs a command. How much memory it took itself is looked at until it ends: the kernel's own account, which comes at the
// end, takes it together with its children.
func once(cmd *exec.Cmd) (measure, error) {
	var errText strings.Builder
	if cmd.Stderr == nil {
		cmd.Stderr = &errText
	}

	began := time.Now()
	err := cmd.Start()
	if err != nil {
		return measure{}, err
	}

	ended := make(chan struct{})
	own := make(chan int64)
	go func() {
		peak := int64(0)
		for {
			peak = max(peak, machines.PeakOf(fmt.Sprintf("/proc/%d", cmd.Process.Pid)))
			select {
			case <-ended:
				own <- peak
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	err = cmd.Wait()
	m := measure{wall: time.Since(began)}
	close(ended)
	m.own = <-own
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != refused) {
		return m, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, errText.String())
	}

	m.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	m.peak = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	return m, nil
}

// processorTime is what a process that still runs has used of the processors.
func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}

	// After the name, which is in parentheses, fields 3 and on; 14 and 15 are user and system time, in hundredths of a second.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, userErr := strconv.ParseInt(fields[11], 10, 64)
	system, systemErr := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(userErr, systemErr)
}
