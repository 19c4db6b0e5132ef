// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"os"
	"testing"
)

// ForTest is New for tests: with Debian's LXD unless opts says otherwise, reporting to t's log, and closed when t ends. If
// t has failed, the end of each daemon's log is shown. Errors, not being root among them, fail t at once.
func ForTest(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("tests with real clusters must run as root")
	}

	if opts.LXD == (LXD{}) {
		debian, err := Debian()
		if err != nil {
			t.Fatal(err)
		}

		opts.LXD = debian
	}

	if opts.Log == nil {
		opts.Log = t.Output()
	}

	c, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range c.Members() {
				t.Logf("end of the log of %s:\n%s", m.Name, m.LogTail(20))
			}
		}

		err := c.Close()
		if err != nil {
			t.Errorf("close cluster: %v", err)
		}
	})
	return c
}

// StandaloneForTest is ForTest for an LXD that is no member of a cluster, which it returns running.
func StandaloneForTest(t testing.TB, opts Options) *Member {
	t.Helper()
	opts.Standalone = true
	return ForTest(t, opts).Member(1)
}
