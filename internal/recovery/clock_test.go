// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// exportLab is the LXD directory of node1 of a cluster of LXD 6.9, edited by LXD's own command, with the certificates that it takes.
func exportLab(t testing.TB) directory {
	t.Helper()
	l := newSignedLab(t)
	dir := directory{t.TempDir()}
	must(t, os.CopyFS(dir.database(), os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "small", "n1-afteredit", databaseName))))
	for _, name := range []string{"server.crt", clusterCertificateName, "cluster.key"} {
		data, err := os.ReadFile(l.dir.join(name))
		must(t, err)
		must(t, os.WriteFile(dir.join(name), data, 0o600))
	}

	return dir
}

// exportDB exports from a member, with the options changed by with.
func exportDB(t testing.TB, dir directory, with func(*ExportOptions)) (*ExportReport, error) {
	t.Helper()
	opts := ExportOptions{LXDDir: dir.path, Output: filepath.Join(t.TempDir(), "out"), Version: "test", NoVerify: true}
	if with != nil {
		with(&opts)
	}

	r, err := Export(t.Context(), opts)
	if err != nil && !gone(opts.Output) {
		t.Errorf("it fails, and writes %s", opts.Output)
	}

	return r, err
}

// wantRefused wants a refusal with this code, and returns what it says.
func wantRefused(t testing.TB, err error, code string, says ...string) string {
	t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Code != code {
		t.Errorf("%v, want a refusal %q", err, code)
		return ""
	}

	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}

	return refusal.Error()
}

// Two exports within a second have different terms, a million apart on one member; the high-water file has the last one; and database/ is as
// it was.
func TestExportTwice(t *testing.T) {
	dir := exportLab(t)
	before := namesAndContent(t, dir.database())
	began := uint64(time.Now().UnixMilli())
	first, err := exportDB(t, dir, nil)
	must(t, err)
	wantWarning(t, first.Warnings, "the last entry, index 128, is of LXD's own command, and not of `lxd-recover cluster edit`")
	second, err := exportDB(t, dir, nil)
	must(t, err)
	if first.Raft.Term < began || first.Raft.Term > began+60_000+termSpread || first.SnapshotFence != "" {
		t.Errorf("the first fence is %d, at %d, %q", first.Raft.Term, began, first.SnapshotFence)
	}

	apart := second.Raft.Term - first.Raft.Term
	if apart < termStep || apart >= termStep+termSpread || second.Raft.Index != first.Raft.Index {
		t.Errorf("fences at %s and %s", first.Raft, second.Raft)
	}

	h, err := dir.readHighWater()
	if err != nil || h.Term != second.Raft.Term {
		t.Errorf("the high-water file has %+v, %v", h, err)
	}

	// Whatever was seen anywhere, and a fence by an earlier version in seconds, lies below.
	high := second.Raft.Term + 5_000_000
	third, err := exportDB(t, dir, func(o *ExportOptions) {
		o.Survivors = []string{savedReport(t, 2, InspectRaft{MaxTerm: high}), savedReport(t, 3, InspectRaft{MaxTerm: 1_795_386_064})}
	})
	must(t, err)
	if third.Raft.Term < high+termStep || third.SnapshotFence != "" {
		t.Errorf("above %d: %d, %q", high, third.Raft.Term, third.SnapshotFence)
	}

	if after := namesAndContent(t, dir.database()); after != before {
		t.Errorf("database/ has changed:\n%s\n%s", before, after)
	}
}

// An export that sees a snapshot beyond, or is asked to, has no entries.
func TestExportSnapshotFence(t *testing.T) {
	dir := exportLab(t)
	for name, with := range map[string]func(*ExportOptions){
		"asked": func(o *ExportOptions) { o.SnapshotFence = true },
		"beyond": func(o *ExportOptions) {
			o.Survivors = []string{savedReport(t, 2, InspectRaft{SnapshotIndex: 2000, SnapshotTerm: 4, LastIndex: 2010}), savedReport(t, 3, InspectRaft{})}
		},
		"unseen": func(o *ExportOptions) { o.Survivors = []string{savedReport(t, 2, InspectRaft{})} },
	} {
		var out string
		r, err := exportDB(t, dir, func(o *ExportOptions) { with(o); o.NoVerify, out = false, o.Output })
		must(t, err)
		inside, err := Inspect(t.Context(), out, Progress{})
		must(t, err)
		above := max(r.Before.Index, map[string]uint64{"beyond": 2010}[name])
		if r.SnapshotFence == "" || r.Raft.Index != max(above+snapshotStep, r.Raft.Term) || inside.Raft.SnapshotIndex != r.Raft.Index ||
			inside.Raft.SnapshotTerm != r.Raft.Term || len(inside.Entries) != 0 || !inside.Healthy || inside.Data.Rows != r.Database.Rows {
			t.Errorf("%s: %q, %s, inside %+v", name, r.SnapshotFence, r.Raft, inside.Raft)
		}
	}
}

// A clock that is behind anything that was written before numbers no fence, and a refused export writes nothing.
func TestExportClock(t *testing.T) {
	future := time.Now().Add(time.Hour)
	for name, test := range map[string]struct {
		ahead func(dir directory)
		says  func(dir directory) string
	}{
		"a file": {func(dir directory) { must(t, os.Chtimes(filepath.Join(dir.global(), "metadata1"), future, future)) },
			func(dir directory) string { return filepath.Join(dir.global(), "metadata1") }},
		"the high-water file": {func(dir directory) { must(t, dir.raiseHighWater(t.Context(), 7, future)) },
			func(dir directory) string { return dir.join(highWaterName) }},
		"the cluster's certificate": {func(dir directory) { validFrom(t, dir.join(clusterCertificateName), future) },
			func(dir directory) string { return "the beginning of validity of " + dir.join(clusterCertificateName) }},
		"the member's certificate": {func(dir directory) { validFrom(t, dir.join("server.crt"), future) },
			func(dir directory) string { return "the beginning of validity of " + dir.join("server.crt") }},
	} {
		dir := exportLab(t)
		test.ahead(dir)
		before := namesIn(t, dir.path)
		_, err := exportDB(t, dir, func(o *ExportOptions) { o.Unsigned = true }) // the key does not fit a certificate made anew
		text := wantRefused(t, err, "clock")
		if !strings.Contains(text, test.says(dir)+" is of "+second(future)) || !strings.Contains(text, "--term-above N makes a fence above N") {
			t.Errorf("%s: %q", name, text)
		}

		if after := namesIn(t, dir.path); len(after) != len(before) {
			t.Errorf("%s: refused, and there is %q", name, after)
		}

		const above = 1 << 44
		r, err := exportDB(t, dir, func(o *ExportOptions) { o.TermAbove, o.Unsigned = above, true })
		must(t, err)
		if r.Raft.Term <= above || r.Raft.Term > above+termSpread {
			t.Errorf("%s: above %d: %d", name, uint64(above), r.Raft.Term)
		}
	}

	dir := exportLab(t)
	_, err := exportDB(t, dir, func(o *ExportOptions) { o.TermAbove = 1 << 62 })
	if err == nil || !strings.Contains(err.Error(), "--term-above 4611686018427387904: no raft counts that far") {
		t.Errorf("a term out of reach: %v", err)
	}
}

// The tolerance, and the heartbeats, which the export looks at last.
func TestCheckClock(t *testing.T) {
	now := time.Date(2026, 11, 26, 14, 0, 0, 0, time.UTC)
	must(t, checkClock(now, written{}))
	must(t, checkClock(now, written{"x", now.Add(time.Minute)}))
	text := wantRefused(t, checkClock(now, heartbeat(now.Add(61*time.Second))), "clock")
	if !strings.Contains(text, "says 2026-11-26T14:00:00Z, and the newest heartbeat in the database is of 2026-11-26T14:01:01Z") {
		t.Error(text)
	}

	db := openFixture(t, "small/n2-preimport")
	s, err := db.Summary(t.Context())
	must(t, err)
	want := time.Date(2026, 11, 22, 8, 15, 42, 557129347, time.UTC) // node3's
	if !s.Heartbeat.Equal(want) {
		t.Errorf("the newest heartbeat is %s, want %s", s.Heartbeat, want)
	}

	v := &verification{done: make(chan struct{}), summary: s}
	close(v.done)
	s.Heartbeat = time.Now().Add(time.Hour)
	dir := emptyLXD(t)
	ex := &exporter{dir: dir, report: &ExportReport{}}
	ex.report.Raft.Term = 77
	wantRefused(t, ex.approve(t.Context(), v), "clock")
	if names := namesIn(t, dir.path); len(names) != 1 {
		t.Errorf("refused, and there is %q", names)
	}

	ex.opts.TermAbove = 5
	must(t, ex.approve(t.Context(), v))
	h, err := dir.readHighWater()
	if err != nil || h.Term != 77 {
		t.Errorf("%+v, %v", h, err)
	}
}

// validFrom writes a certificate that is valid from some time on.
func validFrom(t testing.TB, path string, from time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	made := x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &made, &made, &key.PublicKey, key)
	must(t, err)
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
}

// An edit makes a fence, too: by the same clock, and above the same terms.
func TestEditClock(t *testing.T) {
	dir := exportLab(t)
	must(t, dir.noteTerms(t.Context(), 1<<43))
	ed := &editor{run: &run{dir: dir}, report: newEditReport(), log: openDir(t, dir.global())}
	ed.report.Database = &globaldb.Summary{Heartbeat: time.Now().Add(time.Hour)}
	if text := wantRefused(t, ed.examineTerms(t.Context()), "clock"); !strings.Contains(text, "the newest heartbeat in the database") {
		t.Error(text)
	}

	ed.opts.TermAbove = 5
	must(t, ed.examineTerms(t.Context()))
	if got := ed.fenceTerm(0); got < 1<<43+termStep || got >= 1<<43+termStep+termSpread {
		t.Errorf("above what was noted: %d", got)
	}

	if got := ed.fenceTerm(1 << 44); got < 1<<44+termStep {
		t.Errorf("above what is staged: %d", got)
	}

	ed.opts.TermAbove = 1 << 45
	if got := ed.fenceTerm(0); got <= 1<<45 {
		t.Errorf("above what was asked for: %d", got)
	}
}
