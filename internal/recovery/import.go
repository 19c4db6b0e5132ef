// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// ImportOptions say what to import and how far to go.
type ImportOptions struct {
	LXDDir  string
	Tarball string
	Version string // of lxd-recover, for the record
	DryRun  bool   // check everything, change nothing
	NoStart bool   // leave LXD stopped

	// DiscardLocal goes on although this member has transactions that the tarball lacks, or cannot tell.
	DiscardLocal bool

	// DropPatch leaves out what is pending in this member's patch.global.sql.
	DropPatch bool

	// SQL runs on the database when LXD next starts here, after what is pending. It must do no harm if other members run it, too.
	SQL string

	// UnknownMembers goes on although the tarball's database does not know one of its members.
	UnknownMembers bool

	// NodeDB is the file of another member's node database, from which a new one is made where this member has lost its own.
	NodeDB string

	// Unsigned takes a tarball that is not signed, such as LXD's own. One with a signature that is not valid is never taken.
	Unsigned bool

	// Certificate is the file of a certificate that the cluster had before: what was signed then is taken, too.
	Certificate string

	// BesideCluster goes on although a working cluster answers that does not come from this recovery.
	BesideCluster bool

	// AddressAbsent goes on although this machine does not have a new address of this member, NewerSchema although LXD here is older than
	// the tarball: LXD does not start then.
	AddressAbsent, NewerSchema bool

	// Timeout bounds how long LXD may take to stop, and to answer once it is started.
	Timeout time.Duration

	// Confirm is shown what is about to happen, after all checks and before LXD is stopped. An error from it ends the
	// import with nothing changed. It is not called in a dry run.
	Confirm func(*ImportReport) error

	Progress Progress

	part *Part // of a run over the whole cluster that this import belongs to
}

// ImportReport is what an import will do, or did.
type ImportReport struct {
	Tarball   string            `json:"tarball" yaml:"tarball"`
	Source    string            `json:"source" yaml:"source"` // member it was exported from, empty where the tarball does not say
	Signature SignatureState    `json:"signature" yaml:"signature"`
	SignedBy  string            `json:"signed_by" yaml:"signed_by"` // SHA-256 of the cluster certificate; empty where the tarball is not signed
	Member    member.Member     `json:"member" yaml:"member"`       // this member, with its new address and role
	Members   []MemberChange    `json:"members" yaml:"members"`
	Local     *bundle.Position  `json:"local_raft" yaml:"local_raft"`               // last entry of the database that is replaced; null where it cannot be read
	Raft      bundle.Position   `json:"raft" yaml:"raft"`                           // last entry of the tarball's
	Database  *globaldb.Summary `json:"database" yaml:"database"`                   // the tarball's
	Settings  []Change          `json:"settings" yaml:"settings"`                   // of the node database
	NodeDB    *NewNodeDatabase  `json:"new_node_database" yaml:"new_node_database"` // what takes the place of a lost one; null where it is not lost
	Patch     SQL               `json:"patch" yaml:"patch"`                         // content of patch.global.sql, empty where none is needed
	Carried   SQL               `json:"carried_patch" yaml:"carried_patch"`         // what of it was pending here before
	Discarded []Discarded       `json:"discarded" yaml:"discarded"`                 // transactions that only this member has
	Gained    []Discarded       `json:"gained" yaml:"gained"`                       // transactions that the tarball has and this member lacks
	Unchecked []string          `json:"unchecked" yaml:"unchecked"`                 // checks that this tarball does not allow
	Warnings  []string          `json:"warnings" yaml:"warnings"`

	// LXD is the one that is installed here. Findings are what it needs to start on the tarball's database, and lacks, or may lack.
	LXD      preflight.LXD       `json:"lxd" yaml:"lxd"`
	Findings []preflight.Finding `json:"findings" yaml:"findings"`

	Kept      string `json:"kept" yaml:"kept"`             // directory that holds, or will hold, the database that is replaced
	Lacking   string `json:"kept_lacks" yaml:"kept_lacks"` // why a rollback cannot put that one back; empty where it can
	Size      int64  `json:"size" yaml:"size"`             // of the database that is replaced, in bytes
	KeptSpace Space  `json:"backups" yaml:"backups"`       // all that is kept; once Done with the one that this import replaced
	Daemon    string `json:"daemon" yaml:"daemon"`

	// StartCommand starts LXD here; empty where none is known.
	StartCommand string `json:"start_command" yaml:"start_command"`

	// GainedUntold says why what this member lacks is not, or not all, in Gained; empty where it is.
	GainedUntold string `json:"gained_untold" yaml:"gained_untold"`

	// NothingToDo is true when this member had exactly this database before: nothing was done.
	NothingToDo bool `json:"already" yaml:"already"`

	// DownSeconds is how long LXD had to be down for the exchange, from when it had stopped until it was started.
	DownSeconds float64 `json:"down_seconds" yaml:"down_seconds"`

	// Done is true once the new database is in place.
	Done bool `json:"done" yaml:"done"`

	// Started is true when LXD was started again, Ready when it answered within the timeout.
	Started bool `json:"started" yaml:"started"`
	Ready   bool `json:"ready" yaml:"ready"`
}

// newImportReport returns a report whose lists are empty, not missing, in JSON.
func newImportReport(tarball string) *ImportReport {
	return &ImportReport{Tarball: tarball, Members: []MemberChange{}, Settings: []Change{}, Discarded: []Discarded{}, Gained: []Discarded{},
		Unchecked: []string{}, Warnings: []string{}, Findings: []preflight.Finding{}}
}

// Import replaces this member's database by the one in a tarball, all or nothing, and keeps the replaced one. The steps are
// told in docs/architecture.md. When an error is returned the old database is in place, unless the report says Done.
func Import(ctx context.Context, opts ImportOptions) (*ImportReport, error) {
	run, end, err := beginRun(opts.LXDDir, runOptions{
		purpose: purposeImport, version: opts.Version, dryRun: opts.DryRun, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress,
		part: opts.part,
	})
	if err != nil {
		return nil, err
	}

	defer end()

	im := &importer{run: run, opts: opts, report: newImportReport(opts.Tarball)}
	im.tellFinished(im.report)
	defer im.unstageUnless(&im.report.Done)

	err = im.stage(ctx)
	if err != nil {
		return nil, err
	}

	if im.report.NothingToDo {
		return im.report, im.resumeDaemon(ctx)
	}

	err = cmp.Or(im.checkNeeds(), im.checkLoss())
	if opts.DryRun || err != nil {
		return im.report, err
	}

	if opts.Confirm != nil {
		err = opts.Confirm(im.report)
		if err != nil {
			return nil, err
		}
	}

	return im.report, im.replace(ctx)
}

// importer is one import under way: stage makes everything ready beside the live database, and checks it; replace takes LXD down
// for the exchange.
type importer struct {
	*run
	opts   ImportOptions
	report *ImportReport

	certificate string               // the cluster's, its fingerprint
	signers     []*certificate       // that the tarball may be signed for, this cluster's first
	node        *nodedb.Node         // of the live database, as it was when it was looked at first
	lost        *lostNode            // nil where it is not lost
	trusted     []nodedb.Certificate // the members' certificates, where the node database may not have them
	tarball     *bundle.Extracted
	log         *raftlog.Log     // the staged one
	nodes       []globaldb.Node  // table nodes of the tarball's database
	pending     pendingPatch     // what is carried over of this member's patch.global.sql
	rows        []preflight.Node // table nodes as it is when that has run
	needs       *needs           // of the tarball's database
	former      map[string]bool  // addresses that this member is known to have had

	live       bool   // LXD runs while the local log is read: what is damaged may only be in the middle of being written
	compared   string // signature of the local raft directory when it was compared
	branching  *branching
	gains      gains
	others     otherFiles
	nonce      string // that the tarball's database has, with resync
	resync     bool   // takes a backup of the cluster that works, and no recovery tarball: see resync.go
	fencedHere bool   // a tarball of LXD's own, fenced in the staging directory

	// aboveFence says why another member could outvote the tarball's log; empty if none can.
	aboveFence string

	// started says why the tarball must not start a cluster any more, see startedBefore; empty if it may.
	started string

	// snapshotBeyond says that this member's own snapshot lies beyond the tarball's fence; empty if it does not.
	snapshotBeyond string

	// peers are the members that serve a working cluster; nil where none was asked.
	peers []daemon.Peer

	// leftOut are transactions that lie on this member's disk, are not in its log because of damage, and not in the tarball.
	leftOut []Discarded

	// unknownLoss says why it cannot be told what would be lost; empty if it can.
	unknownLoss string
}

// resumeDaemon starts an LXD that an earlier run of this import had stopped.
func (im *importer) resumeDaemon(ctx context.Context) error {
	if im.opts.DryRun {
		return nil
	}

	return im.resume(ctx, im.tarball.Members, im.report)
}

func (r *ImportReport) warn(texts ...string) { r.Warnings = append(r.Warnings, texts...) }

func (r *ImportReport) daemonIs(result startResult) {
	r.Started, r.Ready = result.started, result.ready
	r.warn(result.warnings...)
}

// checkLoss refuses an import that would lose what only this member has (guarantee G4).
func (im *importer) checkLoss() error {
	err := im.checkExported()
	if err != nil {
		return err
	}

	unknown := "what would be lost with this member's own database cannot be told: " + im.unknownLoss
	if im.snapshotBeyond != "" {
		im.warnOnce(im.snapshotBeyond)
		unknown += "; " + im.snapshotBeyond
	}

	switch {
	case im.started != "":
		return &Refusal{Code: "started-before", Member: im.report.Member.Name, Reason: im.started}
	case im.opts.DiscardLocal:
		im.warnOnce(im.aboveFence)
		if im.unknownLoss != "" {
			im.warnOnce("what is lost with this member's own database cannot be told: " + im.unknownLoss)
		}
	case im.aboveFence != "":
		return &Refusal{Code: "term-above-fence", Reason: im.aboveFence, Flag: "--discard-local-entries"}
	case len(im.report.Discarded) > 0:
		return &Refusal{Code: "local-entries", Member: im.report.Member.Name, Reason: fmt.Sprintf("the tarball lacks what %s has and would be lost: %s",
			im.report.Member.Name, Count(im.report.Discarded)), Entries: im.report.Discarded, Flag: "--discard-local-entries"}
	case im.unknownLoss != "" && im.live:
		// It is compared again once LXD is down.
		im.warnOnce(product.Text("what only this member has cannot be told while LXD runs: ") + im.unknownLoss)
	case im.unknownLoss != "":
		return &Refusal{Code: "loss-unknown", Reason: unknown, Flag: "--discard-local-entries"}
	}

	return nil
}

// warnOnce says something once: local logs are compared again when LXD is down.
func (im *importer) warnOnce(text string) {
	if text != "" && !slices.Contains(im.report.Warnings, text) {
		im.report.warn(text)
	}
}

// replace stops LXD, exchanges the staged database with the live one, and starts LXD again.
func (im *importer) replace(ctx context.Context) error {
	var err error
	im.others, err = im.dir.copyOtherFiles(ctx, nil)
	if err != nil {
		return err
	}

	err = im.dir.noteTerms(ctx, im.report.Raft.Term, im.log.Term)
	if err != nil {
		return err
	}

	cycle, err := im.stop(ctx)
	if err != nil {
		return err
	}

	began := time.Now()
	err = im.exchange(ctx)
	if err != nil {
		if im.report.Done {
			err = fmt.Errorf("the new database is in place, but not all is done: %w; run the command again", err)
		}

		return errors.Join(err, cycle.startAfterFailure(ctx))
	}

	im.report.DownSeconds = time.Since(began).Seconds()
	im.opts.Progress.step("The new database is in place; the old one is kept in " + im.report.Kept)
	err = im.start(ctx, cycle, im.tarball.Members, im.report)
	im.report.KeptSpace = im.dir.space() // not before LXD is up again: every kept file is looked at
	im.keepReport(im.report, err)
	return err
}

// exchange puts the staged database in place. LXD is down: nothing here may take the longer the larger the database is.
func (im *importer) exchange(ctx context.Context) error {
	// LXD may have run, and written, since its log was compared: even if it was down then, and is down now. A directory that
	// cannot be read has no signature.
	now := signature(im.dir.global())
	if now != im.compared || now == "" {
		err := im.compareAgain(ctx)
		if err != nil {
			return err
		}
	}

	unlock, err := lockDqlite(im.dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	err = im.dir.samePatch(im.pending, im.opts.DropPatch)
	if err != nil {
		return err
	}

	staged, err := im.replacement(ctx)
	if err != nil {
		return err
	}

	im.report.Kept, im.report.Done, err = staged.takePlace(ctx)
	return err
}

// compareAgain repeats the comparison with the local log, now that LXD is down.
func (im *importer) compareAgain(ctx context.Context) error {
	im.live, im.unknownLoss = false, ""
	err := im.compareLocal(ctx, im.lookAtLocal(ctx))
	if err != nil {
		return err
	}

	return im.checkLoss()
}

// replacement is what the import puts beside the tarball's raft directory.
func (im *importer) replacement(ctx context.Context) (*replacement, error) {
	node, lost, err := im.dir.readNode(ctx, false)
	if err != nil {
		return nil, err
	}

	if (lost != nil) != (im.lost != nil) {
		return nil, fmt.Errorf("%s is not what it was when this import began: nothing was changed, run the command again", im.dir.local())
	}

	tarball, err := filepath.Abs(im.opts.Tarball)
	if err != nil {
		return nil, err
	}

	return &replacement{
		dir: im.dir, update: im.update(node), lost: im.lost, patch: string(im.report.Patch), others: im.others,
		record: Record{
			Purpose: purposeImport, Version: im.opts.Version, Run: im.tarball.Run(), Tarball: tarball, Digest: im.tarball.Digest, Source: im.report.Source,
			Raft: im.report.Raft,
		},
		reporter: im.reporter,
		report: func(kept string) any {
			report := *im.report
			report.Kept, report.Done = kept, true
			return report
		},
	}, nil
}
