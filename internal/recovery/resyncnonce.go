// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// pendingName is the file in LXD's directory that says that LXD was stopped for a resync, and waits for a backup.
const pendingName = "database.resync.yaml"

// pendingResync is its content.
type pendingResync struct {
	Nonce     string    `yaml:"nonce"`
	Since     time.Time `yaml:"since"`     // when LXD had stopped
	Signature string    `yaml:"signature"` // of the raft directory then
}

// noteNonce writes down which nonce the backup has to have.
func (d directory) noteNonce(p pendingResync) error {
	return d.writeNote(pendingName, p)
}

// forgetNonce removes what was written down: it is done with, or LXD has run since.
func (d directory) forgetNonce() { _ = os.Remove(d.join(pendingName)) }

// preparedNonce is the nonce that the backup has to have. down is the signature of the raft directory now: LXD may not have run since it was stopped.
func (d directory) preparedNonce(down string) (string, error) {
	again := product.Text("`lxd-recover global-db-resync` without a file stops LXD and says which backup to make")
	data, err := newfile.Read(d.join(pendingName))
	if errors.Is(err, os.ErrNotExist) {
		return "", errors.New("this member was not stopped for a resync: " + again)
	}

	if err != nil {
		return "", err
	}

	p := pendingResync{}
	err = yaml.Unmarshal(data, &p)
	if err != nil || !bundle.IsRun(p.Nonce) {
		return "", fmt.Errorf("%s cannot be read: delete it; %s", d.join(pendingName), again)
	}

	if p.Signature != down {
		d.forgetNonce()
		return "", errors.New(product.Text("LXD has run here since it was stopped for the resync, so that a backup of before is too old. Nothing was "+
			"changed; ") + again)
	}

	return p.Nonce, nil
}

// survivorOf is the plain value of a log that package survivor judges.
func survivorOf(ctx context.Context, log *raftlog.Log) (*survivor.Log, error) {
	r := &InspectReport{Format: inspectFormat, Raft: raftOf(log), Entries: []InspectEntry{}}
	_, err := r.entries(ctx, log, globaldb.Name)
	if err != nil {
		return nil, err
	}

	return survivorLog(r)
}

// replaceFile writes a piece in the place of a file.
func replaceFile(path string, p bundle.Piece) error {
	err := os.Remove(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}

	return writePiece(filepath.Clean(path), p)
}
