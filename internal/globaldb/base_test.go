// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// What comes before the newest snapshot begins with the older one, unless that is of another history by its term.
func TestBase(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Snapshot) // snapshots at 100 and 126, entries from 62 on
	check := func(upTo uint64, want uint64, refusal string) {
		t.Helper()
		log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
		if err != nil {
			t.Fatal(err)
		}

		s, err := Base(t.Context(), log, upTo)
		switch {
		case refusal != "":
			if err == nil || !strings.Contains(err.Error(), refusal) {
				t.Errorf("up to %d: %+v, %v", upTo, s, err)
			}
		case err != nil || s == nil || s.Index != want:
			t.Errorf("up to %d: %+v, %v", upTo, s, err)
		}
	}

	check(150, 126, "")
	check(126, 126, "")
	check(125, 100, "")
	check(100, 100, "")
	check(99, 0, "reaches no further back than index 100")

	for _, suffix := range []string{"", ".meta"} {
		older := filepath.Join(dir, raftlogtest.OlderSnapshot+suffix)
		err := os.Rename(older, strings.Replace(older, "snapshot-2-", "snapshot-1-", 1))
		if err != nil {
			t.Fatal(err)
		}
	}

	check(126, 126, "")
	check(110, 0, "no older one is of the log's own history")
}
