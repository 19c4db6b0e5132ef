// SPDX-License-Identifier: AGPL-3.0-only

// Package archive keeps the closed segments and the snapshots of raft directories as they appear, so that the log reaches further back than raft keeps it.
//
// An archive is a directory with a directory for each lineage: what one raft directory has held from its beginning to its end. A recovery, an import or a
// rollback puts another raft directory in its place, and begins another lineage. A lineage looks like a raft directory that has lost nothing, and is read as
// one. If raft has deleted entries before they were added, the lineage goes on in another directory, a part of its own: so no part has a gap.
//
// A file of the same name may come again with other content, and a file may go for good, when a new leader has cut away what an old one had written: the
// former file is then moved to `superseded`, and nothing is ever overwritten. `catalogue.jsonl` has a line for each file that was added, in order.
//
// A file is copied, or, if that is asked for, linked: libdqlite never writes to a closed segment or a snapshot again. A link keeps the file from being
// deleted, and is no second copy.
package archive

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// Names in an archive.
const (
	markName       = "lxd-recover-archive" // says that a directory is one, and whose
	currentName    = "current"             // the lineage that was added to last, or found to have nothing new
	catalogueName  = "catalogue.jsonl"
	supersededName = "superseded"
	partSuffix     = ".part" // a copy that is not complete
)

// Archive is an archive that is added to.
type Archive struct {
	dir  string
	link bool
}

// Entry is a line of the catalogue.
type Entry struct {
	Added  time.Time `json:"added"` // UTC
	Name   string    `json:"name"`  // in the raft directory
	Size   int64     `json:"size"`  // bytes
	SHA256 string    `json:"sha256"`
	First  uint64    `json:"first,omitempty"` // of a segment: indexes of its entries
	Last   uint64    `json:"last"`            // of a snapshot: the index of its last entry
	Term   uint64    `json:"term"`            // of the last entry
	Linked bool      `json:"linked,omitempty"`

	// Superseded is the name that the file of before got, which had the same name. Gone says that no other one has come in its place: a new leader has
	// cut it away, or, with Expired, it was older than what is to be kept.
	Superseded string `json:"superseded,omitempty"`
	Gone       bool   `json:"gone,omitempty"`
	Expired    bool   `json:"expired,omitempty"`
}

// Part is one directory of an archive: a stretch of one raft directory's log without a gap.
type Part struct {
	Dir         string
	First, Last uint64    // of its entries; 0 if it has snapshots only
	Added       time.Time // when the last file was added
	Files       []Entry   // those in force, in the order in which they were added

	all []Entry // all lines of its catalogue
}

// Gap is a stretch of entries that the archive lacks: raft had deleted them before they were added.
type Gap struct {
	First uint64 `json:"first" yaml:"first"`
	Last  uint64 `json:"last" yaml:"last"`
}

// Added is what one run has added.
type Added struct {
	Lineage string `json:"lineage" yaml:"lineage"` // the directory of its newest part
	Files   int    `json:"files" yaml:"files"`
	Bytes   int64  `json:"bytes" yaml:"bytes"`
	First   uint64 `json:"first_index" yaml:"first_index"` // first entry that the newest part has; 0 for none
	Last    uint64 `json:"last_index" yaml:"last_index"`   // last one
	Gaps    []Gap  `json:"gaps" yaml:"gaps"`               // between the parts of the lineage
}

// Errors of [Open] and [Parts].
var (
	ErrNoArchive = errors.New("no archive of lxd-recover")
	ErrOwner     = errors.New("the archive is another member's")
)

// Owner is the member that an archive is of: the logs of two members must not mix.
type Owner struct {
	Name        string `json:"name"`        // for messages
	Certificate string `json:"certificate"` // fingerprint of server.crt

	// Product is the name of what it is a member of; empty for LXD, as in archives that were begun before there was another one.
	Product string `json:"product,omitempty"`
}

// mark is what the file says that makes a directory an archive.
type mark struct {
	Format int   `json:"format"` // 1
	Owner  Owner `json:"owner"`
}

var lineageName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,100}$`)

// Open opens a member's archive to be added to. A directory that is not there, or is empty, becomes one.
func Open(dir string, owner Owner, link bool) (*Archive, error) {
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		return nil, err
	}

	if !Is(dir) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}

		if len(entries) > 0 {
			return nil, fmt.Errorf("%w: %s has other files in it: name an empty directory, or one that does not exist", ErrNoArchive, dir)
		}

		data, err := json.Marshal(mark{Format: 1, Owner: owner})
		if err == nil {
			err = swapdir.WriteFile(filepath.Join(dir, markName), append(data, '\n'))
		}

		if err != nil {
			return nil, err
		}
	}

	has, err := OwnerOf(dir)
	switch {
	case err != nil:
		return nil, err
	case has.Certificate != owner.Certificate:
		return nil, fmt.Errorf("%w: %s is of %s, with the server certificate %.12s…, and this is %s, with %.12s…. Each member needs an archive of its own: "+
			"name another directory", ErrOwner, dir, has.Name, has.Certificate, owner.Name, owner.Certificate)
	}

	return &Archive{dir: dir, link: link}, nil
}

// Is tells whether a directory is an archive.
func Is(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, markName))
	return err == nil
}

// OwnerOf is the member that an archive is of.
func OwnerOf(dir string) (Owner, error) {
	has := mark{}
	data, err := os.ReadFile(filepath.Join(dir, markName))
	if err == nil {
		err = json.Unmarshal(data, &has)
	}

	if err != nil {
		return Owner{}, fmt.Errorf("%s: %w", filepath.Join(dir, markName), err)
	}

	return has.Owner, nil
}

// Parts are the parts of an archive: those of the lineage that was added to last are at the end, and its newest one is the last.
func Parts(dir string) ([]Part, error) {
	if !Is(dir) {
		return nil, fmt.Errorf("%w: %s", ErrNoArchive, dir)
	}

	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	all := []Part{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}

		p, err := readPart(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}

		if len(p.Files) > 0 {
			all = append(all, *p)
		}
	}

	last := map[string]time.Time{} // when a lineage was added to last
	for _, p := range all {
		lineage, _ := p.place()
		if p.Added.After(last[lineage]) {
			last[lineage] = p.Added
		}
	}

	current, err := os.ReadFile(filepath.Join(dir, currentName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}

	rank := func(lineage string) int {
		if lineage == string(current) {
			return 1
		}

		return 0
	}

	slices.SortFunc(all, func(a, b Part) int {
		lineageA, numberA := a.place()
		lineageB, numberB := b.place()
		return cmp.Or(cmp.Compare(rank(lineageA), rank(lineageB)), last[lineageA].Compare(last[lineageB]),
			cmp.Compare(lineageA, lineageB), cmp.Compare(numberA, numberB))
	})
	return all, nil
}

// Add adds what a raft directory holds and a lineage lacks. live is the directory, whose files held are; log is read from held, with all sums.
func (a *Archive) Add(ctx context.Context, lineage string, live string, held *raftlog.Held, log *raftlog.Log) (*Added, error) {
	if !lineageName.MatchString(lineage) {
		return nil, fmt.Errorf("%q can be no name of a directory", lineage)
	}

	unlock, err := lock(a.dir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	r := &adding{archive: a, live: live, held: held, added: &Added{Gaps: []Gap{}}}
	r.parts, err = partsOf(a.dir, lineage)
	if err == nil {
		r.open = len(r.parts) - 1
		err = swapdir.WriteFile(filepath.Join(a.dir, currentName), []byte(lineage))
	}

	if err == nil {
		err = r.addAll(ctx, complete(log))
	}

	if err == nil {
		err = r.cutAway(log)
	}

	if err == nil {
		err = r.metadata(log)
	}

	if err != nil {
		return nil, err
	}

	r.extent()
	return r.added, swapdir.SyncDir(r.last().Dir)
}

// partsOf are the parts of a lineage, in their order. There is always one.
func partsOf(dir string, lineage string) ([]*Part, error) {
	var parts []*Part
	for n := 1; ; n++ {
		p, err := readPart(partDir(filepath.Join(dir, lineage), n))
		if err != nil {
			return nil, err
		}

		if n > 1 && len(p.all) == 0 {
			return parts, nil
		}

		parts = append(parts, p)
	}
}

// complete are the files of a log that nobody writes to again, and that are sound: closed segments, and both files of each snapshot.
func complete(log *raftlog.Log) []Entry {
	var all []Entry
	for i := range log.Segments {
		s := &log.Segments[i]
		if !s.Open && s.Entries > 0 && s.Entries == s.Last-s.First+1 && s.End == s.Size {
			all = append(all, Entry{Name: s.File, Size: s.Size, SHA256: s.SHA256, First: s.First, Last: s.Last, Term: s.LastTerm})
		}
	}

	for i := range log.Snapshots {
		s := &log.Snapshots[i]
		if s.Usable {
			all = append(all, Entry{Name: s.File, Size: s.Size, SHA256: s.SHA256, Last: s.Index, Term: s.Term},
				Entry{Name: s.Meta, SHA256: s.MetaSHA256, Last: s.Index, Term: s.Term})
		}
	}

	return all
}

// adding is a run that adds to one lineage.
type adding struct {
	archive *Archive
	parts   []*Part
	open    int // index of the first part that may be added to
	live    string
	held    *raftlog.Held
	added   *Added
}

// last is the part that is added to.
func (r *adding) last() *Part { return r.parts[len(r.parts)-1] }

// addAll adds files: segments in the order of their entries, and then snapshots.
func (r *adding) addAll(ctx context.Context, all []Entry) error {
	if !r.goesOn(all) {
		r.newPart()
		r.open = len(r.parts) - 1
	}

	next := uint64(0) // after the segment before; 0 for none
	for _, e := range all {
		err := ctx.Err()
		if err != nil {
			return err
		}

		if e.First > 0 && next > 0 && e.First > next && !r.has(e) {
			r.newPart()
		}

		err = r.add(e)
		if err != nil {
			return err
		}

		if e.First > 0 {
			next = e.Last + 1
		}
	}

	return nil
}

// goesOn tells whether a raft directory goes on from what the newest part has: then they have a segment in common. Without one nobody could tell whether what
// raft has deleted meanwhile had replaced what the part ends with. A directory without a closed segment, and with a snapshot from beyond the part, has got that
// from the leader.
func (r *adding) goesOn(all []Entry) bool {
	hasSegment := func(e Entry) bool { return e.First > 0 }
	switch {
	case !slices.ContainsFunc(r.last().Files, hasSegment):
		return true
	case !slices.ContainsFunc(all, hasSegment):
		return !slices.ContainsFunc(all, func(e Entry) bool { return e.Last > r.last().Last })
	}

	return slices.ContainsFunc(all, func(e Entry) bool { return hasSegment(e) && r.last().has(e) })
}

func (r *adding) newPart() {
	r.parts = append(r.parts, &Part{Dir: partDir(r.parts[0].Dir, len(r.parts)+1)})
}

// has tells whether the lineage has a file, or had it and was not to keep it. A snapshot is needed in the part that goes on from it.
func (r *adding) has(e Entry) bool {
	p := r.basedOn(e)
	if p != nil {
		return p.has(e)
	}

	return slices.ContainsFunc(r.parts, func(p *Part) bool { return p.has(e) })
}

// basedOn is the part that has a snapshot's entries, or goes on from it; nil if none of those that may be added to does, and for a segment.
func (r *adding) basedOn(e Entry) *Part {
	for _, p := range slices.Backward(r.parts[r.open:]) {
		if e.First == 0 && p.First > 0 && p.First <= e.Last+1 {
			return p
		}
	}

	return nil
}

// partFor is the part that a file belongs to. Snapshots come after all segments.
func (r *adding) partFor(e Entry) *Part { return cmp.Or(r.basedOn(e), r.last()) }

// add adds a file, unless the lineage has it.
func (r *adding) add(e Entry) error {
	if r.has(e) {
		return nil
	}

	part := r.partFor(e)
	err := os.MkdirAll(filepath.Join(part.Dir, supersededName), 0o700)
	if err != nil {
		return err
	}

	target := filepath.Join(part.Dir, e.Name)
	e.Superseded, err = supersede(target, e.SHA256)
	if err == nil {
		e.Linked, err = r.bring(e.Name, target, e.SHA256)
	}

	if err != nil {
		return err
	}

	e.Size, e.Added = sizeOf(target), time.Now().UTC()
	r.added.Files++
	r.added.Bytes += e.Size
	return part.note(e)
}

// cutAway moves segments aside that a new leader has cut away: the raft directory has not deleted them because a snapshot makes them superfluous, but has
// others in their place, or ends before them.
func (r *adding) cutAway(log *raftlog.Log) error {
	files, end := map[string]bool{}, uint64(0)
	for i := range log.Segments {
		s := &log.Segments[i]
		if !s.Open {
			files[s.File] = true
			end = max(end, s.Last)
		}
	}

	for i := range log.Snapshots {
		end = max(end, log.Snapshots[i].Index)
	}

	part := r.last()
	for _, e := range slices.Clone(part.Files) {
		if e.First == 0 || files[e.Name] || e.Last <= end && !overlaps(log, e) {
			continue
		}

		name, err := supersede(filepath.Join(part.Dir, e.Name), "")
		if err == nil {
			err = part.note(Entry{Added: time.Now().UTC(), Name: e.Name, SHA256: e.SHA256, First: e.First, Last: e.Last, Superseded: name, Gone: true})
		}

		if err != nil {
			return err
		}
	}

	return nil
}

// overlaps tells whether a log has a closed segment of some of the same indexes.
func overlaps(log *raftlog.Log, e Entry) bool {
	return slices.ContainsFunc(log.Segments, func(s raftlog.Segment) bool { return !s.Open && s.First <= e.Last && e.First <= s.Last })
}

// supersede moves a file aside, and returns its new name. One with this content stays, and there is no name: it was brought by a run that was cut off.
func supersede(target string, digest string) (string, error) {
	dir := filepath.Dir(target)
	had, err := newfile.Digest(target)
	if errors.Is(err, fs.ErrNotExist) || err == nil && had == digest {
		return "", nil
	}

	if err != nil {
		return "", err
	}

	for n := 1; ; n++ {
		name := fmt.Sprintf("%s.%d", filepath.Base(target), n)
		aside := filepath.Join(dir, supersededName, name)
		err = swapdir.RenameNew(target, aside)
		if errors.Is(err, unix.EINVAL) { // file systems that cannot, NFS among them
			err = os.Link(target, aside)
			if err == nil {
				err = os.Remove(target)
			}
		}

		if !errors.Is(err, fs.ErrExist) {
			return name, err
		}
	}
}

// bring copies or links a file into the lineage.
func (r *adding) bring(name string, target string, digest string) (linked bool, err error) {
	_, err = os.Lstat(target)
	if err == nil {
		return false, nil
	}

	if r.archive.link {
		err = os.Link(filepath.Join(r.live, name), target)
		if err == nil {
			return true, r.sameContent(target, digest)
		}

		return false, fmt.Errorf("link %s into the archive: %w; without --link it is copied", filepath.Join(r.live, name), err)
	}

	from, err := r.held.Open(name)
	if err != nil {
		return false, err
	}

	defer from.Close()

	part := target + partSuffix
	_ = os.Remove(part)
	to, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return false, err
	}

	_, err = io.Copy(to, from)
	err = errors.Join(err, to.Sync(), to.Close())
	if err == nil {
		err = r.sameContent(part, digest)
	}

	if err != nil {
		_ = os.Remove(part)
		return false, err
	}

	return false, errors.Join(os.Rename(part, target), swapdir.SyncDir(filepath.Dir(target)))
}

// sameContent makes sure that a file has the content that was verified.
func (r *adding) sameContent(file string, digest string) error {
	got, err := newfile.Digest(file)
	if err == nil && got != digest {
		err = fmt.Errorf("%s has another content than the file that it was made of", file)
	}

	return err
}

// metadata writes the metadata as they are now: a part is read as a raft directory, which has some.
func (r *adding) metadata(log *raftlog.Log) error {
	err := os.MkdirAll(r.last().Dir, 0o700)
	if err != nil {
		return err
	}

	for _, m := range log.Metadata {
		if m == nil {
			continue
		}

		err := swapdir.WriteFile(filepath.Join(r.last().Dir, m.FileName()), m.Encode())
		if err != nil {
			return err
		}
	}

	return nil
}

// extent finds out how far the newest part reaches, and what is missing before it.
func (r *adding) extent() {
	r.added.Lineage, r.added.First, r.added.Last = r.last().Dir, r.last().First, r.last().Last
	for i := 1; i < len(r.parts); i++ {
		before, after := r.parts[i-1], r.parts[i]
		if before.Last > 0 && after.First > before.Last+1 {
			r.added.Gaps = append(r.added.Gaps, Gap{First: before.Last + 1, Last: after.First - 1})
		}
	}
}

// appendLine adds a line to a catalogue, durably. One that was cut off before is ended first.
func appendLine(file string, e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}

	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}

	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		_, err = f.ReadAt(last, info.Size()-1)
		if last[0] != '\n' {
			line = append([]byte("\n"), line...)
		}
	}

	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}

	return errors.Join(err, f.Sync(), f.Close())
}

// lock keeps other runs away from a lineage until the returned function is called.
func lock(dir string) (func(), error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}

	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another run adds to %s: %w", dir, err)
	}

	return func() { _ = f.Close() }, nil
}
