// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// HistoryName names a real member whose whole log is known, from the entry with index 1 on. All were killed hard.
type HistoryName string

// The histories, each in an archive tests/fixtures/NAME.tar.xz.
const (
	Member502     HistoryName = "history-5.0.2-member"     // of three; open-8 goes on after 2049-2392
	Standalone502 HistoryName = "history-5.0.2-standalone" // open-2 goes on after 2434-3072, which ends where the newest snapshot does
	Young502      HistoryName = "standalone-5.0.2"         // the same server earlier; open-5 goes on after 1705-2048
	Member66      HistoryName = "history-6.6-member"       // of three, which have elected leaders until term 6; open-2 goes on after 2451-3034
)

// HistoryNames are all of them.
func HistoryNames() []HistoryName {
	return []HistoryName{Member502, Standalone502, Young502, Member66}
}

// historyDirectories are where the archives have them.
var historyDirectories = map[HistoryName]string{Member502: "n1", Standalone502: "sh", Young502: "solo", Member66: "history"}

// History is the undamaged log of a member: what is true, whatever is done to the files.
type History struct {
	Name    HistoryName
	Entries []raftlog.Entry // in order, the first with index 1; not to be changed

	real  *Directory
	pages map[uint64][]version // by page number, in order
}

// version is a page of the database from an index on.
type version struct {
	index uint64
	image []byte
}

var loaded = map[HistoryName]func() (*History, error){}

func init() {
	for _, name := range HistoryNames() {
		loaded[name] = sync.OnceValues(func() (*History, error) { return loadHistory(name) })
	}
}

// HistoryOf returns a history, which is shared by all tests of the process.
func HistoryOf(t testing.TB, name HistoryName) *History {
	t.Helper()
	h, err := loaded[name]()
	if err != nil {
		t.Fatal(err)
	}

	return h
}

// loadHistory takes the log out of the undamaged files, by their names and order alone: nothing of the reader that is to be tested.
func loadHistory(name HistoryName) (*History, error) {
	scratch, err := unpack()
	if err != nil {
		return nil, err
	}

	archive := filepath.Join(fixtureDir(), string(name)+".tar.xz")
	out, err := exec.Command("tar", "-xJf", archive, "-C", scratch).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %s", archive, err, out)
	}

	h := &History{Name: name, pages: map[uint64][]version{}}
	h.real, err = readDirectory(h, filepath.Join(scratch, historyDirectories[name], "database", "global"))
	if err != nil {
		return nil, err
	}

	h.real.Last = h.Last()
	return h, h.indexPages()
}

// readDirectory reads the files of a killed member, and fills the history with their entries.
func readDirectory(h *History, path string) (*Directory, error) {
	list, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}

	d := &Directory{History: h, files: map[string]*file{}}
	for _, e := range list {
		data, err := os.ReadFile(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}

		d.files[e.Name()] = &file{data: data, was: data, kind: kindOf(e.Name())}
	}

	// libdqlite's names of closed segments sort by index; open ones have no zeros in front.
	names := slices.SortedFunc(maps.Keys(d.files), func(a, b string) int {
		return cmp.Or(cmp.Compare(d.files[a].kind, d.files[b].kind), cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
	for _, name := range names {
		f := d.files[name]
		switch f.kind {
		case closedFile, openFile:
			d.takeSegment(name, f)
		case snapshotFile, metaFile:
			f.last = snapshotIndex(name)
		}
	}

	return d, nil
}

// takeSegment appends the entries of a segment to the history.
func (d *Directory) takeSegment(name string, f *file) {
	h := d.History
	f.batches = batchesOf(f.data)
	if len(f.batches) == 0 {
		return
	}

	f.first = h.Last() + 1
	for _, b := range f.batches {
		at := b.data
		for i := range b.n {
			header := f.data[b.headers+16*i:]
			end := at + int(binary.LittleEndian.Uint32(header[12:]))
			h.Entries = append(h.Entries, raftlog.Entry{Index: h.Last() + 1, Term: binary.LittleEndian.Uint64(header),
				Type: raftlog.EntryType(header[8]), Data: f.data[at:end:end]})
			at = end
		}
	}

	f.last = h.Last()
	if f.kind == closedFile {
		d.before = name
		d.run = append(d.run, name)
		return
	}

	// The open one is number N: its daemon has closed N-1 before.
	d.counter = openCounter(name)
	d.run = d.run[len(d.run)-int(d.counter)+1:]
}

// indexPages notes which entry wrote which page.
func (h *History) indexPages() error {
	for _, e := range h.Entries {
		if e.Type != raftlog.CommandEntry {
			continue
		}

		c, err := raftlog.ParseCommand(e.Data)
		if err != nil {
			return fmt.Errorf("%s: entry with index %d: %w", h.Name, e.Index, err)
		}

		for i := range c.Len() {
			number, image := c.Page(i)
			h.pages[number] = append(h.pages[number], version{e.Index, image})
		}
	}

	return nil
}

// Last is the index of the last entry.
func (h *History) Last() uint64 { return uint64(len(h.Entries)) }

// At is the entry with an index.
func (h *History) At(index uint64) raftlog.Entry { return h.Entries[index-1] }

// page is a page of the database after the entry with an index, nil for one that was not written until then.
func (h *History) page(number, index uint64) []byte {
	versions := h.pages[number]
	after, _ := slices.BinarySearchFunc(versions, index+1, func(v version, index uint64) int { return cmp.Compare(v.index, index) })
	if after == 0 {
		return nil
	}

	return versions[after-1].image
}

// Database is the SQLite file after the entry with an index, in WAL mode as in a snapshot; nil where there was none yet.
func (h *History) Database(index uint64) []byte {
	first := h.page(1, index)
	if first == nil {
		return nil
	}

	count := uint64(binary.BigEndian.Uint32(first[28:]))
	database := make([]byte, 0, count*uint64(len(first)))
	for number := uint64(1); number <= count; number++ {
		database = append(database, h.page(number, index)...)
	}

	return database
}

// Configuration is the one in force after the entry with an index, and the index of the entry that brought it.
func (h *History) Configuration(index uint64) (uint64, raftlog.Configuration) {
	for ; index > 0; index-- {
		e := h.At(index)
		if e.Type != raftlog.ChangeEntry {
			continue
		}

		c, err := raftlog.ParseConfiguration(e.Data)
		must(err)
		return index, c
	}

	return 0, nil
}

// withTerms is the same history with another term from each of these indexes on, as if leaders had been elected there.
func (h *History) withTerms(elections []uint64) *History {
	with := &History{Name: h.Name, Entries: slices.Clone(h.Entries), pages: h.pages}
	for _, index := range elections {
		for i := index - 1; i < with.Last(); i++ {
			with.Entries[i].Term++
		}
	}

	return with
}
