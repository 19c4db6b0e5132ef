// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"errors"
	"io"
	"sync/atomic"
	"unicode/utf8"
)

// Bounds of what an agent says: a machine that is broken, or somebody else's, must not fill the memory of the giving side.
const (
	maxReply   = 32 << 20 // bytes of one reply
	maxLine    = 64 << 10 // bytes of one line of progress
	maxLines   = 10_000   // lines of progress of one connection that are shown
	maxMessage = 64 << 10 // bytes of the text of an error
)

// CodeTooLarge is the code of an error: an agent has sent more than any sound one does.
const CodeTooLarge = "reply-too-large"

var errTooLarge = errors.New("more was sent than is taken")

// limited reads messages that follow each other. Each may be so large; again is called between them. What is read ahead of the next one counts for the
// one before.
type limited struct {
	io.ReadWriteCloser
	max  int64 // bytes
	read atomic.Int64
	over atomic.Bool
}

func (b *limited) Read(p []byte) (int, error) {
	n, err := b.ReadWriteCloser.Read(p)
	if b.read.Add(int64(n)) > b.max {
		b.over.Store(true)
		return 0, errTooLarge
	}

	return n, err
}

func (b *limited) again() { b.read.Store(0) }

// short is the beginning of a text that is too long.
func short(text string) string {
	if len(text) <= maxMessage {
		return text
	}

	text = text[:maxMessage]
	for !utf8.ValidString(text) && len(text) > maxMessage-utf8.UTFMax {
		text = text[:len(text)-1]
	}

	return text + " …"
}
