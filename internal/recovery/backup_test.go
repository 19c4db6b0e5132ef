// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A backup of LXD's without a global database, as MicroCloud's are, is none of a spare: nothing can be said of it.
func TestBackupWithoutGlobal(t *testing.T) {
	for name, dirs := range map[string][]string{"no directory": {"database"}, "an empty one": {"database", "database/global"}} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "db_backup.tar.gz")
			f, err := os.Create(file)
			must(t, err)
			zip := gzip.NewWriter(f)
			archive := tar.NewWriter(zip)
			for _, dir := range dirs {
				must(t, archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o700}))
			}

			local, err := os.ReadFile(newLostLab(t).dir.local())
			must(t, err)
			must(t, archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "database/local.db", Mode: 0o600, Size: int64(len(local))}))
			_, err = archive.Write(local)
			must(t, errors.Join(err, archive.Close(), zip.Close(), f.Close()))

			r, err := Inspect(t.Context(), file, Progress{})
			if r != nil || err == nil || !strings.Contains(err.Error(), file+": this backup has no global database") {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}
