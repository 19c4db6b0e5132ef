// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// PatchOptions say what to hand to LXD's next start.
type PatchOptions struct {
	LXDDir string
	SQL    string // to be added; empty to look at what is pending already, or to remove that
	Remove bool   // what somebody has written
	DryRun bool   // try it, write nothing

	// WhileRunning goes on although LXD runs.
	WhileRunning bool

	// Force goes on although LXD would not start.
	Force bool

	// Confirm is shown what is about to happen before anything is written. It is not called in a dry run.
	Confirm func(*PatchReport) error

	Progress Progress
}

// PatchReport is what is pending, what it changes, and what was done about it.
type PatchReport struct {
	File       string               `json:"file" yaml:"file"`       // patch.global.sql
	Member     string               `json:"member" yaml:"member"`   // name of this member; empty where it is not known, and on a standalone server
	Raft       *bundle.Position     `json:"raft" yaml:"raft"`       // last entry of the database that it was tried on; null where it was not tried
	Pending    SQL                  `json:"pending" yaml:"pending"` // content of the file: as it will be, or is
	Added      SQL                  `json:"added" yaml:"added"`
	Removed    SQL                  `json:"removed" yaml:"removed"`
	Rows       []globaldb.RowChange `json:"rows" yaml:"rows"`         // that what was added changes, or, where nothing was, all that is pending
	MoreIn     []string             `json:"more_in" yaml:"more_in"`   // tables in which more rows than those change
	Fails      string               `json:"fails" yaml:"fails"`       // why what is pending already does not run; empty if it does
	Findings   []string             `json:"findings" yaml:"findings"` // what LXD lacks in order to start once it has run
	Warnings   []string             `json:"warnings" yaml:"warnings"`
	Standalone bool                 `json:"standalone" yaml:"standalone"`
	Daemon     string               `json:"daemon" yaml:"daemon"`

	// Done is true once the file was written, or removed.
	Done bool `json:"done" yaml:"done"`
}

// whileRunningFlag and forceFlag override the refusals of a patch.
const (
	whileRunningFlag = "--while-running"
	forceFlag        = "--force"
)

// AddPatch tries SQL on a copy of the global database, in one transaction as LXD does, shows what rows it changes, and adds it to
// patch.global.sql, which LXD runs when it next starts. Without SQL it tells what is pending, or removes what somebody has written of it.
func AddPatch(ctx context.Context, opts PatchOptions) (*PatchReport, error) {
	dir, unlock, err := openToChange(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	plan, err := swapdir.ReadPlan(dir.path)
	if err != nil {
		return nil, err
	}

	if plan != nil {
		return nil, fmt.Errorf("an interrupted %s is to be finished first: run `lxd-recover resume`", plan.Purpose)
	}

	p := &patcher{dir: dir, opts: opts, report: &PatchReport{
		File: filepath.Join(dir.database(), patchName), Rows: []globaldb.RowChange{}, MoreIn: []string{}, Findings: []string{}, Warnings: []string{},
	}}
	p.text, err = p.read()
	if err != nil {
		return nil, err
	}

	p.report.Pending = SQL(p.text)
	if opts.Remove {
		return p.report, p.remove()
	}

	err = p.try(ctx)
	if opts.SQL == "" || opts.DryRun || err != nil {
		return p.report, err
	}

	if opts.Confirm != nil {
		err = opts.Confirm(p.report)
		if err != nil {
			return nil, err
		}
	}

	return p.report, p.add(ctx)
}

// patcher is one run of AddPatch.
type patcher struct {
	dir     directory
	opts    PatchOptions
	report  *PatchReport
	text    string // of the file before
	self    uint64 // id of this member; 0 where it is not known
	members member.List
}

// try runs what is pending, and then what is to be added, on a copy of the database.
func (p *patcher) try(ctx context.Context) error {
	running, err := p.checkDown(ctx)
	if err != nil {
		return err
	}

	p.opts.Progress.step("Replaying the raft log")
	log, db, err := p.open(ctx, running)
	if err != nil {
		return err
	}

	defer db.Close()

	p.report.Raft = &bundle.Position{Index: log.SoundIndex, Term: log.LastTerm}
	p.whose(ctx, log, running)
	before := db
	if p.text != "" {
		before, err = db.Patched(ctx, p.text)
		var failed *globaldb.StatementError
		if errors.As(err, &failed) {
			return p.pendingFails(failed)
		}

		if err != nil {
			return err
		}

		defer before.Close()
	}

	if p.opts.SQL == "" {
		return p.tell(ctx, db, before)
	}

	after, err := before.Patched(ctx, p.opts.SQL)
	if err != nil {
		return fmt.Errorf("on a copy of the database as it is: %w; nothing was changed", err)
	}

	defer after.Close()

	return errors.Join(p.tell(ctx, before, after), p.askOthers(ctx))
}

// checkDown refuses to add something while LXD runs, which reads the file only when it starts.
func (p *patcher) checkDown(ctx context.Context) (running bool, err error) {
	status, err := daemon.Inspect(ctx, p.dir.path)
	if err != nil {
		return false, err
	}

	p.report.Daemon, running = status.String(), status.Up()
	if !running || p.opts.SQL == "" || p.opts.DryRun || p.opts.WhileRunning {
		return running, nil
	}

	return running, &Refusal{Code: "lxd-runs", Flag: whileRunningFlag,
		Reason: product.Sprintf("LXD is %s, and reads %s only when it starts: until then it goes on writing, and the patch would meet another database "+
			"than the one that it was tried on. Stop LXD first. `lxd sql global` changes the database of an LXD that works", status, patchName)}
}

// open replays the log. LXD may work on it.
func (p *patcher) open(ctx context.Context, running bool) (log *raftlog.Log, db *globaldb.DB, err error) {
	err = liveLog{global: p.dir.global(), live: running, progress: p.opts.Progress}.read(ctx, func(read *raftlog.Log) (bool, error) {
		log = read
		if !log.Healthy() {
			return false, &DamageError{What: "the global database in " + p.dir.global(), Problems: log.Problems,
				Advice: product.Text("Repair it, or recover it, first: a patch is tried on what LXD would start on.")}
		}

		db, err = globaldb.Open(ctx, log, log.SoundIndex)
		return err == nil, err
	})

	return log, db, err
}

// whose finds out which member, or that a standalone server, this is. What cannot be told is left out.
func (p *patcher) whose(ctx context.Context, log *raftlog.Log, running bool) {
	node, lost, err := p.dir.readNode(ctx, running)
	if err != nil || lost != nil {
		node = nil
	}

	var names member.List
	if node != nil {
		names, p.self = node.Members, node.Self.ID
		p.report.Member = node.Self.Name
	}

	p.members = namedServers(log.Configuration, names)
	p.report.Standalone, _ = standalone(p.dir.path, node, log.Configuration)
	if p.report.Standalone {
		p.self, p.report.Member = nodedb.StandaloneID, ""
	}
}

// pendingFails tells that what is pending already does not run. That is an error only where something is to be added.
func (p *patcher) pendingFails(failed *globaldb.StatementError) error {
	p.report.Fails = failed.Error()
	if p.opts.SQL == "" {
		return nil
	}

	return product.Errorf("%s, as it is already, does not run on the database: %w; LXD may not start with it. "+
		"Correct it, or remove it with `lxd-recover global-db-patch --remove`", p.report.File, failed)
}

// tell works out what changes from one database to another, and what LXD lacks in order to start on the latter.
func (p *patcher) tell(ctx context.Context, before *globaldb.DB, after *globaldb.DB) error {
	r := p.report
	if before != after {
		rows, more, err := globaldb.Diff(ctx, before.File, after.File)
		if err != nil {
			return err
		}

		r.Rows, r.MoreIn = append(r.Rows, rows...), append(r.MoreIn, more...)
	}

	was, err := before.Summary(ctx)
	if err != nil {
		return err
	}

	is, err := after.Summary(ctx)
	switch {
	case err != nil:
		return err
	case is.Integrity != "ok":
		return fmt.Errorf("once it has run SQLite finds the database damaged: %s; nothing was changed", is.Integrity)
	}

	for _, finding := range is.ForeignKeys {
		text := "the database has a row without its parent: " + finding
		if !slices.Contains(was.ForeignKeys, finding) {
			text = "it leaves a row without its parent: " + finding
		}

		r.Warnings = append(r.Warnings, text)
	}

	if p.opts.SQL != "" && len(r.Rows) == 0 {
		r.Warnings = append(r.Warnings, "it changes no row of the database as it is")
	}

	return p.preflight(ctx, before, after)
}

// preflight refuses a patch after which LXD would not start, and would have without it.
func (p *patcher) preflight(ctx context.Context, before *globaldb.DB, after *globaldb.DB) error {
	was, err := p.findings(ctx, before)
	if err != nil {
		return err
	}

	is, err := p.findings(ctx, after)
	if err != nil {
		return err
	}

	for _, f := range is {
		p.report.Findings = append(p.report.Findings, f.String())
		known := slices.ContainsFunc(was, func(w preflight.Finding) bool { return w.Code == f.Code && w.Member == f.Member })
		if p.opts.SQL != "" && f.Fatal && !known && !p.opts.Force {
			return &Refusal{Code: "patch-stops-lxd", Member: f.Member, Flag: forceFlag, Reason: product.Text("with this patch LXD would not start: ") + f.Text}
		}
	}

	return nil
}

func (p *patcher) findings(ctx context.Context, db *globaldb.DB) ([]preflight.Finding, error) {
	rows, err := nodeRows(ctx, db)
	return preflight.Check(preflight.Facts{Self: p.self, Members: p.members, Nodes: rows}), err
}

// askOthers says whose LXD runs: the patch will then meet the cluster's database, and not this member's.
func (p *patcher) askOthers(ctx context.Context) error {
	if p.self == 0 || len(p.members) < 2 {
		return nil
	}

	p.opts.Progress.step("Looking for the other members' daemons")
	var others member.List
	for _, m := range p.members {
		if m.ID != p.self {
			others = append(others, m)
		}
	}

	found, err := daemon.Reachable(ctx, p.dir.path, addressesBut(p.self, p.members))
	if err != nil {
		return err
	}

	for i, m := range others {
		if found[i] == daemon.Answers {
			p.report.Warnings = append(p.report.Warnings, product.Sprintf("LXD runs on %s: the patch will run on the database of the cluster, "+
				"which may have more than this member's that it was tried on", preflight.Named(m)))
		}
	}

	return nil
}

// add writes the file. LXD, or somebody, may have been at it meanwhile.
func (p *patcher) add(ctx context.Context) error {
	_, err := p.checkDown(ctx)
	if err == nil {
		err = p.unchanged()
	}

	if err != nil {
		return err
	}

	p.report.Added = SQL(ended(p.opts.SQL))
	p.report.Pending = p.report.Added
	if p.text != "" {
		p.report.Pending = SQL(ended(p.text)) + p.report.Added
	}

	return p.write(string(p.report.Pending))
}

// remove leaves only what we, or LXD's own edit, have written: the members' addresses are needed all the same.
func (p *patcher) remove() error {
	pending := splitPatch(p.text)
	if pending.own == "" {
		return fmt.Errorf("nobody has written SQL to %s: there is nothing to remove", p.report.File)
	}

	p.report.Removed, p.report.Pending = SQL(pending.own), SQL(pending.versions+pending.addresses)
	if p.opts.DryRun {
		return nil
	}

	if p.opts.Confirm != nil {
		err := p.opts.Confirm(p.report)
		if err != nil {
			return err
		}
	}

	err := p.unchanged()
	if err != nil {
		return err
	}

	return p.write(string(p.report.Pending))
}

// read returns what is in the file; nothing where it does not exist.
func (p *patcher) read() (string, error) {
	text, err := ReadSQL(p.report.File)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}

	return text, err
}

// unchanged makes sure that the file is what it was when it was read.
func (p *patcher) unchanged() error {
	now, err := p.read()
	if err == nil && now != p.text {
		err = fmt.Errorf("%s is not what it was when this began: nothing was changed, run the command again", p.report.File)
	}

	return err
}

// write puts the file in place, all or nothing.
func (p *patcher) write(text string) error {
	if text == "" {
		err := os.Remove(p.report.File)
		if err != nil {
			return err
		}

		p.report.Done = true
		return swapdir.SyncDir(p.dir.database())
	}

	info, err := os.Stat(p.dir.database())
	if err != nil {
		return err
	}

	f, err := os.CreateTemp(p.dir.database(), patchName+".*") // 0600, and LXD does not look at it
	if err != nil {
		return err
	}

	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}

	err = errors.Join(err, f.Close())
	if err == nil {
		err = chown(f.Name(), info)
	}

	if err == nil {
		err = os.Rename(f.Name(), p.report.File)
	}

	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}

	p.report.Done = true
	return swapdir.SyncDir(p.dir.database())
}
