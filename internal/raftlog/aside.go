// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"io/fs"
	"regexp"
)

// trust says how much the name of a segment says about its entries, from good to bad.
type trust uint8

const (
	inForce   trust = iota // it has the name that dqlite gave it
	setAside               // libdqlite's auto-recovery has renamed it to corrupt-TIME-NAME
	renamed                // somebody gave it another name, in which the name of a segment stands
	temporary              // tmp-NAME: it was never finished, or never got its name
)

var (
	corruptName = regexp.MustCompile(`^corrupt-[0-9]+-(.*)$`)

	// A name that a person made of the name of a segment: a copy, a backup.
	closedInside = regexp.MustCompile(`(?:^|[^0-9])([0-9]{16}-[0-9]{16})(?:$|[^0-9])`)
	openInside   = regexp.MustCompile(`(?:^|[^a-z])(open-[1-9][0-9]{0,15})(?:$|[^0-9])`)
)

// originalName is the name that a segment had, as far as its name now tells; empty if it tells none. libdqlite reads no segment under
// such a name.
func originalName(f File) (name string, t trust) {
	switch f.Kind {
	case CorruptFile:
		m := corruptName.FindStringSubmatch(f.Name)
		if m != nil && (closedName.MatchString(m[1]) || openName.MatchString(m[1])) {
			return m[1], setAside
		}

	case TemporaryFile:
		t = temporary
	case StrayFile:
		t = renamed
	default:
		return "", inForce
	}

	for _, pattern := range []*regexp.Regexp{closedInside, openInside} {
		m := pattern.FindStringSubmatch(f.Name)
		if m != nil {
			return m[1], max(t, setAside)
		}
	}

	return "", inForce
}

// isSegment says whether a file is read as a segment: by libdqlite, or only by us.
func isSegment(f File) bool {
	switch f.Kind {
	case ClosedSegmentFile, OpenSegmentFile:
		return true
	case MisreadFile:
		return isLooseSegment(f.Name)
	}

	name, _ := originalName(f)
	return name != "" && f.Size > segmentHeader && fs.ValidPath(f.Name) // what a person named may be no UTF-8, and cannot be opened then
}

// name takes over what the name of the file says.
func (s *Segment) name(f File) {
	name := f.Name
	if original, t := originalName(f); original != "" {
		name, s.trust = original, t
	} else if f.Kind == MisreadFile {
		s.trust = renamed
	}

	first, last, ok := parseLooseClosed(name)
	if ok {
		s.First, s.Last = first, last
		return
	}

	s.Open = true
	s.Counter, _ = parseLooseOpen(name)
}

// loads says whether libdqlite takes the file for a segment, by its name.
func (s *Segment) loads() bool { return isLooseSegment(s.File) }
