// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// stage unpacks the tarball into the staging directory and makes every check that can be made while LXD still runs. It
// fills in the report.
func (im *importer) stage(ctx context.Context) error {
	err := im.checkMember(ctx)
	if err != nil {
		return err
	}

	// Nothing that goes on beside the checks may outlive them: what it works on is removed when they fail.
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()

	err = im.unpack(ctx) // keeps two processors busy by itself
	if err != nil {
		return err
	}

	looked := make(chan localLook, 1)
	beside.Go(func() { looked <- im.lookAtLocal(ctx) })
	err = im.readStaged(ctx)
	if err != nil {
		return err
	}

	synced := make(chan error, 1)
	beside.Go(func() { synced <- im.syncStaged() })
	err = im.checkBelongs(ctx)
	if err != nil {
		return err
	}

	im.describe()
	err = im.describeLacking(ctx)
	if err != nil {
		return err
	}

	err = im.compareLocal(ctx, <-looked)
	if err == nil {
		err = im.describeNeeds(ctx)
	}

	if err != nil {
		return err
	}

	im.report.NothingToDo, err = im.sameAsLive()
	err = errors.Join(err, <-synced)
	if err != nil || im.report.NothingToDo {
		return err
	}

	return im.dir.checkRoom(ctx) // again: now the tarball is unpacked
}

// checkMember looks at this member: whether its LXD can be stopped and started, and who it is.
func (im *importer) checkMember(ctx context.Context) error {
	err := im.dir.importable(ctx)
	if err != nil {
		return err
	}

	status, err := daemon.Inspect(ctx, im.dir.path)
	if err != nil {
		return err
	}

	im.report.Daemon, im.live = status.String(), status.Running()
	im.report.StartCommand = status.StartByHand()
	if !im.opts.DryRun {
		err = stoppable(status)
		if err != nil {
			return err
		}
	}

	im.certificate, err = im.dir.clusterCertificate()
	if err != nil {
		return err
	}

	err = im.readSigners()
	if err != nil {
		return err
	}

	return im.checkNode(ctx)
}

// checkNode reads the node database, or, where it is lost, the one that a new one is made from.
func (im *importer) checkNode(ctx context.Context) error {
	node, lost, err := im.dir.readNode(ctx, im.live)
	if err != nil {
		return err
	}

	im.node = node
	switch {
	case lost != nil:
		im.lost, err = newLostNode(ctx, lost, im.opts.NodeDB)
	case im.opts.NodeDB != "":
		im.report.warn("this member's own node database is whole: " + im.opts.NodeDB + " is not needed, and nothing is taken from it")
	}

	return err
}

// readStaged reads and checks the raft log that was unpacked. One of LXD's own tarballs is fenced here.
func (im *importer) readStaged(ctx context.Context) error {
	log, err := readLog(ctx, im.dir.join(stagingName, globalName), im.opts.Progress)
	if err != nil {
		return err
	}

	err = im.checkLog(log)
	if err == nil && im.tarball.Manifest == nil {
		log, err = im.fenceOwn(ctx)
	}

	im.log = log
	return err
}

// checkBelongs makes sure that tarball and member belong together, and that no working cluster does without both.
func (im *importer) checkBelongs(ctx context.Context) error {
	err := im.checkCluster()
	if err != nil {
		return err
	}

	err = im.checkDatabase(ctx)
	if err != nil || im.opts.BesideCluster {
		return err
	}

	return im.checkPeers(ctx)
}

// syncStaged gives the staged raft directory the owner of the live one, and has it written to disk. That takes as long as the
// database is large, so it is done while LXD still runs.
func (im *importer) syncStaged() error {
	if im.opts.DryRun {
		return nil
	}

	return im.dir.syncStaged()
}

// unpack makes the staging directory and fills its global/.
func (im *importer) unpack(ctx context.Context) error {
	f, err := newfile.Open(im.opts.Tarball)
	if errors.Is(err, newfile.ErrNotRegular) {
		return fmt.Errorf("%s is not a file: give the tarball itself, %s unless it was named otherwise", im.opts.Tarball, product.Current().Tarball)
	}

	if err != nil {
		return err
	}

	defer f.Close()

	staging, err := im.dir.makeStaging(ctx)
	if err != nil {
		return err
	}

	global := filepath.Join(staging, globalName)
	err = os.Mkdir(global, 0o700)
	if err != nil {
		return err
	}

	im.tarball, err = extract(ctx, f, global, im.judge, im.opts.Progress)
	if err != nil && !speaksForItself(err) {
		err = fmt.Errorf("%s: %w", im.opts.Tarball, err)
	}

	return err
}

// extract unpacks a tarball to a directory, which checks all digests. judge sees what it says of itself before.
func extract(ctx context.Context, f *os.File, into string, judge func(*bundle.Origin) error, progress Progress) (*bundle.Extracted, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}

	root, err := os.OpenRoot(into)
	if err != nil {
		return nil, err
	}

	defer root.Close()

	done := progress.start("Reading "+f.Name(), info.Size())
	defer done()

	return bundle.Extract(ctx, f, root, bundle.ExtractOptions{Judge: judge, Progress: progress.add})
}

// checkLog compares the raft log with what the tarball says of itself.
func (im *importer) checkLog(log *raftlog.Log) error {
	what := "the database in " + im.opts.Tarball
	if !log.Healthy() {
		return &DamageError{What: what, Problems: log.Problems, Advice: "Copy the tarball again, or export it again."}
	}

	if !im.tarball.Members.SameServers(log.Configuration) {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
			Text: "the member list of the tarball is not the one in its raft log"}}}
	}

	if log.EntryTerm > maxProvenTerm-termStep || !believable(log.Term, log.EntryTerm) {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
			Text: fmt.Sprintf("it has the raft term %d, and no raft counts that far", log.MaxTerm)}}}
	}

	im.report.Raft = bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	if im.tarball.Manifest == nil && (!log.Edited || log.LastTerm != 1) && !im.fencedHere {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
			Text: product.Text("it does not end in a member list as `lxd cluster edit` writes it, and ") + bundle.ManifestName + " is missing"}}}
	}

	if im.tarball.Manifest != nil && im.tarball.Manifest.Raft.After != im.report.Raft {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
			Text: fmt.Sprintf("it ends at %s, the manifest says %s", im.report.Raft, im.tarball.Manifest.Raft.After)}}}
	}

	return nil
}

// checkCluster makes sure that tarball and member belong together (guarantee G6), as far as names tell; judge has looked at the
// certificate.
func (im *importer) checkCluster() error {
	manifest, node := im.tarball.Manifest, im.node
	err := im.dir.checkProduct(manifest)
	if err != nil {
		return err
	}

	if manifest == nil {
		im.report.Unchecked = append(im.report.Unchecked,
			product.Text("the tarball is LXD's own and carries no cluster certificate: "+
				"that it comes from this cluster was told from the member's own certificate in its database only"),
			"it carries no checksums: damage that leaves the raft log readable cannot be seen",
			"it is not fenced: it is fenced here, to the same bytes on every member, so import it with lxd-recover on a majority of the voters at the least")
	} else {
		im.report.Source = manifest.Source.Name
	}

	if node.Self.ID == 0 {
		return nil // see readNode
	}

	self, ok := im.tarball.Members.ByID(node.Self.ID)
	if !ok {
		return wrongCluster("its member list has no id %d, which is this member's (%s, %s)", node.Self.ID, node.Self.Name, node.Self.Address)
	}

	// A spare that has seen no heartbeat yet knows no names, not even its own; checkDatabase goes by its certificate.
	if node.Self.Name != "" && self.Name != node.Self.Name {
		return wrongCluster("its member %d is named %s, this one is %s", self.ID, self.Name, node.Self.Name)
	}

	im.report.Member = self
	return nil
}

// checkDatabase replays the tarball's log and looks into the database that comes out.
func (im *importer) checkDatabase(ctx context.Context) error {
	what := "the database in " + im.opts.Tarball
	im.opts.Progress.step("Replaying the raft log")
	db, err := globaldb.Open(ctx, im.log, 0)
	if err != nil {
		return replayError(what, err)
	}

	defer db.Close()

	im.report.Database, err = sound(ctx, db, what)
	if err != nil {
		return err
	}

	own, err := im.dir.serverCertificate()
	if err != nil {
		return err
	}

	if im.report.Member.ID == 0 {
		err = im.recognise(ctx, db, own)
		if err != nil {
			return err
		}
	}

	trusted, err := db.MemberCertificate(ctx, im.report.Member.Name)
	if err != nil {
		return replayError(what, err)
	}

	if trusted == "" && im.tarball.Manifest != nil {
		im.report.Warnings = append(im.report.Warnings, product.Text("the tarball's database knows no certificate of this member: "+
			"LXD may refuse it until it is trusted again"))
	} else if trusted != own {
		return wrongCluster("its database does not know this member's certificate %.12s… for %s", own, im.report.Member.Name)
	}

	err = im.checkMembers(ctx, db, what)
	if err == nil && im.resync {
		im.nonce, err = db.Setting(ctx, nonceKey)
	}

	if err != nil {
		return err
	}

	return im.fillNode(ctx, db)
}

// fillNode finds out what goes into a node database that is made anew, or that does not know this member.
func (im *importer) fillNode(ctx context.Context, db *globaldb.DB) error {
	if im.lost == nil && im.node.Self.ID != 0 {
		return nil
	}

	var err error
	im.trusted, err = memberCertificates(ctx, db)
	if err != nil {
		return replayError("the database in "+im.opts.Tarball, err)
	}

	if im.lost != nil || im.node.ClusterAddress == "" { // an LXD that was started without node database has made one without settings
		im.report.warn(im.dir.settingsLost(ctx))
	}

	if im.lost == nil {
		return nil
	}

	warnings, err := im.lost.belongs(ctx, db, im.tarball.Members, im.report.Member)
	im.report.warn(warnings...)
	im.report.NodeDB = im.lost.report()
	return err
}

// recognise finds the member that this one is by the certificate that the tarball's database knows it by.
func (im *importer) recognise(ctx context.Context, db *globaldb.DB, own string) error {
	m, ok, err := withCertificate(ctx, db, im.tarball.Members, own)
	if err != nil {
		return replayError("the database in "+im.opts.Tarball, err)
	}

	if !ok {
		return wrongCluster("its database knows no member with this one's certificate %.12s…", own)
	}

	im.report.Member = m
	why := "the node database does not say which member this is"
	if im.lost != nil {
		why = im.lost.why.Error()
	}

	im.report.warn(fmt.Sprintf("%s; by its certificate it is %s (id %d)", why, m.Name, m.ID))
	return nil
}

// describe works out what will change.
func (im *importer) describe() {
	r, node := im.report, im.node
	for _, m := range im.tarball.Members {
		change := MemberChange{ID: m.ID, Name: m.Name, NewAddress: m.Address, NewRole: m.Role.String()}
		old, ok := node.Members.ByID(m.ID)
		if ok {
			change.OldAddress, change.OldRole = old.Address, old.Role.String()
		}

		r.Members = append(r.Members, change)
	}

	for _, m := range node.Members {
		_, ok := im.tarball.Members.ByID(m.ID)
		if !ok {
			r.Members = append(r.Members, MemberChange{ID: m.ID, Name: m.Name, OldAddress: m.Address, OldRole: m.Role.String()})
		}
	}

	r.Size, r.KeptSpace = treeSize(im.dir.database()), im.dir.space()
	im.former = formerAddresses(node, im.nodes, r.Member.ID)
	r.Settings = changedSettings(node, im.update(node))
	r.Carried, r.Patch = SQL(im.pending.carried()), SQL(composed(im.pending, im.rows, im.tarball.Members))
	for _, finding := range r.Database.ForeignKeys {
		r.Warnings = append(r.Warnings, "the database has a row without its parent: "+finding)
	}
}

// describeLacking says what the database that is replaced lacks, so that a rollback could not put it back.
func (im *importer) describeLacking(ctx context.Context) error {
	if im.lost == nil && len(im.node.Members) > 0 && !im.dir.withoutGlobal() {
		return nil
	}

	var err error
	im.report.Lacking, _, err = im.dir.lacks(ctx, im.dir.database())
	return err
}

func (im *importer) update(node *nodedb.Node) nodedb.Update {
	update := nodeUpdate(node, im.tarball.Members, im.report.Member, im.report.Raft, im.former)
	update.Certificates = im.trusted
	return update
}

// sameAsLive tells whether the live database is, to the byte, what this import would make: then an earlier run was complete,
// and LXD has not run since.
func (im *importer) sameAsLive() (bool, error) {
	if im.lost != nil || im.dir.withoutGlobal() || len(im.report.Settings) > 0 || !im.node.Members.Same(im.tarball.Members) {
		return false, nil
	}

	patch, err := newfile.Read(filepath.Join(im.dir.database(), patchName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}

	if im.dir.loads() != "" || loaderLeft(im.dir.database()) != "" {
		return false, nil
	}

	if SQL(patch) != im.report.Patch {
		return false, nil
	}

	return sameRaftFiles(im.dir.global(), im.dir.join(stagingName, globalName))
}

// fenceOwn fences a tarball of LXD's own in the staging directory. Every member must compute the same bytes from the same
// tarball, so the term comes from nothing but the tarball: the highest term in it, the newest time stamp in the archive, and its digest.
// On a member that LXD's own loader brings the tarball to the entry keeps term 1; raft replaces it by the fenced one, which
// has the same content.
func (im *importer) fenceOwn(ctx context.Context) (*raftlog.Log, error) {
	im.fencedHere = true
	newest := time.Unix(im.tarball.Newest, 0)
	if im.tarball.Newest < 0 || im.tarball.Newest > maxTerm/1000 {
		return nil, &DamageError{What: im.opts.Tarball, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
			Text: "its newest time stamp is " + second(newest)}}, Advice: "Copy the tarball again, or export it again."}
	}

	spread, err := digestSpread(im.tarball.Digest)
	if err != nil {
		return nil, err
	}

	log, err := fenceStaged(ctx, im.dir, im.opts.Progress, func(log *raftlog.Log) (uint64, uint64) {
		seen, _ := seenTerm(log)
		return log.LastIndex, fenceTerm(seen, 0, newest, spread)
	})
	if err != nil {
		return nil, err
	}

	return log, im.checkLog(log)
}
