// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// ReconfigureCommand is the hidden command whose child process has libdqlite append a configuration entry.
const ReconfigureCommand = "reconfigure"

// EditOptions say what becomes of the member list, and how far to go.
type EditOptions struct {
	LXDDir  string
	Version string // of lxd-recover, for the record

	// Alone makes this member the only one of its cluster; Ask is not called then.
	Alone bool

	// AcceptDamage goes on with what is sound of a damaged database.
	AcceptDamage bool

	// Reading is the digest of the reading to take, where the files can be read as several logs.
	Reading string

	// BesideCluster goes on although a daemon of another member answers.
	BesideCluster bool

	// TermAbove is a term that the fence must lie above; 0: none. With it the clock of this machine is not asked.
	TermAbove uint64

	// AddressAbsent goes on although this machine does not have the new address of this member.
	AddressAbsent bool

	// Lost are the names of members that are lost: LXD is not to wait for them.
	Lost []string

	// AnyRole takes roles that make no sense as a rule: this member a spare, or a voter that may have no database.
	AnyRole bool

	// UnknownMembers goes on although the global database does not know a member.
	UnknownMembers bool

	// DropPatch leaves out what is pending in patch.global.sql.
	DropPatch bool

	// Timeout bounds how long what would start LXD on demand may take to stop.
	Timeout time.Duration

	// Ask is shown the member list, and where the log ends, and returns a new list, which check has accepted.
	Ask func(ctx context.Context, current member.List, last bundle.Position, check func(member.List) error) (member.List, error)

	// Confirm is shown what is about to happen before anything is changed; an error from it ends the edit.
	Confirm func(*EditReport) error

	// Own, where it is set, runs LXD's own command in place of ours, after the same checks and a copy of the database.
	Own func(context.Context) error

	Progress Progress
}

// EditReport is what an edit will do, or did.
type EditReport struct {
	Member   member.Member     `json:"member" yaml:"member"` // this one, with its new address and role
	Members  []MemberChange    `json:"members" yaml:"members"`
	Others   []Other           `json:"others" yaml:"others"` // what was found of the other members' machines
	Before   bundle.Position   `json:"before" yaml:"before"` // last entry of the log
	Raft     bundle.Position   `json:"raft" yaml:"raft"`     // the fenced recovery entry; zero until Done
	Database *globaldb.Summary `json:"database" yaml:"database"`
	Settings []Change          `json:"settings" yaml:"settings"`           // of the node database
	Patch    SQL               `json:"patch" yaml:"patch"`                 // content of patch.global.sql, empty where none is needed
	Carried  SQL               `json:"carried_patch" yaml:"carried_patch"` // what of it was there before
	Damage   []string          `json:"damage" yaml:"damage"`               // accepted
	GivenUp  []Discarded       `json:"given_up" yaml:"given_up"`           // transactions that damage is before
	Untold   []string          `json:"untold" yaml:"untold"`               // what cannot be read
	Warnings []string          `json:"warnings" yaml:"warnings"`

	// LXD is the one that is installed here. Findings are what it needs to start on the edited database, and lacks, or may lack.
	LXD      preflight.LXD       `json:"lxd" yaml:"lxd"`
	Findings []preflight.Finding `json:"findings" yaml:"findings"`

	Kept    string `json:"kept" yaml:"kept"` // directory that holds the database as it was
	Tarball string `json:"tarball,omitempty" yaml:"tarball,omitempty"`
	Daemon  string `json:"daemon" yaml:"daemon"`

	// NothingToDo is true when an edit had given this member exactly this list before: nothing was done.
	NothingToDo bool `json:"already" yaml:"already"`

	// Done is true once the edited database is in place.
	Done bool `json:"done" yaml:"done"`
}

// Other is what was found at the address of another member.
type Other struct {
	Name    string `json:"name" yaml:"name"`
	Address string `json:"address" yaml:"address"`
	Found   string `json:"found" yaml:"found"`
}

// Edit gives this member's database another member list, all or nothing: a copy of the database is edited by libdqlite in a
// child process, fenced, and exchanged with the live one, which is kept. With Alone this member is all that is left of its
// cluster. When an error is returned the old database is in place, unless the report says Done.
func Edit(ctx context.Context, opts EditOptions) (*EditReport, error) {
	run, end, err := beginRun(opts.LXDDir, runOptions{purpose: purposeEdit, version: opts.Version, timeout: opts.Timeout, progress: opts.Progress})
	if err != nil {
		return nil, err
	}

	defer end()

	ed := &editor{run: run, opts: opts, report: newEditReport()}
	ed.tellFinished(ed.report)
	err = ed.examine(ctx)
	if err != nil {
		return nil, err
	}

	if opts.Own != nil {
		err = ed.handOver(ctx)
		if ed.report.Kept != "" {
			ed.keepReport(ed.report, err)
		}

		return ed.report, err
	}

	err = ed.choose(ctx)
	if err != nil {
		return nil, err
	}

	if ed.report.NothingToDo {
		return ed.report, ed.resume(ctx, ed.members, ed.report)
	}

	if opts.Confirm != nil {
		err = opts.Confirm(ed.report)
		if err != nil {
			return nil, err
		}
	}

	defer ed.unstageUnless(&ed.report.Done)

	err = ed.stage(ctx)
	if err != nil {
		return nil, cmp.Or(ed.checkUntouched(ctx), err)
	}

	return ed.report, ed.replace(ctx)
}

// editor is one edit under way: examine and choose look and ask, stage makes the edited database beside the live one, replace
// exchanges the two.
type editor struct {
	*run
	opts   EditOptions
	report *EditReport

	node    *nodedb.Node
	log     *raftlog.Log
	read    string           // signature of the raft directory when the log was read
	nodes   []globaldb.Node  // table nodes of the global database
	needs   *needs           // of the global database
	pending pendingPatch     // what was in patch.global.sql before
	rows    []preflight.Node // table nodes as it is when that has run
	lost    map[uint64]bool  // members that are lost, by id
	had     map[uint64]bool  // members that have had a database, by id
	members member.List      // the new list
	last    uint64           // index of the last entry that is kept
	seen    uint64           // highest raft term that is known on this member
	status  *daemon.Status   // of LXD, right before it is stopped
}

// newEditReport returns a report whose lists are empty, not missing, in JSON.
func newEditReport() *EditReport {
	return &EditReport{
		Members: []MemberChange{}, Others: []Other{}, Settings: []Change{}, Damage: []string{}, GivenUp: []Discarded{}, Untold: []string{},
		Warnings: []string{}, Findings: []preflight.Finding{},
	}
}

func (r *EditReport) warn(texts ...string) { r.Warnings = append(r.Warnings, texts...) }

func (r *EditReport) daemonIs(result startResult) { r.warn(result.warnings...) }

// examine makes every check that needs nobody's answer.
func (ed *editor) examine(ctx context.Context) error {
	err := ed.dir.clusterOnly(ctx)
	if err != nil {
		return err
	}

	err = ed.checkDown(ctx)
	if err != nil {
		return err
	}

	_, err = ed.dir.clusterCertificate()
	if err != nil {
		return err
	}

	ed.node, err = nodedb.Read(ctx, ed.dir.database())
	if err != nil {
		return err
	}

	ed.report.Member = ed.node.Self
	err = ed.checkOthers(ctx)
	if err != nil {
		return err
	}

	ed.read = signature(ed.dir.global())
	ed.log, err = readLog(ctx, ed.dir.global(), ed.opts.Progress)
	if err != nil {
		return err
	}

	err = ed.checkDamage(ctx)
	if err != nil {
		return err
	}

	what := "the global database in " + ed.dir.global()
	ed.opts.Progress.step("Replaying the raft log")
	db, err := globaldb.Open(ctx, ed.log, ed.last)
	if err != nil {
		return replayError(what, err)
	}

	defer db.Close()

	ed.report.Database, err = sound(ctx, db, what)
	if err != nil {
		return err
	}

	err = ed.examineMembers(ctx, db, what)
	if err != nil {
		return err
	}

	return ed.examineTerms(ctx)
}

// examineTerms finds out what the fence must lie above, and whether the clock can number it.
func (ed *editor) examineTerms(ctx context.Context) error {
	err := checkTermAbove(ed.opts.TermAbove, ed.log.EntryTerm)
	if err != nil {
		return err
	}

	newest, err := ed.dir.newestTime()
	if err == nil && ed.opts.TermAbove == 0 {
		err = checkClock(time.Now(), newest.orNewer(heartbeat(ed.report.Database.Heartbeat)))
	}

	if err != nil {
		return err
	}

	_, doubt := seenTerm(ed.log)
	if doubt != "" {
		ed.report.warn(doubt)
	}

	ed.seen, err = ed.dir.seenHere(ctx, ed.log)
	return err
}

// fenceTerm is the term of a fence above all that is known, and above that of what is staged.
func (ed *editor) fenceTerm(staged uint64) uint64 {
	return fenceTerm(max(ed.seen, staged), ed.opts.TermAbove, time.Now(), randomSpread())
}

// shortCommand is how long a process that has the database open, and is no daemon, may take to end.
const shortCommand = 2 * time.Second

// checkDown refuses beside a running daemon, as LXD's own command does.
func (ed *editor) checkDown(ctx context.Context) error {
	status, err := daemon.Inspect(ctx, ed.dir.path)
	if err != nil {
		return err
	}

	// A command like `lxd cluster show`, whose output we were given, may not have ended quite yet.
	if status.Running() && !status.Answers && status.Activity != daemon.Up {
		wait, cancel := context.WithTimeout(ctx, shortCommand)
		defer cancel()

		err = daemon.WaitGone(wait, ed.dir.path)
		if err == nil {
			status, err = daemon.Inspect(ctx, ed.dir.path)
		}

		if err != nil && !errors.Is(err, daemon.ErrStillRunning) {
			return err
		}
	}

	ed.report.Daemon = status.String()
	if !status.Up() {
		return nil
	}

	how := "stop it first"
	if status.Service != nil {
		how += " (" + status.Service.Name() + ")"
	}

	return product.Errorf("LXD is %s: %s, here and on all other members", status, how)
}

// checkOthers refuses while the daemon of another member answers: what it commits from now on would be lost.
func (ed *editor) checkOthers(ctx context.Context) error {
	var others member.List
	for _, m := range ed.node.Members {
		if m.ID != ed.node.Self.ID {
			others = append(others, m)
		}
	}

	ed.opts.Progress.step("Looking for the other members' daemons")
	found, err := daemon.Reachable(ctx, ed.dir.path, addressesBut(ed.node.Self.ID, ed.node.Members))
	if err != nil {
		return err
	}

	for i, m := range others {
		ed.report.Others = append(ed.report.Others, Other{Name: m.Name, Address: m.Address, Found: product.Text(reachText[found[i]])})
		if ed.opts.BesideCluster {
			continue
		}

		if found[i] == daemon.Mute {
			return mutePeer(m)
		}

		if found[i] != daemon.Answers {
			continue
		}

		reason := product.Sprintf("LXD still runs on %s (%s): what it writes from now on would be lost. Stop LXD on all members first", m.Name, m.Address)
		if ed.opts.Alone {
			reason = product.Sprintf("LXD runs on %s (%s), which has survived, too: "+
				"`lxd-recover cluster edit` recovers with all survivors, and `lxd cluster export-db` and `lxd global-db-import` take them along. "+
				"If %s is to be left behind, stop LXD there first", m.Name, m.Address, m.Name)
		}

		return &Refusal{Code: "working-cluster", Reason: reason, Flag: "--beside-cluster"}
	}

	return nil
}

var reachText = map[daemon.Reach]string{
	daemon.Silent:  "does not answer",
	daemon.Refused: "the machine is up, LXD is not",
	daemon.Foreign: "something else than this cluster's LXD answers",
	daemon.Mute:    muteText,
	daemon.Answers: "LXD answers",
}

// checkDamage refuses what libdqlite would silently cut away.
func (ed *editor) checkDamage(ctx context.Context) error {
	err := readAs("the global database in "+ed.dir.global(), ed.log, ed.opts.Reading)
	if err != nil {
		return err
	}

	if !ed.log.Healthy() && !ed.opts.AcceptDamage {
		return &DamageError{What: "the global database in " + ed.dir.global(), Problems: ed.log.Problems,
			Advice: product.Sprintf("LXD's own edit would go on and lose this without a word. Edit another member, whose database is sound. "+
				"If there is none: --accept-damage goes on with what is sound, which is all up to index %d.", ed.log.SoundIndex)}
	}

	for _, p := range ed.log.Problems {
		if p.Severity == raftlog.Error {
			ed.report.Damage = append(ed.report.Damage, p.String())
		}
	}

	last, err := soundPosition(ed.log)
	ed.report.Before, ed.last = last, last.Index
	if err == nil {
		var givenUp []Discarded
		givenUp, ed.report.Untold, err = leftOut(ctx, ed.log)
		ed.report.GivenUp = append(ed.report.GivenUp, givenUp...)
	}

	return err
}

// stage makes the staging directory with the edited and fenced raft directory in it.
func (ed *editor) stage(ctx context.Context) error {
	staging, err := ed.dir.makeStaging(ctx)
	if err != nil {
		return err
	}

	global := filepath.Join(staging, globalName)
	err = ed.copyLog(ctx, global)
	if err != nil {
		return err
	}

	err = ed.reconfigure(ctx, global)
	if err != nil {
		return err
	}

	log, err := fenceStaged(ctx, ed.dir, ed.opts.Progress, func(log *raftlog.Log) (uint64, uint64) {
		staged, _ := seenTerm(log)
		return log.LastIndex - 1, ed.fenceTerm(staged)
	})
	if err != nil {
		return err
	}

	err = ed.checkStaged(ctx, log)
	ed.report.Raft = bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	return err
}

// copyLog makes the raft directory that libdqlite appends to: with the log, or, where the indexes of its entries are not proven, with the
// database as a snapshot beyond them.
func (ed *editor) copyLog(ctx context.Context, global string) error {
	if !unproven(ed.log, ed.last) {
		pieces, err := plain(ctx, ed.log, ed.last, os.DirFS(ed.dir.global()))
		if err != nil {
			return err
		}

		term, _ := seenTerm(ed.log)
		return writePieces(global, append(metadataPieces(ed.log, term), pieces...))
	}

	dir, remove, err := scratch.Dir("edit")
	if err != nil {
		return err
	}

	defer remove()

	pieces, fence, err := snapshotFence(ctx, ed.log, ed.last, snapshotPlace{term: ed.fenceTerm(0), made: time.Now()}, dir)
	if err != nil {
		return err
	}

	ed.last = fence.Index
	ed.report.warn(unprovenText(ed.log))
	return writePieces(global, pieces)
}

// reconfigure has libdqlite append the new configuration.
func (ed *editor) reconfigure(ctx context.Context, global string) error {
	nodes := make([]engine.Node, len(ed.members))
	for i, m := range ed.members {
		nodes[i] = engine.NewNode(m.ID, m.Address, m.Role.API())
	}

	data, err := json.Marshal(nodes)
	if err != nil {
		return err
	}

	ed.opts.Progress.step("Changing the member list of a copy")
	_, err = engine.Run(ctx, ReconfigureCommand, global, string(data))
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("change the member list of a copy: %w; nothing was changed", err)
	}

	return err
}

// checkStaged makes sure of what libdqlite has made: every entry is there as it was, then the new configuration, and nothing
// else.
func (ed *editor) checkStaged(ctx context.Context, log *raftlog.Log) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("libdqlite has not made of the copy what it should, nothing was changed: "+format+"; please report this", args...)
	}

	switch {
	case !log.Healthy():
		return wrong("%w", &DamageError{What: "the copy", Problems: log.Problems})
	case !log.Edited || log.LastIndex != ed.last+1:
		return wrong("it ends at index %d, not at %d", log.LastIndex, ed.last+1)
	case !ed.members.SameServers(log.Configuration):
		return wrong("its member list is another one")
	}

	index, err := differentEntry(ctx, ed.log, log, ed.last)
	if err == nil && index > 0 {
		err = wrong("entry %d is another one", index)
	}

	return err
}

// checkUntouched refuses to go on where LXD was started since the database was read: while the list was edited, for instance.
func (ed *editor) checkUntouched(ctx context.Context) error {
	status, err := daemon.Inspect(ctx, ed.dir.path)
	if err != nil {
		return err
	}

	if status.Up() || signature(ed.dir.global()) != ed.read {
		return fmt.Errorf("%w, or has run, since this edit began (%s): nothing was changed, stop it and run the command again", daemon.ErrStillRunning, status)
	}

	ed.status = status
	return nil
}

// replace exchanges the staged database with the live one.
func (ed *editor) replace(ctx context.Context) error {
	err := ed.checkUntouched(ctx)
	if err != nil {
		return err
	}

	err = ed.dir.noteTerms(ctx, ed.report.Raft.Term)
	if err != nil {
		return err
	}

	cycle := ed.cycle(ed.status)
	err = cycle.stop(ctx)
	if err != nil {
		return err
	}

	err = ed.exchange(ctx)
	if err != nil {
		if ed.report.Done {
			err = fmt.Errorf("the edited database is in place, but not all is done: %w; run `lxd-recover resume`", err)
		}

		return errors.Join(err, cycle.startAfterFailure(ctx))
	}

	err = ed.start(ctx, cycle, ed.members, ed.report)
	ed.keepReport(ed.report, err)
	return err
}

func (ed *editor) exchange(ctx context.Context) error {
	unlock, err := lockDqlite(ed.dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	if signature(ed.dir.global()) != ed.read { // what woke LXD before its socket was closed
		return fmt.Errorf("%w, or has run, since this edit began: nothing was changed, run the command again", daemon.ErrStillRunning)
	}

	err = ed.dir.samePatch(ed.pending, ed.opts.DropPatch)
	if err != nil {
		return err
	}

	err = ed.dir.syncStaged()
	if err != nil {
		return err
	}

	staged := &replacement{
		dir: ed.dir, update: ed.update(), patch: string(ed.report.Patch),
		record:   Record{Purpose: purposeEdit, Run: bundle.NewRun(), Version: ed.opts.Version, Source: ed.report.Member.Name, Raft: ed.report.Raft},
		reporter: ed.reporter,
		report: func(kept string) any {
			report := *ed.report
			report.Kept, report.Done = kept, true
			return report
		},
	}
	ed.report.Kept, ed.report.Done, err = staged.takePlace(ctx)
	return err
}
