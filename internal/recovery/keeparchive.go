// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// ArchiveOptions say where to keep what of the raft log.
type ArchiveOptions struct {
	LXDDir string
	Dir    string // the archive
	Link   bool   // link files in place of copying them
	Keep   archive.Keep

	Progress Progress
}

// ArchiveReport is what was added, and what was removed because of its age, or of the archive's size.
type ArchiveReport struct {
	archive.Added `yaml:",inline"`
	Expired       *archive.Expired `json:"expired" yaml:"expired"` // null if all is to be kept
}

// firstLineage is the lineage of a raft directory that no run of ours has made.
const firstLineage = "first"

// Archive adds the closed segments and snapshots of this member's raft directory to an archive, even while LXD runs. It changes nothing in LXD's directory.
func Archive(ctx context.Context, opts ArchiveOptions) (*ArchiveReport, error) {
	dir, err := openDirectory(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	err = dir.keepOut(opts.Dir)
	if err != nil {
		return nil, err
	}

	unlock, err := dir.lock(unix.LOCK_SH) // no run exchanges the databases meanwhile
	if err != nil {
		return nil, err
	}

	defer unlock()

	to, lineage, err := openArchive(ctx, dir, opts)
	if err != nil {
		return nil, err
	}

	err = checkGlobal(dir.global())
	if err != nil {
		return nil, err
	}

	writers, err := daemon.Writers(dir.global())
	if err != nil {
		return nil, err
	}

	held, err := raftlog.Hold(ctx, dir.global())
	if err != nil {
		return nil, err
	}

	defer held.Close()

	done := opts.Progress.start("Checking "+dir.global(), dirSize(dir.global()))
	log, err := raftlog.Open(ctx, held,
		engineOptions(ctx, dir.global(), raftlog.Options{AllSums: true, Live: len(writers) > 0, Progress: opts.Progress.add}))
	done()
	if err != nil {
		return nil, err
	}

	added, err := to.Add(ctx, lineage, dir.global(), held, log)
	if err != nil {
		return nil, err
	}

	report := &ArchiveReport{Added: *added}
	if opts.Keep != (archive.Keep{}) {
		report.Expired, err = to.Expire(time.Now(), opts.Keep)
	}

	return report, err
}

// openArchive opens this member's archive, and tells which lineage the database in force belongs to.
func openArchive(ctx context.Context, dir directory, opts ArchiveOptions) (a *archive.Archive, lineage string, err error) {
	owner := archive.Owner{Name: "this member", Product: dir.productName()}
	owner.Certificate, err = dir.serverCertificate()
	if err != nil {
		return nil, "", err
	}

	node, err := nodedb.Read(ctx, dir.database())
	if err == nil { // it is for messages only
		owner.Name = node.Self.Name
	}

	a, err = archive.Open(opts.Dir, owner, opts.Link)
	if err != nil {
		return nil, "", err
	}

	record, err := readRecord(dir.database())
	if err != nil || record == nil {
		return a, firstLineage, err
	}

	return a, cmp.Or(record.Run, stamp(record.Made)), nil
}
