// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"context"
	"io"
	"net/rpc/jsonrpc"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

// breakable writes until it is broken, and tells when a write has failed.
type breakable struct {
	io.Writer
	broken atomic.Bool
	failed chan struct{}
}

func (b *breakable) Write(data []byte) (int, error) {
	if b.broken.CompareAndSwap(true, false) {
		close(b.failed)
		return 0, unix.EPIPE
	}

	return b.Writer.Write(data)
}

// TestLastReply has an end that reads nothing any more, as it is about to exit, and then writes a reply. The other end, which cannot write
// any more, reads it.
func TestLastReply(t *testing.T) {
	toAgent, fromGiver := io.Pipe()
	toGiver, fromAgent := io.Pipe()
	out := &breakable{Writer: fromGiver, failed: make(chan struct{})}
	giver, err := newLink(toGiver, out, true, time.Minute)
	must(t, err)
	agent, err := newLink(toAgent, fromAgent, false, time.Minute)
	must(t, err)
	t.Cleanup(func() { _, _ = giver.session.Close(), agent.session.Close() })
	stream, err := giver.session.OpenStream()
	must(t, err)
	accepted, err := agent.session.AcceptStream()
	must(t, err)
	out.broken.Store(true)
	for range 2 { // one write fails, the next one notices
		go func() { _, _ = giver.session.Ping() }()
		<-out.failed
	}

	_, err = stream.Write([]byte("into the void"))
	must(t, err)
	_, err = accepted.Write([]byte("the reply"))
	must(t, err)
	must(t, accepted.Close())
	data, err := io.ReadAll(incoming{stream})
	if err != nil || string(data) != "the reply" {
		t.Errorf("%q, %v", data, err)
	}
}

// slow takes its time to write, and knows whether it is at it.
type slow struct {
	io.Writer
	busy atomic.Bool
}

func (s *slow) Write(data []byte) (int, error) {
	s.busy.Store(true)
	defer s.busy.Store(false)

	time.Sleep(20 * time.Millisecond)
	return s.Writer.Write(data)
}

// TestAllWritten has an agent that is told to end, on a slow line: when Serve returns, the process may exit, and the reply has left it.
func TestAllWritten(t *testing.T) {
	setUp(t)
	toAgent, fromGiver := io.Pipe()
	toGiver, fromAgent := io.Pipe()
	giver, err := newLink(toGiver, fromGiver, true, time.Minute)
	must(t, err)
	t.Cleanup(func() { _ = giver.session.Close() })
	ctx, terminate := context.WithCancel(t.Context())
	out, called, ended := &slow{Writer: fromAgent}, make(chan struct{}), make(chan bool, 1)
	go func() {
		_ = Serve(ctx, testVersion, toAgent, out, HandlerFunc(func(ctx context.Context, _ Call) (any, error) {
			close(called)
			<-ctx.Done()
			return "done", nil
		}))
		ended <- out.busy.Load()
	}()
	first, err := giver.session.OpenStream()
	must(t, err)
	_, err = giver.session.OpenStream()
	must(t, err)
	go func() {
		<-called
		terminate()
	}()

	var answer callReply
	err = jsonrpc.NewClient(first).Call(methodCall, callRequest{Number: 1, Method: "wait"}, &answer)
	if err != nil || string(answer.Reply) != `"done"` {
		t.Errorf("%+v, %v", answer, err)
	}

	if <-ended {
		t.Error("Serve has returned while something was being written")
	}
}

// TestWakes has a process that was stopped find in its pipe, when it wakes, what came long after the other end had given it up: that is not heard any more.
func TestWakes(t *testing.T) {
	toAgent, fromGiver := io.Pipe()
	toGiver, fromAgent := io.Pipe()
	agent, err := newLink(toAgent, fromAgent, false, time.Millisecond)
	must(t, err)
	agent.watched.Store(true) // and nobody looks, as while it is stopped
	time.Sleep(2 * silentBeats * time.Millisecond)
	giver, err := yamux.Client(wire{toGiver, fromGiver}, yamux.DefaultConfig())
	must(t, err)
	t.Cleanup(func() { _ = giver.Close() })
	_, err = giver.OpenStream()
	must(t, err)
	stream, err := agent.session.AcceptStream()
	if err == nil || !agent.silent.Load() {
		t.Errorf("it was heard: %v, %v", stream, err)
	}
}
