// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// product is the one whose directory this is.
func (d directory) product() *product.Product { return product.Of(productDir(d.path)) }

// productDir is where a product's own files tell whose directory this is: beside a copy of the database that a run works on.
func productDir(path string) string {
	if filepath.Base(path) == runCopyName {
		return filepath.Dir(path)
	}

	return path
}

// productName is its name in what is written down, where LXD has none.
func (d directory) productName() string { return nameOfProduct(d.product()) }

func nameOfProduct(p *product.Product) string {
	if p == product.LXD {
		return ""
	}

	return p.Name
}

// checkProduct refuses what is of another product, even if the cluster certificate is the same: an Incus that was an LXD has that one's.
func (d directory) checkProduct(manifest *bundle.Manifest) error {
	theirs := product.LXD
	if manifest != nil {
		theirs = product.ByName(manifest.Cluster.Product)
	}

	own, known := product.Known(productDir(d.path))
	if known && theirs != own {
		return wrongCluster("it is of a cluster of %s, and %s is the directory of an %s", theirs.Name, d.path, own.Name)
	}

	return nil
}

// Here is the product on this machine, LXD if there is none.
func Here() *product.Product {
	dir, err := FindLXD()
	if err != nil {
		return product.LXD
	}

	return product.Of(dir)
}

// productOf is the product that a raft directory is of; LXD if that is not known.
func productOf(ctx context.Context, global string) *product.Product {
	p, known := knownProduct(ctx, global)
	if !known {
		return product.LXD
	}

	return p
}

// knownProduct tells a raft directory's product by what is beside its database directory, by the archive that it is a part of, or by the node database.
func knownProduct(ctx context.Context, global string) (p *product.Product, known bool) {
	database := filepath.Dir(global)
	if archive.Is(database) {
		owner, err := archive.OwnerOf(database) // what is wrong with it, is for others to say
		return product.ByName(owner.Product), err == nil
	}

	if !strings.HasPrefix(filepath.Base(global), globalName) { // a copy of raft's files: what lies beside it may be anybody's
		return product.LXD, false
	}

	p, known = product.Known(productDir(filepath.Dir(database)))
	if known {
		return p, true
	}

	applied, err := nodedb.Patches(ctx, database)
	return product.ByPatches(applied), err == nil
}

// engineOptions has a raft directory read as the engine of its product reads it.
func engineOptions(ctx context.Context, global string, opts raftlog.Options) raftlog.Options {
	opts.Engine = productOf(ctx, global).Engine
	opts.Recovered = opts.Engine.RecoversInTerm() && exists(filepath.Join(filepath.Dir(global), patchName))
	return opts
}

// loads is the tarball in the database directory that the daemon loads when it starts; empty if there is none, or it loads none.
func (d directory) loads() string {
	p := d.product()
	if p.Loads == "" || !exists(filepath.Join(d.database(), p.Loads)) {
		return ""
	}

	return filepath.Join(d.database(), p.Loads)
}

// loaderLeft is where the daemon's own loader unpacks a tarball, if it was interrupted in a database directory; empty if not.
func loaderLeft(database string) string {
	p := product.Of(productDir(filepath.Dir(database)))
	if p.Unpacks == "" || !exists(filepath.Join(database, p.Unpacks)) {
		return ""
	}

	return filepath.Join(database, p.Unpacks)
}
