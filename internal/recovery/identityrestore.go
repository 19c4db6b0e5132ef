// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
)

// IdentityOptions say which identity a machine gets.
type IdentityOptions struct {
	LXDDir  string // empty for this machine's, see FindNewLXD
	Backup  string // file of a backup with an identity
	Key     *sealed.Key
	Replace bool // move what a standalone LXD has left out of the way

	Progress Progress
}

// IdentityReport is what came of it.
type IdentityReport struct {
	LXDDir   string        `json:"lxd_directory" yaml:"lxd_directory"`
	Member   InspectMember `json:"member" yaml:"member"`
	Cluster  string        `json:"cluster_certificate" yaml:"cluster_certificate"`
	Created  time.Time     `json:"created" yaml:"created"` // of the backup
	Files    []string      `json:"files" yaml:"files"`     // put in place
	Replaced string        `json:"replaced" yaml:"replaced"`
	Finished bool          `json:"finished" yaml:"finished"` // an interrupted run had begun it
}

// identityRestore is one under way.
type identityRestore struct {
	opts     IdentityOptions
	dir      directory
	placing  placing
	files    []sealed.File
	tarball  *bundle.Extracted
	manifest *bundle.Manifest
}

// RestoreIdentity gives a machine whose LXD has nothing yet the identity of a member: all of it, or nothing. It overwrites nothing. LXD is kept from being
// started: a member needs a global database first.
func RestoreIdentity(ctx context.Context, opts IdentityOptions) (*IdentityReport, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}

	path, err := newLXDDir(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	r := &identityRestore{opts: opts, dir: directory{path: path}}
	err = os.Mkdir(path, 0o711) // as LXD makes it
	if err == nil {
		defer func() { _ = os.Remove(path) }() // if nothing was put there
	}

	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, product.Errorf("%w: is LXD installed?", err)
	}

	unlock, err := r.dir.lock(unix.LOCK_EX)
	if err != nil {
		return nil, err
	}

	defer unlock()

	r.placing = placing{dir: r.dir}
	err = r.refuseRunning(ctx)
	if err == nil {
		err = r.open(ctx)
	}

	if err != nil {
		return nil, err
	}

	return r.restore(ctx)
}

// refuseRunning refuses a machine whose LXD runs.
func (r *identityRestore) refuseRunning(ctx context.Context) error {
	status, err := daemon.Inspect(ctx, r.dir.path)
	if err != nil || !status.Running() {
		return err
	}

	return &Refusal{Code: "running", Reason: product.Sprintf("LXD is %s on this machine: stop it first%s", status, here(status.StopByHand()))}
}

// open reads and checks the whole backup, and opens what is encrypted in it.
func (r *identityRestore) open(ctx context.Context) error {
	dir, remove, err := scratch.Dir("identity")
	if err != nil {
		return err
	}

	defer remove()

	err = r.read(ctx, dir)
	if err != nil {
		if speaksForItself(err) {
			return err
		}

		return fmt.Errorf("%s: %w", r.opts.Backup, err)
	}

	r.files, err = r.opts.Key.Open(r.tarball.Identity)
	switch {
	case errors.Is(err, sealed.ErrKey):
		return fmt.Errorf("the identity in %s cannot be opened: %w", r.opts.Backup, err)
	case err != nil:
		return r.damaged("%w", err)
	}

	return r.check()
}

// read unpacks the backup to a scratch directory, which checks all digests.
func (r *identityRestore) read(ctx context.Context, dir string) error {
	f, err := newfile.Open(r.opts.Backup)
	if err != nil {
		return err
	}

	defer f.Close()

	r.tarball, err = extract(ctx, f, dir, r.judge, r.opts.Progress)
	return err
}

// judge refuses what has no identity, before it is unpacked.
func (r *identityRestore) judge(origin *bundle.Origin) error {
	r.manifest = origin.Manifest
	if r.manifest == nil || !r.manifest.HasIdentity() {
		return &Refusal{Code: "no-identity", Reason: r.opts.Backup + " has no identity of a member: `lxd-recover global-db-backup --identity` adds it"}
	}

	if !origin.Signed() {
		return &Refusal{Code: "unsigned", Reason: r.opts.Backup + " is not signed: a backup with an identity always is, so somebody has changed it"}
	}

	return nil
}

// damaged is an error that the backup is to blame for.
func (r *identityRestore) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: the identity in %s: %w", bundle.ErrDamaged, r.opts.Backup, fmt.Errorf(format, args...))
}

// check makes sure that the files are one member's, and the one's that the backup is of.
func (r *identityRestore) check() error {
	for i, f := range r.files {
		known := f.Name == nodedb.File || slices.ContainsFunc(identityFiles, func(k identityFile) bool { return k.name == f.Name })
		again := slices.ContainsFunc(r.files[:i], func(g sealed.File) bool { return g.Name == f.Name })
		if !known || again {
			return r.damaged("%.40q does not belong into it", f.Name)
		}
	}

	err := checkPairs(r.files)
	if err != nil {
		return r.damaged("%w", err)
	}

	if contentOf(r.files, nodedb.File) == nil {
		return r.damaged("%s is missing", nodedb.File)
	}

	signer, err := parseCertificate(contentOf(r.files, clusterCertificateName), clusterCertificateName)
	if err != nil {
		return r.damaged("%w", err)
	}

	err = r.dir.checkProduct(r.manifest)
	if err != nil {
		return err
	}

	if signer.fingerprint != r.manifest.Cluster.Certificate {
		return r.damaged("its cluster certificate is %.12s…, and the backup is of the cluster with %.12s…", signer.fingerprint, r.manifest.Cluster.Certificate)
	}

	err = r.tarball.Verify(signer.Certificate)
	if err != nil {
		return fmt.Errorf("%w: %s was changed after %s was made, or made by somebody without the cluster's key. Do not use this file",
			err, bundle.ManifestName, r.opts.Backup)
	}

	return nil
}

// restore puts it in place.
func (r *identityRestore) restore(ctx context.Context) (*IdentityReport, error) {
	report, err := r.placing.interrupted(r.tarball.Digest)
	if err != nil {
		return nil, err
	}

	there := r.placing.existing()
	if report != nil {
		r.opts.Replace = r.opts.Replace || report.Replaced != ""
		there = r.placing.others(there)
	}

	err = r.refuseExisting(ctx, there)
	if err != nil {
		return nil, err
	}

	if report == nil {
		report, err = r.stage(ctx, there)
		if err != nil {
			return nil, errors.Join(err, r.placing.discard())
		}
	}

	err = r.refuseRunning(ctx)
	if err == nil {
		err = r.placing.place(report)
	}

	if err != nil {
		return nil, errors.Join(err, r.placing.takeBack(report))
	}

	return report, r.placing.finish()
}

// refuseExisting refuses a directory that has anything of an identity.
func (r *identityRestore) refuseExisting(ctx context.Context, there []string) error {
	if len(there) == 0 {
		return nil
	}

	text := fmt.Sprintf("%s has %s already", r.dir.path, strings.Join(there, ", "))
	standalone := true
	if slices.Contains(there, databaseName) && exists(r.dir.local()) {
		node, err := nodedb.Read(ctx, r.dir.database())
		standalone = err == nil && node.Standalone
	}

	if !standalone || slices.Contains(there, clusterCertificateName) || slices.Contains(there, clusterKeyName) {
		return &Refusal{Code: "identity-exists", Reason: text + ", of a member of a cluster: this command is for a new machine, and overwrites nothing. " +
			"If all that is to be given up, move it away first"}
	}

	if r.opts.Replace {
		return nil
	}

	return &Refusal{Code: "identity-exists", Reason: text + product.Text(": LXD has been started there. Nothing is overwritten"), Flag: "--replace",
		Use: product.Text("--replace moves it to a directory beside them, with all that this LXD knows of instances and volumes")}
}

// stage writes the files to a directory beside those that they become.
func (r *identityRestore) stage(ctx context.Context, there []string) (*IdentityReport, error) {
	now := time.Now()
	report := &IdentityReport{LXDDir: r.dir.path, Cluster: r.manifest.Cluster.Certificate, Created: r.manifest.Created}
	if len(there) > 0 {
		report.Replaced = r.dir.join("before-identity-" + stamp(now))
		if !gone(report.Replaced) {
			return nil, fmt.Errorf("%s is there already", report.Replaced)
		}
	}

	err := r.placing.write(r.files)
	if err != nil {
		return nil, err
	}

	node, err := nodedb.Read(ctx, r.placing.staged(databaseName))
	if err != nil {
		return nil, r.damaged("%w", err)
	}

	source := r.manifest.Source
	if node.Standalone || node.Self.ID != source.ID || node.Self.Name != source.Name {
		return nil, r.damaged("its %s is of another server than %s", nodedb.File, source.Name)
	}

	report.Member = InspectMember{ID: node.Self.ID, Name: node.Self.Name, Address: node.Self.Address}
	for _, f := range identityFiles {
		if contentOf(r.files, f.name) != nil {
			report.Files = append(report.Files, f.name)
		}
	}

	report.Files = append(report.Files, filepath.Join(databaseName, nodedb.File))
	return report, r.placing.complete(r.tarball.Digest, r.opts.Backup, report)
}

// newLXDDir is the directory of an LXD that may not have been started yet: the one that is given, else $LXD_DIR, else the only one that is there, or is going
// to be.
func newLXDDir(given string) (string, error) {
	candidates := product.Places()
	switch {
	case given != "":
		return filepath.Abs(given)
	case len(candidates) == 1:
		return filepath.Abs(candidates[0])
	}

	var found []string
	for _, dir := range candidates {
		if exists(dir) || dir == candidates[0] && exists(filepath.Dir(dir)) { // the snap makes the last directory when it starts LXD
			found = append(found, dir)
		}
	}

	switch len(found) {
	case 0:
		return "", errors.New("none of " + strings.Join(candidates, ", ") +
			product.Text(" is there: install LXD first, or name its directory with --into"))
	case 1:
		return found[0], nil
	}

	return "", product.Errorf("there are %s: say with --into which one is LXD's directory", strings.Join(found, " and "))
}
