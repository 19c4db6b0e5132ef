// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"io"
	"net"
	"testing"
	"time"
)

// listen serves a port of this machine until the test ends, and returns its address.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}

			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()

	return listener.Addr().String()
}

// A peer that takes a connection is up, and is not taken for one that is not there, even if it never says a word.
func TestReach(t *testing.T) {
	closed := listen(t, func(net.Conn) {})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	_ = gone.Close()
	for name, test := range map[string]struct {
		address string
		want    Reach
	}{
		"says nothing":   {listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), Mute},
		"hangs up":       {closed, Foreign},
		"speaks no TLS":  {listen(t, func(c net.Conn) { _, _ = c.Write([]byte("220 mail\r\n")) }), Foreign},
		"nobody listens": {gone.Addr().String(), Refused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			got := reach(t.Context(), test.address, nil)
			if got != test.want || time.Since(began) > 3*peerTimeout {
				t.Errorf("%d after %s, want %d", got, time.Since(began), test.want)
			}
		})
	}
}
