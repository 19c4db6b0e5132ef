package recovery

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// A file that changes between the check and the packing is an error, whichever it is and whatever it still looks like.
func TestChangedSinceChecked(t *testing.T) {
	from := raftlogtest.Make(t, raftlogtest.Snapshot)
	log, err := raftlog.Open(t.Context(), os.DirFS(from), raftlog.Options{Sums: true})
	must(t, err)
	files := []string{log.Snapshot().File, log.Snapshot().Meta}
	for _, run := range log.Runs() {
		if run.Last > log.Snapshot().Index {
			files = append(files, run.File)
		}
	}
	for _, file := range append(files, "") {
		dir := raftlogtest.Copy(t, from)
		log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{Sums: true})
		must(t, err)
		pieces, _, err := fenced(t.Context(), log, log.LastIndex, os.DirFS(dir), 5000)
		must(t, err)
		if file != "" {
			flipFirst(t, filepath.Join(dir, file))
		}
		manifest := &bundle.Manifest{
			Created: time.Now(), Cluster: bundle.Cluster{Certificate: strings.Repeat("ab", 32)},
			Members: member.List{{ID: 1, Name: "one", Address: "10.0.0.1:8443", Role: raftlog.Voter}},
		}
		err = bundle.Write(t.Context(), io.Discard, pieces, manifest, nil)
		if file == "" {
			must(t, err)
		} else if err == nil || !strings.Contains(err.Error(), "the file changed while it was read") {
			t.Errorf("%s: error %v", file, err)
		}
	}
}

// flipFirst flips the first bit of a file.
func flipFirst(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	data[0] ^= 1
	must(t, os.WriteFile(path, data, 0o600))
}
