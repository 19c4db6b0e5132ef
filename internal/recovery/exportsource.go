// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// An export of a kept database, or of a backup, takes all members back to it: one log, fenced once. Their own logs may go on from another one, and
// have snapshots that lie beyond, so it is always fenced by a snapshot.

// chooseSource finds the database that is to be exported: a kept one by its name, else what a path names.
func (ex *exporter) chooseSource(ctx context.Context) error {
	if ex.opts.Source == "" {
		return nil
	}

	kept, err := ex.dir.findKept(ex.opts.Source)
	if err == nil {
		ex.source = kept.Name
		return nil
	}

	_, there := os.Stat(ex.opts.Source)
	if there != nil {
		return fmt.Errorf("%w; and there is no file of this name, either", err)
	}

	ex.source, err = partAt(ex.opts.Source, ex.opts.At)
	if err != nil {
		return err
	}

	ex.opened, err = openSource(ctx, ex.source, ex.opts.Progress)
	if err != nil {
		return err
	}

	err = ex.trustSource()
	if err != nil {
		ex.closeSource()
	}

	return err
}

// trustSource refuses a database that a daemon writes to, and a tarball that somebody without the cluster's key may have made.
func (ex *exporter) trustSource() error {
	s := ex.opened
	if s.daemon != "" {
		return product.Errorf("%s: LXD runs on it, %s: stop it first", s.Path, s.daemon)
	}

	if s.bundle == nil {
		return nil
	}

	signature, err := s.signatureIn(ex.dir.path, ex.opts.Certificate)
	if err != nil {
		return err
	}

	switch {
	case signature.State == SignatureValid:
		return nil
	case signature.State == SignatureInvalid:
		return fmt.Errorf("%w: %s was changed after it was made, or made by somebody without the key of certificate %.12s…: use another copy of it",
			bundle.ErrDamaged, s.Path, signature.By)
	case signature.State == SignatureNone && !ex.opts.UnsignedSource:
		return &Refusal{Code: "unsigned", Reason: fmt.Sprintf("%s is not signed: whoever could change it decides what this cluster becomes. "+
			"If you know that nobody could, go on", s.Path), Flag: "--unsigned-source"}
	case signature.State == SignatureNone:
		return nil
	}

	return wrongCluster("%s is signed with the key of certificate %.12s…, which is not this cluster's. If the cluster's certificate was changed since, "+
		"`--certificate OLD.crt` names a copy of the former one", s.Path, signature.By)
}

// closeSource removes what a tarball was unpacked to.
func (ex *exporter) closeSource() {
	if ex.opened != nil {
		ex.opened.Close()
	}
}

// database is the database directory that is exported; empty for one that comes without a node database.
func (ex *exporter) database() string {
	switch {
	case ex.opened != nil:
		return ex.opened.nodes
	case ex.source != "":
		return ex.dir.join(ex.source)
	}

	return ex.dir.database()
}

func (ex *exporter) global() string {
	switch {
	case ex.opened != nil:
		return ex.opened.global
	case ex.flat:
		return ex.dir.database()
	}

	return filepath.Join(ex.database(), globalName)
}

// whose is this member's node database. If it is lost, and something else than the live database is exported, that tells which member this is, by its
// certificate, and who the others were.
func (ex *exporter) whose(ctx context.Context) (*nodedb.Node, error) {
	if ex.opened == nil {
		return nodedb.Read(ctx, ex.dir.database())
	}

	certificate, err := ex.dir.serverCertificate()
	if err != nil {
		return nil, err
	}

	db, err := globaldb.Open(ctx, ex.log, ex.log.SoundIndex)
	if err != nil {
		return nil, replayError("the global database in "+ex.source, err)
	}

	defer db.Close()

	rows, err := db.Nodes(ctx)
	if err != nil {
		return nil, replayError("the global database in "+ex.source, err)
	}

	var names member.List
	for _, n := range rows {
		names = append(names, member.Member{ID: n.ID, Name: n.Name, Address: n.Address})
	}

	self, ok, err := withCertificate(ctx, db, names, certificate)
	if err != nil {
		return nil, err
	}

	if !ok {
		return nil, wrongCluster("%s does not know this member: none of its members has the certificate in %s. It is of another cluster, or of before this "+
			"member joined", ex.source, ex.dir.join(serverCertificateName))
	}

	node, err := nodedb.Read(ctx, ex.dir.database())
	if isLost(err) {
		ex.opts.OldMembers = true
		return &nodedb.Node{Self: self, Members: namedServers(ex.log.Configuration, names)}, nil
	}

	return node, err
}

// sourceNode is the node database that came with what is exported, as far as there is one.
func (ex *exporter) sourceNode(ctx context.Context) (*nodedb.Node, error) {
	if ex.opened == nil || ex.opened.bundle == nil {
		return nodedb.Read(ctx, ex.database())
	}

	return &nodedb.Node{Members: ex.opened.bundle.Members}, nil
}

// sourceMembers is the list that a tarball of a kept database gets: the one that is in force now, or that database's own.
func (ex *exporter) sourceMembers(ctx context.Context, node *nodedb.Node) (member.List, error) {
	from, log := node, ex.live
	if ex.opts.OldMembers {
		old, err := ex.sourceNode(ctx)
		if err != nil {
			return nil, err
		}

		from, log = old, ex.log
	}

	members := from.Members
	if log != nil && len(log.Configuration) > 0 { // a member that has no database yet has none
		members = namedServers(log.Configuration, members)
	}

	err := members.Validate()
	if err != nil {
		return nil, fmt.Errorf("the member list cannot work: %w: `lxd-recover cluster edit` corrects the one in force", err)
	}

	_, ok := members.ByID(node.Self.ID)
	if !ok {
		return nil, fmt.Errorf("%s is not in the member list of %s", node.Self.Name, ex.source)
	}

	ex.servers = servers(members)
	return members, nil
}

// readLive reads the log of the live database, which a kept one is exported in place of. One that cannot be read is no hindrance: that may be
// why an older one is wanted. A daemon may work on it; letGo is for when it is read no more, and never nil.
func (ex *exporter) readLive(ctx context.Context, running bool) (letGo func(), err error) {
	if ex.source == "" {
		return func() {}, nil
	}

	ex.live, letGo, err = openLive(ctx, ex.dir.global(), running, ex.opts.Progress, raftlog.Options{})
	if err != nil && ctx.Err() == nil {
		ex.liveUnread = "the live database, which cannot be read: " + err.Error()
		if awaitsDatabase(err) {
			ex.liveUnread = "what was changed after it was made: this machine has no database yet that could tell"
		}

		ex.live, err = nil, nil
	}

	return letGo, err
}

// sourcePlace is where the snapshot fence of a kept database goes: above all that the live one has, too.
func (ex *exporter) sourcePlace(place snapshotPlace) snapshotPlace {
	place.servers = ex.servers
	if ex.live != nil {
		place.above = max(place.above, ex.live.LastIndex)
		for _, s := range ex.live.Snapshots {
			place.above = max(place.above, s.Index)
		}
	}

	return place
}

// giveUpLive lists what the live database has and the kept one, up to the index that is exported, lacks.
func (ex *exporter) giveUpLive(ctx context.Context) ([]Discarded, error) {
	r := ex.report
	if ex.live == nil {
		r.Untold = append(r.Untold, ex.liveUnread)
		return nil, nil
	}

	kept := counterpartOf(ex.log)
	kept.last = min(kept.last, r.Before.Index)
	different, err := otherHistory(ctx, ex.live, kept)
	if err != nil {
		return nil, err
	}

	if different != "" {
		r.Untold = append(r.Untold, "what is in the snapshot of the live database: "+different)
	}

	gone, err := discarded(ctx, ex.live, kept, nil)
	if err != nil {
		return nil, err
	}

	beside, err := ex.besideLive(ctx)
	if err != nil {
		return nil, err
	}

	return slices.Concat(gone.found, beside), nil
}

// besideLive finds what lies on the disk of a damaged live database and is not in its log, and notes what cannot be told of it.
func (ex *exporter) besideLive(ctx context.Context) ([]Discarded, error) {
	found, untold, err := leftOut(ctx, ex.live)
	if err != nil {
		return nil, err
	}

	for _, text := range untold {
		ex.report.Untold = append(ex.report.Untold, "of the live database: "+text)
	}

	switch {
	case ex.live.Undecided():
		ex.report.Untold = append(ex.report.Untold, "the live database, whose files can be read as several logs")
	case ex.live.SoundIndex == 0 && ex.live.LastIndex > 0:
		ex.report.Untold = append(ex.report.Untold, "the live database, whose log has no beginning")
	}

	return without(ctx, found, ex.log)
}

// confirmGivenUp has it confirmed that transactions are given up.
func (ex *exporter) confirmGivenUp() error {
	r := ex.report
	if len(r.GivenUp)+len(r.Untold) == 0 {
		return nil
	}

	if ex.opts.Confirm == nil {
		reason := fmt.Sprintf("transactions would be given up: %s", Count(r.GivenUp))
		if len(r.GivenUp) == 0 {
			reason = "what would be given up cannot be told: " + strings.Join(r.Untold, "; ")
		}

		return &Refusal{Code: "transactions-given-up", Reason: reason, Entries: r.GivenUp, Flag: "--yes"}
	}

	return ex.opts.Confirm(r)
}

// emptySource refuses a kept database without an entry.
func (ex *exporter) emptySource(ctx context.Context) error {
	if ex.source == "" {
		return nil
	}

	_, err := globaldb.Base(ctx, ex.log, ex.log.LastIndex)
	if err == nil && ex.log.LastIndex == 0 {
		err = errors.New("its raft log has no entry")
	}

	if err != nil {
		return fmt.Errorf("%s holds no database: %w; `lxd-recover global-db-kept list` has the others", ex.source, err)
	}

	return nil
}
