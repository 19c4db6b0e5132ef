// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Part is a run of sound batches in a segment, one right after the other.
type Part struct {
	Offset, End int64  // from the start of the file, bytes
	Entries     uint64 // in it

	FirstTerm, LastTerm, MaxTerm uint64 // of its entries

	// before is the number of entries in the file before the part, or -1 if damage before it hides how many there were.
	before int64

	batches    int  // counted
	varied     bool // its transactions are not all the same
	commands   bool // it has transactions
	firstBatch int  // size of the first of them, bytes
	firstType  EntryType
	lastType   EntryType
	terms      []termFrom
	changes    []foundChange
	sizes      []sizeAt // of the database, wherever the part tells it
	firstPage  uint64   // highest number of a page written before the first of sizes
	mark       mark
	findings   []finding // entries that are sound to raft but not to dqlite
	unlisted   int       // findings beyond the bound
}

// termFrom is a term that the entries from an ordinal on have.
type termFrom struct{ ordinal, term uint64 }

// termAt is the term of an entry of the part; its ordinal counts from 0.
func (p *Part) termAt(ordinal uint64) uint64 {
	term := p.FirstTerm
	for _, t := range p.terms {
		if t.ordinal > ordinal {
			break
		}

		term = t.term
	}

	return term
}

// sizeAt is the size of the database, in pages, after an entry that wrote page 1; ordinal counts from 0 in the part.
type sizeAt struct {
	ordinal uint64
	pages   uint32
}

// mark stands for the content of a part: the place and the digest of its first transaction or change. Two parts with the same mark are copies of
// each other as far as the shorter one goes, unless a transaction wrote the very bytes of an earlier one.
type mark struct {
	set     bool
	ordinal uint64
	digest  [sha256.Size]byte
}

// pageOneSize is where, in SQLite's first page, the size of the database in pages is: 32 bits, big endian.
const pageOneSize = 28

// maxChanges bounds the configurations kept for one part.
const maxChanges = 1000

// foundChange is a configuration entry; ordinal counts from 0 in its part.
type foundChange struct {
	ordinal       uint64
	offset        int64
	configuration Configuration
	err           error
}

// findingKind says which of libdqlite's steps stumbles over an entry.
type findingKind uint8

const (
	badCommand findingKind = iota // does not decode
	notCommit                     // frames without the commit mark
	badChange                     // configuration does not decode
	unevenSize                    // payload not a multiple of 8
	noServers                     // a configuration of nobody
	zeroTerm                      // term 0
	lowerTerm                     // lower than the entry before, and not a configuration
)

// finding is an entry with sound checksums that means nothing to dqlite.
type finding struct {
	kind    findingKind
	ordinal uint64
	offset  int64
	text    string
}

// maxFindings bounds the findings kept for one part.
const maxFindings = 100

func (p *Part) find(kind findingKind, ordinal uint64, offset int64, format string, args ...any) {
	if len(p.findings) >= maxFindings {
		p.unlisted++
		return
	}

	p.findings = append(p.findings, finding{kind, ordinal, offset, fmt.Sprintf(format, args...)})
}

// addBatch takes a sound batch into the part's account.
func (p *Part) addBatch(b *batch) {
	at := b.end - int64(len(b.data))
	rest := b.data
	for i := range b.n {
		term, typ, size := b.entryHeader(i)
		p.addEntry(Entry{Term: term, Type: typ, Data: rest[:size], Offset: at})
		rest = rest[size:]
		at += int64(size)
	}

	if p.batches == 0 {
		p.firstBatch = int(b.end - b.offset)
	}

	p.batches++
	p.End = b.end
}

func (p *Part) addEntry(e Entry) {
	if p.Entries == 0 {
		p.FirstTerm, p.firstType = e.Term, e.Type
	}

	if len(e.Data)%8 != 0 {
		p.find(unevenSize, p.Entries, e.Offset, "the entry's size of %d bytes is not a multiple of 8", len(e.Data))
	}

	switch e.Type {
	case CommandEntry:
		p.addCommand(e)
	case ChangeEntry:
		p.addChange(e)
	}

	switch {
	case e.Term == 0:
		p.find(zeroTerm, p.Entries, e.Offset, "the entry has term 0")
	case p.Entries > 0 && e.Term < p.LastTerm && e.Type != ChangeEntry:
		p.find(lowerTerm, p.Entries, e.Offset, "the entry has term %d after one of term %d", e.Term, p.LastTerm)
	}

	if p.Entries == 0 || e.Term != p.LastTerm {
		p.terms = append(p.terms, termFrom{ordinal: p.Entries, term: e.Term})
	}

	p.LastTerm, p.lastType = e.Term, e.Type
	p.MaxTerm = max(p.MaxTerm, e.Term)
	p.Entries++
}

func (p *Part) addCommand(e Entry) {
	c, err := ParseCommand(e.Data)
	switch {
	case err != nil:
		p.find(badCommand, p.Entries, e.Offset, "%v", err)
		return
	case c.Kind != Frames:
		return
	case !c.IsCommit:
		p.find(notCommit, p.Entries, e.Offset, "a frames command without commit mark")
	}

	p.commands = true
	if !p.mark.set {
		p.mark = mark{set: true, ordinal: p.Entries, digest: sha256.Sum256(e.Data)}
	} else if !p.varied {
		p.varied = sha256.Sum256(e.Data) != p.mark.digest
	}

	highest := uint64(0)
	for i := range c.Len() {
		number, image := c.Page(i)
		highest = max(highest, number)
		if number == 1 && len(image) >= sqliteHeader {
			p.sizes = append(p.sizes, sizeAt{ordinal: p.Entries, pages: binary.BigEndian.Uint32(image[pageOneSize:])})
		}
	}

	if len(p.sizes) == 0 {
		p.firstPage = max(p.firstPage, highest)
	}
}

func (p *Part) addChange(e Entry) {
	c := foundChange{ordinal: p.Entries, offset: e.Offset}
	c.configuration, c.err = ParseConfiguration(e.Data)
	if c.err != nil {
		p.find(badChange, p.Entries, e.Offset, "%v", c.err)
	} else if len(c.configuration) == 0 {
		p.find(noServers, p.Entries, e.Offset, "the configuration has no servers")
	}

	if !p.mark.set {
		p.mark = mark{set: true, ordinal: p.Entries, digest: sha256.Sum256(e.Data)}
	}

	p.changes = append(p.changes, c)
	if len(p.changes) > maxChanges {
		p.changes = p.changes[1:] // the last ones count
	}
}
