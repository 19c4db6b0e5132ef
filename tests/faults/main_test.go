// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// everything tells whether every fault is injected, or a sample.
var everything = os.Getenv("CAMPAIGN") == "1"

// base is the directory of this run, tool its own copy of bin/lxd-recover.
var base, tool string

// oursVariable is set once the test process is in its own namespaces.
const oursVariable = "LXD_RECOVER_FAULTS_NAMESPACE"

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		status = 1
	}

	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests must run as root")
	}

	if os.Getenv(oursVariable) == "" {
		return 1, ownNamespace()
	}

	remove, err := makeBase(os.TempDir())
	if err != nil {
		return 1, err
	}

	defer remove()

	// All temporary directories of the tests, the cluster's too, are below it, for the next run to remove if need be.
	err = os.Setenv("TMPDIR", base)
	if err != nil {
		return 1, err
	}

	tool = filepath.Join(base, "lxd-recover")
	out, err := exec.Command("cp", "../../bin/lxd-recover", tool).CombinedOutput()
	if err != nil {
		return 1, fmt.Errorf("%w: %s: run make", err, out)
	}

	status := m.Run()
	closeLabs()
	text := table.String()
	fmt.Print("\n", text)
	fmt.Println(sampled.String())
	if report := os.Getenv("FAULTS_REPORT"); report != "" {
		return status, os.WriteFile(report, []byte(text), 0o644)
	}

	return status, nil
}

// ownNamespace runs this program again in a mount namespace that ends with it, and in a network namespace without a network: an
// import asks for the other members, who must not be some machine that has their addresses.
func ownNamespace() error {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}

	self, err := os.Executable()
	if err != nil {
		return err
	}

	args := append([]string{unshare, "--net", "--mount", "--propagation", "private", "--", self}, os.Args[1:]...)
	return syscall.Exec(unshare, args, append(os.Environ(), oursVariable+"=1"))
}

// basePrefix begins the names of the directories of runs.
const basePrefix = "lxd-recover-faults-"

// makeBase makes the directory of this run, and removes those of runs that were killed: nobody holds their lock any more.
func makeBase(parent string) (remove func(), err error) {
	old, err := filepath.Glob(filepath.Join(parent, basePrefix+"*"))
	if err != nil {
		return nil, err
	}

	for _, dir := range old {
		lock, err := os.Open(dir)
		if err != nil {
			continue
		}

		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}

		lock.Close()
	}

	base, err = os.MkdirTemp(parent, basePrefix)
	if err != nil {
		return nil, err
	}

	lock, err := os.Open(base)
	if err != nil {
		return nil, err
	}

	return func() {
		_ = os.RemoveAll(base)
		lock.Close()
	}, unix.Flock(int(lock.Fd()), unix.LOCK_EX)
}
