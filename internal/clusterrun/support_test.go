// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
)

// All members are in one file, without a key.
func TestSupport(t *testing.T) {
	l := newLab(t)
	s, err := clusterrun.ReachAll(t.Context(), l.options())
	must(t, err)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	must(t, s.Support(t.Context(), w))
	must(t, w.Close())
	must(t, s.Close())
	files := map[string][]byte{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}

		must(t, err)
		files[h.Name], err = io.ReadAll(r)
		must(t, err)
	}

	for name, dir := range l.dirs {
		key, err := os.ReadFile(filepath.Join(dir, "cluster.key"))
		must(t, err)
		key = bytes.Split(key, []byte("\n"))[1]
		for _, file := range []string{"look.json", "state.json", "kept.json"} {
			if len(files[name+"/"+file]) == 0 {
				t.Errorf("%s is missing: %v", file, slices.Collect(maps.Keys(files)))
			}
		}

		for file, data := range files {
			if bytes.Contains(data, key) {
				t.Errorf("%s has the key of the cluster", file)
			}
		}
	}
}
