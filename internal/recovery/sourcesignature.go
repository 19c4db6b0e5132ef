// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
)

// SignatureState says what came of checking a recovery tarball's signature.
type SignatureState string

// States of a signature.
const (
	SignatureValid   SignatureState = "valid"   // by the key of a certificate that is here
	SignatureInvalid SignatureState = "invalid" // the certificate is here, and its key has not signed this
	SignatureUnknown SignatureState = "unknown" // the certificate is not here: it could not be checked
	SignatureNone    SignatureState = "none"    // it is not signed
)

// Signature is whether, and by whom, a recovery tarball is signed. It is empty for every other source.
type Signature struct {
	State SignatureState `json:"signature,omitempty" yaml:"signature,omitempty"`

	// By is the SHA-256 of the cluster certificate whose key has signed it, or is said to have. Empty where it is not signed.
	By string `json:"signed_by,omitempty" yaml:"signed_by,omitempty"`
}

// signatureOf checks a tarball's signature with the certificates that there are.
func signatureOf(origin *bundle.Origin, certificates []*certificate) Signature {
	if !origin.Signed() {
		return Signature{State: SignatureNone}
	}

	s := Signature{State: SignatureUnknown, By: origin.Manifest.Cluster.Certificate}
	signer := signerOf(origin.Manifest, certificates)
	if signer == nil {
		return s
	}

	s.State = SignatureValid
	err := origin.Verify(signer.Certificate)
	if err != nil {
		s.State = SignatureInvalid
	}

	return s
}

// signature checks the signature of a source with this machine's cluster certificate, and with the one in a file, if that is given.
func (s *Source) signature(file string) (Signature, error) {
	dir, err := FindLXD()
	if err != nil {
		dir = "" // then there is none to check with
	}

	return s.signatureIn(dir, file)
}

// signatureIn is signature with the certificate of the LXD in a directory; empty for none.
func (s *Source) signatureIn(dir string, file string) (Signature, error) {
	var certificates []*certificate
	if file != "" {
		given, err := readCertificate(file)
		if err != nil {
			return Signature{}, err
		}

		certificates = append(certificates, given)
	}

	if s.bundle == nil {
		return Signature{}, nil
	}

	if dir != "" {
		own, err := readCertificate(filepath.Join(dir, ownCertificate(dir)))
		if err == nil { // else there is none to check with
			certificates = append(certificates, own)
		}
	}

	return signatureOf(&s.bundle.Origin, certificates), nil
}

// ownCertificate is the certificate that what comes from an LXD is signed for: a standalone server has only its own.
func ownCertificate(dir string) string {
	_, err := os.Stat(filepath.Join(dir, clusterCertificateName))
	if err != nil {
		return serverCertificateName
	}

	return clusterCertificateName
}
