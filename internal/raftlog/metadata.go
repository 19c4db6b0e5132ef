// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"encoding/binary"
	"fmt"
)

const (
	diskFormat   = 1  // of metadata, segments and snapshot metadata, in every default build of libdqlite
	metadataSize = 32 // bytes: format, version, term, vote
)

// Metadata is the content of metadata1 or metadata2: raft's current term, and whom this member voted for in it. It carries no checksum.
type Metadata struct {
	Version uint64 // counts stores; odd versions go to metadata1, even ones to metadata2
	Term    uint64
	Vote    uint64 // raft id, 0 for nobody
}

// Encode returns the 32 bytes of the file.
func (m Metadata) Encode() []byte {
	b := make([]byte, 0, metadataSize)
	for _, v := range []uint64{diskFormat, m.Version, m.Term, m.Vote} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}

	return b
}

// FileName is the file that libdqlite stores this version in.
func (m Metadata) FileName() string {
	if m.Version%2 == 1 {
		return "metadata1"
	}

	return "metadata2"
}

// ParseMetadata decodes the 32 bytes of a metadata file.
func ParseMetadata(p []byte) (Metadata, error) {
	if len(p) != metadataSize {
		return Metadata{}, fmt.Errorf("metadata has %d bytes instead of %d", len(p), metadataSize)
	}

	f := binary.LittleEndian.Uint64(p)
	if f != diskFormat {
		return Metadata{}, fmt.Errorf("metadata has format %d instead of %d", f, diskFormat)
	}

	m := Metadata{
		Version: binary.LittleEndian.Uint64(p[8:]),
		Term:    binary.LittleEndian.Uint64(p[16:]),
		Vote:    binary.LittleEndian.Uint64(p[24:]),
	}
	if m.Version == 0 {
		return Metadata{}, fmt.Errorf("metadata has version 0")
	}

	return m, nil
}
