// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// A daemon that somebody starts by hand in the instant before the exchange: the import takes the exchange back and says so,
// the daemon goes on with the database it has open, and the import works once it is stopped.
func TestDaemonStartedDuringExchange(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	m := c.Member(2)
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx))
	tarball := export(t, c.Member(1))
	before := rowsOnDisk(t, m)

	// strace holds back every renameat2, the exchange among them, for longer than the daemon needs to start.
	cmd := m.Command(ctx, "strace", "-f", "-qq", "-o", os.DevNull, "-e", "trace=renameat2",
		"-e", "inject=renameat2:delay_enter=8000000", tool, "global-db-import", "--yes", tarball)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	waitFile(t, filepath.Join(m.Dir(), "database.swap.yaml"))
	must(t, m.Spawn())
	waitHolds(t, m)
	_ = cmd.Wait()
	result{stderr: stderr.String(), status: cmd.ProcessState.ExitCode()}.want(t, 1, "was started during the exchange", "undone")
	if !m.Running() {
		t.Error("the daemon is gone")
	}

	m.Kill()
	for _, name := range []string{"database.import", "database.swap.yaml"} {
		wantMissing(t, filepath.Join(m.Dir(), name))
	}

	if kept, _ := filepath.Glob(filepath.Join(m.Dir(), "database.before-*")); len(kept) > 0 {
		t.Errorf("kept %v", kept)
	}

	if have := rowsOnDisk(t, m); len(have) != len(before) {
		t.Errorf("rows %v, before %v", have, before)
	}

	importOn(t, tarball, c.Members()...)
	must(t, c.StartAll(ctx))
}

func waitFile(t testing.TB, path string) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		_, err := os.Stat(path)
		if err == nil {
			return
		}

		select {
		case <-ctx.Done():
			t.Fatalf("%s never came", path)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
