// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// localLook is a look at this member's own raft directory.
type localLook struct {
	signature string // of the directory before it was read
	emptied   bool   // there is no raft directory, or nothing in it
	log       *raftlog.Log
	err       error
}

// lookAtLocal reads this member's own log, or, once it was compared, what has changed of it since.
func (im *importer) lookAtLocal(ctx context.Context) localLook {
	look := localLook{signature: signature(im.dir.global()), emptied: im.dir.withoutGlobal()}
	var known *raftlog.Log
	if im.branching != nil {
		known = im.branching.local
	}

	look.log, look.err = openLog(ctx, im.dir.global(), Progress{}, raftlog.Options{Known: known})
	return look
}

// useBackup looks at LXD's own backup in place of a raft directory that LXD's own loader has removed, or was removing, when it was
// interrupted: the files go one after the other, and what is left of them may look sound.
func (im *importer) useBackup(ctx context.Context, source *Source, look *localLook) (used bool, err error) {
	if source == nil && look.emptied {
		look.err = errors.New(product.Text("LXD's own loader was interrupted after it had removed it, and no backup of LXD's has it"))
		return false, ctx.Err()
	}

	if source == nil {
		im.warnOnce(product.Text("LXD's own loader was interrupted here, " +
			"and there is no backup of LXD's to tell whether it had begun to remove this member's global database"))
		return false, nil
	}

	backup, err := readLog(ctx, source.global, im.opts.Progress)
	if err != nil && look.emptied {
		look.err = product.Errorf("LXD's own loader was interrupted after it had removed it, and LXD's backup %s cannot be read: %w", source.Path, err)
		return false, ctx.Err()
	}

	if err != nil || !look.emptied && look.err == nil && look.log.LastIndex >= backup.LastIndex {
		return false, ctx.Err()
	}

	look.log, look.err = backup, nil
	im.warnOnce(product.Text("LXD's own loader was interrupted after it had begun to remove this member's global database: "+
		"what is in LXD's backup ") + source.Path + " was compared")
	return true, nil
}

// compareLocal finds out what only this member has.
func (im *importer) compareLocal(ctx context.Context, look localLook) error {
	r := im.report
	im.compared = look.signature
	if loaderLeft(im.dir.database()) != "" {
		source := im.dir.beforeLoader(ctx, im.opts.Progress)
		if source != nil {
			defer source.Close()
		}

		used, err := im.useBackup(ctx, source, &look)
		if err != nil {
			return err
		}

		if used {
			defer func() { im.branching = nil }() // it reads what is removed then
		}
	}

	local, err := look.log, look.err
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}

		im.unknownLoss, r.GainedUntold = im.unreadable(err), "this member's own log cannot be read"
		if awaitsDatabase(err) {
			im.unknownLoss, r.GainedUntold = "", noneOfItsOwn // so nothing can be lost with it
		}

		return im.checkFence(ctx, nil)
	}

	r.Local = &bundle.Position{Index: local.LastIndex, Term: local.LastTerm}
	im.unknownLoss, err = im.damagedLocal(ctx, local)
	different := ""
	if err == nil {
		different, err = otherHistory(ctx, local, im.counterpart())
	}

	if err == nil {
		im.branching, err = discarded(ctx, local, im.counterpart(), im.branching)
	}

	if err == nil {
		r.Discarded = append(slices.Clone(im.branching.found), im.leftOut...)
	}

	if different != "" {
		im.unknownLoss = different
	}

	if err != nil && ctx.Err() == nil {
		im.unknownLoss, err = "it cannot be compared: "+err.Error(), nil
		r.Discarded = []Discarded{}
	}

	if err != nil {
		return err
	}

	err = im.checkFence(ctx, local)
	if err != nil {
		return err
	}

	return im.compareGained(ctx, local)
}

// checkFence compares the tarball's fence with what this member has seen. local is its own log, nil where it cannot be read.
func (im *importer) checkFence(ctx context.Context, local *raftlog.Log) error {
	var err error
	im.snapshotBeyond = im.beyondFence(local)
	im.started, err = im.startedBefore(ctx, local)
	if err == nil {
		im.aboveFence, err = im.outvotes(ctx, local)
	}

	return err
}

// beyondFence says that this member's own snapshot lies beyond the tarball's fence. That does it no harm, as it is imported to; but others may
// have such a snapshot, too. A snapshot fence is above all of them.
func (im *importer) beyondFence(local *raftlog.Log) string {
	if local == nil {
		return ""
	}

	s := local.Snapshot()
	if s == nil || !beyond(bundle.Position{Index: s.Index, Term: s.Term}, im.log, im.report.Raft) || goesOnFrom(local, im.report.Raft, nil) {
		return ""
	}

	return product.Sprintf("this member's own snapshot, at index %d, lies beyond the tarball's fence at %s. A member with such a snapshot that is not "+
		"imported to takes nothing from the others, and `lxc cluster list` says that it is ONLINE: import on every member, "+
		"or export again with --snapshot-fence, which brings such members along", s.Index, im.report.Raft)
}

// damagedLocal finds what lies on this member's disk and is not in its log, and says why what is lost cannot be told; that is empty if
// it can.
func (im *importer) damagedLocal(ctx context.Context, local *raftlog.Log) (string, error) {
	found, _, err := leftOut(ctx, local)
	if err != nil {
		return "", err
	}

	var untold []string
	for _, o := range local.LeftOut {
		if !o.Sound && o.Reason != raftlog.ReasonUnfinished {
			untold = append(untold, o.String())
		}
	}

	im.leftOut, err = without(ctx, found, im.log)
	switch {
	case err != nil:
		return "", err
	case local.Undecided():
		return "its files can be read as several logs; see `lxd-recover global-db-inspect`", nil
	case len(untold) > 0:
		return "it is damaged: " + strings.Join(untold, "; "), nil
	case local.SoundIndex == 0 && local.LastIndex > 0:
		return "its log has no beginning; see `lxd-recover global-db-inspect`", nil
	}

	return "", nil
}

// unreadable says why a member's own log cannot be compared.
func (im *importer) unreadable(err error) string {
	var none *noGlobalError
	if errors.As(err, &none) && none.global == im.dir.global() {
		return none.advise("move it back first, so that it can be compared", "if it was moved away, move it back first, so that it can be compared")
	}

	return "it cannot be read: " + err.Error()
}

// outvotes says why this member's own log, or another one's, could outvote the tarball's; empty where none could: this member has seen a
// term that is not below the fence's, now or in an earlier run, so another member may hold such a log, too. That is as it should be on a
// member that has run on this very recovery before, or beside the cluster that runs on it.
func (im *importer) outvotes(ctx context.Context, local *raftlog.Log) (string, error) {
	var own uint64
	if local != nil {
		var doubt string
		own, doubt = seenTerm(local)
		im.warnOnce(doubt)
	}

	highest, err := im.dir.seenHere(ctx, local)
	if err != nil || own < im.report.Raft.Term && highest <= im.log.Term { // which may be one above the fence's
		return "", err
	}

	record, err := readRecord(im.dir.database())
	if err != nil || record != nil && record.Raft == im.report.Raft {
		return "", err
	}

	works, err := im.recoveryWorks(ctx)
	if err != nil || works {
		return "", err
	}

	where := ""
	if highest > own {
		where = " in an earlier run"
	}

	return fmt.Sprintf("this member has seen raft term %d%s, and the tarball is fenced with term %d only: another member could outvote it. "+
		"Save `lxd-recover global-db-inspect --format json` here and export again with --survivor", highest, where, im.report.Raft.Term), nil
}

// beforeLoader opens what LXD's own loader has removed, see emptied: the newest of the backups that it makes first has it, but for
// those of later starts. The result is nil where none has.
func (d directory) beforeLoader(ctx context.Context, progress Progress) *Source {
	backups, _ := filepath.Glob(d.join("db_backup.*.tar.gz")) // with times in their names
	for _, name := range slices.Backward(backups) {
		source, err := openSource(ctx, name, progress)
		if err != nil {
			continue
		}

		files, err := raftFiles(source.global)
		if err == nil && len(files) > 0 {
			return source
		}

		source.Close()
	}

	return nil
}
