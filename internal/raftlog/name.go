// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"fmt"
	"math"
	"regexp"
	"strings"
)

// maxName is the length, in bytes, from which libdqlite's lister ignores a name, and from which libdqlite 1.18 aborts in its
// maintenance.
const maxName = 128

// FileKind classifies a name in a raft directory.
type FileKind uint8

// The kinds of file. Only metadata, segments and snapshots are the database; libdqlite ignores the rest, except that it deletes
// TemporaryFile.
const (
	StrayFile         FileKind = iota // not ours
	MetadataFile                      // metadata1, metadata2
	ClosedSegmentFile                 // FIRST-LAST, 16 digits each
	OpenSegmentFile                   // open-N
	SnapshotFile                      // snapshot-TERM-INDEX-TIME
	SnapshotMetaFile                  // the same with .meta
	TemporaryFile                     // tmp-*: half written
	CorruptFile                       // corrupt-*: set aside by libdqlite's auto-recovery
	LockFile                          // dqlite-lock
	DumpFile                          // LXD's db.bin and db.bin-wal, written at shutdown
	RaftNodesFile                     // raft_nodes.yaml of a recovery tarball
	ManifestFile                      // recovery.yaml or recovery.sig of our own recovery tarball
	ApplicationFile                   // info.yaml and cluster.yaml of go-dqlite
	SubDirectory
	MisreadFile // a name that is not dqlite's, but that libdqlite takes for a segment or a snapshot
	SpecialFile // a device, socket, pipe or dangling link: never opened
)

func (k FileKind) String() string {
	return [...]string{"stray", "metadata", "closed segment", "open segment", "snapshot", "snapshot metadata", "temporary",
		"corrupt", "lock", "dump", "raft_nodes", "manifest", "go-dqlite", "directory", "misread", "special"}[k]
}

var (
	closedName   = regexp.MustCompile(`^[0-9]{16}-[0-9]{16}$`)
	openName     = regexp.MustCompile(`^open-[1-9][0-9]*$`)
	snapshotName = regexp.MustCompile(`^snapshot-(0|[1-9][0-9]*)-(0|[1-9][0-9]*)-(0|[1-9][0-9]*)(\.meta)?$`)

	// What libdqlite's sscanf accepts: numbers with leading blanks and a sign; those of closed segments at most 16 characters wide,
	// sign included.
	looseClosedName   = regexp.MustCompile(`^[ \t-\r]*([+-]?[0-9]+)-[ \t-\r]*([+-]?[0-9]+)$`)
	looseOpenName     = regexp.MustCompile(`^open-[ \t-\r]*([+-]?[0-9]+)$`)
	looseSnapshotName = regexp.MustCompile(`^snapshot-[ \t-\r]*([+-]?[0-9]+)-[ \t-\r]*([+-]?[0-9]+)-[ \t-\r]*([+-]?[0-9]+)(\.meta)?$`)
)

// SegmentName is the name of the closed segment with entries first to last.
func SegmentName(first, last uint64) string {
	return fmt.Sprintf("%016d-%016d", first, last)
}

// Final tells whether a raft directory's file of this name is never written to again: a closed segment, or one of a snapshot's. libdqlite deletes such
// files, and gives their names to new ones.
func Final(name string) bool {
	kind := classifyName(name)
	return kind == ClosedSegmentFile || kind == SnapshotFile || kind == SnapshotMetaFile
}

// classifyName says what a regular file of that name is.
func classifyName(name string) FileKind {
	switch {
	case len(name) >= maxName:
		return StrayFile
	case name == "metadata1" || name == "metadata2":
		return MetadataFile
	case name == "dqlite-lock":
		return LockFile
	case name == "db.bin" || name == "db.bin-wal":
		return DumpFile
	case name == "raft_nodes.yaml":
		return RaftNodesFile
	case name == "recovery.yaml", name == "recovery.sig":
		return ManifestFile
	case name == "info.yaml", name == "cluster.yaml":
		return ApplicationFile
	case strings.HasPrefix(name, "tmp-"):
		return TemporaryFile
	case strings.HasPrefix(name, "corrupt-"):
		return CorruptFile
	case closedName.MatchString(name):
		return ClosedSegmentFile
	case openName.MatchString(name):
		if _, ok := parseLooseOpen(name); ok {
			return OpenSegmentFile
		}
	case snapshotName.MatchString(name):
		if _, _, _, fits := parseSnapshotName(name); !fits {
			return MisreadFile
		}

		if strings.HasSuffix(name, ".meta") {
			return SnapshotMetaFile
		}

		return SnapshotFile
	}

	if _, _, ok := parseLooseClosed(name); ok {
		return MisreadFile
	}

	if _, ok := parseLooseOpen(name); ok {
		return MisreadFile
	}

	if looseSnapshotName.MatchString(name) {
		return MisreadFile
	}

	return StrayFile
}

// parseLooseClosed reads a name as libdqlite does to find closed segments.
func parseLooseClosed(name string) (first, last uint64, ok bool) {
	m := looseClosedName.FindStringSubmatch(name)
	if m == nil || len(m[1]) > 16 || len(m[2]) > 16 {
		return 0, 0, false
	}

	first, _ = scanNumber(m[1])
	last, _ = scanNumber(m[2])
	return first, last, true
}

// parseLooseOpen reads a name as libdqlite does to find open segments.
func parseLooseOpen(name string) (counter uint64, ok bool) {
	m := looseOpenName.FindStringSubmatch(name)
	if m == nil {
		return 0, false
	}

	counter, _ = scanNumber(m[1])
	return counter, true
}

// parseSnapshotName reads a name as libdqlite does to find snapshots and their metadata; fits is false when the name is none or a
// number had to be clipped.
func parseSnapshotName(name string) (term, index, timestamp uint64, fits bool) {
	m := looseSnapshotName.FindStringSubmatch(name)
	if m == nil {
		return 0, 0, 0, false
	}

	term, ok1 := scanNumber(m[1])
	index, ok2 := scanNumber(m[2])
	timestamp, ok3 := scanNumber(m[3])
	return term, index, timestamp, ok1 && ok2 && ok3
}

// scanNumber converts as C's strtoul: a minus sign negates modulo 2^64, and what does not fit becomes the largest number.
func scanNumber(s string) (n uint64, fits bool) {
	digits := strings.TrimLeft(s, "+-")
	for _, d := range []byte(digits) {
		v := uint64(d - '0')
		if n > (math.MaxUint64-v)/10 {
			return math.MaxUint64, false
		}

		n = n*10 + v
	}

	if s[0] == '-' {
		n = -n
	}

	return n, true
}

// isLooseSegment says whether libdqlite takes the name for a segment.
func isLooseSegment(name string) bool {
	_, _, closed := parseLooseClosed(name)
	_, open := parseLooseOpen(name)
	return closed || open
}
