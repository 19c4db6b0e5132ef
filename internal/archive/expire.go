// SPDX-License-Identifier: AGPL-3.0-only

package archive

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Keep says how much of an archive is kept: zero is all.
type Keep struct {
	Age  time.Duration // every state of this age and younger
	Size int64         // bytes
}

// Expired is what was removed.
type Expired struct {
	Files int   `json:"files" yaml:"files"`
	Bytes int64 `json:"bytes" yaml:"bytes"`
	Left  int64 `json:"left_bytes" yaml:"left_bytes"` // size of the archive now
}

// step is the smallest thing that can be removed: after it the archive reaches back to a later snapshot, or to a later part.
type step struct {
	part  *Part
	files []Entry
	aside []string  // superseded files
	until time.Time // what the step removes is older than this
}

// Expire removes what is older than what is to be kept, and of the rest the oldest until it fits. The newest snapshot and all entries after it stay. now is
// the time that ages are counted from.
func (a *Archive) Expire(now time.Time, keep Keep) (*Expired, error) {
	unlock, err := lock(a.dir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	parts, err := Parts(a.dir)
	if err != nil {
		return nil, err
	}

	gone := &Expired{}
	for i := range parts {
		gone.Left += parts[i].size()
	}

	for _, s := range steps(parts) {
		old := keep.Age > 0 && s.until.Before(now.Add(-keep.Age))
		large := keep.Size > 0 && gone.Left > keep.Size
		if !old && !large {
			break
		}

		err = s.remove(gone)
		if err != nil {
			return nil, err
		}
	}

	return gone, nil
}

// size is what the files of a part take, in bytes, those that are superseded included.
func (p *Part) size() int64 {
	var sum int64
	for _, e := range p.Files {
		sum += e.Size
	}

	for _, e := range p.all {
		sum += sizeOf(p.asideOf(e))
	}

	return sum
}

// asideOf is the file that a line of the catalogue says to have been moved aside, empty if it says none.
func (p *Part) asideOf(e Entry) string {
	if e.Superseded == "" {
		return ""
	}

	return filepath.Join(p.Dir, supersededName, e.Superseded)
}

func sizeOf(file string) int64 {
	info, err := os.Lstat(file)
	if err != nil {
		return 0
	}

	return info.Size()
}

// steps are what can be removed, the oldest first: whole parts, and of the newest one what each of its snapshots but the first makes superfluous.
func steps(parts []Part) []step {
	var all []step
	for i := range parts {
		p := &parts[i]
		if i < len(parts)-1 {
			all = append(all, step{part: p, files: slices.Clone(p.Files), aside: p.asideUntil(p.Added), until: p.Added})
			continue
		}

		all = append(all, p.steps()...)
	}

	return all
}

func (p *Part) steps() []step {
	snapshots := slices.Clone(p.Files)
	snapshots = slices.DeleteFunc(snapshots, func(e Entry) bool { return e.First > 0 || filepath.Ext(e.Name) == ".meta" })
	slices.SortFunc(snapshots, func(a, b Entry) int { return cmp.Compare(a.Last, b.Last) })
	var all []step
	removed := map[string]bool{}
	for _, base := range snapshots[min(1, len(snapshots)):] {
		s := step{part: p, aside: p.asideUntil(base.Added), until: base.Added}
		for _, e := range p.Files {
			superfluous := e.First > 0 && e.Last <= base.Last || e.First == 0 && e.Last < base.Last
			if superfluous && !removed[e.Name] {
				removed[e.Name] = true
				s.files = append(s.files, e)
			}
		}

		all = append(all, s)
	}

	return all
}

// asideUntil are the superseded files that were moved aside until then.
func (p *Part) asideUntil(until time.Time) []string {
	var files []string
	for _, e := range p.all {
		if e.Superseded != "" && !e.Added.After(until) {
			files = append(files, p.asideOf(e))
		}
	}

	return files
}

// remove removes what a step has. The catalogue goes on saying that the archive had the files: else they would be added again, if raft still has them.
func (s *step) remove(gone *Expired) error {
	for _, e := range s.files {
		e.Added, e.Superseded, e.Gone, e.Expired = time.Now().UTC(), "", true, true
		err := s.part.note(e)
		if err == nil {
			err = gone.unlink(filepath.Join(s.part.Dir, e.Name))
		}

		if err != nil {
			return err
		}
	}

	for _, file := range s.aside {
		err := gone.unlink(file)
		if err != nil {
			return err
		}
	}

	return nil
}

// unlink removes a file; one that is gone is no error.
func (x *Expired) unlink(file string) error {
	size := sizeOf(file)
	err := os.Remove(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}

	x.Files++
	x.Bytes += size
	x.Left -= size
	return nil
}
