package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// prepare unpacks the tarball into the staging directory and makes every check that can be made while LXD still runs. It
// fills in the report.
func (im *importer) prepare(ctx context.Context) error {
	status, err := daemon.Inspect(ctx, im.dir.path)
	if err != nil {
		return err
	}

	im.report.Daemon, im.live = status.String(), status.Running()
	if !im.opts.DryRun {
		err = stoppable(status)
		if err != nil {
			return err
		}
	}

	certificate, err := im.dir.clusterCertificate()
	if err != nil {
		return err
	}

	node, err := im.node(ctx)
	if err != nil {
		return err
	}

	// Nothing that goes on beside the checks may outlive them: what it works on is removed when they fail.
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()

	err = im.unpack(ctx) // keeps two processors busy by itself
	if err != nil {
		return err
	}

	var local localLook
	looked := make(chan struct{})
	group.Go(func() {
		defer close(looked)
		local = im.lookAtLocal(ctx)
	})

	staged := im.dir.join(stagingName, globalName)
	log, err := readLog(ctx, staged, im.opts.Progress)
	if err != nil {
		return err
	}

	err = im.checkLog(log)
	if err != nil {
		return err
	}

	if im.tarball.Manifest == nil {
		log, err = im.fenceOwn(ctx)
		if err != nil {
			return err
		}
	}

	synced := make(chan error, 1)
	group.Go(func() { synced <- im.syncStaged() })

	err = im.checkCluster(certificate, node)
	if err != nil {
		return err
	}

	err = im.checkDatabase(ctx, log)
	if err != nil {
		return err
	}

	if !im.opts.BesideCluster {
		err = im.checkPeers(ctx, node)
		if err != nil {
			return err
		}
	}

	im.log = log
	im.describe(node)
	<-looked
	err = im.compareLocal(ctx, local)
	if err != nil {
		return err
	}

	im.report.NothingToDo, err = im.sameAsLive(node)
	return errors.Join(err, <-synced)
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
	f, err := os.Open(im.opts.Tarball)
	if err != nil {
		return err
	}

	defer f.Close()

	info, err := f.Stat()
	if err != nil {
		return err
	}

	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file: give the tarball itself, %s unless it was named otherwise", im.opts.Tarball, bundle.DefaultName)
	}

	staging := im.dir.join(stagingName)
	err = os.Mkdir(staging, 0o700)
	if err != nil {
		return err
	}

	err = swapdir.Probe(staging)
	if err != nil {
		return err
	}

	global := filepath.Join(staging, globalName)
	err = os.Mkdir(global, 0o700)
	if err != nil {
		return err
	}

	root, err := os.OpenRoot(global)
	if err != nil {
		return err
	}

	defer root.Close()

	done := im.opts.Progress.start("Reading "+im.opts.Tarball, info.Size())
	defer done()

	im.tarball, err = bundle.Extract(ctx, f, root, im.opts.Progress.add)
	if err != nil {
		return fmt.Errorf("%s: %w", im.opts.Tarball, err)
	}

	return nil
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

	im.report.Raft = bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	if im.tarball.Manifest == nil && (!log.Edited || log.LastTerm != 1) && !im.fencedHere {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
			Text: "it does not end in a member list as `lxd cluster edit` writes it, and " + bundle.ManifestName + " is missing"}}}
	}

	if im.tarball.Manifest != nil && im.tarball.Manifest.Raft.After != im.report.Raft {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1,
			Text: fmt.Sprintf("it ends at %s, the manifest says %s", im.report.Raft, im.tarball.Manifest.Raft.After)}}}
	}

	return nil
}

// checkCluster makes sure that tarball and member belong together (guarantee G6), as far as names and certificates tell.
func (im *importer) checkCluster(certificate string, node *nodedb.Node) error {
	manifest := im.tarball.Manifest
	if manifest == nil {
		im.report.Unchecked = append(im.report.Unchecked,
			"the tarball is LXD's own and carries no cluster certificate: that it comes from this cluster was told from the member's own certificate in its database only",
			"it carries no checksums: damage that leaves the raft log readable cannot be seen",
			"it is not fenced: it is fenced here, to the same bytes on every member, so import it with lxd-recover on a majority of the voters at the least")
	} else {
		im.report.Source = manifest.Source.Name
		if manifest.Cluster.Certificate != certificate {
			return wrongCluster("it was exported from a cluster with the certificate %.12s…, this cluster's is %.12s…", manifest.Cluster.Certificate, certificate)
		}
	}

	if node.Self.ID == 0 {
		return nil // see node
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
func (im *importer) checkDatabase(ctx context.Context, log *raftlog.Log) error {
	what := "the database in " + im.opts.Tarball
	im.opts.Progress.step("Replaying the raft log")
	db, err := globaldb.Open(ctx, log, 0)
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
		im.report.Warnings = append(im.report.Warnings, "the tarball's database knows no certificate of this member: LXD may refuse it until it is trusted again")
	} else if trusted != own {
		return wrongCluster("its database does not know this member's certificate %.12s… for %s", own, im.report.Member.Name)
	}

	im.nodes, err = db.Nodes(ctx)
	if err != nil {
		return replayError(what, err)
	}

	return nil
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
	im.report.Warnings = append(im.report.Warnings, fmt.Sprintf("the node database does not say which member this is; by its certificate it is %s (id %d)", m.Name, m.ID))
	return nil
}

// withCertificate finds the one of these members that a database knows by a certificate.
func withCertificate(ctx context.Context, db *globaldb.DB, members member.List, certificate string) (m member.Member, ok bool, err error) {
	for _, m := range members {
		its, err := db.MemberCertificate(ctx, m.Name)
		if err != nil {
			return member.Member{}, false, err
		}

		if its == certificate {
			return m, true, nil
		}
	}

	return member.Member{}, false, nil
}

// describe works out what will change.
func (im *importer) describe(node *nodedb.Node) {
	r := im.report
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
	r.Patch = patchSQL(im.nodes, im.tarball.Members)
	for _, finding := range r.Database.ForeignKeys {
		r.Warnings = append(r.Warnings, "the database has a row without its parent: "+finding)
	}
}

// localLook is a look at this member's own raft directory.
type localLook struct {
	signature string // of the directory before it was read
	emptied   bool
	log       *raftlog.Log
	err       error
}

// lookAtLocal reads this member's own log, or, once it was compared, what has changed of it since.
func (im *importer) lookAtLocal(ctx context.Context) localLook {
	look := localLook{signature: signature(im.dir.global()), emptied: im.dir.emptied()}
	if !look.emptied {
		var known *raftlog.Log
		if im.branching != nil {
			known = im.branching.local
		}

		look.log, look.err = openLog(ctx, im.dir.global(), Progress{}, raftlog.Options{Known: known})
	}

	return look
}

// useBackup looks at LXD's own backup in place of a raft directory that LXD's own loader has removed, or was removing, when it was
// interrupted: the files go one after the other, and what is left of them may look sound.
func (im *importer) useBackup(ctx context.Context, source *Source, look *localLook) (used bool, err error) {
	if source == nil && look.emptied {
		look.err = errors.New("LXD's own loader was interrupted after it had removed it, and no backup of LXD's has it")
		return false, ctx.Err()
	}

	if source == nil {
		im.warn("LXD's own loader was interrupted here, and there is no backup of LXD's to tell whether it had begun to remove this member's global database")
		return false, nil
	}

	backup, err := readLog(ctx, source.global, im.opts.Progress)
	if err != nil && look.emptied {
		look.err = fmt.Errorf("LXD's own loader was interrupted after it had removed it, and LXD's backup %s cannot be read: %w", source.Path, err)
		return false, ctx.Err()
	}

	if err != nil || !look.emptied && look.err == nil && look.log.LastIndex >= backup.LastIndex {
		return false, ctx.Err()
	}

	look.log, look.err = backup, nil
	im.warn("LXD's own loader was interrupted after it had begun to remove this member's global database: what is in LXD's backup " + source.Path + " was compared")
	return true, nil
}

// compareLocal finds out what only this member has.
func (im *importer) compareLocal(ctx context.Context, look localLook) error {
	r := im.report
	im.compared = look.signature
	if look.emptied || exists(filepath.Join(im.dir.database(), lxdUnpackName)) {
		source := im.dir.beforeLoader(ctx, im.opts.Progress)
		if source != nil {
			defer source.Close()
		}

		used, err := im.useBackup(ctx, source, &look)
		if err != nil {
			return err
		}

		if used {
			defer func() { im.branching = nil }() // it reads what is removed then
		}
	}

	local, err := look.log, look.err
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}

		im.unknownLoss = "it cannot be read: " + err.Error()
		return nil
	}

	r.Local = &bundle.Position{Index: local.LastIndex, Term: local.LastTerm}
	if !local.Healthy() {
		im.unknownLoss = "it is damaged; see `lxd-recover global-db-inspect`"
	}

	different, err := otherHistory(ctx, local, im.log)
	if err == nil {
		im.branching, err = discarded(ctx, local, im.log, im.branching)
	}

	if err == nil {
		r.Discarded = im.branching.found
	}

	if different != "" {
		im.unknownLoss = different
	}

	if err != nil && ctx.Err() == nil {
		im.unknownLoss, err = "it cannot be compared: "+err.Error(), nil
		r.Discarded = []Discarded{}
	}

	if err != nil {
		return err
	}

	im.aboveFence, err = im.outvotes(local)
	return err
}

// outvotes says why this member's own log could outvote the tarball's, empty where it could not: it has seen a term that is
// not below the fence's, so another member may hold such a log, too. That is as it should be on a member that has run on this
// very recovery before.
func (im *importer) outvotes(local *raftlog.Log) (string, error) {
	if local.MaxTerm < im.report.Raft.Term {
		return "", nil
	}

	record, err := readRecord(im.dir.database())
	if err != nil || record != nil && record.Raft == im.report.Raft {
		return "", err
	}

	return fmt.Sprintf("this member has seen raft term %d, and the tarball is fenced with term %d only: another member could outvote it. Save `lxd-recover global-db-inspect --format json` here and export again with --survivor", local.MaxTerm, im.report.Raft.Term), nil
}

func (im *importer) update(node *nodedb.Node) nodedb.Update {
	return nodeUpdate(node, im.tarball.Members, im.report.Member, im.report.Raft, im.former)
}

// already tells whether the live database is, to the byte, what this import would make: then an earlier run was complete,
// and LXD has not run since.
func (im *importer) sameAsLive(node *nodedb.Node) (bool, error) {
	if len(im.report.Settings) > 0 || !node.Members.Same(im.tarball.Members) {
		return false, nil
	}

	patch, err := os.ReadFile(filepath.Join(im.dir.database(), patchName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}

	for _, name := range []string{lxdTarball, lxdUnpackName} {
		_, err := os.Lstat(filepath.Join(im.dir.database(), name))
		if err == nil {
			return false, nil
		}
	}

	if string(patch) != im.report.Patch {
		return false, nil
	}

	return sameRaftFiles(im.dir.global(), im.dir.join(stagingName, globalName))
}
