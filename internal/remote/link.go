// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

// DefaultHeartbeat is how often each end of a connection is heard at least.
const DefaultHeartbeat = 3 * time.Second

// A connection on which nothing was heard for so many heartbeats is lost. It is looked at so many times a heartbeat: 9.5 s, with the default.
const (
	silentBeats = 3
	looksABeat  = 6
)

const (
	pumpSize   = 64 << 10 // bytes
	windowSize = 1 << 20  // bytes on the way to a reader, for each stream
)

// link is a session of yamux over a reader and a writer, which need neither be closed to end it nor know deadlines.
//
// yamux has a keepalive of its own, which wants an answer in time. Over a slow line that is busy with a file, an answer takes its time, and
// the connection is a good one. So both ends ping, and what counts is whether anything is heard at all.
type link struct {
	session *yamux.Session
	born    time.Time
	heard   atomic.Int64 // when the last byte came: nanoseconds since born, by the monotonic clock
	beat    atomic.Int64 // nanoseconds
	watched atomic.Bool  // a silence ends it
	silent  atomic.Bool  // ended because nothing was heard
	written chan struct{}
}

// newLink begins a session. The giving side is its client, the agent its server.
func newLink(in io.Reader, out io.Writer, client bool, heartbeat time.Duration) (*link, error) {
	fromPeer, toSession := io.Pipe()
	fromSession, toPeer := io.Pipe()
	config := yamux.DefaultConfig()
	config.EnableKeepAlive = false
	config.ConnectionWriteTimeout = time.Minute // what cannot be written is a matter of silence
	config.StreamOpenTimeout = 0                // likewise
	config.StreamCloseTimeout = 0               // a call may go on for long after its file has been sent
	config.MaxStreamWindowSize = windowSize
	config.LogOutput = io.Discard

	l := &link{born: time.Now(), written: make(chan struct{})}
	l.beat.Store(int64(heartbeat))
	var err error
	if client {
		l.session, err = yamux.Client(wire{fromPeer, toPeer}, config)
	} else {
		l.session, err = yamux.Server(wire{fromPeer, toPeer}, config)
	}

	if err != nil {
		return nil, err
	}

	go l.read(in, toSession)
	go l.write(out, fromSession)
	return l, nil
}

// wire is what the session reads from and writes to.
type wire struct {
	*io.PipeReader
	*io.PipeWriter
}

func (w wire) Close() error { return errors.Join(w.PipeReader.Close(), w.PipeWriter.Close()) }

// read passes on what comes from the other end, until that ends. When the session has ended, it goes on reading: the other end, or ssh,
// could not end while it waits for somebody to take what it writes.
//
// What comes after a silence that ends the session is not passed on: a process that was stopped, or a machine that was asleep, finds it all there when it
// wakes, long after the other end has given it up.
func (l *link) read(in io.Reader, to *io.PipeWriter) {
	buf := make([]byte, pumpSize)
	for {
		n, err := in.Read(buf)
		if l.watched.Load() && l.tooLong() {
			l.end()
		}

		if n > 0 {
			l.heard.Store(int64(time.Since(l.born)))
			if !l.silent.Load() {
				_, _ = to.Write(buf[:n])
			}
		}

		if err != nil {
			_ = to.CloseWithError(io.EOF)
			return
		}
	}
}

// write passes on what goes to the other end, until the session ends. If nothing can be written any more, the session ends all the same when
// what the other end has written before has been read, or with silence: that may be the replies that say why.
func (l *link) write(out io.Writer, from *io.PipeReader) {
	defer close(l.written)

	_, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{from}, make([]byte, pumpSize))
	if err != nil {
		_, _ = io.Copy(io.Discard, from)
	}
}

// watch sends the heartbeat, and ends the session when nothing was heard from the other end. The agent begins at once, the giving side when the
// agent has answered for the first time, which may take longer.
func (l *link) watch() {
	l.watched.Store(true)
	for look := 1; ; look++ {
		beat := time.Duration(l.beat.Load())
		select {
		case <-l.session.CloseChan():
			return
		case <-time.After(beat / looksABeat):
		}

		if l.tooLong() {
			l.end()
			return
		}

		if look%looksABeat == 0 {
			go func() { _, _ = l.session.Ping() }() // its answer is heard like everything else
		}
	}
}

// tooLong tells whether nothing was heard for so long that the connection is lost.
func (l *link) tooLong() bool {
	return time.Since(l.born)-time.Duration(l.heard.Load()) > silentBeats*time.Duration(l.beat.Load())
}

// end ends the session because nothing was heard.
func (l *link) end() {
	l.silent.Store(true)
	_ = l.session.Close()
}

// why says why the session has ended, given the error with which its Accept did.
func (l *link) why(err error) string {
	if l.silent.Load() {
		return fmt.Sprintf("nothing was heard from the other end for %s", silentBeats*time.Duration(l.beat.Load()))
	}

	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, os.ErrClosed, unix.EPIPE, unix.ECONNRESET, yamux.ErrSessionShutdown} {
		if errors.Is(err, end) {
			return "the other end has ended, or the connection was cut"
		}
	}

	return err.Error()
}

// incoming reads a stream. The end of the session ends all streams, in the same way in which their writers do; here that is an error.
type incoming struct{ stream *yamux.Stream }

func (r incoming) Read(p []byte) (int, error) {
	n, err := r.stream.Read(p)
	if errors.Is(err, io.EOF) && r.stream.Session().IsClosed() {
		err = io.ErrUnexpectedEOF
	}

	return n, err
}

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)
