// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"encoding/json"
	"time"
)

// What is on the wire. Methods of net/rpc, on the first stream, which the giving side opens.
const (
	methodHello  = "Agent.Hello"  // the first one: helloRequest, helloReply
	methodCall   = "Agent.Call"   // callRequest, callReply
	methodCancel = "Agent.Cancel" // the number of a call; the answer does not wait for its end
	methodBye    = "Agent.Bye"    // the giving side is about to end the connection
)

// These are types without names: net/rpc takes no others that are not exported.

type helloRequest = struct {
	Heartbeat time.Duration `json:"heartbeat"` // nanoseconds
}

type helloReply = struct {
	Version string `json:"version"`
	Host    string `json:"host"`
}

// callRequest is a call of the Handler.
type callRequest = struct {
	Number uint64          `json:"number"` // unique in its connection
	Method string          `json:"method"`
	Args   json.RawMessage `json:"args,omitempty"`
	Stream uint32          `json:"stream,omitempty"` // yamux's number of the stream for the files, which is open already; 0: none
}

type callReply = struct {
	Reply json.RawMessage `json:"reply,omitempty"`
	Error *Error          `json:"error,omitempty"`
	Lines uint64          `json:"lines,omitempty"` // how many lines of progress it sent, which may still be on their way
}

// progressLine is what the agent writes to the second stream, which the giving side opens as well.
type progressLine = struct {
	Number uint64 `json:"number"` // of the call
	Line   string `json:"line"`
}
