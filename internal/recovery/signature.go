// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// clusterKeyName is the private key that belongs to the cluster certificate: every member has it, and nobody else.
const clusterKeyName = "cluster.key"

// certificate is a certificate, and the name by which LXD knows it.
type certificate struct {
	*x509.Certificate
	fingerprint string // SHA-256 of its DER form, lower-case hexadecimal
	file        string
}

// readCertificate reads the first certificate of a PEM file.
func readCertificate(file string) (*certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}

	return parseCertificate(data, file)
}

// parseCertificate is readCertificate for what a file has.
func parseCertificate(data []byte, file string) (*certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}

	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no certificate: %w", file, err)
	}

	sum := sha256.Sum256(parsed.Raw)
	return &certificate{Certificate: parsed, fingerprint: hex.EncodeToString(sum[:]), file: file}, nil
}

// signingKey is the cluster's private key, once it is known to belong to the certificate that a signature is checked with.
func (d directory) signingKey() (crypto.Signer, error) {
	certificate, err := os.ReadFile(d.join(clusterCertificateName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, d.errNoCertificate()
	}

	if err != nil {
		return nil, err
	}

	key, err := os.ReadFile(d.join(clusterKeyName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, cannotSign("%s is missing, and the tarball is signed with it: copy it from another member, all members have the same one",
			d.join(clusterKeyName))
	}

	if err != nil {
		return nil, err
	}

	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, cannotSign("the tarball cannot be signed with %s for %s: %w. Copy both from another member, all members have the same ones",
			d.join(clusterKeyName), d.join(clusterCertificateName), err)
	}

	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, cannotSign("%s is a key that cannot sign", d.join(clusterKeyName))
	}

	return signer, nil
}

func cannotSign(format string, args ...any) error {
	return &Refusal{Code: "cannot-sign", Reason: fmt.Errorf(format, args...).Error(), Flag: "--unsigned",
		Use: "--unsigned writes one that is not signed, which every import then has to be told, too"}
}

// keyUnless is the key that a tarball is signed with; nil, and a warning, if it cannot be and unsigned says that it need not.
func (d directory) keyUnless(unsigned bool) (key crypto.Signer, warnings []string, err error) {
	key, err = d.signingKey()
	var refusal *Refusal
	if unsigned && errors.As(err, &refusal) {
		return nil, []string{"the tarball is not signed: " + refusal.Reason}, nil
	}

	return key, nil, err
}

// readKey reads the key that the tarball is signed with.
func (ex *exporter) readKey() error {
	key, warnings, err := ex.dir.keyUnless(ex.opts.Unsigned)
	ex.key, ex.report.Signed = key, err == nil && key != nil
	ex.report.Warnings = append(ex.report.Warnings, warnings...)
	return err
}

// readSigners reads the certificates that a tarball's signature may be valid by: this cluster's own, and the one that was given, if any.
func (im *importer) readSigners() error {
	own, err := readCertificate(im.dir.join(clusterCertificateName))
	if err != nil {
		return err
	}

	im.signers = []*certificate{own}
	if im.opts.Certificate == "" {
		return nil
	}

	given, err := readCertificate(im.opts.Certificate)
	if err == nil {
		im.signers = append(im.signers, given)
	}

	return err
}

// judge decides whether a tarball is one of this cluster's own (guarantees G6 and G10), before anything else in it is believed.
func (im *importer) judge(origin *bundle.Origin) error {
	isBackup := origin.Manifest != nil && origin.Manifest.IsBackup()
	switch {
	case isBackup && !im.resync:
		return noRecoveryTarball(im.opts.Tarball)
	case im.resync && !isBackup:
		return fmt.Errorf("%s is no backup that `lxd-recover global-db-backup --nonce` has made on another member", im.opts.Tarball)
	}

	if !origin.Signed() && !im.opts.Unsigned {
		return unsigned(origin, im.opts.Tarball)
	}

	manifest := origin.Manifest
	if manifest == nil {
		im.report.Signature = SignatureNone
		im.report.Unchecked = append(im.report.Unchecked,
			product.Text("the tarball is not signed, as LXD's own tarballs are not: nothing tells who made it, and whether somebody changed it since"))
		return nil
	}

	signer := signerOf(manifest, im.signers)
	if signer == nil {
		return im.otherCertificate(manifest)
	}

	if signer.fingerprint != im.certificate {
		im.report.warn(im.formerText(signer))
	}

	im.report.SignedBy = signer.fingerprint
	if !origin.Signed() {
		im.report.Signature, im.report.SignedBy = SignatureNone, ""
		im.report.Unchecked = append(im.report.Unchecked,
			"the tarball is not signed: nothing tells whether somebody changed it since it was exported")
		return nil
	}

	err := origin.Verify(signer.Certificate)
	if err != nil {
		return fmt.Errorf("%w: %s was changed after %s was exported, or made by somebody without this cluster's key (%s). "+
			"Do not use this file: copy it again from the member that exported it, or export it again", err, bundle.ManifestName, im.opts.Tarball,
			clusterKeyName)
	}

	im.report.Signature = SignatureValid
	return nil
}

// noRecoveryTarball is the refusal of a backup: its log is not fenced, so that a member that nobody imports to could undo what it brings back.
func noRecoveryTarball(tarball string) error {
	return &Refusal{Code: "backup", Reason: fmt.Sprintf("%[1]s is a backup, and no recovery tarball: nothing in it keeps members with other databases from "+
		"outvoting it. `lxd-recover cluster export-db --source %[1]s` makes a recovery tarball of it", tarball)}
}

// unsigned is the refusal of a tarball that anybody may have made.
func unsigned(origin *bundle.Origin, tarball string) error {
	why := product.Text("it is one that LXD's own `lxd cluster edit` writes, or one of lxd-recover's from which the signature was taken out")
	if origin.Manifest != nil {
		why = "lxd-recover made it without the cluster's key, or before it signed tarballs, or the signature was taken out"
	}

	return &Refusal{Code: "unsigned", Reason: fmt.Sprintf("%s is not signed: %s. Whoever can change it decides what this cluster becomes. "+
		"If you know that nobody could, since it was made on a member of this cluster, go on; else make a new one there with "+
		"`lxd-recover cluster export-db`, which signs it", tarball, why), Flag: "--unsigned"}
}

// signerOf is the certificate that a manifest names; nil if it is none of these.
func signerOf(manifest *bundle.Manifest, certificates []*certificate) *certificate {
	for _, c := range certificates {
		if c.fingerprint == manifest.Cluster.Certificate {
			return c
		}
	}

	return nil
}

// otherCertificate says what may be the matter with a tarball that names a certificate that is not this cluster's.
func (im *importer) otherCertificate(manifest *bundle.Manifest) error {
	if im.opts.Certificate != "" {
		return wrongCluster("it was exported from a cluster with the certificate %.12s…: that is neither this member's cluster.crt, %.12s…, "+
			"nor the one in %s, %.12s…", manifest.Cluster.Certificate, im.certificate, im.opts.Certificate, im.signers[1].fingerprint)
	}

	changed := "If it is this cluster's, and its certificate was changed since the export, `--certificate OLD.crt` names a copy of the former one; " +
		"if this member missed the change, copy cluster.crt and cluster.key from a member that did not"
	if im.signers[0].NotBefore.After(manifest.Created) {
		changed = fmt.Sprintf("This member's certificate is the newer one, of %s, and the tarball is of %s: if it is this cluster's, "+
			"`--certificate OLD.crt` names a copy of the certificate that the cluster had then",
			im.signers[0].NotBefore.UTC().Format(time.RFC3339), manifest.Created.UTC().Format(time.RFC3339))
	}

	return wrongCluster("it was exported from a cluster with the certificate %.12s…, this cluster's is %.12s…. %s",
		manifest.Cluster.Certificate, im.certificate, changed)
}

// formerText is what to see to if a tarball was signed with the key of another certificate than this member has.
func (im *importer) formerText(signer *certificate) string {
	text := fmt.Sprintf("the tarball is of the certificate in %s, %.12s…, and this member's cluster.crt is another one, %.12s…",
		signer.file, signer.fingerprint, im.certificate)
	if signer.NotBefore.After(im.signers[0].NotBefore) {
		return text + ", which is older: this member missed the change. Copy cluster.crt and cluster.key from a member that did not, " +
			"or it cannot join the others"
	}

	return text + ". That is right if the certificate was changed since the export"
}

// speaksForItself tells whether an error says what it is about, and needs no name of a file before it.
func speaksForItself(err error) bool {
	var refusal *Refusal
	return errors.As(err, &refusal) || errors.Is(err, ErrWrongCluster)
}
