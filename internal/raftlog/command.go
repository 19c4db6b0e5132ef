// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// CommandKind says what a command entry does. Only Frames changes a database.
type CommandKind uint8

// The kinds of command, as stored.
const (
	OpenDatabase CommandKind = 1
	Frames       CommandKind = 2
	Undo         CommandKind = 3
	Checkpoint   CommandKind = 4
)

func (k CommandKind) String() string {
	switch k {
	case OpenDatabase:
		return "open"
	case Frames:
		return "frames"
	case Undo:
		return "undo"
	case Checkpoint:
		return "checkpoint"
	}

	return fmt.Sprintf("command %d", uint8(k))
}

// Command is the decoded payload of a type-1 entry. It points into the payload and copies nothing, so it lives as long as that.
type Command struct {
	Kind     CommandKind
	Database string // file name, such as "db.bin"; empty for Undo
	IsCommit bool   // of Frames; false only in logs of the first dqlite engine, and libdqlite 1.18 refuses it
	PageSize int    // of Frames, bytes

	numbers []byte // 8 bytes a page
	pages   []byte
}

// Len is the number of pages of a frames command.
func (c *Command) Len() int { return len(c.numbers) / 8 }

// Page returns the page number (from 1) and image of the i'th page. A page number may come twice in one command; the later one counts.
func (c *Command) Page(i int) (number uint64, image []byte) {
	return binary.LittleEndian.Uint64(c.numbers[8*i:]), c.pages[i*c.PageSize : (i+1)*c.PageSize]
}

const (
	commandHeaderSize = 8  // format, kind, 6 unused
	framesHeaderSize  = 24 // tx id, truncate, is_commit, 3 unused, pages, page size, 2 unused
	maxPageNumber     = 1<<31 - 1
)

// ParseCommand decodes the payload of a command entry. Text is NUL-terminated and padded to a multiple of 8; the length of a frames
// command must be exactly what its page count and page size ask for.
func ParseCommand(data []byte) (Command, error) {
	var c Command
	if len(data) < commandHeaderSize {
		return c, fmt.Errorf("command has only %d bytes", len(data))
	}

	if data[0] != diskFormat {
		return c, fmt.Errorf("command has format %d instead of %d", data[0], diskFormat)
	}

	c.Kind = CommandKind(data[1])
	rest := data[commandHeaderSize:]
	var err error
	switch c.Kind {
	case Undo:
		if len(rest) < 8 {
			return c, fmt.Errorf("undo command has only %d bytes", len(data))
		}

		return c, nil
	case OpenDatabase, Checkpoint:
		c.Database, _, err = parseText(rest)
		if err != nil {
			return c, fmt.Errorf("%s command: %w", c.Kind, err)
		}

		return c, nil
	case Frames:
	default:
		return c, fmt.Errorf("unknown command kind %d", data[1])
	}

	c.Database, rest, err = parseText(rest)
	if err != nil {
		return c, fmt.Errorf("frames command: %w", err)
	}

	if len(rest) < framesHeaderSize {
		return c, fmt.Errorf("frames command ends within its header")
	}

	c.IsCommit = rest[12] != 0
	pages := uint64(binary.LittleEndian.Uint32(rest[16:]))
	c.PageSize = int(binary.LittleEndian.Uint16(rest[20:]))
	rest = rest[framesHeaderSize:]
	want := pages * uint64(8+c.PageSize)
	if uint64(len(rest)) != want {
		return c, fmt.Errorf("frames command with %d pages of %d bytes has %d bytes of pages instead of %d",
			pages, c.PageSize, len(rest), want)
	}

	c.numbers, c.pages = rest[:8*pages], rest[8*pages:]
	for i := range c.Len() {
		n := binary.LittleEndian.Uint64(c.numbers[8*i:])
		if n == 0 || n > maxPageNumber {
			return c, fmt.Errorf("frames command has page number %d", n)
		}
	}

	return c, nil
}

// parseText takes a NUL-terminated text, padded to a multiple of 8, off p.
func parseText(p []byte) (text string, rest []byte, err error) {
	end := bytes.IndexByte(p, 0)
	if end < 0 {
		return "", nil, fmt.Errorf("text without an end")
	}

	size := (end + 8) / 8 * 8
	if size > len(p) {
		return "", nil, fmt.Errorf("text of %d bytes without its padding", end)
	}

	return string(p[:end]), p[size:], nil
}
