// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// A tarball starts a cluster once. Started a second time from the same fence, the leader gets the same term again, and writes other entries
// with the indexes and terms of the first time. A member that still has those, a stand-by that was not taken back for one, takes the two
// for the same, and has other rows for ever, silently. So an import is refused where this member has seen that the fence was
// started: a database of its own, the live one or one beside it, goes on from the fence, and has an entry after it, or a later term in its
// metadata than the tarball's. It is right where a cluster of this recovery works: the member then joins that, and starts nothing.

// startedBefore says why the tarball must not start a cluster any more; empty if it may. local is the live log, nil where it cannot be read.
func (im *importer) startedBefore(ctx context.Context, local *raftlog.Log) (string, error) {
	fence := im.report.Raft
	if local != nil {
		ran, err := im.ranOn(ctx, im.dir.database(), local)
		if err != nil {
			return "", err
		}

		if ran {
			return im.startedText(ctx, "this member's own database", local)
		}
	}

	entries, err := os.ReadDir(im.dir.path)
	if err != nil {
		return "", err
	}

	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), databaseName+".") || e.Name() == stagingName {
			continue
		}

		// A database that has not seen the fence's term is not looked at any further. Most have not.
		database := im.dir.join(e.Name())
		term, err := databaseTerm(ctx, database, fence.Term)
		if err != nil {
			return "", err
		}

		if term < fence.Term {
			continue
		}

		global := filepath.Join(database, globalName)
		log, err := raftlog.Open(ctx, os.DirFS(global), engineOptions(ctx, global, raftlog.Options{Later: true}))
		if err != nil {
			log = nil
		}

		ran, err := im.ranOn(ctx, database, log)
		if err != nil {
			return "", err
		}

		if ran {
			return im.startedText(ctx, database, log)
		}
	}

	return "", ctx.Err()
}

// ranOn tells whether a database goes on from the tarball's fence, and has been started since. log is its raft log, nil where it cannot be read.
func (im *importer) ranOn(ctx context.Context, database string, log *raftlog.Log) (bool, error) {
	fence := im.report.Raft
	record, err := readRecord(database)
	if err != nil {
		record = nil // what is wrong with it, is for others to say
	}

	imported := record != nil && record.Raft == fence
	if log == nil {
		term, err := databaseTerm(ctx, database, fence.Term)
		return imported && term > im.log.Term, err
	}

	if !imported && !goesOnFrom(log, fence, record) {
		return false, nil
	}

	for entry, err := range log.Entries(ctx, fence.Index+1) {
		if err != nil {
			return false, err
		}

		if entry.Type != raftlog.ChangeEntry { // those can be recovery entries, of an edit since
			return true, nil
		}
	}

	seen, _ := seenTerm(log)
	if log.Edited {
		return seen > metadataTerm(log.Configuration, log.LastTerm), nil
	}

	return seen > im.log.Term, nil
}

// goesOnFrom tells whether a log has a fence. A snapshot beyond it hides it: its term tells then, unless it is a fence itself, which the record
// beside it says.
func goesOnFrom(log *raftlog.Log, fence bundle.Position, record *Record) bool {
	term, known := log.TermAt(fence.Index)
	s := log.Snapshot()
	switch {
	case known:
		return term == fence.Term
	case s == nil || s.Index < fence.Index || record != nil && record.Raft == bundle.Position{Index: s.Index, Term: s.Term}:
		return false
	}

	return s.Term >= fence.Term
}

// startedText is the reason of startedBefore, unless a cluster of this recovery works.
func (im *importer) startedText(ctx context.Context, what string, log *raftlog.Log) (string, error) {
	works, err := im.recoveryWorks(ctx)
	if works || err != nil {
		return "", err
	}

	seen := "later terms"
	if log != nil && log.LastIndex > im.report.Raft.Index {
		seen = "entries up to " + bundle.Position{Index: log.LastIndex, Term: log.LastTerm}.String()
	}

	return product.Sprintf("a cluster was started from this tarball before: %s has %s, after the fence at %s. Started from it again, "+
		"members that have entries of the first time would keep other rows, and nobody would notice. "+
		"No cluster of this recovery answers now: start LXD on its members, and import then. "+
		"Or, to begin anew, run `lxd-recover cluster export-db` again, and import the new tarball on all members", what, seen, im.report.Raft), nil
}

// recoveryWorks tells whether another member serves a working cluster that comes from this recovery.
func (im *importer) recoveryWorks(ctx context.Context) (bool, error) {
	if im.peers == nil {
		_, err := im.askPeers(ctx)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}

		if err != nil {
			return false, nil // nobody can be asked: then nobody is known to work
		}
	}

	for _, p := range im.peers {
		if slices.ContainsFunc(p.Rows, im.isMark) {
			return true, nil
		}
	}

	return false, nil
}
