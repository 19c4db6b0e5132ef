// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// replaced are the names in the database directory that the staged one has of its own, or must not have: besides the
// databases those are what LXD's own loader reads or leaves.
var replaced = map[string]bool{
	globalName:               true,
	nodedb.File:              true,
	nodedb.File + "-journal": true,
	nodedb.File + "-wal":     true,
	nodedb.File + "-shm":     true,
	patchName:                true,
	recordName:               true,
	product.LXD.Loads:        true,
	product.LXD.Unpacks:      true,
}

// replacement is what turns the staging directory, in which only global/ is complete, into the database directory that takes
// the place of the live one.
type replacement struct {
	dir    directory
	update nodedb.Update // of the node database
	lost   *lostNode     // the node database is lost, and this is what a new one is made from; nil where it is not
	patch  string        // content of patch.global.sql, empty where none is needed
	record Record

	// sameNode takes the files of the node database over as they are, without the update.
	sameNode bool

	others   otherFiles // what was carried over before LXD was stopped
	reporter *reporter
	report   func(kept string) any // of the run, as it is once this is in place
}

// takePlace completes the staging directory and exchanges it with the live one, which is kept under the path it returns. done
// tells which of the two is in place afterwards. The caller holds libdqlite's lock.
func (r *replacement) takePlace(ctx context.Context) (kept string, done bool, err error) {
	now := time.Now()
	keep, err := r.dir.keepName(r.record.Purpose, now)
	if err != nil {
		return "", false, err
	}

	r.record.Made, r.record.Kept, r.record.Patch = now.UTC().Truncate(time.Second), keep, r.patch
	kept = r.dir.join(keep)
	r.record.State, err = raftState(r.dir.join(stagingName, globalName))
	if err != nil {
		return kept, false, err
	}

	err = r.complete(ctx)
	if err != nil {
		return kept, false, err
	}

	r.reporter.run.ID, r.reporter.run.State = r.record.Run, r.record.State
	r.reporter.prepare(keep, r.report(kept))
	done, err = carryOut(r.dir, swapdir.Plan{Purpose: r.record.Purpose, Live: databaseName, Staged: stagingName, Keep: keep})
	r.reporter.exchanged(done, err)
	return kept, done, err
}

// complete puts everything beside global/ into the staging directory, where global/ must be complete and on disk (syncStaged). LXD
// must be down: the node database is read here for good. Everything is on disk when complete returns.
func (r *replacement) complete(ctx context.Context) error {
	staging, live := r.dir.join(stagingName), r.dir.database()
	made, err := r.stageNode(ctx, filepath.Join(staging, nodedb.File))
	if err != nil {
		return err
	}

	made = append(made, recordName)
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

	err = r.dir.standInForNode(staging, made)
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

	_, err = r.dir.copyOtherFiles(ctx, r.others)
	if err != nil {
		return err
	}

	err = standIn(live, info, staging)
	if err != nil {
		return err
	}

	return swapdir.SyncDir(staging)
}

// stageNode writes the new node database: the live one as it is or changed, or, where that is lost, one that is made anew. It returns
// the names of the files that it made, in the staging directory.
func (r *replacement) stageNode(ctx context.Context, target string) ([]string, error) {
	made := []string{nodedb.File}
	switch {
	case r.lost != nil:
		return made, nodedb.Make(ctx, r.lost.template, target, r.update)
	case r.sameNode:
		return r.copyNode(ctx, target)
	}

	return made, nodedb.Stage(ctx, r.dir.database(), target, r.update)
}

// copyNode copies the files of the node database, those that are there: whatever is wrong with it, it is not this run that repairs it.
func (r *replacement) copyNode(ctx context.Context, target string) ([]string, error) {
	made := []string{}
	for _, suffix := range []string{"", "-journal", "-wal"} {
		from := r.dir.local() + suffix
		if gone(from) {
			continue
		}

		err := copyTree(ctx, from, target+suffix)
		if err != nil {
			return nil, err
		}

		made = append(made, nodedb.File+suffix)
	}

	return made, nil
}

// makeStaging makes the staging directory, where directories can be exchanged, and where there is room for what is carried over.
func (d directory) makeStaging(ctx context.Context) (string, error) {
	err := d.checkRoom(ctx)
	if err != nil {
		return "", err
	}

	return d.makeProbed()
}

// makeProbed makes a staging directory, and tries the exchange.
func (d directory) makeProbed() (string, error) {
	staging := d.join(stagingName)
	err := os.Mkdir(staging, 0o700)
	if err != nil {
		return "", err
	}

	return staging, cannotExchange(swapdir.Probe(staging, d.database()))
}

// syncStaged gives the staged raft directory what the live one has besides its content, and writes it to disk.
func (d directory) syncStaged() error {
	info, err := os.Stat(d.database())
	if err != nil {
		return err
	}

	global := d.join(stagingName, globalName)
	err = standInForGlobal(d.global(), global, info)
	if err != nil {
		return err
	}

	return swapdir.SyncTree(global)
}
