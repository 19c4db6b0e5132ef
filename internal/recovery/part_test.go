// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// partLab is three members that were stopped, the third of which lacks what the others have committed. Nothing starts an LXD there.
type partLab struct {
	dirs  [3]directory
	parts [3]*Part
}

const labRun = "0123456789abcdef0123456789abcdef"

func newPartLab(t testing.TB) *partLab {
	t.Helper()
	l := &partLab{}
	key := bundletest.Key(t)
	der := bundletest.Certificate(t, key, time.Now().Add(-time.Hour))
	db := openFixture(t, "forgotten/n1-preedit")
	certificates, err := db.Certificates(t.Context())
	must(t, err)
	for i := range l.dirs {
		name := fmt.Sprintf("node%d", i+1)
		l.dirs[i] = directory{t.TempDir()}
		must(t, os.CopyFS(l.dirs[i].database(), os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "forgotten", fmt.Sprintf("n%d-preedit", i+1), databaseName))))
		bundletest.WritePair(t, l.dirs[i].path, "cluster", der, key)
		own := slices.IndexFunc(certificates, func(c globaldb.Certificate) bool { return c.Name == name })
		must(t, os.WriteFile(l.dirs[i].join(serverCertificateName), []byte(certificates[own].PEM), 0o600))
	}

	return l
}

// join makes all members part of the run, or, again, those that are.
func (l *partLab) join(t testing.TB, again bool) {
	t.Helper()
	for i := range l.parts {
		l.parts[i] = l.joinOne(t, i, again)
	}
}

func (l *partLab) joinOne(t testing.TB, i int, again bool) *Part {
	t.Helper()
	p, err := JoinRun(t.Context(), l.options(i, again))
	must(t, err)
	t.Cleanup(func() { _ = p.Close(t.Context()) })
	return p
}

func (l *partLab) options(i int, again bool) JoinOptions {
	return JoinOptions{LXDDir: l.dirs[i].path, Version: "test", Run: labRun, Giver: "here", Plan: "plan", Again: again, Timeout: time.Minute}
}

// stage brings all members to PhaseStaged, with a tarball that node1 has made.
func (l *partLab) stage(t testing.TB) *MakeReport {
	t.Helper()
	l.join(t, false)
	for _, p := range l.parts {
		must(t, p.Gate(t.Context()))
		_, err := p.Stop(t.Context())
		must(t, err)
	}

	made, err := l.parts[0].MakeTarball(t.Context(), l.makeOptions(t))
	must(t, err)
	for _, p := range l.parts {
		l.receive(t, p, made.Digest)
		report, err := p.Stage(t.Context(), StageOptions{})
		must(t, err)
		if report.Done || p.State().Phase != PhaseStaged {
			t.Fatalf("%+v, %+v", report, p.State())
		}
	}

	return made
}

func (l *partLab) makeOptions(t testing.TB) MakeOptions {
	t.Helper()
	opts := MakeOptions{}
	for _, d := range l.dirs {
		r, err := Inspect(t.Context(), d.path, Progress{})
		must(t, err)
		data, err := json.Marshal(r)
		must(t, err)
		opts.Reports = append(opts.Reports, data)
		opts.Members = r.Members
	}

	for i := range opts.Members {
		opts.Members[i].Address = fmt.Sprintf("10.99.0.%d:8443", i+1)
	}

	return opts
}

// receive gives a member node1's tarball.
func (l *partLab) receive(t testing.TB, p *Part, digest string) {
	t.Helper()
	data, err := os.ReadFile(l.parts[0].TarballPath())
	must(t, err)
	if p != l.parts[0] {
		f, err := os.Open(l.parts[0].TarballPath())
		must(t, err)
		defer f.Close()

		must(t, p.ReceiveTarball(f, digest))
	}

	if p.State().Digest != digest {
		t.Errorf("its tarball is %s, not %s", p.State().Digest, digest)
	}

	if len(data) == 0 {
		t.Fatal("an empty tarball")
	}
}

func (l *partLab) contents(t testing.TB) (all [3]string) {
	t.Helper()
	for i, d := range l.dirs {
		all[i] = namesAndContent(t, d.database())
	}

	return all
}

// wantNothingLeft wants no trace of a run in LXD's directories but kept databases.
func (l *partLab) wantNothingLeft(t testing.TB) {
	t.Helper()
	for _, d := range l.dirs {
		for _, name := range append([]string{openRunName, runTarballName, runCopyName, runSavedName}, cutOffNames...) {
			if exists(d.join(name)) {
				t.Errorf("%s is left", d.join(name))
			}
		}
	}
}

// A run over three members: all have one database, with all rows, and nothing is left of the run.
func TestPart(t *testing.T) {
	l := newPartLab(t)
	want := fingerprintAt(t, openDir(t, l.dirs[0].global()))
	before := l.contents(t)
	made := l.stage(t)
	if l.contents(t) != before {
		t.Error("a database was changed before the exchange")
	}

	for _, p := range l.parts {
		must(t, p.Arm())
	}

	for i, p := range l.parts {
		report, err := p.Exchange(t.Context(), "")
		must(t, err)
		if !report.Done || report.Started || namesAndContent(t, l.dirs[i].join(p.State().Kept)) != before[i] {
			t.Errorf("node%d: %+v", i+1, report)
		}
	}

	for _, p := range l.parts {
		must(t, p.Start(t.Context()))
		must(t, p.Finish(t.Context(), false))
	}

	l.wantNothingLeft(t)
	for i, d := range l.dirs {
		log := openDir(t, d.global())
		address := fmt.Sprintf("10.99.0.%d:8443", i+1)
		if log.LastIndex != made.Export.Raft.Index || log.LastTerm != made.Export.Raft.Term || log.Configuration[i].Address != address {
			t.Errorf("node%d ends at index %d, term %d, with %+v", i+1, log.LastIndex, log.LastTerm, log.Configuration)
		}

		if got := fingerprintAt(t, log); !reflect.DeepEqual(got, want) {
			t.Errorf("node%d has the rows %v, want %v", i+1, got, want)
		}
	}
}

// Whatever phase a run is given up in, each member has its old database again, unless LXD may have run on the new one.
func TestPartWithdraw(t *testing.T) {
	l := newPartLab(t)
	before := l.contents(t)
	l.stage(t)
	must(t, l.parts[1].Arm())
	must(t, l.parts[2].Arm())
	_, err := l.parts[2].Exchange(t.Context(), "")
	must(t, err)
	if namesAndContent(t, l.dirs[2].database()) == before[2] {
		t.Fatal("node3 was not exchanged")
	}

	for _, p := range l.parts {
		must(t, p.Withdraw(t.Context()))
	}

	if l.contents(t) != before {
		t.Error("not all have what they had")
	}

	l.wantNothingLeft(t)
}

// An agent that ends gives up what was staged, and nothing from PhaseArmed on; another one finishes that.
func TestPartAgain(t *testing.T) {
	l := newPartLab(t)
	before := l.contents(t)
	l.stage(t)
	for _, p := range l.parts[1:] {
		must(t, p.Arm())
	}

	_, err := l.parts[2].Exchange(t.Context(), "")
	must(t, err)
	l.parts[2].run.Phase = PhaseArmed // it was killed before it had noted the exchange
	must(t, l.parts[2].note())
	exchanged := l.contents(t)
	for _, p := range l.parts {
		must(t, p.Close(t.Context()))
	}

	if l.contents(t) != exchanged || exchanged[0] != before[0] || exchanged[1] != before[1] || exchanged[2] == before[2] {
		t.Error("something was changed when the agents ended")
	}

	l.join(t, true)
	if l.parts[0].State() != nil || l.parts[1].State().Phase != PhaseArmed || l.parts[2].State().Phase != PhaseExchanged {
		t.Fatalf("%+v, %+v, %+v", l.parts[0].State(), l.parts[1].State(), l.parts[2].State())
	}

	_, err = l.parts[1].Exchange(t.Context(), "")
	must(t, err)
	for _, p := range l.parts[1:] {
		must(t, p.Start(t.Context()))
		must(t, p.Finish(t.Context(), false))
	}

	l.wantNothingLeft(t)
	if a, b := openDir(t, l.dirs[1].global()), openDir(t, l.dirs[2].global()); a.LastTerm != b.LastTerm || a.LastIndex != b.LastIndex {
		t.Errorf("node2 and node3 have other logs")
	}
}

// While a member is part of a run nothing else changes it, and another run does not take it.
func TestPartAlone(t *testing.T) {
	l := newPartLab(t)
	l.join(t, false)
	must(t, l.parts[0].Gate(t.Context()))
	must(t, l.parts[0].dir.writeOpenRun(l.parts[0].run))
	l.parts[0].unlock() // as if the agent had been killed
	other := l.options(0, false)
	other.Run = "another"
	_, err := JoinRun(t.Context(), other)
	wantRefused(t, err, "open-run", labRun, "cluster recover resume")
	_, err = Resume(t.Context(), ResumeOptions{LXDDir: l.dirs[0].path})
	wantRefused(t, err, "open-run", labRun)
	_, err = Import(t.Context(), ImportOptions{LXDDir: l.dirs[0].path})
	wantRefused(t, err, "open-run", labRun)
	if text := CutOff(l.dirs[0].path); text == "" {
		t.Error("nothing is said")
	}

	// One that had only been reached is free: nothing was changed there.
	l.parts[1].unlock()
	free := l.options(1, false)
	free.Run = "another"
	p, err := JoinRun(t.Context(), free)
	must(t, err)
	must(t, p.Close(t.Context()))
	if open, err := l.dirs[1].readOpenRun(); open != nil || err != nil {
		t.Errorf("%+v, %v", open, err)
	}
}

// roles makes a list of members' roles.
func roles(list member.List) (all []raftlog.Role) {
	for _, m := range list {
		all = append(all, m.Role)
	}

	return all
}

// A look at a member tells a run over the cluster what it has to know.
func TestLook(t *testing.T) {
	l := newPartLab(t)
	look, err := Look(t.Context(), l.dirs[0].path, Progress{})
	must(t, err)
	data, err := json.Marshal(look)
	must(t, err)
	var carried MemberLook
	must(t, json.Unmarshal(data, &carried))
	if carried.Answers || carried.Service != "" || carried.Open != nil || carried.Inspect.Member.Name != "node1" || carried.Free == 0 || carried.Size == 0 ||
		time.Since(carried.Clock) > time.Minute || len(roles(carried.Inspect.Members)) != 3 || carried.Status.Cluster == "" {
		t.Errorf("%+v", carried)
	}
}

// exchangeAll brings all members to PhaseExchanged.
func (l *partLab) exchangeAll(t testing.TB) {
	t.Helper()
	l.stage(t)
	for _, p := range l.parts {
		must(t, p.Arm())
	}

	for _, p := range l.parts {
		_, err := p.Exchange(t.Context(), "")
		must(t, err)
	}
}

// An agent that is killed between the exchange back and its note has the old database, and says so when it joins again.
func TestPartWithdrawCutOff(t *testing.T) {
	l := newPartLab(t)
	before := l.contents(t)
	l.exchangeAll(t)
	kept := l.parts[0].run.Kept
	must(t, l.parts[0].takeBack(t.Context()))
	l.parts[0].run.Phase, l.parts[0].run.Kept = PhaseExchanged, kept
	must(t, l.parts[0].note())
	l.parts[0].unlock()
	l.parts[0] = l.joinOne(t, 0, true)
	state := l.parts[0].State()
	if state.Phase != PhaseArmed || !state.Back || l.contents(t)[0] != before[0] {
		t.Errorf("%+v", state)
	}

	_, err := l.parts[0].Exchange(t.Context(), "")
	if err == nil || l.contents(t)[0] != before[0] {
		t.Errorf("a run that is being taken back has gone on: %v", err)
	}

	for _, p := range l.parts {
		must(t, p.Withdraw(t.Context()))
	}

	if l.contents(t) != before {
		t.Error("not all have what they had")
	}

	l.wantNothingLeft(t)
}

// A member on which LXD is to stay down may be started by anybody from the moment on in which its gate opens: that is noted before.
func TestPartFinishCutOff(t *testing.T) {
	l := newPartLab(t)
	l.exchangeAll(t)
	p := l.parts[0]
	p.run.Before = &daemon.PriorState{} // of a service that nobody knows: the gate cannot be opened
	err := p.Finish(t.Context(), true)
	open, readErr := p.dir.readOpenRun()
	must(t, readErr)
	if err == nil || open == nil || open.Phase != PhaseStarted {
		t.Errorf("%v, %+v", err, open)
	}

	wantRefused(t, p.Withdraw(t.Context()), "lxd-has-run")
}

// An LXD that somebody has started by hand on the new database has written there.
func TestPartStartedByHand(t *testing.T) {
	l := newPartLab(t)
	l.exchangeAll(t)
	must(t, os.WriteFile(filepath.Join(l.dirs[0].global(), "open-1"), make([]byte, 4096), 0o600))
	wantRefused(t, l.parts[0].Withdraw(t.Context()), "lxd-has-run")
	open, err := l.dirs[0].readOpenRun() // so that undo knows that it is to be another run
	must(t, err)
	if open.Phase != PhaseStarted || open.Back {
		t.Errorf("%+v", open)
	}
}

// A run that undoes another one takes an armed member over without a moment in which its gate is open, and gives it back if it is taken back itself.
func TestPartTakenOver(t *testing.T) {
	l := newPartLab(t)
	l.stage(t)
	for _, p := range l.parts {
		must(t, p.Arm())
		must(t, p.Close(t.Context()))
	}

	armed, err := l.dirs[2].readOpenRun()
	must(t, err)
	before := l.contents(t)
	opts := l.options(2, false)
	opts.Run, opts.Plan = "89abcdef0123456789abcdef01234567", "the plan of the undo"
	_, err = JoinRun(t.Context(), opts)
	wantRefused(t, err, "open-run", labRun)
	opts.Instead = labRun
	p, err := JoinRun(t.Context(), opts)
	must(t, err)
	if p.State().Run != opts.Run || p.State().Phase != PhaseReached || exists(p.TarballPath()) || !exists(l.dirs[2].join(openRunName)) {
		t.Errorf("%+v", p.State())
	}

	must(t, p.Gate(t.Context()))
	must(t, p.Withdraw(t.Context()))
	after, err := l.dirs[2].readOpenRun()
	must(t, err)
	if !reflect.DeepEqual(after, armed) || l.contents(t) != before {
		t.Errorf("%+v, before %+v", after, armed)
	}

	l.join(t, true)
	for _, p := range l.parts {
		_, err = p.Exchange(t.Context(), "")
		must(t, err)
		must(t, p.Finish(t.Context(), true))
	}

	l.wantNothingLeft(t)
}

// An agent that is killed while it makes its member part of a run leaves a file, which the giver's next one removes.
func TestPartJoinCutOff(t *testing.T) {
	l := newPartLab(t)
	must(t, os.WriteFile(l.dirs[0].join(openRunTemp), []byte("form"), 0o600))
	p := l.joinOne(t, 0, true)
	if p.State() != nil || exists(l.dirs[0].join(openRunTemp)) {
		t.Errorf("%+v", p.State())
	}
}
