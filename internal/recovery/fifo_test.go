// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
)

// TestFIFO gives a FIFO, to which nobody ever writes, for every file that the commands read: it is refused at once.
func TestFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	err := unix.Mkfifo(fifo, 0o600)
	if err != nil {
		t.Fatal(err)
	}

	for name, read := range map[string]func(context.Context) error{
		"inspect": func(ctx context.Context) error { _, err := Inspect(ctx, fifo, Progress{}); return err },
		"compare": func(ctx context.Context) error {
			_, err := Compare(ctx, CompareOptions{Sources: []string{fifo, fifo}})
			return err
		},
		"sql": func(ctx context.Context) error {
			_, err := OpenDatabase(ctx, DatabaseOptions{Source: fifo})
			return err
		},
		"survivor":  func(context.Context) error { _, err := readReport(fifo); return err },
		"node-db":   func(ctx context.Context) error { _, err := nodedb.ReadTemplate(ctx, fifo); return err },
		"import":    func(ctx context.Context) error { return (&importer{opts: ImportOptions{Tarball: fifo}}).unpack(ctx) },
		"is report": func(context.Context) error { _, _, err := reportOf(t.Context(), fifo, "", Progress{}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			go func() { ended <- read(t.Context()) }()
			select {
			case err := <-ended:
				if name == "import" {
					if err == nil || err.Error() != fifo+" is not a file: give the tarball itself, lxd_recovery_db.tar.gz unless it was named otherwise" {
						t.Errorf("error %v", err)
					}
				} else if !errors.Is(err, newfile.ErrNotRegular) {
					t.Errorf("error %v", err)
				}

			case <-time.After(30 * time.Second):
				t.Fatal("still waiting")
			}
		})
	}
}
