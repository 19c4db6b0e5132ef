// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
)

// A member's identity is what it cannot start without, and what is nowhere in the global database: its certificates with their private keys, and its
// node database. The others of the cluster know it by the certificate, so no new one can take its place. With its directory all of that is lost.

// serverKeyName is the private key that belongs to the certificate of this server alone.
const serverKeyName = "server.key"

// identityFile is a file at the top of LXD's directory.
type identityFile struct {
	name   string
	mode   fs.FileMode // that LXD gives it
	needed bool        // every member of a cluster has it
}

// identityFiles are all that LXD reads at the top of its directory when it starts (its shared.KeyPairAndCA). Those of a certificate authority are there
// if the administrator has put them there.
var identityFiles = []identityFile{
	{serverCertificateName, 0o644, true},
	{serverKeyName, 0o600, true},
	{clusterCertificateName, 0o644, true},
	{clusterKeyName, 0o600, true},
	{"server.ca", 0o644, false},
	{"cluster.ca", 0o644, false},
	{"ca.crl", 0o644, false},
}

// sealIdentity returns this member's identity, encrypted. The node database is a whole copy, even while LXD writes to it.
func (d directory) sealIdentity(ctx context.Context, lock *sealed.Lock, live bool) ([]byte, error) {
	var files []sealed.File
	for _, f := range identityFiles {
		data, err := newfile.Read(d.join(f.name))
		if errors.Is(err, os.ErrNotExist) && !f.needed {
			continue
		}

		if err != nil {
			return nil, fmt.Errorf("this member's identity is not whole: %w", err)
		}

		files = append(files, sealed.File{Name: f.name, Data: data})
	}

	err := checkPairs(files)
	if err != nil {
		return nil, fmt.Errorf("this member's identity is not whole: %w", err)
	}

	node, err := d.copyNode(ctx, live)
	if err != nil {
		return nil, err
	}

	return lock.Seal(append(files, sealed.File{Name: nodedb.File, Data: node}))
}

// copyNode returns the content of a whole copy of the node database.
func (d directory) copyNode(ctx context.Context, live bool) ([]byte, error) {
	dir, remove, err := scratch.Dir("identity")
	if err != nil {
		return nil, err
	}

	defer remove()

	target := filepath.Join(dir, nodedb.File)
	err = whileLive(ctx, live, func(bool) (bool, error) {
		err := errors.Join(os.RemoveAll(target), nodedb.Copy(ctx, d.database(), target))
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}

	return newfile.Read(target)
}

// checkPairs makes sure that each certificate has the private key that belongs to it. The errors name files, and nothing that is in them.
func checkPairs(files []sealed.File) error {
	for _, pair := range [][2]string{{serverCertificateName, serverKeyName}, {clusterCertificateName, clusterKeyName}} {
		_, err := tls.X509KeyPair(contentOf(files, pair[0]), contentOf(files, pair[1]))
		if err != nil {
			return fmt.Errorf("%s and %s do not belong together", pair[0], pair[1])
		}
	}

	return nil
}

// contentOf is what a file of that name has; nil if there is none.
func contentOf(files []sealed.File, name string) []byte {
	for _, f := range files {
		if f.Name == name {
			return f.Data
		}
	}

	return nil
}
