// SPDX-License-Identifier: AGPL-3.0-only

// Package bundletest makes keys and certificates as clusters have them, for tests of what signs tarballs and of what checks that.
package bundletest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Key makes a key as LXD makes it for a cluster: ECDSA, P-384.
func Key(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	return key
}

// Keys makes one key of each kind that a cluster may have, by what it is called.
func Keys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return map[string]crypto.Signer{"ECDSA P-384": Key(t), "ECDSA P-256": p256, "RSA": rsaKey, "Ed25519": edKey}
}

// Certificate makes a self-signed certificate of a key, valid from a time on, in DER form.
func Certificate(t testing.TB, key crypto.Signer, from time.Time) []byte {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "cluster"}, NotBefore: from, NotAfter: from.AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return der
}

// WritePair writes a certificate and its key into a directory as NAME.crt and NAME.key.
func WritePair(t testing.TB, dir string, name string, der []byte, key crypto.Signer) {
	t.Helper()
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
