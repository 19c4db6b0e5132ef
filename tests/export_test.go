package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// libdqlite is at work while the data of the snapshot is still being read. What is found wrong in it is said by us, and neither a
// tarball nor a scratch copy is left; the same snapshot without the damage is exported.
func TestExportDamagedSnapshot(t *testing.T) {
	member := filepath.Join(unpackFixtures(t), "small", "n2-preimport")
	must(t, os.WriteFile(filepath.Join(member, "cluster.crt"), anyCertificate(t), 0o600))
	global := filepath.Join(member, "database", "global")
	must(t, os.RemoveAll(global))
	must(t, os.Rename(raftlogtest.Make(t, raftlogtest.Snapshot), global))
	output := filepath.Join(t.TempDir(), "tarball")
	scratch := t.TempDir()
	export := func(args ...string) result {
		cmd := exec.CommandContext(t.Context(), tool, append([]string{"cluster", "export-db", "--unedited", output}, args...)...)
		cmd.Env = append(os.Environ(), "LXD_DIR="+member, "TMPDIR="+scratch)
		return run(t, cmd)
	}
	if r := export(); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	must(t, os.Remove(output))

	snapshot := filepath.Join(global, raftlogtest.NewerSnapshot)
	data, err := os.ReadFile(snapshot)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.WriteFile(snapshot, data, 0o600))
	check := unchanged(t, member)
	for _, args := range [][]string{nil, {"--no-proof"}, {"--at", "140", "--yes"}} {
		export(args...).want(t, 4, raftlogtest.NewerSnapshot, "damaged", "--accept-damage")
		wantMissing(t, output)
		left, err := os.ReadDir(scratch)
		must(t, err)
		if len(left) > 0 {
			t.Errorf("%v: %v is left", args, left)
		}
	}
	check()
}
