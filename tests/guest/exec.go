// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// environment is what commands in a guest run with: nothing of this process's.
var environment = []string{
	"HOME=/root", "LANG=C.UTF-8", "TERM=dumb",
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin",
}

// Command prepares a program to run in the guest, as root and in root's home directory. It ends with ctx, and with this
// process; what it leaves behind ends with the guest. The caller sets input and output and runs it.
func (g *Guest) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--cpu-list", g.cpu,
		"nsenter", "--target", strconv.Itoa(g.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd",
		"setpriv", "--pdeathsig", "KILL", // nsenter's child, which is the program, ends with nsenter
		"env", "--ignore-environment", "--chdir=/root"}
	enter = append(append(enter, environment...), name)
	cmd := exec.CommandContext(ctx, "taskset", append(enter, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second // for children that keep the output open
	return cmd
}

// Exec runs a program in the guest and returns what it wrote to standard output. An error has its standard error, and is an
// *exec.ExitError underneath.
func (g *Guest) Exec(ctx context.Context, name string, args ...string) (stdout string, err error) {
	return g.run(g.Command(ctx, name, args...), name, args)
}

func (g *Guest) run(cmd *exec.Cmd, name string, args []string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %s %s: %w: %s",
			g.Name, name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}

	return stdout.String(), nil
}

// Put copies a file of this machine into the guest. Missing directories are made.
func (g *Guest) Put(ctx context.Context, source, destination string, mode fs.FileMode) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}

	defer file.Close()
	args := []string{"-D", "-m", fmt.Sprintf("%04o", mode.Perm()), "/dev/stdin", destination}
	cmd := g.Command(ctx, "install", args...)
	cmd.Stdin = file
	_, err = g.run(cmd, "install", args)
	return err
}

// Root is the guest's root file system as this machine sees it, with all that is mounted in the guest, while the guest
// runs. Beware of absolute symbolic links in it: they lead into this machine's.
func (g *Guest) Root() string { return fmt.Sprintf("/proc/%d/root", g.leader) }
