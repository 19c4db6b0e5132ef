// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"encoding/binary"
	"os"
)

// owners knows for every page of a database file which b-tree it belongs to: that of a table, of an index, or of the schema.
type owners struct {
	file     *os.File
	reserved int
	cookie   uint32
	pages    []treePage // by page number; 0 is unused
	owner    []uint32   // root page of the b-tree, 0 for a page of none
	strange  bool       // something is not as SQLite writes it: nothing here is to be relied on
}

// read reads the pages with these numbers again, all of them where numbers is nil, and tells whether the way from page to page
// has changed.
func (o *owners) read(numbers []uint32) (changed bool, err error) {
	info, err := o.file.Stat()
	if err != nil {
		return false, err
	}

	count := uint32(info.Size() / pageSize)
	all := numbers == nil || len(o.pages) == 0
	if len(o.pages) != int(count)+1 {
		changed = true
		pages := make([]treePage, count+1)
		copy(pages, o.pages)
		o.pages = pages
	}

	if all {
		numbers = make([]uint32, count)
		for i := range numbers {
			numbers[i] = uint32(i) + 1
		}
	}

	data := make([]byte, pageSize)
	for _, number := range numbers {
		if number > count {
			continue // cut off again by the same transaction
		}

		_, err = o.file.ReadAt(data, int64(number-1)*pageSize)
		if err != nil {
			return false, err
		}

		if number == 1 {
			o.reserved, o.cookie = int(data[offReserved]), binary.BigEndian.Uint32(data[offCookie:])
		}

		page, err := parsePage(data, number, o.reserved, nil)
		if err != nil {
			page = treePage{} // a page that is in use is missed when the trees are walked
		}

		if !page.equal(o.pages[number]) {
			changed = true
			o.pages[number] = page
		}
	}

	return changed, nil
}

// walk finds out again which page belongs to which root.
func (o *owners) walk(roots []uint32) {
	o.owner, o.strange = make([]uint32, len(o.pages)), false
	for _, root := range roots {
		o.tree(root)
	}
}

func (o *owners) tree(root uint32) {
	todo := []uint32{root}
	for len(todo) > 0 {
		number := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if number == 0 || int(number) >= len(o.pages) || o.owner[number] != 0 {
			o.strange = true
			return
		}

		o.owner[number] = root
		page := &o.pages[number]
		switch {
		case page.kind != notTree:
			todo = append(todo, page.links...)
		case number == root:
			o.strange = true
		case page.next != 0:
			todo = append(todo, page.next)
		}
	}
}

// of is the root of the b-tree that a page belongs to, 0 where there is none.
func (o *owners) of(number uint32) uint32 {
	if int(number) >= len(o.owner) {
		return 0
	}

	return o.owner[number]
}

// kind is the kind of a page; notTree where there is no such page.
func (o *owners) kind(number uint32) pageKind {
	if int(number) >= len(o.pages) {
		return notTree
	}

	return o.pages[number].kind
}

// rowids adds the keys of all rows in a leaf of a table.
func (o *owners) rowids(number uint32, add func(int64)) error {
	data := make([]byte, pageSize)
	_, err := o.file.ReadAt(data, int64(number-1)*pageSize)
	if err != nil {
		return err
	}

	_, err = parsePage(data, number, o.reserved, add)
	return err
}
