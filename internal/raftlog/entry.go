// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import "fmt"

// EntryType says what a raft entry carries.
type EntryType uint8

// The entry types, as stored.
const (
	CommandEntry EntryType = 1 // a dqlite command, see [ParseCommand]
	BarrierEntry EntryType = 2 // eight zero bytes
	ChangeEntry  EntryType = 3 // a configuration, see [ParseConfiguration]
)

func (t EntryType) String() string {
	switch t {
	case CommandEntry:
		return "command"
	case BarrierEntry:
		return "barrier"
	case ChangeEntry:
		return "change"
	}

	return fmt.Sprintf("type %d", uint8(t))
}

// Entry is one entry of the effective log.
type Entry struct {
	Index uint64
	Term  uint64
	Type  EntryType
	Data  []byte // payload; valid until the next step of the iteration

	File   string // segment that holds it
	Offset int64  // of the payload in that file, bytes
}
