// SPDX-License-Identifier: AGPL-3.0-only

// Package remote starts this very program on another machine, through the user's own OpenSSH client, and calls it over the connection's
// standard input and output. The one that starts is the giving side; what it starts is the agent. Nothing listens anywhere, and nothing stays:
// the agent ends with its connection, and removes the program that was carried along for it.
//
// One connection has one session of yamux. In it are net/rpc, as JSON, on one stream; the agent's lines of progress on another one; and a
// stream for each call that sends or receives a file. Both ends send a heartbeat, and whoever hears nothing at all for three of them takes the
// connection for lost, be it cut, frozen, or its other end killed. Then every call under way returns an error at the giving side, and at the
// agent the context of every call ends. A call that was under way may have done its work or not: only the machine itself can tell.
//
// What this package must never do: take the end of a connection for the end of a file, leave a process waiting for one that is gone, or write
// anything to a directory in which others than root can write.
package remote
