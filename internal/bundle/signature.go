// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// ErrSignature says that a signature is not that of the key that it should be of: the manifest was changed after it was signed, or
// somebody without that key made both.
var ErrSignature = errors.New("the signature is not valid")

// Origin is what a tarball says of where it comes from: the manifest, and the signature of its bytes. It is what anybody may have
// written until Verify has found that a trusted key has signed it.
type Origin struct {
	Manifest *Manifest // nil for a tarball of LXD's own

	head      []byte // recovery.yaml as it stands in the tarball
	signature []byte // recovery.sig; nil where there is none
}

// Signed tells whether there is a signature; whose, and whether it is valid, Verify finds.
func (o *Origin) Signed() bool { return o.signature != nil }

// Verify checks the signature with the public key of a certificate.
func (o *Origin) Verify(certificate *x509.Certificate) error {
	algorithm, err := algorithmOf(certificate.PublicKey)
	if err != nil {
		return err
	}

	err = certificate.CheckSignature(algorithm, o.head, o.signature)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}

	return nil
}

// Sign returns what recovery.sig holds: the signature of SHA-256, ECDSA as ASN.1 or RSA as PKCS #1 v1.5, as `openssl dgst -sha256 -sign`
// makes it; with an Ed25519 key that of the data itself.
func Sign(key crypto.Signer, data []byte) ([]byte, error) {
	algorithm, err := algorithmOf(key.Public())
	if err != nil {
		return nil, err
	}

	if algorithm == x509.PureEd25519 {
		return key.Sign(rand.Reader, data, crypto.Hash(0))
	}

	digest := sha256.Sum256(data)
	return key.Sign(rand.Reader, digest[:], crypto.SHA256)
}

func algorithmOf(public crypto.PublicKey) (x509.SignatureAlgorithm, error) {
	switch public.(type) {
	case *ecdsa.PublicKey:
		return x509.ECDSAWithSHA256, nil
	case *rsa.PublicKey:
		return x509.SHA256WithRSA, nil
	case ed25519.PublicKey:
		return x509.PureEd25519, nil
	}

	return x509.UnknownSignatureAlgorithm, fmt.Errorf("tarballs are signed with keys of ECDSA, RSA and Ed25519, and not with one of type %T", public)
}
