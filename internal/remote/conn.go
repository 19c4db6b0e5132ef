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
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// Peer is what is known of the machine at the other end.
type Peer struct {
	Arch    string // Go's name for its architecture
	Host    string // its host name
	UID     int    // of the user who came in, before sudo
	Version string // of the program
	Carried bool   // the program was carried along: it runs from a directory of its own, which goes when the agent ends
}

// Conn is a connection to an agent. Its methods may be used by several goroutines.
type Conn struct {
	name    string
	peer    Peer
	process *process
	link    *link
	rpc     *rpc.Client
	replies *limited // what rpc reads
	lines   *lines
	numbers atomic.Uint64

	closing atomic.Bool
	closed  sync.Once
	done    chan struct{}
	err     error // once done is closed
}

// Bounds of what follows from an end that has come already. Tests make them short.
var (
	endTime    = 2 * time.Second  // ssh ends when its connection has
	closeTime  = 10 * time.Second // the agent ends when its connection is closed, once its calls have
	cancelTime = 5 * time.Second  // a call ends when it is cancelled
)

func newConn(d *dialing) (*Conn, error) {
	l, err := newLink(d.lines, d.stdin, true, d.opts.Heartbeat)
	if err != nil {
		return nil, err
	}

	c := &Conn{name: d.name(), peer: d.peer, process: d.process, link: l, lines: newLines(d.opts.Progress), done: make(chan struct{})}
	go c.watch()

	first, err := l.session.OpenStream()
	if err != nil {
		return c, c.ended("")
	}

	c.replies = &limited{ReadWriteCloser: first, max: maxReply}
	c.rpc = jsonrpc.NewClient(c.replies)
	second, err := l.session.OpenStream()
	if err != nil {
		return c, c.ended("")
	}

	go c.lines.read(second)
	return c, nil
}

// watch waits for the end of the session, and makes the reason known.
func (c *Conn) watch() {
	_, err := c.link.session.AcceptStream() // the agent opens none
	_ = c.link.session.Close()
	_ = c.process.stdin.Close()
	switch {
	case c.closing.Load(): // Close waits
	case c.link.silent.Load():
		c.process.kill()
	case !c.process.wait(endTime):
		c.process.kill()
	}

	why := c.link.why(err)
	words := c.process.lastWords()
	switch {
	case c.closing.Load():
		c.err = errorf(CodeLost, "%s: the connection was closed", c.name)
	case words == "":
		c.err = errorf(CodeLost, "%s: the connection was lost: %s", c.name, why)
	default:
		c.err = errorf(CodeLost, "%s: the connection was lost: %s (the last that it said: %s)", c.name, why, words)
	}

	close(c.done)
}

// Peer tells who is at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// Done is closed when the connection has ended, at most 10 s after it was cut or frozen, with the default heartbeat.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is why the connection has ended, with CodeLost, and nil while it has not.
func (c *Conn) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// ended is the error of what was under way when the connection ended.
func (c *Conn) ended(method string) error {
	<-c.done
	if method == "" {
		return c.err
	}

	return errorf(CodeLost, "%s (during %s: it may have been done or not)", c.err, method)
}

// Close ends the agent and waits for that: its calls are cancelled, and what was carried along is removed. An agent whose calls do not end
// within 10 s goes on without the connection until they have, and Close says so.
func (c *Conn) Close() (err error) {
	c.closed.Do(func() {
		if c.rpc != nil {
			ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
			defer cancel()

			_ = c.do(ctx, methodBye, struct{}{}, &struct{}{})
		}

		c.closing.Store(true)
		_ = c.link.session.Close()
		<-c.done
		if !c.process.wait(closeTime) {
			err = errorf(CodeLost, "%s: the agent is still at work, although the connection was closed", c.name)
			c.process.kill()
		}

		_ = c.process.stdout.Close()
	})
	return err
}

// do is a call of one of the agent's methods.
func (c *Conn) do(ctx context.Context, method string, args any, reply any) error {
	call := c.rpc.Go(method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}

	return c.answered(call, method)
}

// answered is the error of a call that has ended, apart from its handler's.
func (c *Conn) answered(call *rpc.Call, method string) error {
	var refused rpc.ServerError
	switch {
	case call.Error == nil:
		c.replies.again()
		return nil
	case c.replies.over.Load():
		_ = c.link.session.Close()
		return errorf(CodeTooLarge, "%s: %s: its reply is larger than %d MiB, which none of ours is: the connection was ended", c.name, method, maxReply>>20)
	case errors.As(call.Error, &refused):
		return errorf(CodeLost, "%s: %s: %s", c.name, method, string(refused))
	case !c.link.session.IsClosed(): // a reply that is none: nothing can be read after it
		_ = c.link.session.Close()
	}

	return c.ended(method)
}

// Call calls the agent's handler with args, as JSON, and fills reply, a pointer or nil. The handler's error is an *Error. If the
// connection ends, that is the error, with CodeLost.
//
// When ctx ends, the call is cancelled at the agent, and Call waits for what becomes of it: a reply that is complete nevertheless is no error.
// After 5 s without one, the call may still go on at the agent.
func (c *Conn) Call(ctx context.Context, method string, args any, reply any) error {
	return c.Transfer(ctx, method, args, reply, Files{})
}

// Files are what a call sends and receives.
type Files struct {
	From io.Reader // the call reads it as Call.From; an error of it cancels the call, and is then the error of Transfer
	To   io.Writer // is given what the call writes to Call.To; likewise
}

// Transfer is Call with files. What was written to files.To is complete if there is no error.
func (c *Conn) Transfer(ctx context.Context, method string, args any, reply any, files Files) error {
	data, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("arguments of %s: %w", method, err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	request := callRequest{Number: c.numbers.Add(1), Method: method, Args: data}
	defer c.lines.forget(request.Number)

	t := &transfer{cancel: cancel}
	if files.From != nil || files.To != nil {
		stream, err := c.link.session.OpenStream()
		if err != nil {
			return c.ended(method)
		}

		request.Stream = stream.StreamID()
		t.begin(stream, files)
	}

	var answer callReply
	call := c.rpc.Go(methodCall, request, &answer, make(chan *rpc.Call, 1))
	answered := c.await(ctx, call, request.Number)
	if !answered {
		return fmt.Errorf("%s: %w: %s does not end, and may go on there", c.name, context.Cause(ctx), method)
	}

	err = c.answered(call, method)
	if err == nil {
		c.lines.wait(request.Number, answer.Lines)
		err = outcome(ctx, answer.Error)
	}

	if err != nil {
		cancel(err) // what is copied is of no use any more
	}

	copied := t.end(ctx)
	switch {
	case err != nil:
		return err
	case copied != nil:
		return copied
	case reply == nil:
		return nil
	}

	err = json.Unmarshal(answer.Reply, reply)
	if err != nil {
		return fmt.Errorf("reply of %s: %w", method, err)
	}

	return nil
}

// outcome is the error of a call whose handler has ended with one, by itself or because ctx has ended.
func outcome(ctx context.Context, e *Error) error {
	switch {
	case e == nil:
		return nil
	case ctx.Err() == nil:
		e.Message = short(e.Message)
		return e
	case e.Code == CodeCanceled:
		return context.Cause(ctx)
	default:
		return fmt.Errorf("%w (%w)", e, context.Cause(ctx))
	}
}

// await waits for the answer, and cancels the call at the agent when ctx ends. It tells whether the answer has come.
func (c *Conn) await(ctx context.Context, call *rpc.Call, number uint64) bool {
	select {
	case <-call.Done:
	case <-ctx.Done():
		c.rpc.Go(methodCancel, number, &struct{}{}, make(chan *rpc.Call, 1))
		select {
		case <-call.Done:
		case <-time.After(cancelTime):
			return false
		}
	}

	return true
}

// transfer is the files of one call.
type transfer struct {
	stream   *yamux.Stream // nil if there are none
	cancel   context.CancelCauseFunc
	sent     chan struct{} // closed when nothing is read from the caller's reader any more
	received chan struct{} // closed when nothing is written to the caller's writer any more

	mu  sync.Mutex
	err error // of one of these
}

// begin copies both. The stream's end, by which the agent knows that it has all, is only written when there was no error.
func (t *transfer) begin(stream *yamux.Stream, files Files) {
	t.stream, t.sent, t.received = stream, make(chan struct{}), make(chan struct{})
	from, to := &reading{from: files.From}, &writing{to: files.To}
	if files.From == nil {
		from.from = bytes.NewReader(nil)
	}

	if files.To == nil {
		to.to = io.Discard
	}

	go func() {
		defer close(t.sent)

		_, err := io.CopyBuffer(struct{ io.Writer }{stream}, from, make([]byte, pumpSize))
		if err == nil {
			_ = stream.Close() // for writing: it can still be read
		}

		t.failed(from.err)
	}()
	go func() {
		defer close(t.received)

		_, _ = io.CopyBuffer(to, incoming{stream}, make([]byte, pumpSize))
		t.failed(to.err)
	}()
}

// failed cancels the call for an error of the caller's own reader or writer.
func (t *transfer) failed(err error) {
	if err == nil {
		return
	}

	t.mu.Lock()
	defer t.mu.Unlock()

	if t.err == nil {
		t.err = err
	}

	t.cancel(err)
}

// end waits until all is copied that the call has written: it has ended, and nothing more is read at the agent.
func (t *transfer) end(ctx context.Context) error {
	if t.stream == nil {
		return nil
	}

	_ = t.stream.SetWriteDeadline(past)
	select {
	case <-t.received:
	case <-ctx.Done():
	}

	late, cancel := context.WithTimeout(context.Background(), cancelTime)
	defer cancel()

	complete := within(late, t.received)
	within(late, t.sent) // a reader of the caller's may wait for anything
	_ = t.stream.Close()
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.err == nil && !complete {
		return context.Cause(ctx)
	}

	return t.err
}

// within waits for something until ctx ends, and tells whether it has come.
func within(ctx context.Context, ended <-chan struct{}) bool {
	select {
	case <-ended:
		return true
	case <-ctx.Done():
		return false
	}
}

// reading and writing tell the errors of what is read and written from those of the stream.
type reading struct {
	from io.Reader
	err  error
}

func (r *reading) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}

	return n, err
}

type writing struct {
	to  io.Writer
	err error
}

func (w *writing) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if err != nil {
		w.err = err
	}

	return n, err
}

// lines are the lines of progress that have come.
type lines struct {
	show func(line string)

	mu    sync.Mutex
	more  *sync.Cond
	come  map[uint64]uint64 // how many, by the number of the call
	ended bool
}

func newLines(show func(string)) *lines {
	l := &lines{show: show, come: map[uint64]uint64{}}
	l.more = sync.NewCond(&l.mu)
	return l
}

// read shows the lines that come, until the stream ends.
func (l *lines) read(stream io.ReadWriteCloser) {
	in := &limited{ReadWriteCloser: stream, max: maxLine}
	shown := 0
	for dec := json.NewDecoder(in); ; {
		var p progressLine
		err := dec.Decode(&p)
		in.again()
		shown++
		if err == nil && l.show != nil && shown <= maxLines {
			l.show(p.Line)
		}

		l.mu.Lock()
		if err == nil {
			l.come[p.Number]++
		}

		l.ended = err != nil
		l.more.Broadcast()
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// wait waits until so many lines of a call have been shown, which the agent has sent before its reply.
func (l *lines) wait(number uint64, count uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()

	for l.come[number] < count && !l.ended {
		l.more.Wait()
	}
}

func (l *lines) forget(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()

	delete(l.come, number)
}
