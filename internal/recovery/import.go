package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
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

	// BesideCluster goes on although a working cluster answers that does not come from this recovery.
	BesideCluster bool

	// Timeout bounds how long LXD may take to stop, and to answer once it is started.
	Timeout time.Duration

	// Confirm is shown what is about to happen, after all checks and before LXD is stopped. An error from it ends the
	// import with nothing changed. It is not called in a dry run.
	Confirm func(*ImportReport) error

	Progress Progress
}

// ImportReport is what an import will do, or did.
type ImportReport struct {
	Tarball   string            `json:"tarball" yaml:"tarball"`
	Source    string            `json:"source" yaml:"source"` // member it was exported from, empty where the tarball does not say
	Member    member.Member     `json:"member" yaml:"member"` // this member, with its new address and role
	Members   []MemberChange    `json:"members" yaml:"members"`
	Local     *bundle.Position  `json:"local_raft" yaml:"local_raft"` // last entry of the replaced database; null where it cannot be read
	Raft      bundle.Position   `json:"raft" yaml:"raft"`             // last entry of the tarball's
	Database  *globaldb.Summary `json:"database" yaml:"database"`     // the tarball's
	Settings  []Change          `json:"settings" yaml:"settings"`     // of the node database
	Patch     string            `json:"patch" yaml:"patch"`           // content of patch.global.sql, empty where none is needed
	Discarded []Discarded       `json:"discarded" yaml:"discarded"`   // transactions that only this member has
	Unchecked []string          `json:"unchecked" yaml:"unchecked"`   // checks that this tarball does not allow
	Warnings  []string          `json:"warnings" yaml:"warnings"`
	Kept      string            `json:"kept" yaml:"kept"`       // directory that holds, or will hold, the replaced database
	Size      int64             `json:"size" yaml:"size"`       // of the replaced database, in bytes
	KeptSpace Space             `json:"backups" yaml:"backups"` // all that is kept; once Done with the one that this import replaced
	Daemon    string            `json:"daemon" yaml:"daemon"`

	// Already is true when this member had exactly this database before: nothing was done.
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
	return &ImportReport{Tarball: tarball, Members: []MemberChange{}, Settings: []Change{}, Discarded: []Discarded{}, Unchecked: []string{}, Warnings: []string{}}
}

// MemberChange is a member before and after.
type MemberChange struct {
	ID         uint64 `json:"id" yaml:"id"`
	Name       string `json:"name" yaml:"name"`
	OldAddress string `json:"old_address" yaml:"old_address"` // empty: not in this member's list
	NewAddress string `json:"new_address" yaml:"new_address"`
	OldRole    string `json:"old_role" yaml:"old_role"`
	NewRole    string `json:"new_role" yaml:"new_role"`
}

// Change is a setting before and after.
type Change struct {
	Key string `json:"key" yaml:"key"`
	Old string `json:"old" yaml:"old"`
	New string `json:"new" yaml:"new"`
}

// Import replaces this member's database by the one in a tarball, all or nothing, and keeps the replaced one. The steps are
// those of design.md, 5. When an error is returned the old database is in place, unless the report says Done.
func Import(ctx context.Context, opts ImportOptions) (*ImportReport, error) {
	dir, unlock, err := openToChange(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	im := &importer{dir: dir, opts: opts, report: newImportReport(opts.Tarball), reporter: newReporter(dir, purposeImport, opts.Version)}
	err = im.finishInterrupted()
	if err != nil {
		return nil, err
	}

	err = swapdir.Check(dir.path, databaseName)
	if err != nil {
		return nil, err
	}

	defer func() {
		if !im.report.Done {
			dir.unstage()
		}
	}()

	err = im.prepare(ctx)
	if err != nil {
		return nil, err
	}

	if im.report.NothingToDo {
		return im.report, im.resume(ctx)
	}

	err = im.checkLoss()
	if opts.DryRun || err != nil {
		return im.report, err
	}

	if opts.Confirm != nil {
		err = opts.Confirm(im.report)
		if err != nil {
			return nil, err
		}
	}

	return im.report, im.swap(ctx)
}

// resume starts an LXD that an earlier run of this import had stopped, and that was killed before it could start it again.
func (im *importer) resume(ctx context.Context) error {
	if im.opts.DryRun {
		return nil
	}

	cycle := &daemonCycle{dir: im.dir, noStart: im.opts.NoStart, timeout: im.opts.Timeout, progress: im.opts.Progress}
	result, err := cycle.resume(ctx, im.tarball.Members)
	im.report.Started, im.report.Ready = result.started, result.ready
	im.report.Warnings = append(im.report.Warnings, result.warnings...)
	return err
}

// importer is one import under way.
type importer struct {
	dir    directory
	opts   ImportOptions
	report *ImportReport

	reporter *reporter

	tarball *bundle.Extracted
	nodes   []globaldb.Node // table nodes of the tarball's database
	former  map[string]bool // addresses that this member is known to have had

	live       bool   // LXD runs while the local log is read: what is damaged may only be torn
	compared   string // signature of the local raft directory when it was compared
	branching  *branching
	log        *raftlog.Log // the staged one
	others     otherFiles
	fencedHere bool // a tarball of LXD's own, fenced in the staging directory

	// aboveFence says why another member could outvote the tarball's log; empty where none can.
	aboveFence string

	// unknownLoss says why it cannot be told what would be lost; empty where it can.
	unknownLoss string
}

// checkLoss refuses an import that would lose what only this member has (guarantee G4).
func (im *importer) checkLoss() error {
	switch {
	case im.opts.DiscardLocal:
		im.warn(im.aboveFence)
		if im.unknownLoss != "" {
			im.warn("what is lost with this member's own database cannot be told: " + im.unknownLoss)
		}
	case im.aboveFence != "":
		return &Refusal{Reason: im.aboveFence, Flag: "--discard-local-entries"}
	case len(im.report.Discarded) > 0:
		return &Refusal{Reason: fmt.Sprintf("the tarball lacks what %s has and would be lost, %d transactions:%s", im.report.Member.Name, len(im.report.Discarded), listDiscarded(im.report.Discarded)), Flag: "--discard-local-entries"}
	case im.unknownLoss != "" && im.live:
		// It is compared again once LXD is down.
		im.warn("what only this member has cannot be told while LXD runs: " + im.unknownLoss)
	case im.unknownLoss != "":
		return &Refusal{Reason: "what would be lost with this member's own database cannot be told: " + im.unknownLoss, Flag: "--discard-local-entries"}
	}

	return nil
}

// warn says something once: local logs are compared again when LXD is down.
func (im *importer) warn(text string) {
	if text != "" && !slices.Contains(im.report.Warnings, text) {
		im.report.Warnings = append(im.report.Warnings, text)
	}
}

// settle finishes what an interrupted run left. In a dry run it only says that there is something to finish.
func (im *importer) finishInterrupted() error {
	plan, err := swapdir.ReadPlan(im.dir.path)
	if err != nil {
		return err
	}

	if plan != nil && im.opts.DryRun {
		return fmt.Errorf("an interrupted %s is to be finished first: run it again, or any import without --dry-run, or `lxd-recover resume`", plan.Purpose)
	}

	finished, err := im.dir.finishInterrupted()
	if finished != "" {
		im.report.Warnings = append(im.report.Warnings, finished)
	}

	return err
}

// swap stops LXD, completes the staging directory, exchanges it with the live one, and starts LXD again.
func (im *importer) swap(ctx context.Context) error {
	status, err := daemon.Inspect(ctx, im.dir.path)
	if err != nil {
		return err
	}

	im.others, err = copyOtherFiles(im.dir.database(), im.dir.join(stagingName), nil)
	if err != nil {
		return err
	}

	cycle := &daemonCycle{purpose: purposeImport, dir: im.dir, status: status, noStart: im.opts.NoStart, timeout: im.opts.Timeout, progress: im.opts.Progress}
	err = cycle.stop(ctx)
	if err != nil {
		return err
	}

	// From here on LXD is down: nothing below may take the longer the larger the database is. LXD may have run, and written,
	// since its log was compared: also if it was down then, and is down now.
	began := time.Now()
	if signature(im.dir.global()) != im.compared {
		err = im.compareAgain(ctx)
	}

	if err == nil {
		err = im.putInPlace(ctx)
	}

	if err != nil && !im.report.Done {
		return errors.Join(err, cycle.startAfterFailure(ctx))
	}

	if err != nil {
		err = fmt.Errorf("the new database is in place, but not all is done: %w; run the command again", err)
		return errors.Join(err, cycle.startAfterFailure(ctx))
	}

	im.report.DownSeconds = time.Since(began).Seconds()
	im.opts.Progress.step("The new database is in place; the old one is kept in " + im.report.Kept)
	result, err := cycle.start(ctx, im.tarball.Members)
	im.report.Started, im.report.Ready, im.report.KeptSpace = result.started, result.ready, im.dir.space()
	im.report.Warnings = append(im.report.Warnings, result.warnings...)
	im.report.Warnings = append(im.report.Warnings, im.reporter.finish(im.report, err)...)
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

func (im *importer) putInPlace(ctx context.Context) error {
	unlock, err := lockDqlite(im.dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	staged, err := im.replacement(ctx)
	if err != nil {
		return err
	}

	im.report.Kept, im.report.Done, err = staged.takePlace(ctx)
	return err
}

// replacement is what the import puts beside the tarball's raft directory.
func (im *importer) replacement(ctx context.Context) (*replacement, error) {
	node, err := im.node(ctx)
	if err != nil {
		return nil, err
	}

	tarball, err := filepath.Abs(im.opts.Tarball)
	if err != nil {
		return nil, err
	}

	return &replacement{
		dir: im.dir, update: im.update(node), patch: im.report.Patch, others: im.others,
		record: Record{
			Purpose: purposeImport, Version: im.opts.Version, Tarball: tarball, Digest: im.tarball.Digest, Source: im.report.Source,
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

// exchange carries out a plan, unless a daemon was started behind our back in the very last moment: it has the replaced
// database open and would go on writing there, so the directories are then exchanged back. done tells which of the two is in
// place afterwards.
func exchange(dir directory, plan swapdir.Plan) (done bool, err error) {
	done, err = swapdir.Run(dir.path, plan)
	if err != nil {
		return done, err
	}

	holders, err := daemon.Holders(dir.join(plan.Keep))
	if err != nil || len(holders) == 0 {
		return true, err
	}

	undone, err := swapdir.Run(dir.path, swapdir.Plan{Purpose: purposeUndo, Live: plan.Live, Staged: plan.Keep, Keep: plan.Staged})
	if err != nil && !undone {
		return true, fmt.Errorf("%s was started during the exchange, on the replaced database, and the exchange cannot be undone: stop it at once: %w", holders[0], err)
	}

	return false, errors.Join(fmt.Errorf("%w: %s was started during the exchange, which was undone: stop it and run the command again", daemon.ErrStillRunning, holders[0]), err)
}

// node reads the node database as it is now. That no row of it is this member's own is no error here: LXD's own loader leaves
// it so when it is killed half way, and so does a heartbeat from a member that was not edited. Self is empty then, and
// checkDatabase recognises the member by its certificate.
func (im *importer) node(ctx context.Context) (*nodedb.Node, error) {
	node, err := nodedb.Read(ctx, im.dir.database())
	if errors.Is(err, nodedb.ErrNotClustered) && len(node.Members) > 0 {
		return node, nil
	}

	return node, err
}

// freeName returns a name in LXD's directory that nothing has yet, no report either: the given one, or that with a number.
func (d directory) freeName(name string) (string, error) {
	for i := 1; ; i++ {
		candidate := name
		if i > 1 {
			candidate = fmt.Sprintf("%s-%d", name, i)
		}

		_, err := os.Lstat(d.join(candidate))
		if errors.Is(err, os.ErrNotExist) && !exists(d.join(candidate+reportSuffix)) {
			return candidate, nil
		}

		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
}
