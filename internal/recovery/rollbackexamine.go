// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// examine looks into both databases, asks the other members, and finds out whether LXD can be stopped.
func (rb *rollback) examine(ctx context.Context) error {
	old := rb.dir.join(rb.report.Restored.Name)
	err := rb.dir.exchangeable(rb.report.Restored.Name)
	if err == nil {
		err = rb.dir.tryExchange()
	}

	if err == nil {
		err = rb.checkRestorable(ctx, old)
	}

	if err != nil {
		return err
	}

	rb.log, err = readLog(ctx, filepath.Join(old, globalName), rb.opts.Progress)
	if err != nil {
		return err
	}

	rb.report.Raft = &bundle.Position{Index: rb.log.LastIndex, Term: rb.log.LastTerm}
	err = rb.identify(ctx, old, rb.log.Configuration)
	if err == nil {
		err = rb.checkSound(ctx, old)
	}

	if err != nil {
		return err
	}

	status, err := daemon.Inspect(ctx, rb.dir.path)
	if err != nil {
		return err
	}

	rb.report.Daemon, rb.running = status.String(), status.Running()
	rb.report.StartCommand = status.StartByHand()
	err = stoppable(status)
	if err == nil {
		err = rb.checkAlone(ctx)
	}

	if err == nil {
		err = rb.checkRan()
	}

	if err == nil {
		err = rb.compare(ctx)
	}

	if err == nil {
		err = rb.checkPeers(ctx)
	}

	return err
}

// checkSound looks for damage. A database without an entry is none, and a damaged one, as it may well have been before it was replaced,
// is put back only if that is asked for.
func (rb *rollback) checkSound(ctx context.Context, old string) error {
	const others = "`lxd-recover global-db-kept list` has the others"
	damage := ""
	var err error
	switch {
	case rb.log.LastIndex == 0:
		damage = "is empty: its raft log has no entry"
	case !rb.log.Healthy():
		damage = "is damaged"
	default:
		damage, err = rb.checkRows(ctx, rb.log)
	}

	if err != nil {
		return err
	}

	if damage == "" {
		return nil
	}

	text := fmt.Sprintf("the database in %s %s; `lxd-recover global-db-inspect %s` says how, %s", old, damage, old, others)
	if !rb.opts.AcceptDamage {
		return &Refusal{Code: "damaged", Reason: text, Flag: "--accept-damage"}
	}

	rb.report.warn(text)
	return nil
}

// checkRows replays a log and has SQLite check what comes out. The result says what is wrong.
func (rb *rollback) checkRows(ctx context.Context, log *raftlog.Log) (damage string, err error) {
	rb.opts.Progress.step("Replaying the raft log")
	db, err := globaldb.Open(ctx, log, 0)
	if err == nil {
		defer db.Close()

		var summary *globaldb.Summary
		summary, err = db.Summary(ctx)
		if err == nil && summary.Integrity != "ok" {
			return "is damaged: SQLite finds " + summary.Integrity, nil
		}
	}

	if errors.Is(err, globaldb.ErrNoDatabase) {
		return "is empty: its raft log holds no database", nil
	}

	if err != nil && ctx.Err() == nil && !machineFault(err) {
		return "cannot be used: " + err.Error(), nil
	}

	return "", err
}

// identify finds out whose database is put back. One of which that cannot be told is one that LXD does not start on.
func (rb *rollback) identify(ctx context.Context, old string, servers raftlog.Configuration) error {
	node, err := nodedb.Read(ctx, old)
	if node == nil {
		return err
	}

	alone, why := standalone(rb.dir.path, node, servers)
	switch {
	case alone:
		rb.report.Standalone, rb.report.Address = true, nodedb.StandaloneAddress
		return nil
	case why != nil:
		return fmt.Errorf("%s: %w", old, why)
	}

	rb.members, rb.report.Address, rb.self = node.Members, node.Self.Address, node.Self.ID
	return err
}

// checkAlone finds out whether this server decides alone: then nobody else has to go back with it, and nobody can have a later database.
// The members of both databases count.
func (rb *rollback) checkAlone(ctx context.Context) error {
	node, _, err := rb.dir.readNode(ctx, rb.running)
	if err != nil {
		return err
	}

	rb.live = node.Members
	known := map[uint64]bool{rb.self: true}
	for _, m := range slices.Concat(rb.live, rb.members) {
		if !known[m.ID] {
			rb.report.Elsewhere = append(rb.report.Elsewhere, cmp.Or(m.Name, m.Address))
		}

		known[m.ID] = true
	}

	rb.alone = len(rb.report.Elsewhere) == 0
	return nil
}

// checkRan refuses to roll one of several members back on which LXD has run since. What LXD has written since is on other members, too:
// they would take the rollback back, or, rolled back one after the other, do without a leader.
func (rb *rollback) checkRan() error {
	place := slices.IndexFunc(rb.kept, func(k KeptDatabase) bool { return k.Name == rb.report.Restored.Name })
	ran, why := rb.dir.ranSince(rb.kept, place)
	rb.ran = ran
	edits := func(k KeptDatabase) bool { return k.Purpose == purposeEdit || k.Purpose == purposeRepair }
	if !slices.ContainsFunc(rb.kept[:place+1], func(k KeptDatabase) bool { return !edits(k) }) {
		rb.report.Elsewhere = []string{} // an edit is of one member, and none has it from there yet
	}

	if !ran || rb.alone {
		return nil
	}

	return &Refusal{Code: "lxd-has-run", Reason: product.Sprintf("%s. What was written since is on other members, too: "+
		"if %s went back alone, raft would take its rollback back, or the cluster could be left without a leader. "+
		"Take one kept database to all members instead: stop LXD on all of them, run `lxd-recover cluster export-db --source %s` on one, "+
		"and import its tarball on all with --discard-local-entries", why, rb.name(), rb.report.Restored.Name)}
}

// name is this member's.
func (rb *rollback) name() string {
	for _, m := range slices.Concat(rb.members, rb.live) {
		if m.ID == rb.self && m.Name != "" {
			return m.Name
		}
	}

	return "this member"
}

// compare finds the transactions that the live database has, and the one that is put back has not.
func (rb *rollback) compare(ctx context.Context) error {
	return whileLive(ctx, rb.running, func(last bool) (bool, error) {
		rb.compared, rb.report.Untold, rb.report.Discarded = signature(rb.dir.global()), "", []Discarded{}
		local, letGo, err := openLive(ctx, rb.dir.global(), rb.running, Progress{}, raftlog.Options{})
		defer letGo()

		if err == nil && !local.Healthy() && !last {
			return false, nil
		}

		if err == nil {
			err = rb.compareWith(ctx, local)
		}

		if err != nil && ctx.Err() == nil && !machineFault(err) {
			rb.report.Untold, err = "the live database cannot be compared: "+err.Error(), nil
		}

		return true, err
	})
}

func (rb *rollback) compareWith(ctx context.Context, local *raftlog.Log) error {
	r, other := rb.report, counterpartOf(rb.log)
	r.Local = &bundle.Position{Index: local.LastIndex, Term: local.LastTerm}
	different, err := otherHistory(ctx, local, other)
	if err != nil {
		return err
	}

	switch {
	case different != "":
		r.Untold = different
	case !local.Healthy():
		r.Untold = "the live database is damaged"
	}

	rb.branching, err = discarded(ctx, local, other, rb.branching)
	if err == nil {
		r.Discarded = slices.Clone(rb.branching.found)
	}

	return err
}

// lookAgain compares again what LXD may have written to since, now that it is down.
func (rb *rollback) lookAgain(ctx context.Context) error {
	err := rb.checkRan()
	if err != nil {
		return err
	}

	now := signature(rb.dir.global())
	if now == rb.compared && now != "" {
		return nil
	}

	rb.running = false
	err = rb.compare(ctx)
	if err != nil {
		return err
	}

	return rb.checkLoss()
}

// checkLoss refuses to give up what LXD has written since the database was replaced. What a run of ours has brought, and LXD has not
// touched since, is no loss: it is where it came from, and kept here.
func (rb *rollback) checkLoss() error {
	r := rb.report
	switch {
	case !rb.ran || rb.opts.DiscardLocal:
		return nil
	case len(r.Discarded) > 0:
		return &Refusal{Code: "local-entries", Reason: fmt.Sprintf("the database in %s lacks what was written since and would be lost: %s",
			r.Restored.Name, Count(r.Discarded)), Flag: "--discard-local-entries", Entries: r.Discarded}
	case r.Untold != "":
		return &Refusal{Code: "loss-unknown", Reason: "what would be lost with the live database cannot be told: " + r.Untold, Flag: "--discard-local-entries"}
	}

	return nil
}

// checkPeers refuses to put an old database back beside a working cluster: that would be stalled, or take the rollback back.
func (rb *rollback) checkPeers(ctx context.Context) error {
	if rb.alone || rb.opts.BesideCluster {
		return nil
	}

	addresses := addressesBut(rb.self, slices.Concat(rb.members, rb.live))
	slices.Sort(addresses)
	rb.opts.Progress.step("Asking the other members whether a cluster works without this rollback")
	answers, err := rb.dir.askPeers(ctx, slices.Compact(addresses))
	if err != nil {
		return err
	}

	names := make([]string, len(answers.working))
	for i, p := range answers.working {
		names[i] = p.String()
	}

	switch {
	case len(names) > 0:
		return &Refusal{Code: "working-cluster", Reason: product.Sprintf("%s serves a working cluster: this member's old database beside it would stall it, "+
			"or be replaced by its. Stop LXD on all members first", strings.Join(names, ", ")), Flag: "--beside-cluster"}
	case len(answers.up) > 0:
		return &Refusal{Code: "member-up", Reason: product.Sprintf("LXD runs at %s: with the votes of members that are rolled back it would take the rollback "+
			"back. Stop LXD on all members first", strings.Join(answers.up, ", ")), Flag: "--beside-cluster"}
	case len(answers.mute) > 0:
		return &Refusal{Code: "silent-member", Reason: strings.Join(answers.mute, "; ") + product.Text(". Stop LXD on all members first"),
			Flag: "--beside-cluster"}
	}

	return nil
}
