// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"encoding/binary"
	"errors"
)

// What SQLite's file format says about the pages that rows live in: https://www.sqlite.org/fileformat2.html, sections 1.6 and
// 1.7. Only what leads from one page to another, and the rowids in a leaf, are read; the rows themselves SQLite reads better.

// pageKind is the first byte of a b-tree page, 0 for every other page.
type pageKind byte

const (
	notTree       pageKind = 0
	indexInterior pageKind = 2
	tableInterior pageKind = 5
	indexLeaf     pageKind = 10
	tableLeaf     pageKind = 13
)

const (
	offReserved     = 20  // page 1: bytes at the end of each page that SQLite does not use
	offCookie       = 40  // page 1: changes with the schema, 32 bits, big endian
	databaseHeader  = 100 // bytes at the beginning of page 1, before its b-tree
	leafHeader      = 8   // bytes of a b-tree page before its cell pointers
	interiorHeader  = 12
	maxVarint       = 9
	childPointer    = 4
	overflowPointer = 4
)

// treePage is where a page leads to.
type treePage struct {
	kind  pageKind
	links []uint32 // of a b-tree page: its children, and the first overflow pages of its cells
	next  uint32   // of any other page: the next overflow page, should it be one
}

func (p treePage) equal(q treePage) bool {
	if p.kind != q.kind || p.next != q.next || len(p.links) != len(q.links) {
		return false
	}

	for i := range p.links {
		if p.links[i] != q.links[i] {
			return false
		}
	}

	return true
}

var errPage = errors.New("not a b-tree page as SQLite writes them")

// parsePage reads where the page with this number leads to. reserved is the number of unused bytes at the end of each page.
// With a function rowid is called with the key of each row in a leaf of a table.
func parsePage(data []byte, number uint32, reserved int, rowid func(int64)) (treePage, error) {
	start := 0
	if number == 1 {
		start = databaseHeader
	}

	page := treePage{kind: pageKind(data[start])}
	header := leafHeader
	switch page.kind {
	case indexLeaf, tableLeaf:
	case indexInterior, tableInterior:
		header = interiorHeader
		page.links = append(page.links, binary.BigEndian.Uint32(data[start+8:]))
	default:
		return treePage{next: binary.BigEndian.Uint32(data)}, nil
	}

	usable := len(data) - reserved
	cells := int(binary.BigEndian.Uint16(data[start+3:]))
	if start+header+2*cells > usable {
		return page, errPage
	}

	for i := range cells {
		at := int(binary.BigEndian.Uint16(data[start+header+2*i:]))
		if at < start+header || at >= usable {
			return page, errPage
		}

		err := page.cell(data[at:usable], usable, rowid)
		if err != nil {
			return page, err
		}
	}

	return page, nil
}

// cell reads one cell; data reaches from its beginning to the end of the usable page.
func (p *treePage) cell(data []byte, usable int, rowid func(int64)) error {
	if p.kind == tableInterior || p.kind == indexInterior {
		if len(data) < childPointer {
			return errPage
		}

		p.links = append(p.links, binary.BigEndian.Uint32(data))
		data = data[childPointer:]
	}

	if p.kind == tableInterior {
		return nil
	}

	payload, n := varint(data)
	data = data[n:]
	if n == 0 || payload > 1<<31 {
		return errPage
	}

	largest := (usable-12)*64/255 - 23
	if p.kind == tableLeaf {
		key, n := varint(data)
		if n == 0 {
			return errPage
		}

		data = data[n:]
		largest = usable - 35
		if rowid != nil {
			rowid(int64(key))
		}
	}

	if int(payload) <= largest {
		return nil
	}

	smallest := (usable-12)*32/255 - 23
	local := smallest + (int(payload)-smallest)%(usable-4)
	if local > largest {
		local = smallest
	}

	if len(data) < local+overflowPointer {
		return errPage
	}

	p.links = append(p.links, binary.BigEndian.Uint32(data[local:]))
	return nil
}

// varint reads SQLite's integer of 1 to 9 bytes, big endian, 7 bits a byte and 8 in the ninth; n is 0 where data ends in it.
func varint(data []byte) (v uint64, n int) {
	for n < len(data) {
		b := data[n]
		n++
		if n == maxVarint {
			return v<<8 | uint64(b), n
		}

		v = v<<7 | uint64(b&0x7f)
		if b&0x80 == 0 {
			return v, n
		}
	}

	return 0, 0
}
