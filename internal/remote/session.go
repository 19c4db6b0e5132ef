// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// systemdSocket is where systemd listens for root, and is there where systemd runs.
const systemdSocket = "/run/systemd/private"

// leaveTime is how long systemd may take.
const leaveTime = 10 * time.Second

// LeaveSession moves this process out of the session of the user who has come in by ssh, into a scope of its own in system.slice:
// logind ends all that is in a session when the user leaves (KillUserProcesses), and an agent may have LXD stopped just then. Where this
// process is in no session, or systemd does not run, there is nothing to do. After an error the process is where it was.
//
// sudo, which waits for this process, comes along: else the end of the session takes 90 s, and systemd kills sudo then.
func LeaveSession(ctx context.Context) error {
	where, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}

	_, err = os.Stat(systemdSocket)
	if !inSession(string(where)) || errors.Is(err, os.ErrNotExist) {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()

	err = newScope(ctx, append(sudos(), uint32(os.Getpid())))
	if err == nil {
		where, err = os.ReadFile("/proc/self/cgroup")
	}

	if err == nil && inSession(string(where)) {
		err = errors.New("systemd has made a scope, in which this process is not")
	}

	if err != nil {
		return fmt.Errorf("leave the user's session: %w", err)
	}

	return nil
}

// newScope has systemd make a scope of these processes.
func newScope(ctx context.Context, pids []uint32) error {
	conn, err := dbus.NewConnection(func() (*godbus.Conn, error) { return dialSystemd(ctx) })
	if err != nil {
		return err
	}

	defer conn.Close()

	name := fmt.Sprintf("lxd-recover-agent-%d.scope", os.Getpid())
	properties := []dbus.Property{
		dbus.PropDescription("lxd-recover, called from another machine"),
		dbus.PropSlice("system.slice"),
		dbus.PropPids(pids...),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
	done := make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, name, "fail", properties, done)
	if err != nil {
		return err
	}

	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%s: %s", name, result)
		}

		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dialSystemd connects to systemd itself. The connection, and whatever waits for it, ends with ctx.
func dialSystemd(ctx context.Context) (*godbus.Conn, error) {
	conn, err := godbus.Dial("unix:path="+systemdSocket, godbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}

	err = conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}

	return conn, nil
}

// session is in the path of the cgroup of a user's session, or of a user's manager.
var session = regexp.MustCompile(`(^|/)(user\.slice|session-[^/]*\.scope)(/|$)`)

// inSession tells whether a process with these cgroups is in a session. They are lines HIERARCHY:CONTROLLERS:PATH. Hierarchy 0 is that of
// cgroup v2; with v1, systemd has one of its name. In a container, only one of the two may be in use.
func inSession(cgroups string) bool {
	for line := range strings.Lines(cgroups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (fields[0] == "0" || fields[1] == "name=systemd") && session.MatchString(fields[2]) {
			return true
		}
	}

	return false
}

// sudos are the processes of sudo above this one: up to two, where it has a terminal of its own for the command.
func sudos() (pids []uint32) {
	for pid := os.Getppid(); ; {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return pids
		}

		parent, ok := parentOf(string(stat), "sudo")
		if !ok {
			return pids
		}

		pids = append(pids, uint32(pid))
		pid = parent
	}
}

// parentOf is the parent in a process's stat, PID (NAME) STATE PARENT ..., if that is its name.
func parentOf(stat string, name string) (parent int, ok bool) {
	begin, end := strings.Index(stat, "("), strings.LastIndex(stat, ")") // a name may have both in it
	if begin < 0 || end < begin || stat[begin+1:end] != name {
		return 0, false
	}

	_, err := fmt.Sscanf(stat[end+1:], "%1s %d", new(string), &parent)
	return parent, err == nil
}
