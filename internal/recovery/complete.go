package recovery

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// replaced are the names in the database directory that the staged one has of its own, or must not have: besides the
// databases those are what LXD's own loader reads or leaves behind.
var replaced = map[string]bool{
	globalName:               true,
	nodedb.File:              true,
	nodedb.File + "-journal": true,
	nodedb.File + "-wal":     true,
	nodedb.File + "-shm":     true,
	patchName:                true,
	recordName:               true,
	lxdTarball:               true,
	lxdUnpackName:            true,
}

// replacement is what turns the staging directory, in which only global/ is complete, into the database directory that takes
// the place of the live one.
type replacement struct {
	dir    directory
	update nodedb.Update // of the node database
	patch  string        // content of patch.global.sql, empty where none is needed
	record Record

	others   otherFiles // what was carried over before LXD was stopped
	reporter *reporter
	report   func(kept string) any // of the run, as it is once this is in place
}

// nodeUpdate is what becomes of a node database: it gets the members, this one's address, and the mark of the recovery.
// core.https_address is changed where it named one of this member's former addresses.
func nodeUpdate(node *nodedb.Node, members member.List, self member.Member, raft bundle.Position, former map[string]bool) nodedb.Update {
	update := nodedb.Update{Members: members, ClusterAddress: self.Address, Mark: nodedb.Mark{Index: raft.Index, Term: raft.Term}}
	if former[node.CoreAddress] {
		update.CoreAddress = self.Address
	}

	return update
}

// formerAddresses are those that a member is known to have had. On one that LXD's own edit ran on, only the table nodes still
// knows the old one.
func formerAddresses(node *nodedb.Node, nodes []globaldb.Node, id uint64) map[string]bool {
	former := map[string]bool{node.ClusterAddress: true}
	for _, n := range nodes {
		if n.ID == id {
			former[n.Address] = true
		}
	}

	return former
}

// changedSettings lists the settings that an update changes.
func changedSettings(node *nodedb.Node, update nodedb.Update) []Change {
	changed := []Change{}
	for _, c := range []Change{
		{Key: "cluster.https_address", Old: node.ClusterAddress, New: update.ClusterAddress},
		{Key: "core.https_address", Old: node.CoreAddress, New: update.CoreAddress},
	} {
		if c.New != "" && c.New != c.Old {
			changed = append(changed, c)
		}
	}

	return changed
}

// takePlace completes the staging directory and exchanges it with the live one, which is kept under the path it returns. done
// tells which of the two is in place afterwards. The caller holds libdqlite's lock.
func (r *replacement) takePlace(ctx context.Context) (kept string, done bool, err error) {
	now := time.Now()
	keep, err := r.dir.freeName("database.before-" + r.record.Purpose + "-" + stamp(now))
	if err != nil {
		return "", false, err
	}

	r.record.Made, r.record.Kept, r.record.Patch = now.UTC().Truncate(time.Second), keep, r.patch
	kept = r.dir.join(keep)
	err = r.complete(ctx)
	if err != nil {
		return kept, false, err
	}

	r.reporter.prepare(keep, r.report(kept))
	done, err = exchange(r.dir, swapdir.Plan{Purpose: r.record.Purpose, Live: databaseName, Staged: stagingName, Keep: keep})
	r.reporter.exchanged(done, err)
	return kept, done, err
}

// complete puts everything beside global/ into the staging directory, where global/ must be complete and on disk (syncStaged). LXD
// must be down: the node database is read here for good. Everything is on disk when complete returns.
func (r *replacement) complete(ctx context.Context) error {
	staging, live := r.dir.join(stagingName), r.dir.database()
	err := nodedb.Stage(ctx, live, filepath.Join(staging, nodedb.File), r.update)
	if err != nil {
		return err
	}

	made := []string{nodedb.File, recordName}
	if r.patch != "" {
		made = append(made, patchName)
		err = os.WriteFile(filepath.Join(staging, patchName), []byte(r.patch), 0o600)
		if err != nil {
			return err
		}
	}

	data, err := yaml.Marshal(r.record)
	if err != nil {
		return err
	}

	err = os.WriteFile(filepath.Join(staging, recordName), data, 0o600)
	if err != nil {
		return err
	}

	info, err := os.Stat(live)
	if err != nil {
		return err
	}

	for _, name := range made {
		path := filepath.Join(staging, name)
		err = chown(path, info)
		if err != nil {
			return err
		}

		err = swapdir.SyncFile(path)
		if err != nil {
			return err
		}
	}

	_, err = copyOtherFiles(live, staging, r.others)
	if err != nil {
		return err
	}

	err = errors.Join(chown(staging, info), os.Chmod(staging, info.Mode()))
	if err != nil {
		return err
	}

	return swapdir.SyncDir(staging)
}

// syncStaged gives the staged raft directory the owner of the live database directory and writes it to disk.
func (d directory) syncStaged() error {
	info, err := os.Stat(d.database())
	if err != nil {
		return err
	}

	global := d.join(stagingName, globalName)
	err = chownTree(global, info)
	if err != nil {
		return err
	}

	return swapdir.SyncTree(global)
}
