// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// StatusReport is how one member stands.
type StatusReport struct {
	Directory string         `json:"directory" yaml:"directory"`
	Daemon    string         `json:"daemon" yaml:"daemon"`
	Running   bool           `json:"running" yaml:"running"`
	Cluster   string         `json:"cluster_certificate" yaml:"cluster_certificate"` // SHA-256 of the cluster certificate; empty where there is none
	Member    *member.Member `json:"member" yaml:"member"`                           // null where it cannot be told

	// Standalone is true for an LXD that is no member of a cluster. Member is then what it is in its own raft log.
	Standalone bool `json:"standalone" yaml:"standalone"`

	Raft    *bundle.Position `json:"raft" yaml:"raft"`     // last entry of its log
	Edited  bool             `json:"edited" yaml:"edited"` // the last entry is a recovery's; Recovery says what it did
	Healthy bool             `json:"healthy" yaml:"healthy"`

	Recovery raftlog.RecoveryEntry `json:"recovery,omitempty" yaml:"recovery,omitempty"`

	Addresses []AddressRow `json:"addresses" yaml:"addresses"`
	Agree     bool         `json:"addresses_agree" yaml:"addresses_agree"`
	Import    *Record      `json:"last_import" yaml:"last_import"` // the import that the live database comes from, if it does
	Edit      *Record      `json:"last_edit" yaml:"last_edit"`     // the edit of ours that it comes from, if it does
	Resync    *Record      `json:"last_resync" yaml:"last_resync"` // the resync that it comes from, if it does
	Repair    *Record      `json:"last_repair" yaml:"last_repair"` // the repair that it comes from, if it does

	// Identity is how a restore of this member's identity stands; null if there was none, or it is all done and a database was imported since.
	Identity *RestoredIdentity `json:"identity_restore" yaml:"identity_restore"`

	Backup   *ScheduledBackup `json:"scheduled_backup" yaml:"scheduled_backup"` // null where none are taken at set times
	Pending  []string         `json:"pending" yaml:"pending"`                   // what LXD or lxd-recover will do next time
	Kept     []KeptDatabase   `json:"backups" yaml:"backups"`
	Problems []string         `json:"problems" yaml:"problems"`
	Warnings []string         `json:"warnings" yaml:"warnings"` // what may become a problem

	// LXD is the one that is installed. Findings are what it needs to start here, and lacks, or may lack.
	LXD      preflight.LXD       `json:"lxd" yaml:"lxd"`
	Findings []preflight.Finding `json:"findings" yaml:"findings"`

	nodeErr error // why the node database cannot be read; nil if it can
}

// AddressRow is a member's address in the three places where LXD keeps it: the node database, the raft log, and the table
// nodes of the global database; empty where the member is missing there.
type AddressRow struct {
	ID    uint64 `json:"id" yaml:"id"`
	Name  string `json:"name" yaml:"name"`
	Local string `json:"local" yaml:"local"`
	Raft  string `json:"raft" yaml:"raft"`
	Nodes string `json:"nodes" yaml:"nodes"`
}

func (r AddressRow) agree() bool { return r.Local == r.Raft && r.Raft == r.Nodes }

// Status tells how this member stands. It changes nothing, and works beside a running daemon, too; what it reads of the
// database then may be a moment old, or not belong together.
func Status(ctx context.Context, lxdDir string, progress Progress) (*StatusReport, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		begun, begunErr := statusBegun(ctx, lxdDir)
		if begun != nil || begunErr != nil {
			return begun, begunErr
		}

		return nil, err
	}

	report, err := statusOf(ctx, dir)
	if err != nil {
		return nil, err
	}

	read, readErr := readDatabase(ctx, dir.global(), report.Running, progress)
	defer read.close()

	return report, report.databases(ctx, dir, read, readErr)
}

// newStatus returns a report whose lists are empty, not missing, in JSON.
func newStatus(dir directory) *StatusReport {
	return &StatusReport{Directory: dir.path, Addresses: []AddressRow{}, Pending: []string{}, Kept: []KeptDatabase{}, Problems: []string{},
		Warnings: []string{}, Findings: []preflight.Finding{}}
}

// statusOf is Status without what the databases tell.
func statusOf(ctx context.Context, dir directory) (*StatusReport, error) {
	report := newStatus(dir)
	err := report.inspectDaemon(ctx, dir)
	if err != nil {
		return nil, err
	}

	report.Cluster, _ = dir.clusterCertificate() // what needs it says what is wrong with it
	record, err := readRecord(dir.database())
	switch {
	case err != nil:
		report.problem("%s: %v", filepath.Join(dir.database(), recordName), err)
	case record != nil && record.Purpose == purposeEdit:
		report.Edit = record
	case record != nil && record.Purpose == purposeRepair:
		report.Repair = record
	case record != nil && record.Purpose == purposeResync:
		report.Resync = record
	default:
		report.Import = record
	}

	report.Kept, err = dir.kept()
	if err != nil {
		return nil, err
	}

	_, err = dir.readHighWater()
	if err != nil {
		report.problem("%v", err)
	}

	err = report.pending(dir)
	if err != nil {
		return nil, err
	}

	report.scheduledBackup(time.Now())
	report.exchangeProblem(dir)
	return report, nil
}

func (r *StatusReport) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// pending lists what is lying around to be acted on later.
func (r *StatusReport) pending(dir directory) error {
	unlock, err := dir.lock(unix.LOCK_SH)
	if errors.Is(err, ErrBusy) {
		r.Pending = append(r.Pending, "another lxd-recover is at work on this member")
		return nil
	}

	if err != nil {
		return err
	}

	unlock()
	return r.pendingFiles(dir)
}

// pendingFiles is pending, whoever has the directory locked.
func (r *StatusReport) pendingFiles(dir directory) error {
	r.identity(dir)
	stopped, err := dir.readStopped()
	if err != nil {
		r.problem("%v", err)
	}

	if stopped != nil {
		r.Pending = append(r.Pending, stopped.String()+": `lxd-recover resume` starts it again")
	}

	plan, err := swapdir.ReadPlan(dir.path)
	if err != nil {
		return err
	}

	if plan != nil {
		state, err := swapdir.Inspect(dir.path, plan)
		switch {
		case err != nil:
			r.problem("%v", err)
		case state == swapdir.Exchanged:
			r.Pending = append(r.Pending, fmt.Sprintf("the %s of %s was interrupted after the exchange: `lxd-recover resume` finishes it",
				plan.Purpose, plan.Created.Format(time.RFC3339)))
		default:
			r.Pending = append(r.Pending, fmt.Sprintf("the %s of %s was interrupted before the exchange: "+
				"the old database is in place, run it again, or `lxd-recover resume`", plan.Purpose, plan.Created.Format(time.RFC3339)))
		}
	}

	for _, file := range []struct{ path, meaning string }{
		{dir.join(stagingName), "what an interrupted run had prepared: the next one removes it, and so does `lxd-recover resume`"},
		{dir.join(pendingName), product.Text("LXD was stopped for a resync, which waits for a backup: `lxd-recover global-db-resync BACKUP` goes on. " +
			"Once LXD has run, it has to be begun anew")},
		{dir.join(removingName), "a kept database that was to be deleted, and is half: `lxd-recover resume` finishes it"},
		{filepath.Join(dir.database(), patchName), product.Text("LXD will run it against the global database when it next starts") + patchText(dir)},
		{filepath.Join(dir.database(), "patch.local.sql"), product.Text("LXD will run it against the node database when it next starts")},
		{dir.loads(), product.Text("LXD (5.21.3 and later, 6.2 and later) will load this tarball when it next starts, " +
			"and refuses to start on the member that it was made on")},
		{loaderLeft(dir.database()), product.Text("LXD's own loader was interrupted here")},
	} {
		_, err := os.Lstat(file.path)
		if errors.Is(err, os.ErrNotExist) || plan != nil && file.path == dir.join(stagingName) {
			continue
		}

		if err != nil {
			return err
		}

		r.Pending = append(r.Pending, file.path+": "+file.meaning)
	}

	return nil
}

// databases reads the node database, and compares what it, the raft log and the global database say of the members. err says why those cannot be read.
func (r *StatusReport) databases(ctx context.Context, dir directory, read *readOnce, err error) error {
	node, nodeErr := dir.nodeForStatus(ctx, r.Running)
	r.nodeErr = nodeErr
	var none *noGlobalError
	if errors.Is(err, errEmptied) || errors.As(err, &none) {
		r.problem("%v", err)
		r.member(dir, node, nodeErr, nil)
		r.compare(node, nil, nil)
		return r.needs(ctx, dir, node, tableNodes{})
	}

	if err != nil {
		return err
	}

	log := read.log
	nodes, nodesErr := readNodes(ctx, dir, read, node)
	r.Raft = &bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	r.Edited, r.Recovery, r.Healthy = log.Edited, log.Recovery(), log.Healthy()
	for _, p := range log.Problems {
		if p.Severity == raftlog.Error {
			r.problem("%s; see `lxd-recover global-db-inspect`", p)
		}
	}

	r.member(dir, node, nodeErr, log.Configuration)
	neverUsed := r.Healthy && errors.Is(nodesErr, globaldb.ErrNoDatabase)
	switch {
	case nodesErr == nil, neverUsed && r.Standalone:
	case neverUsed && log.LastIndex == 0 && len(log.Configuration) == 0:
		r.problem("%s", product.Text("the raft log has no entry: this member has no database yet. If the cluster works, LXD gets it from the leader; in a "+
			"recovery, `lxd-recover global-db-import` brings it"))
	default:
		r.problem("global database: %v", nodesErr)
	}

	r.recognise(ctx, dir, log, nodes.now)
	r.compare(node, log.Configuration, nodes.now)
	return r.needs(ctx, dir, node, nodes)
}

// member tells which member this is, or that it is a standalone server, as far as that is known. node and nodeErr are what the node
// database says.
func (r *StatusReport) member(dir directory, node *nodedb.Node, nodeErr error, servers raftlog.Configuration) {
	var why *mismatch
	r.Standalone, why = standalone(dir.path, node, servers)
	if why != nil {
		r.emptyProblem(dir, servers, why)
		return
	}

	if nodeErr != nil {
		r.nodeProblem(dir, nodeErr)
	}

	switch {
	case r.Standalone:
		self := nodedb.StandaloneSelf()
		r.Member = &self
		return
	case node != nil && node.Self.ID != 0:
		self := node.Self
		r.Member = &self
	}

	clustered := node != nil || len(servers) > 0 && !aloneInLog(servers)
	if clustered && !dir.certified() {
		r.problem("%v", dir.errNoCertificate())
	}
}

// compare puts side by side what the three places say of the members' addresses. nodes is nil where that table cannot be read.
func (r *StatusReport) compare(node *nodedb.Node, servers raftlog.Configuration, nodes []globaldb.Node) {
	rows := map[uint64]*AddressRow{}
	var order []uint64
	row := func(id uint64, name string) *AddressRow {
		if rows[id] == nil {
			rows[id] = &AddressRow{ID: id}
			order = append(order, id)
		}

		if name != "" {
			rows[id].Name = name
		}

		return rows[id]
	}

	if node != nil {
		for _, m := range node.Members {
			row(m.ID, m.Name).Local = m.Address
		}
	}

	for _, s := range servers {
		row(s.ID, "").Raft = s.Address
	}

	for _, n := range nodes {
		row(n.ID, n.Name).Nodes = n.Address
	}

	r.Agree = true
	for _, id := range order {
		r.Addresses = append(r.Addresses, *rows[id])
		r.Agree = r.Agree && rows[id].agree()
	}

	if r.Standalone {
		r.Agree = nodes == nil || aloneInTable(nodes)
	}
}
