// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
)

// Record is what an import, an edit, a repair or a resync leaves in the database directory it made: where this database comes from. It goes
// where the directory goes, so after a rollback the record of the import is in the kept directory, and gone from the live one.
type Record struct {
	Purpose string          `json:"purpose" yaml:"purpose"` // what made this directory: import, edit, repair or resync
	Made    time.Time       `json:"made" yaml:"made"`
	Version string          `json:"version" yaml:"version"`                     // of lxd-recover
	Run     string          `json:"run,omitempty" yaml:"run,omitempty"`         // id of the run: the tarball's, or one of its own; empty from earlier versions
	Tarball string          `json:"tarball,omitempty" yaml:"tarball,omitempty"` // that was imported: its path
	Digest  string          `json:"digest,omitempty" yaml:"digest,omitempty"`   // its SHA-256
	Source  string          `json:"source,omitempty" yaml:"source,omitempty"`   // name of the member it came from; empty for LXD's own tarballs
	Raft    bundle.Position `json:"raft" yaml:"raft"`                           // last entry
	State   string          `json:"state,omitempty" yaml:"state,omitempty"`     // of the raft directory as it was made, see raftState
	Kept    string          `json:"kept" yaml:"kept"`                           // name of the directory that was replaced

	// Patch is what was written to patch.global.sql. LXD deletes that file before the change is safely in the database,
	// so this copy is the one to go back to when the addresses turn out wrong.
	Patch string `json:"patch,omitempty" yaml:"patch,omitempty"`
}

// Purposes of a replacement, as they stand in records, plans and the names of kept directories.
const (
	purposeImport   = "import"
	purposeRollback = "rollback"
	purposeEdit     = "edit"
	purposeRepair   = "repair"
	purposeResync   = "resync"
	purposeUndo     = "undo" // of one of these, whose exchange had come too late
)

// readRecord returns the record of a database directory, nil where it has none.
func readRecord(database string) (*Record, error) {
	data, err := newfile.Read(filepath.Join(database, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	r := &Record{}
	return r, yaml.Unmarshal(data, r)
}
