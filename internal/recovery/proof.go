package recovery

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
)

// ProveCommand is the hidden command whose child process opens a scratch copy with libdqlite and prints a fingerprint.
const ProveCommand = "prove"

// prove writes what is about to be exported to a scratch directory, lets libdqlite open it in a child process, and compares
// the rows that it serves with those of our replay.
func prove(ctx context.Context, pieces []bundle.Piece, want globaldb.Fingerprint) error {
	dir, err := os.MkdirTemp("", "lxd-recover-proof-")
	if err != nil {
		return err
	}

	defer os.RemoveAll(dir)

	for _, p := range pieces {
		err = writePiece(filepath.Join(dir, p.Name), p)
		if err != nil {
			return err
		}
	}

	out, err := engine.Run(ctx, ProveCommand, dir)
	if err != nil {
		return err
	}

	var got globaldb.Fingerprint
	err = json.Unmarshal(out, &got)
	if err != nil {
		return err
	}

	differ := want.Differ(got)
	if len(differ) > 0 {
		return fmt.Errorf("its rows differ in %s", strings.Join(differ, ", "))
	}

	return nil
}

func writePiece(path string, p bundle.Piece) error {
	src, err := p.Open()
	if err != nil {
		return err
	}

	defer src.Close()

	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	_, err = io.Copy(dst, io.LimitReader(src, p.Size))
	closeErr := dst.Close()
	if err != nil {
		return err
	}

	return closeErr
}
