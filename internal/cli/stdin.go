// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"io"
	"os"
)

// readStdin reads standard input to its end, or so many bytes of it, unless the context ends before: whoever writes there may never end.
func readStdin(ctx context.Context, limit int64) ([]byte, error) {
	type input struct {
		data []byte
		err  error
	}

	read := make(chan input, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(os.Stdin, limit))
		read <- input{data, err}
	}()

	select {
	case in := <-read:
		return in.data, in.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
