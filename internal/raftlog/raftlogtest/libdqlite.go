package raftlogtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Oracle runs the real libdqlite in child processes.
type Oracle struct{ program string }

var buildOracle = sync.OnceValues(func() (string, error) {
	if program := os.Getenv("RAFTLOG_ORACLE"); program != "" {
		return program, nil
	}
	_, file, _, _ := runtime.Caller(0)
	here := filepath.Dir(file)
	dqlite := filepath.Join(here, "../../../.deps/dqlite")
	if _, err := os.Stat(filepath.Join(dqlite, "lib/libdqlite.a")); err != nil {
		return "", err
	}
	dir, err := unpack() // removed by Cleanup
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "oracle-program")
	cmd := exec.Command("go", "build", "-tags", "libsqlite3,nosqlite3", "-o", program, "./oracle")
	cmd.Dir = here
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -g -I"+dqlite+"/include",
		"CGO_LDFLAGS=-L"+dqlite+"/lib -ldqlite -luv_a -llz4 -lsqlite3 -lm")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New("go build ./oracle: " + err.Error() + "\n" + string(out))
	}
	return program, nil
})

// NewOracle builds the oracle, once in a process. The test fails when
// libdqlite or the fixtures are not there. RAFTLOG_ORACLE names one that is
// already built.
func NewOracle(t testing.TB) Oracle {
	t.Helper()
	program, err := buildOracle()
	if os.IsNotExist(err) {
		t.Fatalf("no libdqlite (run make deps): %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Oracle{program}
}

// Ask runs one step ("load", "begin" or "serve") on a scratch directory, which
// it changes or ruins, and says how it ended: LoadsClean when libdqlite reported
// success, Refuses or Crashes otherwise, with what it said.
func (o Oracle) Ask(step, dir string) (raftlog.Outcome, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.program, step, dir)
	cmd.Env = append(os.Environ(), "GOTRACEBACK=none")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	said, _, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	var exit *exec.ExitError
	switch {
	case err == nil:
		return raftlog.LoadsClean, said
	case errors.As(err, &exit) && exit.ExitCode() == 1, ctx.Err() != nil:
		return raftlog.Refuses, said
	}
	// Killed by a signal; or the Go runtime turned SIGSEGV or SIGABRT in C code
	// into exit status 2.
	return raftlog.Crashes, said
}
