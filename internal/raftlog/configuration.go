// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Server is one member of a raft configuration.
type Server struct {
	ID      uint64
	Address string
	Role    Role
}

// Configuration is the list of members, in the order of the log entry.
type Configuration []Server

// configurationMinServer is the shortest server: id, empty address with its terminator, role.
const configurationMinServer = 8 + 1 + 1

// EncodeConfiguration returns the payload of a type-3 entry: format, number of servers, then id, NUL-terminated address and raft role
// of each, padded with zeros to a multiple of 8 (libdqlite pads with whatever its memory held). It does not check the list; an address
// must not contain a NUL.
func EncodeConfiguration(c Configuration) []byte {
	b := []byte{diskFormat}
	b = binary.LittleEndian.AppendUint64(b, uint64(len(c)))
	for _, s := range c {
		b = binary.LittleEndian.AppendUint64(b, s.ID)
		b = append(b, s.Address...)
		b = append(b, 0, byte(s.Role))
	}

	for len(b)%8 != 0 {
		b = append(b, 0)
	}

	return b
}

// ParseConfiguration decodes the payload of a type-3 entry or of a snapshot's metadata, with the rules of libdqlite's decoder: bytes
// after the last server are garbage and ignored, but ids and addresses must be unique and roles known. An id of 0 is an error too:
// libdqlite aborts on it.
func ParseConfiguration(data []byte) (Configuration, error) {
	if len(data) < 9 {
		return nil, fmt.Errorf("configuration has only %d bytes", len(data))
	}

	if data[0] != diskFormat {
		return nil, fmt.Errorf("configuration has format %d instead of %d", data[0], diskFormat)
	}

	n := binary.LittleEndian.Uint64(data[1:])
	rest := data[9:]
	if n > uint64(len(rest)/configurationMinServer) {
		return nil, fmt.Errorf("configuration of %d bytes cannot hold %d servers", len(data), n)
	}

	c := make(Configuration, 0, n)
	ids := make(map[uint64]bool, n)
	addresses := make(map[string]bool, n)
	for i := range n {
		if len(rest) < 8 {
			return nil, fmt.Errorf("configuration ends within server %d of %d", i+1, n)
		}

		s := Server{ID: binary.LittleEndian.Uint64(rest)}
		rest = rest[8:]
		end := bytes.IndexByte(rest, 0)
		if end < 0 || end+1 >= len(rest) {
			return nil, fmt.Errorf("configuration ends within server %d of %d", i+1, n)
		}

		s.Address = string(rest[:end])
		s.Role = Role(rest[end+1])
		rest = rest[end+2:]
		switch {
		case s.ID == 0:
			return nil, fmt.Errorf("configuration has a server with id 0")
		case ids[s.ID]:
			return nil, fmt.Errorf("configuration has server id %d twice", s.ID)
		case addresses[s.Address]:
			return nil, fmt.Errorf("configuration has address %q twice", s.Address)
		case s.Role > Spare:
			return nil, fmt.Errorf("configuration has server %d with unknown role %d", s.ID, s.Role)
		}

		ids[s.ID], addresses[s.Address] = true, true
		c = append(c, s)
	}

	return c, nil
}
