// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

// Handler is what the agent does. Calls come at the same time, if the giving side makes them so.
type Handler interface {
	// Handle carries out a call. ctx ends with the call, that is when the giving side cancels it, and with the connection; its cause says why.
	Handle(ctx context.Context, call Call) (reply any, err error)
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, call Call) (any, error)

// Handle is f.
func (f HandlerFunc) Handle(ctx context.Context, call Call) (any, error) { return f(ctx, call) }

// Call is one call at the agent.
type Call struct {
	Method string
	Args   json.RawMessage

	// From is the file that the giving side sends: io.EOF is its end, and the file is complete. To is the file that it receives, which is
	// complete when the call has no error. Both end with an error when the call's context ends. Where the giving side sends none, From is empty;
	// where it wants none, what is written to To is dropped there.
	From io.Reader
	To   io.Writer

	// Progress sends a line to the giving side. All of a call's lines arrive before its reply, in order.
	Progress func(line string)
}

// Decode makes v of the arguments. One that v does not have is an error.
func (c Call) Decode(v any) error {
	dec := json.NewDecoder(bytes.NewReader(c.Args))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err != nil {
		return fmt.Errorf("arguments of %s: %w", c.Method, err)
	}

	return nil
}

// byeTime is how long the last bytes may take to leave this process.
const byeTime = 2 * time.Second

// Serve is the agent's side: it serves calls on in and out, which are the standard input and output of a process, until the connection
// ends, and returns why: nil if the giving side has closed it. version is that of this program.
//
// SIGINT and SIGTERM end it, too. In each case it returns only when all calls have, whose contexts have ended: a handler may be starting
// something again that it had stopped. From then on SIGHUP and SIGPIPE do nothing in this process (its children have them as usual), so that
// it lives long enough to do so; ctx must not be one that these signals end.
//
// A program that Dial has carried here is removed when Serve returns, and so is what killed agents have left.
func Serve(ctx context.Context, version string, in io.Reader, out io.Writer, handler Handler) error {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()

	sweep()
	defer removeCarried()

	l, err := newLink(in, out, false, DefaultHeartbeat)
	if err != nil {
		return err
	}

	go l.watch()
	connected, cut := context.WithCancelCause(ctx)
	defer cut(nil)

	a := &agent{ctx: connected, link: l, version: version, handler: handler, calls: map[uint64]context.CancelCauseFunc{}, streams: newStreams()}
	err = a.serve(cut)
	_ = l.session.Close()
	select {
	case <-l.written:
	case <-time.After(byeTime):
	}

	switch {
	case a.bye:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return err
	}
}

// agent is one connection at the agent's side.
type agent struct {
	ctx     context.Context // ends with the connection
	link    *link
	version string
	handler Handler
	streams *streams

	progress sync.Mutex
	lines    *json.Encoder

	mu    sync.Mutex
	calls map[uint64]context.CancelCauseFunc // nil: cancelled before it came
	bye   bool
}

// serve returns when the connection has ended, or ctx has, and all calls have been answered.
func (a *agent) serve(cut context.CancelCauseFunc) error {
	first, err := a.link.session.AcceptStreamWithContext(a.ctx)
	if err != nil {
		return a.lost(err)
	}

	second, err := a.link.session.AcceptStreamWithContext(a.ctx)
	if err != nil {
		return a.lost(err)
	}

	a.lines = json.NewEncoder(second)
	ended := make(chan error, 1)
	go func() {
		err := a.lost(a.accept())
		cut(err)
		ended <- err
	}()

	server := rpc.NewServer()
	err = server.RegisterName("Agent", &methods{a})
	if err != nil {
		return err
	}

	// ServeCodec returns when nothing can be read any more, and all calls have been answered.
	enough := context.AfterFunc(a.ctx, func() { _ = first.SetReadDeadline(past) })
	defer enough()

	server.ServeCodec(jsonrpc.NewServerCodec(first))
	_ = a.link.session.Close()
	return <-ended
}

// accept takes the streams for files, until the session ends.
func (a *agent) accept() error {
	for {
		stream, err := a.link.session.AcceptStream()
		if err != nil {
			return err
		}

		a.streams.put(stream)
	}
}

func (a *agent) lost(err error) error {
	return errorf(CodeLost, "the connection was lost: %s", a.link.why(err))
}

// methods are what net/rpc calls.
type methods struct{ agent *agent }

// Hello is the first call.
func (m *methods) Hello(request helloRequest, reply *helloReply) (err error) {
	if request.Heartbeat > 0 {
		m.agent.link.beat.Store(int64(request.Heartbeat))
	}

	reply.Version = m.agent.version
	reply.Host, err = os.Hostname()
	return err
}

// Bye says that the giving side closes the connection.
func (m *methods) Bye(_ struct{}, _ *struct{}) error {
	m.agent.mu.Lock()
	defer m.agent.mu.Unlock()

	m.agent.bye = true
	return nil
}

// errCanceled is the cause of a context that the giving side has ended.
var errCanceled = &Error{Code: CodeCanceled, Message: "cancelled"}

// Cancel ends a call's context. net/rpc may run it before the call itself.
func (m *methods) Cancel(number uint64, _ *struct{}) error {
	m.agent.mu.Lock()
	defer m.agent.mu.Unlock()

	cancel := m.agent.calls[number]
	if cancel != nil {
		cancel(errCanceled)
	}

	m.agent.calls[number] = nil
	return nil
}

// Call calls the handler.
func (m *methods) Call(request callRequest, reply *callReply) error {
	a := m.agent
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)

	a.mu.Lock()
	_, canceled := a.calls[request.Number]
	if canceled {
		cancel(errCanceled)
	}

	a.calls[request.Number] = cancel
	a.mu.Unlock()

	result, err := a.handle(ctx, request, &reply.Lines)
	if err == nil {
		reply.Reply, err = json.Marshal(result)
	}

	reply.Error = onWire(ctx, err)
	a.mu.Lock()
	defer a.mu.Unlock()

	delete(a.calls, request.Number)
	return nil
}

// handle calls the handler with the stream for the call's files.
func (a *agent) handle(ctx context.Context, request callRequest, lines *uint64) (any, error) {
	call := Call{Method: request.Method, Args: request.Args, From: bytes.NewReader(nil), To: io.Discard}
	call.Progress = func(line string) {
		a.progress.Lock()
		defer a.progress.Unlock()

		*lines++
		_ = a.lines.Encode(progressLine{Number: request.Number, Line: line})
	}

	if request.Stream != 0 {
		stream, err := a.streams.take(ctx, request.Stream)
		if err != nil {
			return nil, err
		}

		defer stream.Close()

		stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(past) })
		defer stop()

		file := callFile{ctx: ctx, stream: stream}
		call.From, call.To = file, file
	}

	err := ctx.Err()
	if err != nil {
		return nil, context.Cause(ctx)
	}

	return a.handler.Handle(ctx, call)
}

// onWire is an error as it goes to the giving side.
func onWire(ctx context.Context, err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))):
		return &Error{Code: CodeCanceled, Message: err.Error()}
	default:
		return &Error{Message: err.Error()}
	}
}

// callFile is a stream as a call sees it, which ends with an error when the call's context does.
type callFile struct {
	ctx    context.Context
	stream *yamux.Stream
}

func (f callFile) Read(p []byte) (int, error) {
	n, err := 0, f.ctx.Err()
	if err == nil {
		n, err = incoming{f.stream}.Read(p)
	}

	return n, f.because(err)
}

func (f callFile) Write(p []byte) (int, error) {
	n, err := 0, f.ctx.Err()
	if err == nil {
		n, err = f.stream.Write(p)
	}

	return n, f.because(err)
}

// because is the reason for which the context has ended, in place of an error that followed from that.
func (f callFile) because(err error) error {
	if err != nil && f.ctx.Err() != nil {
		return context.Cause(f.ctx)
	}

	return err
}

// streams are those that were opened for files and not yet taken by their calls.
type streams struct {
	mu     sync.Mutex
	opened map[uint32]chan *yamux.Stream
}

func newStreams() *streams { return &streams{opened: map[uint32]chan *yamux.Stream{}} }

func (s *streams) place(number uint32) chan *yamux.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.opened[number] == nil {
		s.opened[number] = make(chan *yamux.Stream, 1)
	}

	return s.opened[number]
}

func (s *streams) put(stream *yamux.Stream) { s.place(stream.StreamID()) <- stream }

// take waits for a stream: it was opened before the call was made, but may be accepted a moment later.
func (s *streams) take(ctx context.Context, number uint32) (*yamux.Stream, error) {
	select {
	case stream := <-s.place(number):
		s.mu.Lock()
		defer s.mu.Unlock()

		delete(s.opened, number)
		return stream, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
