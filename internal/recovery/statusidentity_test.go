// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// What the status says of a restore that was cut off, at any step: which one it is, and what finishes it. Other commands say so, too.
func TestStatusOfIdentityBegun(t *testing.T) {
	l := newIdentityLab(t)
	file := l.sealed(t)
	into := filepath.Join(t.TempDir(), "lxd")
	t.Setenv("LXD_DIR", into)
	for _, where := range []string{"", into} {
		must(t, os.RemoveAll(into))
		must(t, os.MkdirAll(filepath.Join(into, identityStaging), 0o700))
		r, err := Status(t.Context(), where, Progress{})
		must(t, err)
		wantBegun(t, r, RestoredIdentity{State: IdentityUnfinished, Next: "lxd-recover global-db-identity restore"}, "had prepared. Nothing of it is in place")
	}

	for step := range 9 {
		must(t, os.RemoveAll(into))
		must(t, os.Mkdir(into, 0o700))
		report := l.begin(t, file, into)
		l.cutOff(t, into, report, step)
		r, err := Status(t.Context(), "", Progress{})
		must(t, err)
		next := "lxd-recover global-db-identity restore " + file
		wantBegun(t, r, RestoredIdentity{State: IdentityUnfinished, Member: &report.Member, Backup: file, Next: next},
			"the restore of the identity of node2 was interrupted, and is not finished", "with the same backup, "+file)
		_, err = Resume(t.Context(), ResumeOptions{NoStart: true})
		if gone(filepath.Join(into, databaseName)) && (err == nil || !strings.Contains(err.Error(), "with the same backup, "+file)) {
			t.Errorf("step %d: resume: %v", step, err)
		}
	}
}

func wantBegun(t testing.TB, r *StatusReport, want RestoredIdentity, says ...string) {
	t.Helper()
	if r.Identity == nil || r.Identity.State != want.State || r.Identity.Backup != want.Backup || r.Identity.Next != want.Next ||
		(r.Identity.Member == nil) != (want.Member == nil) || want.Member != nil && *r.Identity.Member != *want.Member {
		t.Fatalf("%+v, want %+v", r.Identity, want)
	}

	for _, text := range says {
		if !slices.ContainsFunc(r.Pending, func(p string) bool { return strings.Contains(p, text) }) {
			t.Errorf("pending is %q, and not %q", r.Pending, text)
		}
	}
}

// newRestoredLab restores the identity that a sealed backup has, and nothing more.
func newRestoredLab(t *testing.T) (l identityLab, file string, into string) {
	t.Helper()
	l = newIdentityLab(t)
	file, into = l.sealed(t), filepath.Join(t.TempDir(), "lxd")
	_, err := l.restore(t, file, into, nil)
	must(t, err)
	return l, file, into
}

// A member that has its identity and no database: nothing is damaged, LXD does not start, an export of the backup works, and the import of that needs no leave
// to lose anything, and ends it. So it is where an LXD has made raft's files and got no database; but that one had been started, and may be another's.
func TestNoDatabaseYet(t *testing.T) {
	_, file, into := newRestoredLab(t)
	d := directory{into}
	if !barred(d.global()) {
		t.Fatal("LXD is not kept from being started")
	}

	r, err := Status(t.Context(), into, Progress{})
	must(t, err)
	if r.Identity == nil || r.Identity.State != IdentityNoDatabase || len(r.Problems) != 1 || len(r.Pending) != 0 ||
		r.Member == nil || r.Member.Name != "node2" {
		t.Errorf("%+v: problems %q, pending %q", r.Identity, r.Problems, r.Pending)
	}

	wantNoDatabase(t, errors.New(r.Problems[0]))
	_, err = Inspect(t.Context(), into, Progress{})
	wantNoDatabase(t, err)
	_, err = Export(t.Context(), ExportOptions{LXDDir: into, Output: filepath.Join(t.TempDir(), "x"), Unedited: true})
	wantNoDatabase(t, err)

	tarball := filepath.Join(t.TempDir(), "recovery.tar.gz")
	opts := ExportOptions{LXDDir: into, Source: file, Output: tarball, Unedited: true, NoVerify: true}
	_, err = Export(t.Context(), opts)
	wantRefusal(t, err, Refusal{Code: "transactions-given-up", Reason: "cannot be told: what was changed after it was made: this machine has no database yet",
		Flag: "--yes"})
	opts.Confirm = func(*ExportReport) error { return nil }
	_, err = Export(t.Context(), opts)
	must(t, err)
	im, err := Import(t.Context(), ImportOptions{LXDDir: into, Tarball: tarball, NoStart: true, BesideCluster: true, AddressAbsent: true})
	must(t, err)
	if !im.Done || im.Local != nil || barred(d.global()) || !strings.Contains(im.Lacking, "missing or empty") {
		t.Errorf("%+v", im)
	}

	r, err = Status(t.Context(), into, Progress{})
	must(t, err)
	if r.Identity != nil || r.Raft == nil || *r.Raft != im.Raft || !r.Healthy {
		t.Errorf("after the import: %+v, %+v", r.Identity, r.Raft)
	}
}

func wantNoDatabase(t testing.TB, err error) {
	t.Helper()
	for _, text := range []string{"has no database yet: this member's identity was restored", "cluster export-db --source BACKUP", "global-db-resync"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, and not %q", err, text)
		}
	}
}

// A spare that was restored is in no other state than the rest; what an LXD before 4.0 has left is no bar of ours; and a bar over a database is named.
func TestBarred(t *testing.T) {
	l, _, into := newRestoredLab(t)
	other := l.backupLab
	other.dir = directory{into}
	other.exec(t, "UPDATE raft_nodes SET role = 2")
	if !spareIn(other.dir.database()) || !awaitsDatabase(checkGlobal(other.dir.global())) {
		t.Errorf("a spare: %v", checkGlobal(other.dir.global()))
	}

	must(t, os.WriteFile(filepath.Join(other.dir.global(), barName), []byte("\x00\x00 of bolt"), 0o600))
	if barred(other.dir.global()) {
		t.Error("a database of before LXD 4.0 is taken for ours")
	}

	must(t, os.WriteFile(filepath.Join(l.dir.global(), barName), []byte(barText), 0o600))
	r, err := Status(t.Context(), l.dir.path, Progress{})
	must(t, err)
	if !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, "logs.db keeps LXD from being started") }) || r.Identity != nil {
		t.Errorf("%q, %+v", r.Problems, r.Identity)
	}
}

// An LXD that was started early by hand, without the bar, may have made raft's files and have got no database: that is none, and no damage.
func TestMetadataOnly(t *testing.T) {
	_, file, into := newRestoredLab(t)
	d := directory{into}
	m := raftlog.Metadata{Version: 1, Term: 3}
	must(t, os.Remove(filepath.Join(d.global(), barName)))
	must(t, os.WriteFile(filepath.Join(d.global(), m.FileName()), m.Encode(), 0o600))
	r, err := Status(t.Context(), into, Progress{})
	must(t, err)
	says := "the raft log has no entry: this member has no database yet"
	if !r.Healthy || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], says) || r.Identity != nil {
		t.Errorf("problems %q, %+v", r.Problems, r.Identity)
	}

	i, err := Inspect(t.Context(), into, Progress{})
	must(t, err)
	if !i.Healthy || i.Member == nil || i.Member.Name != "node2" {
		t.Errorf("%+v", i)
	}

	tarball := filepath.Join(t.TempDir(), "recovery.tar.gz")
	ex, err := Export(t.Context(), ExportOptions{LXDDir: into, Source: file, Output: tarball, Unedited: true, NoVerify: true})
	must(t, err)
	if len(ex.Members) != 3 {
		t.Errorf("members %v", ex.Members)
	}

	im, err := Import(t.Context(), ImportOptions{LXDDir: into, Tarball: tarball, NoStart: true, BesideCluster: true, AddressAbsent: true})
	must(t, err)
	if !im.Done || im.Local == nil || im.Local.Index != 0 || im.Raft != ex.Raft {
		t.Errorf("%+v", im)
	}
}
