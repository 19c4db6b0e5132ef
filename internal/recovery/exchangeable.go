// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/mounts"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// root is the root of the file system, below which is what announces mounts.
var root = "/"

// exchangeable refuses what no exchange of a database directory can do right, as far as that can be told without a trial: a mount below it
// goes away with the old database and comes back at the next reboot, a protected file stays in the way for ever. name is the live
// directory, or a kept one that is to take its place. Nothing is changed.
func (d directory) exchangeable(name string) error {
	path := d.join(name)
	holders, err := daemon.Holders(path)
	if err != nil {
		return err
	}

	var pids []int
	for _, h := range holders {
		pids = append(pids, h.PID)
	}

	err = swapdir.Check(d.path, name, pids...)
	if err != nil {
		return cannotExchange(err)
	}

	global := filepath.Join(path, globalName)
	target, err := os.Readlink(global)
	if err == nil {
		return cannotExchange(fmt.Errorf("%w: %s is a symbolic link to %s; put the directory itself in its place",
			swapdir.ErrImpossible, global, target))
	}

	announced, err := mounts.Announced(root, path)
	if err != nil {
		return err
	}

	if len(announced) > 0 {
		return cannotExchange(fmt.Errorf("%w: what is to be mounted at %s would hide the new database; take that away first, "+
			"after copying what is needed of it into plain directories", swapdir.ErrImpossible, announcedIn(announced)))
	}

	return nil
}

func announcedIn(announced []mounts.Announcement) string {
	var texts []string
	for _, a := range announced {
		texts = append(texts, a.String())
	}

	return strings.Join(texts, ", ")
}

// cannotExchange makes a refusal of an error that says so.
func cannotExchange(err error) error {
	if !errors.Is(err, swapdir.ErrImpossible) {
		return err
	}

	return &Refusal{Code: "cannot-exchange", Reason: err.Error()}
}

// tryExchange tries an exchange on empty directories. It is for runs without a staging directory; makeStaging does it in the others.
func (d directory) tryExchange() error {
	_, err := d.makeProbed()
	d.unstage()
	return err
}

// exchangeProblem says in a status why no run could replace the database.
func (r *StatusReport) exchangeProblem(dir directory) {
	err := dir.exchangeable(databaseName)
	if err != nil {
		r.problem("an import, rollback, edit or repair would be refused: %v", err)
	}
}

// checkRoom makes sure that the file system has room for a copy of the other files of the database directory: by what they take on disk,
// so that a sparse file counts for what it has.
func (d directory) checkRoom(ctx context.Context) error {
	need, err := otherSize(ctx, d.database())
	if err != nil {
		return err
	}

	free, err := freeSpace(d.path)
	if err != nil || need <= free {
		return err
	}

	return product.Errorf("there is not enough room in %s for what else is in %s and would be carried over: it takes %s, and %s are free; "+
		"move what LXD did not put there to another place, or make room", d.path, d.database(), sizeText(need), sizeText(free))
}
