// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Options for [Open].
type Options struct {
	// Progress, if not nil, is called with the number of bytes read since the last call.
	Progress func(bytes int64)

	// Sums has the SHA-256 of the files taken that the effective log and its snapshot are in, from the very bytes that are verified:
	// [Run], [Snapshot]. AllSums takes those of what the newest snapshot makes superfluous, too.
	Sums, AllSums bool

	// Later leaves the data of snapshots unread. It counts as sound then, but the log is not Healthy: Open with it as Known reads what
	// was left.
	Later bool

	// Live says that a daemon works in the directory, so that it was whole when that has started. A new leader makes a member remove whole segments if it
	// has other entries in them; without a daemon that looks as if they were lost.
	Live bool

	// Engine is the one whose directory it is.
	Engine product.Engine

	// Recovered says that something beside the directory shows that its last entry is a recovery's, if it looks like one of raft's own, too.
	Recovered bool

	// Doubts are what was found against snapshots without a checksum, by file, from their rows and those that the entries make.
	Doubts map[string]Doubt

	// Known is what an earlier look at the same directory found, or nil. Closed segments and snapshots whose files have the sizes and
	// times that they had then are not read again: what was found in them still counts. libdqlite never writes to such files.
	Known *Log

	// Database is what [Log.Database] says.
	Database string
}

// Doubt is what speaks against a snapshot that reads well.
type Doubt struct {
	Text    string // subject is the snapshot
	Certain bool   // it is damaged; else it may be, and is used
}

// Log is what one pass over a raft directory found.
type Log struct {
	Engine product.Engine // see Options

	Files    []File       // everything, by name
	Metadata [2]*Metadata // of metadata1 and metadata2, nil when missing or unusable
	Term     uint64       // of the metadata in force: the one with the higher version
	Vote     uint64

	Snapshots []Snapshot // pairs, in libdqlite's order: it uses the last
	Segments  []Segment  // closed by first index, then open by counter

	// What the disk holds: the fullest log that can be proven, by the reading taken; see Readings. FirstIndex is that of its first
	// entry, 0 when it has none; entries up to the snapshot's index are there for slow followers only, and there may be holes among
	// them, see Holes. LastIndex and LastTerm are the snapshot's when no entry comes after it. SoundIndex is LastIndex, or 0 if there
	// is neither a snapshot nor a beginning that the entries go on from: then no database can be told.
	FirstIndex, LastIndex, LastTerm uint64
	SoundIndex                      uint64

	// Readings are the logs that the files can be read as. With more than one of them none is taken until Choose is called: the log is
	// what they have in common, see Undecided.
	Readings []Reading

	// LeftOut is what is in the files, or was, and is not in the log.
	LeftOut []LeftOut

	// Libdqlite is what libdqlite would make of the directory.
	Libdqlite Loaded

	MaxTerm            uint64 // highest term in metadata, snapshots and segments, sound or not
	EntryTerm          uint64 // highest term in snapshots and segments: metadata have no checksum
	Configuration      Configuration
	ConfigurationIndex uint64
	Edited             bool // the last entry is a recovery configuration, see edited

	EndGone bool // entries came after the last one, and the file that had them is gone
	Changed bool // files changed while they were read: a daemon is running, and the parts may not fit together

	Problems []Problem

	// Database is the one that whoever replays the log is to take, as Options say: raft itself knows of none.
	Database string

	fsys           fs.FS
	metadataErrors [2]error
	aside          []Segment  // segments that libdqlite does not read: set aside, renamed, temporary
	all            []*Segment // all segments
	copies         []*Segment // of others
	misnamed       []*Segment // whose names others contradict
	base           *Snapshot  // of the log, nil for none
	placed         span
	comparisons    int    // of runs of entries with each other, see maxComparisons
	unproven       uint64 // see Unproven
	chosen         bool   // one of several readings
	errors         int    // problems of severity Error

	// Before a reading was judged.
	found                 problemList
	foundLoad, foundStart Outcome
	foundDropped          uint64

	live   bool // see Options.Live
	marked bool // see Options.Recovered
	unread bool // the data of snapshots, see Options.Later
}

// Loaded is what libdqlite would make of a directory, the worst over the versions 1.11 to 1.18.
type Loaded struct {
	Load    Outcome  // of loading the directory, as `lxd cluster edit` does
	Start   Outcome  // of a member that starts on it: load, restore the snapshot, apply the entries
	Actions []Action // what loading does to the files, in order

	// The log that it would hold; where it refuses or crashes, what it had read until then. Indexes are 0 where there is none.
	FirstIndex, LastIndex, LastTerm uint64

	// Dropped is how many entries that are still in the files it would not have, or would have at a wrong index, as far as they can be
	// counted.
	Dropped uint64

	placed span
	base   *Snapshot
}

// Snapshot is the snapshot that the log goes on from, or nil.
func (l *Log) Snapshot() *Snapshot { return l.base }

// Healthy is true when every libdqlite from 1.11 to 1.18 would load and start on the directory, and would have all that the disk
// holds, to the entry.
func (l *Log) Healthy() bool { return l.HealthySoFar() && !l.unread }

// HealthySoFar is Healthy as far as the directory was read, see Options.Later.
func (l *Log) HealthySoFar() bool {
	return l.Libdqlite.Load == LoadsClean && l.Libdqlite.Start == LoadsClean && l.errors == 0
}

// ErrChanging says that files came and went while the directory was read: a daemon is running on it.
var ErrChanging = errors.New("the raft directory is changing while it is read")

// Open reads and verifies every file of a raft directory, once. It fails only when the directory cannot be read; what is wrong with its
// content is in Problems, Load and Start.
func Open(ctx context.Context, fsys fs.FS, opts Options) (*Log, error) {
	const attempts = 3
	var err error
	for range attempts {
		l := &Log{fsys: fsys, live: opts.Live, Engine: opts.Engine, marked: opts.Recovered, Database: opts.Database}
		err = l.read(newDirectory(ctx, fsys, opts))
		if err == nil {
			return l, nil
		}

		// A running daemon closes its open segments: they become shorter and get another name.
		if ctx.Err() != nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errShrunk) {
			return nil, err
		}

		_, listErr := fs.ReadDir(fsys, ".")
		if listErr != nil {
			return nil, err
		}
	}

	return nil, fmt.Errorf("%w: %w", ErrChanging, err)
}

// read is one pass over the directory.
func (l *Log) read(d *directory) error {
	var pl problemList
	var err error
	l.Files, err = d.list()
	if err != nil {
		return err
	}

	err = l.readMetadata(d)
	if err != nil {
		return err
	}

	l.checkNames(&pl)
	err = l.readSnapshots(d, &pl)
	if err != nil {
		return err
	}

	err = l.readSegments(d)
	if err != nil {
		return err
	}

	err = l.checkUnchanged(d, &pl)
	if err != nil {
		return err
	}

	l.checkMetadata(&pl)
	l.checkSegments(&pl)
	l.load(&pl)
	l.Readings, err = l.readings(d.ctx)
	if err != nil {
		return err
	}

	l.takeFirst()
	l.found, l.foundLoad, l.foundStart, l.foundDropped = pl, l.Libdqlite.Load, l.Libdqlite.Start, l.Libdqlite.Dropped
	l.conclusions()
	return nil
}

// conclusions are what the reading taken comes to, beside what the files came to.
func (l *Log) conclusions() {
	pl := l.found
	pl.list = slices.Clone(pl.list)
	l.Libdqlite.Load, l.Libdqlite.Start, l.Libdqlite.Dropped = l.foundLoad, l.foundStart, l.foundDropped
	l.judgeReading(&pl)
	l.Problems = pl.result()
	l.errors = pl.errors
}

// checkUnchanged lists the directory again and compares.
func (l *Log) checkUnchanged(d *directory, pl *problemList) error {
	files, err := d.list()
	if err != nil {
		return err
	}

	same := func(a, b File) bool { return a.Name == b.Name && a.Size == b.Size && a.ModTime.Equal(b.ModTime) }
	if slices.EqualFunc(l.Files, files, same) {
		return nil
	}

	l.Changed = true
	pl.add(Problem{Severity: Warning, Offset: -1,
		Text:      "the directory changed while it was read: its parts may not fit together",
		Libdqlite: "does not load the directory of a running daemon (1.16.5 and later hold a lock)",
		Advice:    "stop the daemon and look again"})
	return nil
}

// unchanged says whether a file is as it was in an earlier log.
func (l *Log) unchanged(known *Log, name string) bool {
	now, then := l.file(name), known.file(name)
	return now != nil && then != nil && now.Size == then.Size && now.ModTime.Equal(then.ModTime)
}

// knownSegment is what an earlier log has of a closed segment, or nil.
func (l *Log) knownSegment(known *Log, f File) *Segment {
	if known == nil || f.Kind != ClosedSegmentFile || !l.unchanged(known, f.Name) {
		return nil
	}

	i := slices.IndexFunc(known.Segments, func(s Segment) bool { return s.File == f.Name })
	if i < 0 {
		return nil
	}

	return &known.Segments[i]
}

// knownSnapshot is what an earlier log has of a pair, or nil.
func (l *Log) knownSnapshot(known *Log, pair Snapshot) *Snapshot {
	if known == nil || !l.unchanged(known, pair.File) || !l.unchanged(known, pair.Meta) {
		return nil
	}

	i := slices.IndexFunc(known.Snapshots, func(s Snapshot) bool { return s.File == pair.File })
	if i < 0 || known.Snapshots[i].unread {
		return nil
	}

	return &known.Snapshots[i]
}

// UnchangedUpTo is the index up to which the effective log lies in the files that it lay in when an earlier log of the same directory
// was taken.
func (l *Log) UnchangedUpTo(known *Log) uint64 {
	then := map[string]Run{}
	for _, run := range known.Runs() {
		then[run.File] = run
	}

	last := uint64(0)
	for _, run := range l.Runs() {
		if then[run.File] != run || !l.unchanged(known, run.File) {
			break
		}

		last = run.Last
	}

	return last
}

// file returns the entry of Files with that name, or nil.
func (l *Log) file(name string) *File {
	i, found := slices.BinarySearchFunc(l.Files, name, func(f File, name string) int { return strings.Compare(f.Name, name) })
	if !found {
		return nil
	}

	return &l.Files[i]
}

func (l *Log) readMetadata(d *directory) error {
	for i, name := range []string{"metadata1", "metadata2"} {
		f := l.file(name)
		if f == nil || f.Kind != MetadataFile {
			continue
		}

		raw, err := d.readAll(name, metadataSize+1)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}

		m, err := ParseMetadata(raw)
		if err != nil {
			l.metadataErrors[i] = err
			continue
		}

		f.Needed = true
		l.Metadata[i] = &m
		if l.Metadata[1-i] == nil || m.Version > l.Metadata[1-i].Version {
			l.Term, l.Vote = m.Term, m.Vote
		}
	}

	l.MaxTerm = l.Term
	return nil
}

func (l *Log) readSegments(d *directory) error {
	var files []File
	for _, f := range l.Files {
		if isSegment(f) {
			files = append(files, f)
		}
	}

	segments := make([]Segment, len(files))
	base := uint64(0)
	for _, s := range l.Snapshots {
		if s.Usable {
			base = s.Index // the last in libdqlite's order
		}
	}

	err := d.each(len(files), func(d *directory, i int) error {
		if s := l.knownSegment(d.known, files[i]); s != nil && (s.SHA256 != "" || !d.wantsSum(s, base)) {
			segments[i] = *s
			return nil
		}

		s, err := d.scanSegment(files[i], base)
		if err != nil {
			return fmt.Errorf("read %s: %w", files[i].Name, err)
		}

		segments[i] = *s
		return nil
	})
	if err != nil {
		return err
	}

	for _, s := range segments {
		l.EntryTerm = max(l.EntryTerm, s.highestTerm())
		l.MaxTerm = max(l.MaxTerm, l.EntryTerm)
		if s.loads() {
			l.Segments = append(l.Segments, s)
		} else {
			l.aside = append(l.aside, s)
		}
	}

	slices.SortFunc(l.Segments, func(a, b Segment) int {
		if a.Open != b.Open {
			if b.Open {
				return -1
			}

			return 1
		}

		return cmp.Or(cmp.Compare(a.Counter, b.Counter), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	for _, list := range [][]Segment{l.Segments, l.aside} {
		for i := range list {
			s := &list[i]
			f := l.file(s.File)
			f.Unused, f.End = s.Unused, s.End
			l.all = append(l.all, s)
		}
	}

	return nil
}

// edited says whether the last entry of the effective log is one that a recovery wrote, `lxd cluster edit` or our fence, and not one
// that a running cluster agreed on.
//
// libdqlite's recovery writes one configuration entry with term 1 as the only batch of a closed segment of its own, N-N. A running
// leader's configuration entry has the leader's term, which is above 1 once there was any election, and lands in an open segment, next
// to at least the barrier that LXD's leader has written before. Index 1 is the bootstrap entry, which looks the same and is none. What
// remains is a cluster in its very first term whose only entry since the last restart or snapshot was a change of members; nothing on
// disk tells that one from a recovery.
//
// A fenced entry is the same with a term that is above every term before it. From libraft 0.17 on the entry that begins an elected
// leader's term is a barrier, so a configuration entry is never the first with its term. Leaders before that (LXD 5.0.2) write none: there
// a lone change of members at the end of the log, the first entry of its term, looks like a fenced one. LXD reads its database before it
// changes members, which writes a barrier, so that is not known to happen. The metadata say nothing: a member that was started without
// a majority has gone on to later terms.
//
// cowsql's recovery writes an entry with the term of the one before it. What it does to the members tells it from a leader's, see
// Configuration.LeadsTo, and where that does not, what lies beside the directory: see Options.Recovered.
func (l *Log) edited() bool {
	last, ok := l.placed.at(l.LastIndex)
	if !ok {
		return false
	}

	s := last.segment
	if s.Open || s.Entries != 1 || last.count != 1 || s.First != s.Last || s.First <= 1 || last.first != s.First ||
		s.lastType != ChangeEntry || s.fault != nil {
		return false
	}

	if s.LastTerm == 1 && !l.Engine.RecoversInTerm() {
		return true
	}

	earlier := uint64(0)
	snap := l.Snapshot()
	if snap != nil {
		earlier = snap.Term
	}

	for _, p := range l.placed.between(1, l.LastIndex-1) {
		earlier = max(earlier, p.part.MaxTerm)
	}

	if s.LastTerm > earlier {
		return true
	}

	return l.Engine.RecoversInTerm() && s.LastTerm == earlier && (l.marked || l.recoveredInTerm())
}

// recoveredInTerm says whether the last entry did to the members what a leader's does not do, if it is known who they were. With one role that is
// another one nothing in the log tells.
func (l *Log) recoveredInTerm() bool {
	before, known := l.configurationBefore(l.LastIndex)
	return known && !before.LeadsTo(l.Configuration)
}
