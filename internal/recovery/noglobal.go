// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// errEmptied is what reading a raft directory ends with that LXD's own loader has removed: it does so before it renames the one that
// it has unpacked, and was killed in between.
var errEmptied error = product.Error("LXD's own loader was interrupted; import the tarball with `lxd-recover global-db-import`")

// noGlobalError says that a database directory has no raft directory, or an empty one.
type noGlobalError struct {
	global string
	state  string // what is wrong with it, as the end of a sentence
	awaits bool   // it never had a database: this member's identity was restored, and nothing more
}

func (e *noGlobalError) Error() string {
	if e.awaits {
		return e.global + " " + e.state + ". " + product.Text(awaitsAdvice)
	}

	return e.advise("move it back, or import another member's tarball with `lxd-recover global-db-import`",
		"move it back if it was moved away, or import another member's tarball with `lxd-recover global-db-import`")
}

// awaitsAdvice says how a member goes on that has its identity and no database.
const awaitsAdvice = "If no other member works: `lxd-recover cluster export-db --source BACKUP`, with the newest backup of any member, " +
	"makes a recovery tarball, which is imported on every member with `lxd-recover global-db-import`. If the others work: " +
	"`lxd-recover global-db-resync`. LXD does not start here before"

// advise says it, names what may be it, and says what to do: where there is such a directory, and where there is none.
func (e *noGlobalError) advise(found string, otherwise string) string {
	aside := movedAside(e.global)
	if len(aside) == 0 {
		return e.global + " " + e.state + ": " + otherwise
	}

	return e.global + " " + e.state + "; " + strings.Join(aside, " or ") + " holds files of raft and may be what was moved away: " + found
}

// checkGlobal returns an error where there is no raft directory, or one in which there is no file of raft's. LXD leaves one like that on a
// spare only, which has never got the database; elsewhere there are metadata at the least.
func checkGlobal(global string) error {
	files, err := raftFiles(global)
	switch {
	case err == nil && len(files) > 0:
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case loaderLeft(filepath.Dir(global)) != "":
		return fmt.Errorf("%s is gone: %w", global, errEmptied)
	case barred(global):
		return &noGlobalError{global: global, state: "has no database yet: this member's identity was restored", awaits: true}
	case err == nil && spareIn(filepath.Dir(global)):
		return nil
	case err == nil:
		return &noGlobalError{global: global, state: "holds no file of raft"}
	}

	return &noGlobalError{global: global, state: "is missing"}
}

// spareIn tells whether a node database is that of a spare.
func spareIn(database string) bool {
	node, err := nodedb.Read(context.Background(), database) // it is small, and copied first
	return err == nil && !node.Standalone && node.Self.ID > 0 && node.Self.Role == raftlog.Spare
}

// lackingIn returns an error for LXD's directory, or its database directory, where that has no raft directory.
func lackingIn(dir string) error {
	for _, database := range []string{filepath.Join(dir, databaseName), dir} {
		if exists(filepath.Join(database, nodedb.File)) {
			return checkGlobal(filepath.Join(database, globalName))
		}
	}

	return nil
}

// withoutGlobal tells whether there is no raft directory, or an empty one.
func (d directory) withoutGlobal() bool {
	err := checkGlobal(d.global())
	var none *noGlobalError
	return errors.As(err, &none) || errors.Is(err, errEmptied)
}

// awaitsDatabase tells whether an error says that this member's identity was restored, and that it has had no database since.
func awaitsDatabase(err error) bool {
	var none *noGlobalError
	return errors.As(err, &none) && none.awaits
}

// movedAside finds the directories beside a raft directory, and beside its database directory, that hold files of raft and are
// nothing that LXD or lxd-recover has made: canonical/lxd#7371 advises to move a raft directory away. They are named, and never read
// for it: only who has moved them knows what they are.
func movedAside(global string) []string {
	database := filepath.Dir(global)
	var found []string
	for _, parent := range []string{database, filepath.Dir(database)} {
		entries, _ := os.ReadDir(parent)
		for _, e := range entries {
			path := filepath.Join(parent, e.Name())
			if path == global || path == database || e.Name() == product.LXD.Unpacks || ownName(e.Name()) {
				continue
			}

			for _, dir := range []string{path, filepath.Join(path, globalName)} {
				files, err := raftFiles(dir)
				if err == nil && len(files) > 0 {
					found = append(found, dir)
				}
			}
		}
	}

	return found
}

// ownName tells whether a name in LXD's directory is one that lxd-recover gives to databases.
func ownName(name string) bool {
	return name == stagingName || name == removingName || keptName.MatchString(name)
}

// isDatabase tells whether a directory is a database directory of LXD's, or what is left of one.
func isDatabase(dir string) bool {
	for _, name := range []string{globalName, product.LXD.Unpacks, nodedb.File} {
		if exists(filepath.Join(dir, name)) {
			return true
		}
	}

	return false
}
