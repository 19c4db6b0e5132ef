// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// maxSupportFile bounds one file of a member, in bytes: what a member sends is not believed to end.
const maxSupportFile = 64 << 20

// Support packs what is to be known of all members that are reached into one tar file, a directory each. What a member does not give is a file with the reason.
func (s *Session) Support(ctx context.Context, w *tar.Writer) error {
	for _, name := range s.names() {
		s.tell(name, "", "is asked how it stands")
		r, sent := io.Pipe()
		given := make(chan error, 1)
		go func() {
			err := s.agent(name).Support(ctx, sent)
			_ = sent.CloseWithError(err)
			given <- err
		}()
		copied := copyFiles(w, name, r)
		_ = r.CloseWithError(copied)
		err := errors.Join(<-given, copied)
		if ctx.Err() != nil {
			return ctx.Err()
		}

		if err != nil {
			err = AddFile(w, name+"/support.error", []byte(err.Error()+"\n"))
		}

		if err != nil {
			return err
		}
	}

	return nil
}

// copyFiles copies the regular files of a tar file into another one, below a directory.
func copyFiles(w *tar.Writer, dir string, r io.Reader) error {
	files := tar.NewReader(r)
	for {
		h, err := files.Next()
		switch {
		case errors.Is(err, io.EOF):
			_, err = io.Copy(io.Discard, r)
			return err
		case err != nil:
			return err
		case h.Typeflag != tar.TypeReg || h.Size > maxSupportFile || strings.Contains(h.Name, "/") || h.Name == "..":
			return fmt.Errorf("a file %q of %d bytes is not what was asked for", h.Name, h.Size)
		}

		data, err := io.ReadAll(files)
		if err == nil {
			err = AddFile(w, path.Join(dir, h.Name), data)
		}

		if err != nil {
			return err
		}
	}
}

// AddFile adds a file to a tar file.
func AddFile(w *tar.Writer, name string, data []byte) error {
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Now(), Format: tar.FormatPAX})
	if err != nil {
		return err
	}

	_, err = w.Write(data)
	return err
}
