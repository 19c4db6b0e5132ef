// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// signedLab is a lostLab in a cluster whose key is known, and a tarball of node1 that is signed with it.
type signedLab struct {
	lostLab
	key         crypto.Signer
	fingerprint string
}

func newSignedLab(t testing.TB) signedLab {
	t.Helper()
	l := signedLab{lostLab: newLostLab(t), key: bundletest.Key(t)}
	l.fingerprint = l.newCertificate(t, l.dir.path, l.key, time.Now().Add(-time.Hour))
	l.tarball = l.export(t, l.key)
	return l
}

// newCertificate puts a pair named cluster into a directory, and returns the certificate's fingerprint.
func (l signedLab) newCertificate(t testing.TB, dir string, key crypto.Signer, from time.Time) string {
	t.Helper()
	der := bundletest.Certificate(t, key, from)
	bundletest.WritePair(t, dir, "cluster", der, key)
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// export is a tarball of node1 as it was after its edit, signed with a key.
func (l signedLab) export(t testing.TB, key crypto.Signer) string {
	t.Helper()
	return l.exportFenced(t, key, 1<<33)
}

// exportFenced is export with the term of the fence.
func (l signedLab) exportFenced(t testing.TB, key crypto.Signer, term uint64) string {
	t.Helper()
	database := filepath.Join(raftlogtest.Fixtures(t), "small", "n1-afteredit", databaseName)
	node, err := nodedb.Read(t.Context(), database)
	must(t, err)
	global := filepath.Join(database, globalName)
	log := openDir(t, global)
	pieces, after, err := fenced(t.Context(), log, log.LastIndex, os.DirFS(global), term)
	must(t, err)
	tarball := filepath.Join(t.TempDir(), product.LXD.Tarball)
	f, err := os.Create(tarball)
	must(t, err)
	defer f.Close()
	manifest := &bundle.Manifest{
		Run: bundle.NewRun(), Version: "test", Created: time.Now().UTC().Truncate(time.Second),
		Source:  bundle.Source{ID: node.Self.ID, Name: node.Self.Name, Address: node.Self.Address},
		Cluster: bundle.Cluster{Certificate: l.fingerprint}, Members: node.Members,
		Raft: bundle.Raft{Before: bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, After: after},
	}
	must(t, bundle.Write(t.Context(), f, bundle.Content{Manifest: manifest, Pieces: pieces, Key: key}))
	return tarball
}

// onNode1 makes the lab's directory that of node1, which the tarball was exported on.
func (l signedLab) onNode1(t testing.TB) {
	t.Helper()
	from := filepath.Join(raftlogtest.Fixtures(t), "small", "n1-afteredit", databaseName)
	must(t, os.RemoveAll(l.dir.database()))
	must(t, os.CopyFS(l.dir.database(), os.DirFS(from)))
	certificates, err := openFixture(t, "small/n1-afteredit").Certificates(t.Context())
	must(t, err)
	i := slices.IndexFunc(certificates, func(c globaldb.Certificate) bool { return c.Name == "node1" })
	must(t, os.WriteFile(l.dir.join(serverCertificateName), []byte(certificates[i].PEM), 0o600))
}

// dryRun imports a tarball without doing it.
func (l signedLab) dryRun(t testing.TB, tarball string, with func(*ImportOptions)) (*ImportReport, error) {
	t.Helper()
	return l.importDB(t.Context(), func(o *ImportOptions) {
		o.Tarball, o.DryRun, o.Unsigned = tarball, true, false
		if with != nil {
			with(o)
		}
	})
}

func unsignedToo(o *ImportOptions) { o.Unsigned = true }

// What the cluster's key has signed is taken, on the member that lags and on the one that exported it; the former gains what it lacks.
func TestImportSigned(t *testing.T) {
	l := newSignedLab(t)
	r, err := l.dryRun(t, l.tarball, nil)
	must(t, err)
	if r.Signature != SignatureValid || r.SignedBy != l.fingerprint || len(r.Unchecked) != 0 || r.Source != "node1" {
		t.Errorf("signature %s by %s, unchecked %q", r.Signature, r.SignedBy, r.Unchecked)
	}

	wantGained(t, r, "index 127, term 2\n    update member node1") // a heartbeat that node2 did not get any more

	l.onNode1(t)
	r, err = l.dryRun(t, l.tarball, nil)
	must(t, err)
	wantGained(t, r)
	if r.Member.Name != "node1" {
		t.Errorf("member %v", r.Member)
	}
}

// wantGained checks that these transactions are gained, and no others.
func wantGained(t testing.TB, r *ImportReport, transactions ...string) {
	t.Helper()
	same := func(d Discarded, text string) bool { return strings.HasPrefix(toldWhole(d), text) }
	if !slices.EqualFunc(r.Gained, transactions, same) || r.GainedUntold != "" {
		t.Errorf("gained %s, want %q; %s", allLines(r.Gained), transactions, r.GainedUntold)
	}
}

// Each transaction that a member lacks is named with its rows, and no reason to refuse.
func TestGained(t *testing.T) {
	l := newSignedLab(t)
	lagging := raftlogtest.Global(t, "small/n2-preimport")
	log := openDir(t, lagging)
	at := log.LastIndex - 20
	pieces, err := plain(t.Context(), log, at, os.DirFS(lagging))
	must(t, err)
	must(t, os.RemoveAll(l.dir.global()))
	must(t, writePieces(l.dir.global(), append(metadataPieces(log, log.Term), pieces...)))
	want, err := givenUp(t.Context(), openDir(t, raftlogtest.Global(t, "small/n1-afteredit")), at)
	must(t, err)

	r, err := l.dryRun(t, l.tarball, nil)
	must(t, err)
	if len(want) == 0 || allLines(r.Gained) != allLines(want) || r.GainedUntold != "" {
		t.Errorf("gained %s, want %s", allLines(r.Gained), allLines(want))
	}
}

// The attack: a transaction that trusts a stranger, in a tarball whose sums all agree. Without the cluster's key it is refused, whatever
// flags are given; with it, on the member that exported.
func TestIntruder(t *testing.T) {
	l := newSignedLab(t)
	files := intrude(t, l.tarball)
	head := *content(files, bundle.ManifestName)
	all := func(o *ImportOptions) { o.Unsigned, o.DiscardLocal = true, true }
	for name, key := range map[string]crypto.Signer{"the old signature": nil, "a key of his own": bundletest.Key(t)} {
		if key != nil {
			signature, err := bundle.Sign(key, head)
			must(t, err)
			*content(files, bundle.SignatureName) = signature
		}

		_, err := l.dryRun(t, writeTarball(t, files), all)
		if !errors.Is(err, bundle.ErrSignature) || !strings.Contains(err.Error(), "changed.tar.gz") {
			t.Errorf("%s: %v", name, err)
		}

		unpacked, _ := os.ReadDir(l.dir.join(stagingName))
		if len(unpacked) > 0 {
			t.Errorf("%s: %v is unpacked", name, unpacked)
		}
	}

	signature, err := bundle.Sign(l.key, head)
	must(t, err)
	*content(files, bundle.SignatureName) = signature
	byMember := writeTarball(t, files)
	r, err := l.dryRun(t, byMember, nil)
	must(t, err)
	wantGained(t, r, "index 127, ", "index 128, term 2\n    insert identity stranger")

	l.onNode1(t)
	_, err = l.dryRun(t, byMember, all)
	wantRefused(t, err, "not-what-was-exported", "node1", "1 change by a user", "stranger", "cluster export-db")
}

// Without manifest and signature it looks like one of LXD's own, and needs --unsigned; even then the stranger is named. In format 1 the
// manifest still tells on whom to refuse.
func TestIntruderUnsigned(t *testing.T) {
	l := newSignedLab(t)
	files := intrude(t, l.tarball)
	formatOne := slices.Clone(files)
	formatOne = slices.DeleteFunc(formatOne, func(f tarFile) bool { return f.name == bundle.SignatureName })
	head := string(*content(formatOne, bundle.ManifestName))
	run := head[strings.Index(head, "run: "):]
	head = strings.Replace(head, run[:strings.Index(run, "\n")+1], "", 1)
	*content(formatOne, bundle.ManifestName) = []byte(strings.Replace(head, "format: 2", "format: 1", 1))

	stripped := slices.DeleteFunc(files, func(f tarFile) bool { return f.name == bundle.ManifestName || f.name == bundle.SignatureName })
	last := &stripped[len(stripped)-1]
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, last.name), last.data, 0o600))
	entry := lastEntry(t, openDir(t, dir))
	entry.Term = 1
	last.data = raftlog.AppendBatch(raftlog.SegmentHeader(), entry)
	for name, test := range map[string]struct{ tarball, says string }{
		"stripped": {writeTarball(t, stripped), "LXD's own `lxd cluster edit`"},
		"format 1": {writeTarball(t, formatOne), "or before it signed tarballs"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.dryRun(t, test.tarball, nil)
			wantRefused(t, err, "unsigned", "is not signed", test.says, "--unsigned")
			r, err := l.dryRun(t, test.tarball, unsignedToo)
			must(t, err)
			wantGained(t, r, "index 127, ", "index 128, term 2\n    insert identity stranger")
			if r.Signature != SignatureNone || r.SignedBy != "" || !strings.Contains(strings.Join(r.Unchecked, "\n"), "is not signed") {
				t.Errorf("signature %s by %q, unchecked %q", r.Signature, r.SignedBy, r.Unchecked)
			}
		})
	}

	l.onNode1(t)
	r, err := l.dryRun(t, writeTarball(t, stripped), unsignedToo)
	must(t, err)
	wantGained(t, r, "index 128, term 2\n    insert identity stranger")
	_, err = l.dryRun(t, writeTarball(t, formatOne), unsignedToo)
	wantRefused(t, err, "not-what-was-exported", "stranger")
}

// The other place to put a stranger: the snapshot, of which a comparison of entries sees nothing.
func TestRewrittenSnapshot(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Snapshot)
	database := filepath.Join(t.TempDir(), "db.bin")
	newest := openDir(t, dir).Snapshot()
	must(t, globaldb.Replay(t.Context(), openDir(t, dir), database, newest.Index))
	for name, statement := range map[string]string{"the same rows": "VACUUM", "a stranger": trustStranger} {
		changed := filepath.Join(t.TempDir(), "db.bin")
		data, err := os.ReadFile(database)
		must(t, err)
		must(t, os.WriteFile(changed, data, 0o600))
		execSQL(t, changed, statement)
		data, err = os.ReadFile(changed)
		must(t, err)
		tarball := raftlogtest.Copy(t, dir)
		must(t, os.WriteFile(filepath.Join(tarball, newest.File), raftlogtest.Compress(raftlogtest.EncodeSnapshot("db.bin", data, nil)), 0o600))
		im := importer{run: &run{}, report: newImportReport("x"), log: openDir(t, tarball), tarball: &bundle.Extracted{}}
		must(t, im.compareGained(t.Context(), openDir(t, dir)))
		var want []string
		if name == "a stranger" {
			want = []string{"index 126, term 2 (both logs have this entry"}
		}

		wantGained(t, im.report, want...)
		if told := allLines(im.report.Gained); strings.Contains(told, "insert identity stranger") != (want != nil) {
			t.Errorf("%s: %s", name, told)
		}
	}
}

// A tarball that was signed before the cluster got a new certificate needs the old one; it helps with nothing else.
func TestFormerCertificate(t *testing.T) {
	l := newSignedLab(t)
	former := t.TempDir()
	must(t, os.CopyFS(former, os.DirFS(l.dir.path)))
	old := filepath.Join(former, clusterCertificateName)
	withOld := func(o *ImportOptions) { o.Certificate = old }
	l.newCertificate(t, l.dir.path, bundletest.Key(t), time.Now().Add(time.Minute))
	_, err := l.dryRun(t, l.tarball, unsignedToo)
	if !errors.Is(err, ErrWrongCluster) || !strings.Contains(err.Error(), "the newer one") || !strings.Contains(err.Error(), "--certificate OLD.crt") {
		t.Errorf("without the old certificate: %v", err)
	}

	r, err := l.dryRun(t, l.tarball, withOld)
	must(t, err)
	if r.Signature != SignatureValid || r.SignedBy != l.fingerprint {
		t.Errorf("signature %s by %s", r.Signature, r.SignedBy)
	}

	wantWarning(t, r.Warnings, "right if the certificate was changed since the export")

	l.newCertificate(t, l.dir.path, bundletest.Key(t), time.Now().Add(-100*time.Hour)) // this member missed the change
	_, err = l.dryRun(t, l.tarball, nil)
	if !errors.Is(err, ErrWrongCluster) || !strings.Contains(err.Error(), "if this member missed the change, copy cluster.crt and cluster.key") {
		t.Errorf("a member that missed the change: %v", err)
	}

	r, err = l.dryRun(t, l.tarball, withOld)
	must(t, err)
	wantWarning(t, r.Warnings, "this member missed the change")

	_, err = l.dryRun(t, l.export(t, bundletest.Key(t)), withOld)
	if !errors.Is(err, bundle.ErrSignature) {
		t.Errorf("the old certificate, and another key: %v", err)
	}

	other := t.TempDir()
	l.newCertificate(t, other, bundletest.Key(t), time.Now())
	_, err = l.dryRun(t, l.tarball, func(o *ImportOptions) { o.Certificate = filepath.Join(other, clusterCertificateName) })
	if !errors.Is(err, ErrWrongCluster) || !strings.Contains(err.Error(), "that is neither this member's cluster.crt") {
		t.Errorf("a certificate of another cluster: %v", err)
	}

	_, err = l.dryRun(t, l.tarball, func(o *ImportOptions) { o.Certificate = l.tarball })
	if err == nil || !strings.Contains(err.Error(), "holds no certificate in PEM form") {
		t.Errorf("no certificate: %v", err)
	}
}

// An export needs the key that belongs to the certificate; without, it is not signed, and only if that is asked for.
func TestSigningKey(t *testing.T) {
	l := newSignedLab(t)
	l.onNode1(t)
	out := filepath.Join(t.TempDir(), "tarball")
	export := func(unsigned bool) (*ExportReport, error) {
		return Export(t.Context(), ExportOptions{LXDDir: l.dir.path, Output: out, Force: true, NoVerify: true, Unsigned: unsigned})
	}
	r, err := export(true)
	must(t, err)
	if !r.Signed { // it can be, so it is
		t.Error("not signed")
	}

	other := t.TempDir()
	l.newCertificate(t, other, bundletest.Key(t), time.Now())
	key, err := os.ReadFile(filepath.Join(other, clusterKeyName))
	must(t, err)
	for says, change := range map[string]func() error{
		"private key does not match public key": func() error { return os.WriteFile(l.dir.join(clusterKeyName), key, 0o600) },
		"cannot be signed with":                 func() error { return os.WriteFile(l.dir.join(clusterKeyName), nil, 0o600) },
		"cluster.key is missing":                func() error { return os.Remove(l.dir.join(clusterKeyName)) },
	} {
		must(t, change())
		_, err := export(false)
		wantRefused(t, err, "cannot-sign", says, "from another member", "--unsigned")
		r, err := export(true)
		must(t, err)
		if r.Signed {
			t.Error("signed")
		}

		wantWarning(t, r.Warnings, says)
		_, err = l.dryRun(t, out, nil)
		wantRefused(t, err, "unsigned", "without the cluster's key")
		imported, err := l.dryRun(t, out, unsignedToo)
		must(t, err)
		if imported.Source != "node1" || len(imported.Gained) > 0 {
			t.Errorf("source %s, gained %v", imported.Source, imported.Gained)
		}
	}
}

// What is exported here is valid here, by the key of each kind.
func TestExportSigned(t *testing.T) {
	l := newSignedLab(t)
	l.onNode1(t)
	t.Setenv("LXD_DIR", l.dir.path)
	for kind, key := range bundletest.Keys(t) {
		l.fingerprint = l.newCertificate(t, l.dir.path, key, time.Now())
		out := filepath.Join(t.TempDir(), "tarball")
		_, err := Export(t.Context(), ExportOptions{LXDDir: l.dir.path, Output: out, NoVerify: true})
		must(t, err)
		r, err := l.dryRun(t, out, nil)
		must(t, err)
		if r.Signature != SignatureValid || r.SignedBy != l.fingerprint || len(r.Gained) > 0 {
			t.Errorf("%s: signature %s by %s, gained %v", kind, r.Signature, r.SignedBy, r.Gained)
		}
	}
}

// Who only looks is told, and never refused.
func TestInspectSignature(t *testing.T) {
	l := newSignedLab(t)
	changed := intrude(t, l.tarball)
	without := t.TempDir()
	must(t, os.Mkdir(filepath.Join(without, databaseName), 0o700))
	old := l.dir.join(clusterCertificateName)
	for name, test := range map[string]struct {
		dir, tarball, certificate string
		want                      Signature
	}{
		"valid":           {l.dir.path, l.tarball, "", Signature{SignatureValid, l.fingerprint}},
		"changed":         {l.dir.path, writeTarball(t, changed), "", Signature{SignatureInvalid, l.fingerprint}},
		"elsewhere":       {without, l.tarball, "", Signature{SignatureUnknown, l.fingerprint}},
		"elsewhere, told": {without, l.tarball, old, Signature{SignatureValid, l.fingerprint}},
		"LXD's own":       {l.dir.path, filepath.Join(raftlogtest.Fixtures(t), "small", product.LXD.Loads), "", Signature{SignatureNone, ""}},
		"a directory":     {l.dir.path, l.dir.path, "", Signature{}},
	} {
		t.Setenv("LXD_DIR", test.dir)
		r, err := InspectWith(t.Context(), InspectOptions{Source: test.tarball, Certificate: test.certificate})
		must(t, err)
		if r.Signature != test.want {
			t.Errorf("%s: %+v, want %+v", name, r.Signature, test.want)
		}
	}
}

// allLines lists transactions with all their rows.
func allLines(all []Discarded) string {
	var text strings.Builder
	for _, d := range all {
		text.WriteString("\n" + toldWhole(d))
	}

	return text.String()
}

// toldWhole is a transaction with all its rows, LXD's own too.
func toldWhole(d Discarded) string {
	text := fmt.Sprintf("index %d, term %d", d.Index, d.Term)
	if d.Unknown != "" {
		text += " (" + d.Unknown + ")"
	}

	for _, row := range d.Rows {
		text += "\n    " + row.String()
	}

	return text
}
