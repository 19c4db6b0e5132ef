// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
)

func certificateOf(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	certificate, err := x509.ParseCertificate(bundletest.Certificate(t, key, time.Now()))
	must(t, err)
	return certificate
}

// signed is a whole tarball that is signed with a key.
func signed(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	var buf bytes.Buffer
	must(t, Write(t.Context(), &buf, Content{Manifest: newManifest(), Pieces: pieces(fstest.MapFS{}), Key: key}))
	return buf.Bytes()
}

// entriesOf are the entries of a tarball.
func entriesOf(t testing.TB, tarball []byte) []entry {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(tarball))
	must(t, err)
	tr := tar.NewReader(zip)
	var all []entry
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}

		must(t, err)
		data, err := io.ReadAll(tr)
		must(t, err)
		all = append(all, entry{*h, string(data)})
	}
}

// judged extracts a tarball, and returns what it says of its origin, and what was unpacked when that was told.
func judged(t testing.TB, tarball []byte, judge func(*Origin) error) (times int, unpacked int, err error) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	_, err = Extract(t.Context(), bytes.NewReader(tarball), root, ExtractOptions{Judge: func(o *Origin) error {
		times++
		files, readErr := os.ReadDir(dir)
		must(t, readErr)
		unpacked = len(files)
		return judge(o)
	}})
	return times, unpacked, err
}

// A signature of each kind of key is valid by its own certificate, and by no other; it is judged once, before anything is unpacked.
func TestSignature(t *testing.T) {
	other := certificateOf(t, bundletest.Key(t))
	for kind, key := range bundletest.Keys(t) {
		t.Run(kind, func(t *testing.T) {
			own := certificateOf(t, key)
			times, unpacked, err := judged(t, signed(t, key), func(o *Origin) error {
				if !o.Signed() || o.Manifest == nil {
					t.Errorf("origin %+v", o)
				}

				ownErr, otherErr := o.Verify(own), o.Verify(other)
				if ownErr != nil || !errors.Is(otherErr, ErrSignature) {
					t.Errorf("by its own certificate: %v; by another one: %v", ownErr, otherErr)
				}

				return nil
			})
			must(t, err)
			if times != 1 || unpacked != 0 {
				t.Errorf("judged %d times, %d files were unpacked before", times, unpacked)
			}
		})
	}
}

// An error of the judge ends the extraction, with nothing unpacked.
func TestJudgeRefuses(t *testing.T) {
	refusal := errors.New("not this one")
	nodes, err := encodeRaftNodes(members)
	must(t, err)
	for name, tarball := range map[string][]byte{
		"signed":     signed(t, bundletest.Key(t)),
		"LXD's own":  pack(t, file("metadata1", one), file(raftNodesName, string(nodes))),
		"nothing":    pack(t),
		"format one": formatOneTarball(t),
	} {
		times, _, err := judged(t, tarball, func(*Origin) error { return refusal })
		if times != 1 || !errors.Is(err, refusal) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: judged %d times, %v", name, times, err)
		}
	}
}

// formatOneTarball is one as they were before they were signed.
func formatOneTarball(t testing.TB) []byte {
	t.Helper()
	return lie(t, func(m *Manifest) { m.Format, m.Run = 1, "" })
}

func TestFormatOne(t *testing.T) {
	x, _, err := extract(t, formatOneTarball(t))
	must(t, err)
	if x.Signed() || x.Manifest.Format != 1 || x.Run() != x.Digest[:32] {
		t.Errorf("got %+v", x)
	}
}

// What the signature does not cover, or is not where it belongs.
func TestHostileSignature(t *testing.T) {
	key := bundletest.Key(t)
	own := certificateOf(t, key)
	verify := func(o *Origin) error { return o.Verify(own) }
	good := entriesOf(t, signed(t, key))
	with := func(change func([]entry) []entry) []byte { return pack(t, change(append([]entry{}, good...))...) }
	data := func(i int, change func(string) string) []byte {
		return with(func(e []entry) []entry { e[i].data = change(e[i].data); e[i].Size = 0; return e })
	}
	swap := func(i int, j int) []byte {
		return with(func(e []entry) []entry { e[i], e[j] = e[j], e[i]; return e })
	}
	if good[1].Name != ManifestName || good[2].Name != SignatureName {
		t.Fatalf("entries %q, %q", good[1].Name, good[2].Name)
	}

	foreign, err := Sign(bundletest.Key(t), []byte(good[1].data))
	must(t, err)
	for name, test := range map[string]struct {
		tarball []byte
		want    error
	}{
		"whole":                     {pack(t, good...), nil},
		"missing":                   {with(func(e []entry) []entry { return append(e[:2], e[3:]...) }), ErrDamaged},
		"not the second file":       {swap(2, 3), ErrDamaged},
		"before the manifest":       {swap(1, 2), ErrDamaged},
		"the last file":             {with(func(e []entry) []entry { return append(append(e[:2], e[3:]...), good[2]) }), ErrDamaged},
		"twice":                     {with(func(e []entry) []entry { return append(e, e[2]) }), ErrDamaged},
		"without a manifest":        {with(func(e []entry) []entry { return append(e[:1], e[2:]...) }), ErrDamaged},
		"empty":                     {data(2, func(string) string { return "" }), ErrDamaged},
		"large":                     {data(2, func(string) string { return strings.Repeat("x", maxSignature+1) }), ErrDamaged},
		"cut short":                 {data(2, func(s string) string { return s[:len(s)-1] }), ErrSignature},
		"of other bytes":            {data(1, func(s string) string { return strings.Replace(s, "version: test", "version: best", 1) }), ErrSignature},
		"a comment in the manifest": {data(1, func(s string) string { return s + "# x\n" }), ErrSignature},
		"by another cluster":        {data(2, func(string) string { return string(foreign) }), ErrSignature},
		"not one at all":            {data(2, func(string) string { return "signed" }), ErrSignature},
		"format 1 with a signature": {data(1, func(s string) string { return strings.Replace(s, "format: 2", "format: 1", 1) }), ErrDamaged},
		"nothing after it":          {with(func(e []entry) []entry { return e[:3] }), ErrDamaged},
	} {
		_, unpacked, err := judged(t, test.tarball, verify)
		if !errors.Is(err, test.want) || unpacked != 0 {
			t.Errorf("%s: %v, want %v; %d files unpacked before", name, err, test.want, unpacked)
		}
	}
}

// A key of a kind that nobody checks signs nothing.
func TestSignNeedsKnownKey(t *testing.T) {
	_, err := Sign(strangeKey{}, nil)
	if err == nil || !strings.Contains(err.Error(), "not with one of type") {
		t.Errorf("error %v", err)
	}
}

type strangeKey struct{ crypto.Signer }

func (strangeKey) Public() crypto.PublicKey { return "strange" }

// The program openssl finds what Write signs to be valid, as docs/security.md says, and nothing else.
func TestSignatureByOpenSSL(t *testing.T) {
	for kind, key := range bundletest.Keys(t) {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			bundletest.WritePair(t, dir, "cluster", bundletest.Certificate(t, key, time.Now()), key)
			entries := entriesOf(t, signed(t, key))
			for _, e := range entries[1:3] {
				must(t, os.WriteFile(filepath.Join(dir, e.Name), []byte(e.data), 0o600))
			}

			out, err := verifyWithOpenSSL(t.Context(), dir, kind)
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}

			must(t, os.WriteFile(filepath.Join(dir, ManifestName), []byte(entries[1].data+"\n"), 0o600))
			out, err = verifyWithOpenSSL(t.Context(), dir, kind)
			if err == nil {
				t.Errorf("a changed manifest: %s", out)
			}
		})
	}
}

func verifyWithOpenSSL(ctx context.Context, dir string, kind string) (string, error) {
	verify := "openssl dgst -sha256 -verify cluster.pub -signature recovery.sig recovery.yaml"
	if kind == "Ed25519" {
		verify = "openssl pkeyutl -verify -pubin -inkey cluster.pub -rawin -in recovery.yaml -sigfile recovery.sig"
	}

	cmd := exec.CommandContext(ctx, "sh", "-c", "openssl x509 -in cluster.crt -noout -pubkey > cluster.pub && "+verify)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Without a key a tarball has format 1: no signature, and no run.
func TestWriteUnsigned(t *testing.T) {
	var buf bytes.Buffer
	must(t, Write(t.Context(), &buf, Content{Manifest: newManifest(), Pieces: pieces(fstest.MapFS{})}))
	x, _, err := extract(t, buf.Bytes())
	must(t, err)
	if x.Signed() || x.Manifest.Format != 1 || x.Manifest.Run != "" || len(entriesOf(t, buf.Bytes())) != len(names)+3 {
		t.Errorf("got %+v", x)
	}
}
