// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/nodedb"
)

// Nothing is overwritten: of a member of a cluster not at all, and what an LXD that was started once has left is moved away if that is wanted.
func TestIdentityExists(t *testing.T) {
	l := newIdentityLab(t)
	file := l.sealed(t)
	for _, f := range identityFiles {
		into := t.TempDir()
		must(t, os.WriteFile(filepath.Join(into, f.name), []byte("somebody's"), 0o600))
		before := namesAndContent(t, into)
		_, err := l.restore(t, file, into, nil)
		want := Refusal{Code: "identity-exists", Reason: "has " + f.name + " already", Flag: "--replace"}
		if strings.HasPrefix(f.name, "cluster.") && f.name != "cluster.ca" {
			want.Flag = ""
		}

		wantRefusal(t, err, want)
		if namesAndContent(t, into) != before {
			t.Errorf("%s: something was changed: %v", f.name, namesIn(t, into))
		}
	}

	into := startedOnce(t, l)
	_, err := l.restore(t, file, into, nil)
	wantRefusal(t, err, Refusal{Code: "identity-exists", Reason: "server.crt, server.key, database already: LXD has been started", Flag: "--replace"})
	r, err := l.restore(t, file, into, func(o *IdentityOptions) { o.Replace = true })
	must(t, err)
	l.wantIdentity(t, into, filepath.Base(r.Replaced), "unix.socket")
	if got := namesIn(t, r.Replaced); !slices.Equal(got, []string{databaseName, serverCertificateName, serverKeyName}) {
		t.Errorf("kept: %v", got)
	}
}

// startedOnce is the directory of an LXD that was started once, as a standalone server.
func startedOnce(t testing.TB, l identityLab) string {
	t.Helper()
	into := t.TempDir()
	must(t, os.Mkdir(filepath.Join(into, databaseName), 0o700))
	must(t, os.WriteFile(filepath.Join(into, databaseName, nodedb.File), nodeContent(t, l.dir), 0o600))
	other := l.backupLab
	other.dir = directory{into}
	other.exec(t, "DELETE FROM raft_nodes")
	other.exec(t, "DELETE FROM config")
	for _, name := range []string{serverCertificateName, serverKeyName, "unix.socket"} {
		must(t, os.WriteFile(filepath.Join(into, name), []byte("of the new LXD"), 0o600))
	}

	return into
}

// A run that was cut off at any step is finished by the next one, of the same backup; one of another backup is refused.
func TestIdentityCutOff(t *testing.T) {
	l := newIdentityLab(t)
	file := l.sealed(t)
	again := l.sealed(t)
	into := t.TempDir()
	for step := range 9 { // the last one is after all of them
		must(t, os.RemoveAll(into))
		must(t, os.Rename(startedOnce(t, l), into))
		report := l.begin(t, file, into)
		l.cutOff(t, into, report, step)
		_, err := l.restore(t, again, into, nil)
		wantRefusal(t, err, Refusal{Code: "other-identity-begun", Member: "node2"})
		r, err := l.restore(t, file, into, nil)
		must(t, err)
		if !r.Finished || r.Replaced != report.Replaced {
			t.Errorf("step %d: %+v", step, r)
		}

		l.wantIdentity(t, into, filepath.Base(r.Replaced), "unix.socket")
	}

}

// What appears meanwhile is not overwritten, and all is taken back.
func TestIdentityTakenBack(t *testing.T) {
	l := newIdentityLab(t)
	file := l.sealed(t)
	for _, name := range []string{"server.key", "database/global/metadata1"} {
		into := startedOnce(t, l)
		before := namesAndContent(t, into)
		report := l.begin(t, file, into)
		p := placing{directory{into}}
		must(t, p.moveAside(report.Replaced))
		appeared := filepath.Join(into, name)
		must(t, os.MkdirAll(filepath.Dir(appeared), 0o700))
		must(t, os.WriteFile(appeared, []byte("of somebody else"), 0o600))
		late := *report
		late.Replaced = "" // it is moved away no more
		err := p.place(&late)
		if !errors.Is(err, os.ErrExist) || string(mustRead(t, appeared)) != "of somebody else" {
			t.Errorf("over %s: %v", name, err)
		}

		must(t, os.RemoveAll(filepath.Join(into, strings.Split(name, "/")[0])))
		must(t, p.takeBack(report))
		if namesAndContent(t, into) != before {
			t.Errorf("not all is as it was: %v", namesIn(t, into))
		}
	}
}

// begin stages an identity, and notes that it is complete.
func (l identityLab) begin(t testing.TB, file string, into string) *IdentityReport {
	t.Helper()
	d := directory{into}
	r := &identityRestore{opts: IdentityOptions{Backup: file, Key: l.key, Replace: true}, dir: d, placing: placing{d}}
	must(t, r.open(t.Context()))
	report, err := r.stage(t.Context(), r.placing.existing())
	must(t, err)
	return report
}

// cutOff does the first steps of placing; one more than there are removes what was staged. LXD finds no database before the last one.
func (l identityLab) cutOff(t testing.TB, into string, report *IdentityReport, number int) {
	t.Helper()
	p := placing{directory{into}}
	steps := p.steps(report)
	for i, step := range steps {
		if i >= number {
			return
		}

		must(t, step())
		if gone(p.dir.local()) != (i+1 < len(steps)) {
			t.Errorf("after step %d of %d: is there no database: %v", i+1, len(steps), gone(p.dir.local()))
		}
	}

	if number > len(steps) {
		must(t, os.RemoveAll(p.staged("")))
	}
}

// An interrupted run is not finished over a member of a cluster that was made there since; and what it had put in place is not taken for there if it is gone.
func TestIdentityBegunLongAgo(t *testing.T) {
	l := newIdentityLab(t)
	file := l.sealed(t)
	into := startedOnce(t, l)
	l.begin(t, file, into)
	must(t, os.WriteFile(filepath.Join(into, "cluster.crt"), []byte("of another cluster"), 0o600))
	_, err := l.restore(t, file, into, nil)
	wantRefusal(t, err, Refusal{Code: "identity-exists"})
	if string(mustRead(t, filepath.Join(into, "cluster.crt"))) != "of another cluster" {
		t.Error("another cluster's certificate is gone")
	}

	into = startedOnce(t, l)
	l.cutOff(t, into, l.begin(t, file, into), 8)
	must(t, os.RemoveAll(filepath.Join(into, identityStaging)))
	must(t, os.Remove(filepath.Join(into, "server.key")))
	_, err = l.restore(t, file, into, nil)
	if err == nil || !strings.Contains(err.Error(), "server.key") || !strings.Contains(err.Error(), identityNote) {
		t.Errorf("server.key is gone: %v", err)
	}
}
