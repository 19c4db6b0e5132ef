// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

const (
	// termStep is how far the fence's term lies above every known one. A member that nobody asked may have gone through some elections
	// since; one that goes on electing itself without a quorum gains a term every few seconds at most.
	termStep = 1000000

	// termSpread is the number of fences that may follow from the same known terms in the same millisecond.
	termSpread = 1000

	// maxTerm bounds what is believed of a term that no checksum vouches for: one in metadata, where a flipped bit can make it anything,
	// or in a report, which anybody can have written. Fences are milliseconds since 1970, some 2^41; 2^48 of them are reached in the
	// year 10889, or by 280 million fences in a row. A wrong term up to there costs nothing: fences go on above it.
	maxTerm = 1 << 48

	// maxProvenTerm bounds one that entries or snapshots have, too: a fence by an earlier version may be that high. SQLite, which keeps
	// the mark of a recovery, has 63 bits.
	maxProvenTerm = 1 << 62
)

// fenceTerm is the term of a fence: above every known one by termStep, above every fence that was made in seconds or milliseconds of a clock
// that is not ahead of ours, above what the administrator says, and another one for every attempt. spread is below termSpread.
func fenceTerm(highest uint64, above uint64, now time.Time, spread uint64) uint64 {
	return max(highest+termStep, uint64(max(now.UnixMilli(), 0)), above+1) + spread
}

// randomSpread makes fences differ that are made at once on two members, of what may not be the same.
func randomSpread() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) % termSpread
}

// digestSpread is a spread that every member makes of the same tarball.
func digestSpread(digest string) (uint64, error) {
	n, err := strconv.ParseUint(digest[:15], 16, 64)
	return n % termSpread, err
}

// believable tells whether a term that no checksum vouches for can be one that raft has counted to. proven is the highest one that entries
// have.
func believable(term uint64, proven uint64) bool { return term <= max(maxTerm, proven+maxTerm) }

// seenTerm is the highest term that a member has seen, as its raft directory tells. doubt says which metadata are not believed; empty if
// all are.
func seenTerm(log *raftlog.Log) (term uint64, doubt string) {
	term = log.EntryTerm
	for i, m := range log.Metadata {
		switch {
		case m == nil:
		case believable(m.Term, log.EntryTerm):
			term = max(term, m.Term)
		default:
			doubt = fmt.Sprintf("metadata%d has the raft term %d, and no raft counts that far: the file is damaged, and what it says is left out", i+1, m.Term)
		}
	}

	return term, doubt
}

// seenBeside is the highest term of the databases beside the live one: those that are kept, staged, or half removed. proven is the highest
// term that entries are known to have.
func (d directory) seenBeside(ctx context.Context, proven uint64) (uint64, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return 0, err
	}

	var highest uint64
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), databaseName+".") {
			continue
		}

		term, err := databaseTerm(ctx, d.join(e.Name()), proven)
		if err != nil {
			return 0, err
		}

		highest = max(highest, term)
	}

	return highest, nil
}

// databaseTerm is the highest term in a database directory, by its metadata and by what a run of ours has written about it. raft writes a term
// to the metadata before it writes an entry with it, so the entries are read only where the metadata are lost.
func databaseTerm(ctx context.Context, database string, proven uint64) (uint64, error) {
	var highest uint64
	found := false
	for _, name := range []string{"metadata1", "metadata2"} {
		data, err := os.ReadFile(filepath.Join(database, globalName, name))
		if err != nil {
			continue // it may be damaged for the very reason that it is replaced, or kept
		}

		m, err := raftlog.ParseMetadata(data)
		if err == nil && believable(m.Term, proven) {
			highest, found = max(highest, m.Term), true
		}
	}

	record, err := readRecord(database)
	if err == nil && record != nil && believable(record.Raft.Term, proven) { // what is wrong with it, is for others to say
		highest = max(highest, record.Raft.Term)
	}

	if found {
		return highest, nil
	}

	global := filepath.Join(database, globalName)
	log, err := raftlog.Open(ctx, os.DirFS(global), engineOptions(ctx, global, raftlog.Options{Later: true}))
	if err == nil {
		highest = max(highest, log.EntryTerm)
	}

	return highest, ctx.Err()
}

// seenHere is the highest term that is known on this member: of the log, which may be nil, of the databases beside the live one, and of the
// high-water file.
func (d directory) seenHere(ctx context.Context, log *raftlog.Log) (uint64, error) {
	h, err := d.readHighWater()
	if err != nil {
		return 0, err
	}

	highest := h.Term
	if log != nil {
		term, _ := seenTerm(log)
		highest = max(highest, term)
	} else {
		term, err := databaseTerm(ctx, d.database(), highest)
		if err != nil {
			return 0, err
		}

		highest = max(highest, term)
	}

	beside, err := d.seenBeside(ctx, highest)
	return max(highest, beside), err
}

// noteTerms writes the high-water file: with all that is known on this member, and with the terms that a run is about to bring to it.
func (d directory) noteTerms(ctx context.Context, terms ...uint64) error {
	highest, err := d.seenHere(ctx, nil)
	if err != nil {
		return err
	}

	for _, term := range terms {
		highest = max(highest, term)
	}

	return d.raiseHighWater(ctx, highest, time.Now())
}

// survivorReport is a report of another member that was given with --survivor.
type survivorReport struct {
	*InspectReport
	file string
}

// name is the member's, or the file's where it does not tell.
func (r survivorReport) name() string {
	if r.Member == nil {
		return r.file
	}

	return cmp.Or(r.Member.Name, r.file)
}

// highestTerm is the highest term that the report has.
func (r survivorReport) highestTerm() uint64 {
	return max(r.Raft.MaxTerm, r.Raft.MetadataTerm, r.Raft.LastTerm, r.Raft.SnapshotTerm)
}

// readSurvivors reads reports. One with a term or an index that raft never counts to is damaged: believed, it would lift every later fence
// to where none can be made any more.
func readSurvivors(files []string, proven uint64) ([]survivorReport, error) {
	var all []survivorReport
	for _, file := range files {
		report, err := readReport(file)
		if err != nil {
			return nil, err
		}

		r := survivorReport{InspectReport: report, file: file}
		for _, n := range []struct {
			what  string
			value uint64
		}{
			{"raft term", r.highestTerm()},
			{"index", max(r.Raft.LastIndex, r.Raft.SnapshotIndex)},
		} {
			if !believable(n.value, proven) {
				return nil, &DamageError{What: file, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
					Text: fmt.Sprintf("it has the %s %d, and no raft counts that far", n.what, n.value)}},
					Advice: "Make the report again. If it says the same, the files metadata1 and metadata2 of that member are damaged: " +
						"leave the report out, and import on that member in any case."}
			}
		}

		all = append(all, r)
	}

	return all, nil
}

// unseen are the voters of a list, but for one, of which no report tells.
func unseen(voters member.List, self uint64, reports []survivorReport) []string {
	var names []string
	for _, m := range voters {
		seen := m.ID == self || m.Role != raftlog.Voter
		for _, r := range reports {
			seen = seen || r.Member != nil && r.Member.ID == m.ID
		}

		if !seen {
			names = append(names, m.Name)
		}
	}

	return names
}
