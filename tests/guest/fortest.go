// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// ForTest is Boot for tests: reporting to t's log, and closed when t ends. If t has failed, the end of the guest's journal is
// shown. Errors, not being root among them, fail t at once.
func ForTest(t testing.TB, opts Options) *Guest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("tests with guests must run as root")
	}

	if opts.Log == nil {
		opts.Log = t.Output()
	}

	g, err := Boot(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if t.Failed() && g.lock != nil {
			ctx, cancel := progress.Within(context.Background(), 10*time.Second)
			defer cancel()
			journal, err := g.Exec(ctx, "journalctl", "--boot", "--no-pager", "--output=short-precise", "--lines=60")
			t.Logf("end of the journal of %s (%v):\n%s", g.Name, err, journal)
		}

		err := g.Close()
		if err != nil {
			t.Errorf("close guest: %v", err)
		}
	})
	return g
}
