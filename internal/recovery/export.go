// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// ExportOptions say what to export and where to.
type ExportOptions struct {
	LXDDir   string
	Output   string    // a file; empty with Stdout
	Stdout   io.Writer // in place of a file
	Version  string    // of lxd-recover, for the manifest
	Force    bool      // replace an existing file
	Unedited bool      // go on although `lxd cluster edit` was not run

	// At leaves out the entries after this index; 0: none. Those that change rows must be confirmed.
	At      uint64
	Confirm func(*ExportReport) error

	// Source is the name of a kept database, or the path of a backup, a tarball or a directory, that is exported in place of the live one: with the
	// member list in force, or, with OldMembers, its own. Certificate is the file of the cluster's certificate of that time, if it was another one;
	// UnsignedSource takes a tarball that is not signed.
	Source         string
	OldMembers     bool
	Certificate    string
	UnsignedSource bool

	// AcceptDamage goes on with what is sound of a damaged database. Announce is told before what is given up with the rest.
	AcceptDamage bool
	Announce     func(*ExportReport)

	// Reading is the digest of the reading to take, where the files can be read as several logs.
	Reading string

	// UnknownMembers goes on although the database does not know a member.
	UnknownMembers bool

	// NoVerify skips the check that libdqlite gets the same rows out of what is exported.
	NoVerify bool

	// Unsigned goes on although the cluster's key, which the tarball is signed with, is not there or does not fit.
	Unsigned bool

	// Survivors are JSON reports of global-db-inspect from other members: the fence goes above their terms, too, and is one that reaches
	// their snapshots.
	Survivors []string

	// SnapshotFence has the tarball fenced by a snapshot where an entry would do.
	SnapshotFence bool

	// TermAbove is a term that the fence must lie above; 0: none. With it the clock of this machine is not asked.
	TermAbove uint64

	Progress Progress

	part *Part // of a run over the whole cluster that this export belongs to
}

// ExportReport is what an export did.
type ExportReport struct {
	File     string            `json:"file" yaml:"file"`
	Size     int64             `json:"size" yaml:"size"` // of the tarball, bytes
	Files    int               `json:"files" yaml:"files"`
	StateDir string            `json:"state_dir,omitempty" yaml:"state_dir,omitempty"` // of a microcluster application; empty for LXD
	Kept     string            `json:"kept" yaml:"kept"`                               // name of the kept database that was exported; empty for the live one
	Source   member.Member     `json:"source" yaml:"source"`
	Cluster  string            `json:"cluster_certificate" yaml:"cluster_certificate"`
	Last     bundle.Position   `json:"last" yaml:"last"`     // last entry of the member's log
	Before   bundle.Position   `json:"before" yaml:"before"` // last entry that was taken from it
	Raft     bundle.Position   `json:"raft" yaml:"raft"`     // last entry of the tarball: the fenced recovery entry
	Signed   bool              `json:"signed" yaml:"signed"` // with the cluster's key
	Edited   bool              `json:"edited" yaml:"edited"`
	Members  member.List       `json:"members" yaml:"members"`
	Database *globaldb.Summary `json:"database" yaml:"database"`

	// GivenUp are transactions that were left out: because of ExportOptions.At, or because damage is before them. Untold is what could
	// not be read.
	GivenUp []Discarded `json:"given_up" yaml:"given_up"`
	Untold  []string    `json:"untold" yaml:"untold"`

	// SnapshotFence says why the tarball is fenced by a snapshot, without any entries; empty where its last entry is the fence.
	SnapshotFence string `json:"snapshot_fence" yaml:"snapshot_fence"`

	Warnings []string `json:"warnings" yaml:"warnings"`

	// LXD is the one that is installed here. Findings are what it needs to start on the tarball's database, and lacks, or may lack.
	LXD      preflight.LXD       `json:"lxd" yaml:"lxd"`
	Findings []preflight.Finding `json:"findings" yaml:"findings"`

	rows globaldb.Fingerprint // what libdqlite serves of the tarball; nil with ExportOptions.NoVerify
}

// Export writes the recovery tarball of this member. It changes nothing in LXD's directory but the high-water file.
func Export(ctx context.Context, opts ExportOptions) (*ExportReport, error) {
	ex := &exporter{opts: opts}
	unlock, err := ex.open(ctx)
	if err != nil {
		return nil, err
	}

	defer unlock()

	done, err := ex.prepare(ctx)
	if err != nil {
		return nil, err
	}

	defer done()

	err = ex.examine(ctx)
	if err != nil {
		return nil, ex.check.orDamage(err)
	}

	err = ex.fence(ctx)
	if err != nil {
		return nil, ex.check.orDamage(err)
	}

	if !opts.NoVerify {
		ex.served = serve(ctx, ex.pieces, ex.report.Raft)
		defer ex.served.end()
	}

	err = ex.readRest()
	if err != nil {
		return nil, err
	}

	err = ex.giveUp(ctx)
	if err != nil {
		return nil, err
	}

	return ex.write(ctx)
}

// exporter is one export under way. examine and fence need an outline of the log only, so that libdqlite can begin with what
// comes out (see exportCheck); readRest reads the rest, giveUp has confirmed what is left out, and write packs the tarball while
// libdqlite and SQLite verify it.
type exporter struct {
	dir    directory
	opts   ExportOptions
	report *ExportReport

	flat       bool                  // raft's files are in database/ itself, as microcluster has them
	source     string                // what is exported, as a name; empty for the live one
	opened     *Source               // what is exported if that is no kept database
	live       *raftlog.Log          // the live database's, with source; nil where that cannot be read
	liveUnread string                // why it cannot
	servers    raftlog.Configuration // of the tarball, with source

	check    *exportCheck
	log      *raftlog.Log
	manifest *bundle.Manifest
	key      crypto.Signer    // the cluster's; nil where the tarball cannot be signed
	pieces   []bundle.Piece   // the files of the tarball
	rows     []preflight.Node // table nodes as it is when what is pending has run
	scratch  string           // a directory for files that are made for it
	served   *serving         // nil with NoVerify
}

// prepare makes what the examination needs. The returned function ends it.
func (ex *exporter) prepare(ctx context.Context) (func(), error) {
	dir, remove, err := scratch.Dir("export")
	if err != nil {
		return nil, err
	}

	ex.scratch, ex.check = dir, newExportCheck(ctx, ex.global(), ex.opts)
	return func() { ex.check.end(); remove() }, nil
}

// open locks LXD's directory, and makes sure that nobody writes to the database. The returned function unlocks it.
func (ex *exporter) open(ctx context.Context) (func(), error) {
	var err error
	ex.dir, err = openDirectory(ex.opts.LXDDir)
	if err != nil {
		return nil, err
	}

	err = ex.dir.clusterOnly(ctx)
	if err == nil {
		err = ex.chooseSource(ctx)
	}

	if err != nil {
		return nil, err
	}

	unlock, err := ex.lock(ctx)
	if err != nil {
		ex.closeSource()
		return nil, err
	}

	return func() { unlock(); ex.closeSource() }, nil
}

// lock keeps others away from LXD's directory, and from the file that is written, until the returned function is called.
func (ex *exporter) lock(ctx context.Context) (func(), error) {
	var err error

	err = ex.dir.checkOutput(ex.opts.Output, ex.opts.Stdout, ex.opts.Force)
	if err != nil {
		return nil, err
	}

	unlock := func() {} // the run over the whole cluster has it locked, its own copy as well
	if ex.opts.part == nil {
		unlock, err = ex.dir.lock(unix.LOCK_SH)
	}

	if err != nil {
		return nil, err
	}

	unlockDqlite, err := ex.lockDatabase(ctx)
	if err != nil {
		unlock()
		return nil, err
	}

	return func() { unlockDqlite(); unlock() }, nil
}

func (ex *exporter) lockDatabase(ctx context.Context) (func(), error) {
	status, err := daemon.Inspect(ctx, ex.dir.path)
	if err != nil {
		return nil, err
	}

	if status.Running() {
		return nil, product.Errorf("LXD is %s: its database changes while it is read. Stop LXD on all members first%s", status, here(status.StopByHand()))
	}

	return lockDqlite(ex.dir.global())
}

// examine checks that this member's database may be exported, as far as an outline of its log tells, and describes it.
func (ex *exporter) examine(ctx context.Context) error {
	certificate, err := ex.dir.clusterCertificate()
	if err != nil {
		return err
	}

	ex.log, err = ex.check.outline()
	if err == nil {
		_, liveErr := ex.readLive(ctx, false)
		err = errors.Join(ex.emptySource(ctx), liveErr)
	}

	if err != nil {
		return err
	}

	node, err := ex.whose(ctx)
	if err != nil {
		return err
	}

	members, err := ex.memberList(ctx, node)
	if err != nil {
		return err
	}

	last, err := lastPosition(ctx, ex.log, ex.opts.At)
	if err != nil {
		return err
	}

	end := bundle.Position{Index: ex.log.LastIndex, Term: ex.log.LastTerm}
	ex.manifest = &bundle.Manifest{
		Version: ex.opts.Version,
		Created: time.Now().UTC().Truncate(time.Second),
		Run:     ex.runID(),
		Source:  bundle.Source{ID: node.Self.ID, Name: node.Self.Name, Address: node.Self.Address},
		Cluster: bundle.Cluster{Certificate: certificate, Product: ex.dir.productName()},
		Raft:    bundle.Raft{Before: last}, // After is set when the fence is known
		Members: members,
	}
	if last.Index < end.Index {
		ex.manifest.Raft.Last = end
	}

	snapshot, err := globaldb.Base(ctx, ex.log, last.Index)
	if err != nil {
		return err
	}

	if snapshot != nil {
		ex.manifest.Raft.Snapshot = bundle.Position{Index: snapshot.Index, Term: snapshot.Term}
	}

	ex.report = &ExportReport{
		File: ex.opts.Output, Kept: ex.source, Cluster: certificate, Last: end, Before: last, Edited: ex.log.Edited, Members: members,
		GivenUp: []Discarded{}, Untold: []string{}, Warnings: []string{}, Findings: []preflight.Finding{},
	}
	ex.report.Source, _ = members.ByID(node.Self.ID)
	err = ex.notePatch()
	if err == nil {
		err = ex.noteOwnEdit()
	}

	if err != nil {
		return err
	}

	return ex.readKey()
}

// runID is the id of the run that the tarball begins, or belongs to.
func (ex *exporter) runID() string {
	if ex.opts.part != nil {
		return ex.opts.part.run.Run
	}

	return bundle.NewRun()
}

// memberList is the list that the tarball gets. It must have been edited, be able to work, and be the one in the raft log.
func (ex *exporter) memberList(ctx context.Context, node *nodedb.Node) (member.List, error) {
	if ex.source != "" {
		return ex.sourceMembers(ctx, node)
	}

	if !ex.log.Edited && !ex.opts.Unedited {
		return nil, &Refusal{
			Code: "unedited",
			Reason: product.Sprintf("the member list was not edited on %s since LXD last ran there: the tarball would carry the old one. "+
				"Run `lxd-recover cluster edit` here first", node.Self.Name),
			Flag: "--unedited",
		}
	}

	members := node.Members
	if !ex.log.Edited {
		// The table raft_nodes is a copy that lags behind until the next heartbeat; the log decides.
		members = namedServers(ex.log.Configuration, node.Members)
	}

	err := members.Validate()
	if err != nil {
		return nil, fmt.Errorf("the member list of %s cannot work: %w: run `lxd-recover cluster edit` again", node.Self.Name, err)
	}

	if !members.SameServers(ex.log.Configuration) {
		return nil, fmt.Errorf("the member lists in %s and in the raft log differ: an edit was cut short. Run `lxd-recover cluster edit` again",
			filepath.Join(ex.dir.database(), nodedb.File))
	}

	return members, nil
}

// fence lists the files of the tarball, the last one of which is the fence: the recovery entry with a term of its own, or a snapshot.
func (ex *exporter) fence(ctx context.Context) error {
	term, reports, err := ex.fenceTerm(ctx)
	if err != nil {
		return err
	}

	last := ex.report.Before.Index
	entry, err := recoveryEntry(ctx, ex.log, last)
	if err != nil {
		return err
	}

	ex.report.SnapshotFence = ex.snapshotReason(bundle.Position{Index: entry.Index, Term: term}, reports)
	if ex.report.SnapshotFence != "" {
		place := ex.sourcePlace(snapshotPlace{term: term, above: highestIndex(reports), made: time.Now()})
		ex.pieces, ex.report.Raft, err = snapshotFence(ctx, ex.log, last, place, ex.scratch)
	} else {
		ex.pieces, ex.report.Raft, err = fenced(ctx, ex.log, last, os.DirFS(ex.global()), term)
	}

	ex.manifest.Raft.After = ex.report.Raft
	return err
}

// fenceTerm is the fence's term: above every term that is known on this member, and that the survivors' reports have.
func (ex *exporter) fenceTerm(ctx context.Context) (uint64, []survivorReport, error) {
	err := checkTermAbove(ex.opts.TermAbove, ex.log.EntryTerm)
	if err != nil {
		return 0, nil, err
	}

	reports, err := readSurvivors(ex.opts.Survivors, ex.log.EntryTerm)
	if err != nil {
		return 0, nil, err
	}

	newest, err := ex.dir.newestTime()
	if err != nil {
		return 0, nil, err
	}

	err = ex.checkClock(newest)
	if err != nil {
		return 0, nil, err
	}

	live := ex.log
	if ex.source != "" {
		live = ex.live
	}

	highest, err := ex.dir.seenHere(ctx, live)
	if err != nil {
		return 0, nil, err
	}

	_, doubt := seenTerm(ex.log)
	if doubt != "" {
		ex.report.Warnings = append(ex.report.Warnings, doubt)
	}

	for _, r := range reports {
		highest = max(highest, r.highestTerm())
	}

	return fenceTerm(highest, ex.opts.TermAbove, time.Now(), randomSpread()), reports, nil
}

// checkClock refuses to number a fence by a clock that is behind, unless the administrator says what it must lie above.
func (ex *exporter) checkClock(newest written) error {
	if ex.opts.TermAbove > 0 {
		return nil
	}

	return checkClock(time.Now(), newest)
}

// readRest reads what the outline has left.
func (ex *exporter) readRest() error {
	var err error
	ex.log, err = ex.check.rest()
	if err != nil {
		return err
	}

	takeSum(ex.pieces, ex.log.Snapshot())
	return nil
}

// write packs the tarball while what is packed is verified, and returns the report. Nothing gets the tarball's name, or goes to
// standard output, before that has succeeded.
func (ex *exporter) write(ctx context.Context) (*ExportReport, error) {
	if ex.served != nil {
		ex.opts.Progress.step("Opening a scratch copy with libdqlite")
	}

	database := replayed{log: ex.log, upTo: ex.report.Before.Index, what: "the global database in " + ex.global(), look: ex.lookAtNeeds}
	verified := startVerification(ctx, database, ex.served)
	err := ex.pack(ctx, verified)
	verifyErr := verified.end()
	if verifyErr != nil {
		return nil, verifyErr
	}

	if err != nil {
		return nil, err
	}

	ex.report.Database, ex.report.rows = verified.summary, verified.rows
	ex.report.Warnings = append(ex.report.Warnings, warningsOf(ex.report.Findings)...)
	return ex.report, nil
}

// approve is asked when the tarball is packed, and before anybody gets it: it must be verified, and its term is noted first.
func (ex *exporter) approve(ctx context.Context, verified *verification) error {
	err := verified.wait()
	if err != nil {
		return err
	}

	err = ex.checkClock(heartbeat(verified.summary.Heartbeat))
	if err != nil {
		return err
	}

	return ex.dir.noteTerms(ctx, ex.report.Raft.Term)
}

func (ex *exporter) pack(ctx context.Context, verified *verification) error {
	pack := func(w io.Writer) error {
		counted := &countingWriter{w: w}
		done := ex.opts.Progress.start("Writing "+ex.report.name(), bundle.Size(ex.pieces))
		defer done()

		err := bundle.Write(verified.ctx, counted, bundle.Content{Manifest: ex.manifest, Pieces: ex.pieces, Key: ex.key, Progress: ex.opts.Progress.add})
		ex.report.Size, ex.report.Files = counted.n, len(ex.manifest.Files)
		return err
	}

	return writeTo(ex.opts.Output, ex.opts.Stdout, ex.opts.Force, pack, func() error { return ex.approve(ctx, verified) })
}

func (r *ExportReport) name() string {
	if r.File == "" {
		return "standard output"
	}

	return r.File
}
