// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/retention"
)

// fakeTimer notes what is asked of it.
type fakeTimer struct {
	calls []string
	err   error // of the next Enable
}

func (f *fakeTimer) Known(context.Context) error { return nil }

func (f *fakeTimer) Enable(_ context.Context, every string) error {
	f.calls = append(f.calls, every)
	return f.err
}

func (f *fakeTimer) Disable(context.Context) error {
	f.calls = append(f.calls, "off")
	return nil
}

// scheduleLab is a member of which the only voter's log is here, so that backups need no LXD, and a place for what is scheduled.
type scheduleLab struct {
	backupLab
	to    string // DIR
	timer *fakeTimer
}

func newScheduleLab(t testing.TB) scheduleLab {
	t.Helper()
	l := scheduleLab{newBackupLab(t), filepath.Join(t.TempDir(), "backups"), &fakeTimer{}}
	l.configure(t, raftlog.Spare, raftlog.Voter, raftlog.Spare)
	config, state, before := filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "var"), scheduleDirs
	scheduleDirs = func() (string, string) { return config, state }
	t.Cleanup(func() { scheduleDirs = before })
	return l
}

func (l scheduleLab) options() EnableBackupsOptions {
	return EnableBackupsOptions{LXDDir: l.dir.path, Timer: l.timer, Schedule: Schedule{Directory: l.to, Every: "hourly", Keep: retention.Policy{Last: 2}}}
}

func (l scheduleLab) enable(t testing.TB) {
	t.Helper()
	_, err := EnableBackups(t.Context(), l.options())
	must(t, err)
}

func (l scheduleLab) run(t testing.TB) (*RunBackupReport, error) {
	t.Helper()
	return RunBackup(t.Context(), RunBackupOptions{LXDDir: l.dir.path, Version: "test", Wait: 10 * time.Second, NoVerify: true})
}

// status is what global-db-status says of scheduled backups, and its warnings.
func (l scheduleLab) status(t testing.TB) (*ScheduledBackup, string) {
	t.Helper()
	return l.statusAt(time.Now())
}

func (l scheduleLab) statusAt(now time.Time) (*ScheduledBackup, string) {
	r := &StatusReport{}
	r.scheduledBackup(now)
	return r.Backup, strings.Join(r.Warnings, "\n")
}

// files are the backups in DIR.
func (l scheduleLab) files(t testing.TB) []string {
	t.Helper()
	var names []string
	for _, name := range namesIn(t, l.to) {
		if scheduledName.MatchString(name) {
			names = append(names, name)
		}
	}

	return names
}

// Backups are enabled, again with something else, and disabled. What cannot be enabled leaves all as it was.
func TestEnableBackups(t *testing.T) {
	l := newScheduleLab(t)
	if b, _ := l.status(t); b != nil {
		t.Errorf("none is enabled, and the status says %+v", b)
	}

	report, err := EnableBackups(t.Context(), l.options())
	must(t, err)
	info, err := os.Stat(l.to)
	must(t, err)
	if info.Mode().Perm() != 0o700 || len(report.Warnings) > 0 || report.File != schedulePath() || !report.Timer {
		t.Errorf("%v, %+v", info.Mode(), report)
	}

	must(t, os.Chmod(l.to, 0o755))
	again := l.options()
	again.Every, again.Keep, again.Archive = "daily", retention.Default, true
	report, err = EnableBackups(t.Context(), again)
	must(t, err)
	if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], "0755") {
		t.Errorf("%q", report.Warnings)
	}

	s, err := readSchedule()
	must(t, err)
	if s.Every != "daily" || s.Keep != retention.Default || !s.Archive || s.Directory != l.to || time.Since(s.Enabled) > time.Minute {
		t.Errorf("%+v", s)
	}

	before := string(mustRead(t, schedulePath()))
	l.timer.err = errors.New("no systemd")
	_, err = EnableBackups(t.Context(), l.options())
	if !errors.Is(err, l.timer.err) || string(mustRead(t, schedulePath())) != before {
		t.Errorf("%v, and the configuration is\n%s", err, mustRead(t, schedulePath()))
	}

	off, err := DisableBackups(t.Context(), l.timer)
	must(t, err)
	if !off.Enabled || off.Directory != l.to || exists(schedulePath()) || !exists(filepath.Join(l.to, backupMarkName)) {
		t.Errorf("%+v", off)
	}

	_, err = EnableBackups(t.Context(), l.options())
	if !errors.Is(err, l.timer.err) || exists(schedulePath()) {
		t.Errorf("%v, and there is a configuration: %v", err, exists(schedulePath()))
	}

	if want := []string{"hourly", "daily", "hourly", "off", "hourly"}; !slices.Equal(l.timer.calls, want) {
		t.Errorf("the timer was told %q, want %q", l.timer.calls, want)
	}

	off, err = DisableBackups(t.Context(), l.timer)
	must(t, err)
	if off.Enabled {
		t.Errorf("%+v", off)
	}
}

// Places where backups go with what they are to save are refused, and so is a disk that may not be mounted.
func TestEnableBackupsRefused(t *testing.T) {
	l := newScheduleLab(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(l.dir.path, link))
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for dir, code := range map[string]string{
		l.dir.path: "backups-in-lxd", l.dir.join("backups"): "backups-in-lxd", filepath.Join(link, "x"): "backups-in-lxd",
		filepath.Join(l.dir.database(), "x"): "output-in-database",
	} {
		opts := l.options()
		opts.Directory = dir
		_, err := EnableBackups(t.Context(), opts)
		wantRefused(t, err, code)
	}

	for dir, says := range map[string]string{filepath.Join(l.to, "x"): l.to + " does not exist", file: "no directory", "x": "no absolute path"} {
		opts := l.options()
		opts.Directory = dir
		_, err := EnableBackups(t.Context(), opts)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", dir, err, says)
		}
	}

	if len(l.timer.calls) > 0 || exists(schedulePath()) {
		t.Errorf("the timer was told %q", l.timer.calls)
	}
}

// Runs take backups and forget old ones; one that fails forgets nothing, and is seen until one succeeds.
func TestRunBackup(t *testing.T) {
	l := newScheduleLab(t)
	_, err := l.run(t)
	if err == nil || !strings.Contains(err.Error(), "backup enable") {
		t.Errorf("nothing is enabled: %v", err)
	}

	l.enable(t)
	b, warnings := l.status(t)
	if b.LastRun != nil || b.LastSuccess != nil || b.Overdue || warnings != "" {
		t.Errorf("before the first run: %+v, %s", b, warnings)
	}

	r, err := l.run(t)
	must(t, err)
	b, warnings = l.status(t)
	if b.LastSuccess == nil || !b.LastSuccess.Equal(*b.LastRun) || b.LastFile != r.Backup.File || b.Error != "" || warnings != "" || b.Running {
		t.Errorf("after the first run: %+v, %s", b, warnings)
	}

	if want := filepath.Join(l.to, scheduledFileName("node2", *b.LastRun)); r.Backup.File < want || len(r.Backup.File) != len(want) || !r.Backup.Signed {
		t.Errorf("%s, want %s or a moment later", r.Backup.File, want)
	}

	older := l.copyOlder(t, r.Backup.File, 3)
	key := mustRead(t, l.dir.join("cluster.key"))
	must(t, os.Remove(l.dir.join("cluster.key")))
	_, err = l.run(t)
	wantRefused(t, err, "cannot-sign")
	b, warnings = l.status(t)
	if len(l.files(t)) != 1+len(older) {
		t.Errorf("a failed run has left %q", l.files(t))
	}

	if b.LastFile != r.Backup.File || !strings.Contains(b.Error, "cluster.key is missing") || strings.Contains(b.Error, "\n") ||
		!strings.Contains(warnings, b.Error) {
		t.Errorf("after a failed run: %+v, %s", b, warnings)
	}

	must(t, os.WriteFile(l.dir.join("cluster.key"), key, 0o600))
	r, err = l.run(t)
	must(t, err)
	if got := l.files(t); len(got) != 2 || r.Forgotten.Removed != 3 || !slices.Contains(got, filepath.Base(r.Backup.File)) {
		t.Errorf("kept %q, %+v", got, r.Forgotten)
	}

	b, warnings = l.status(t)
	if b.Error != "" || warnings != "" || b.LastFile != r.Backup.File {
		t.Errorf("%+v, %s", b, warnings)
	}
}

// copyOlder puts more backups beside one, with older names. All are of the same time, as their manifests say.
func (l scheduleLab) copyOlder(t testing.TB, file string, n int) []string {
	t.Helper()
	var names []string
	for i := range n {
		name := scheduledFileName("node2", time.Now().Add(-time.Duration(i+1)*time.Hour))
		must(t, os.WriteFile(filepath.Join(l.to, name), mustRead(t, file), 0o600))
		names = append(names, name)
	}

	return names
}

// A run keeps away from another one, from a disk that is not mounted, and from what is not due.
func TestRunBackupNot(t *testing.T) {
	l := newScheduleLab(t)
	l.enable(t)
	unlock, free, err := lockBackupRun()
	must(t, err)
	if b, _ := l.status(t); !free || !b.Running {
		t.Errorf("free %v, %+v", free, b)
	}

	_, err = l.run(t)
	wantRefused(t, err, "backup-at-work")
	if exists(statePath(backupStateName)) {
		t.Error("a run that was refused has written the state")
	}

	unlock()
	must(t, os.Rename(l.to, l.to+"-unmounted"))
	must(t, os.Mkdir(l.to, 0o700))
	_, err = l.run(t)
	if err == nil || !strings.Contains(err.Error(), "mounted") || len(namesIn(t, l.to)) > 0 {
		t.Errorf("%v, and in DIR is %q", err, namesIn(t, l.to))
	}

	must(t, os.Remove(l.to))
	must(t, os.Rename(l.to+"-unmounted", l.to))
	_, err = l.run(t)
	must(t, err)
	r, err := RunBackup(t.Context(), RunBackupOptions{LXDDir: l.dir.path, IfDue: true})
	must(t, err)
	if r.Due || r.Backup != nil || len(l.files(t)) != 1 {
		t.Errorf("%+v", r)
	}

	s := &Schedule{Every: "daily"}
	now := time.Now()
	for age, want := range map[time.Duration]bool{0: false, 23 * time.Hour: false, 24*time.Hour - dueSlack: true, -time.Hour: true, 1e6 * time.Hour: true} {
		if got := s.due(&BackupState{LastSuccess: now.Add(-age)}, now); got != want {
			t.Errorf("after %s: %v", age, got)
		}
	}

	if !s.due(&BackupState{}, now) {
		t.Error("the first one is not due")
	}
}

// What the archive cannot take keeps the run from forgetting, and the backup is there.
func TestRunBackupArchive(t *testing.T) {
	l := newScheduleLab(t)
	opts := l.options()
	opts.Archive, opts.Keep = true, retention.Policy{Last: 1}
	_, err := EnableBackups(t.Context(), opts)
	must(t, err)
	r, err := l.run(t)
	must(t, err)
	if r.Archived == nil || r.Archived.Files == 0 || !exists(filepath.Join(l.to, backupArchiveDir+"node2")) {
		t.Errorf("%+v", r.Archived)
	}

	must(t, os.RemoveAll(filepath.Join(l.to, backupArchiveDir+"node2")))
	must(t, os.WriteFile(filepath.Join(l.to, backupArchiveDir+"node2"), nil, 0o600))
	r, err = l.run(t)
	if err == nil || r.Backup == nil || !exists(r.Backup.File) || len(l.files(t)) != 2 {
		t.Errorf("%v, %+v, %q", err, r, l.files(t))
	}

	b, _ := l.status(t)
	if !strings.Contains(b.Error, "a backup was taken, "+r.Backup.File) || b.LastFile == r.Backup.File {
		t.Errorf("%+v", b)
	}
}

// How the backups stand, by what the last run has written down.
func TestScheduleStanding(t *testing.T) {
	l := newScheduleLab(t)
	l.enable(t)
	s, err := readSchedule()
	must(t, err)
	after := func(d time.Duration) time.Time { return s.Enabled.Add(d) }
	for name, c := range map[string]struct {
		state    BackupState
		now      time.Time
		overdue  bool
		warnings []string
	}{
		"no run yet":                         {BackupState{}, after(3 * time.Hour), false, nil},
		"no run for too long":                {BackupState{}, after(3*time.Hour + 1), true, []string{"has succeeded since they were enabled"}},
		"killed":                             {BackupState{Began: after(1)}, after(time.Hour), false, []string{"it was killed"}},
		"failed":                             {BackupState{Began: after(1), Ended: after(2), Error: "no room"}, after(time.Hour), false, []string{"no room"}},
		"failed before they were enabled":    {BackupState{Began: after(-2), Ended: after(-1), Error: "no room"}, after(time.Hour), false, nil},
		"succeeded before they were enabled": {BackupState{LastSuccess: after(-99 * time.Hour)}, after(3 * time.Hour), false, nil},
		"succeeded":                          {BackupState{Began: after(1), Ended: after(2), LastSuccess: after(1)}, after(3 * time.Hour), false, nil},
		"failing for long": {BackupState{Began: after(9 * time.Hour), Ended: after(9*time.Hour + 1), Error: "no room", LastSuccess: after(5 * time.Hour)},
			after(9 * time.Hour), true, []string{"no room", "no scheduled backup has succeeded since " + after(5*time.Hour).Format(time.RFC3339)}},
		"a clock that was ahead": {BackupState{Began: after(99 * time.Hour), Ended: after(99 * time.Hour), LastSuccess: after(99 * time.Hour)},
			after(5 * time.Hour), false, nil},
	} {
		must(t, c.state.write())
		b, warnings := l.statusAt(c.now)
		if b.Overdue != c.overdue || strings.Count(warnings, "\n") != max(0, len(c.warnings)-1) || warnings != "" && c.warnings == nil {
			t.Errorf("%s: %+v, %s", name, b, warnings)
		}

		for _, says := range c.warnings {
			if !strings.Contains(warnings, says) {
				t.Errorf("%s: %q does not say %q", name, warnings, says)
			}
		}
	}
}

// Files that cannot be read are said to be so, and a run writes the state anew.
func TestScheduleDamaged(t *testing.T) {
	l := newScheduleLab(t)
	l.enable(t)
	must(t, os.MkdirAll(statePath(""), 0o700))
	must(t, os.WriteFile(statePath(backupStateName), []byte("{"), 0o600))
	_, warnings := l.status(t)
	if !strings.Contains(warnings, statePath(backupStateName)) {
		t.Errorf("%q", warnings)
	}

	_, err := l.run(t)
	must(t, err)
	state := BackupState{}
	must(t, json.Unmarshal(mustRead(t, statePath(backupStateName)), &state))
	if state.LastSuccess.IsZero() || state.Size == 0 || state.Ended.Before(state.Began) {
		t.Errorf("%+v", state)
	}

	for text, says := range map[string]string{
		"format: 2\n": "format 2", "format: 1\ndirectory: x\n": "no absolute path", "format: 1\nevry: hourly\n": "evry",
		"format: 1\ndirectory: /x\nevery: monthly\n": "monthly", "format: 1\ndirectory: /x\nevery: daily\n": "keeps nothing",
	} {
		must(t, os.WriteFile(schedulePath(), []byte(text), 0o600))
		_, err = l.run(t)
		_, warnings = l.status(t)
		for _, got := range []string{err.Error(), warnings} {
			if !strings.Contains(got, says) || !strings.Contains(got, schedulePath()) {
				t.Errorf("%q: %q, want %q", text, got, says)
			}
		}
	}
}

// A state that cannot be written keeps nobody from taking the backup.
func TestRunBackupStateUnwritable(t *testing.T) {
	l := newScheduleLab(t)
	l.enable(t)
	dir := statePath("")
	must(t, os.MkdirAll(statePath(""), 0o700))
	must(t, os.WriteFile(statePath(backupLockName), nil, 0o600))
	must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	r, err := l.run(t)
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("%v", err)
	}

	if got := l.files(t); r == nil || r.Backup == nil || len(got) != 1 || filepath.Base(r.Backup.File) != got[0] {
		t.Errorf("%+v, and there is %q", r, got)
	}
}

// Each backup has the identity, encrypted for whom it was enabled for. A file with recipients that is gone fails the run, and status says so.
func TestRunBackupIdentity(t *testing.T) {
	l := newScheduleLab(t)
	l.backupLab = newIdentityLab(t).backupLab
	key, err := age.GenerateX25519Identity()
	must(t, err)
	file := filepath.Join(t.TempDir(), "recipients")
	must(t, os.WriteFile(file, []byte(key.Recipient().String()+"\n"), 0o600))
	opts := l.options()
	opts.Identity = []string{file}
	_, err = EnableBackups(t.Context(), opts)
	must(t, err)
	r, err := l.run(t)
	must(t, err)
	if !r.Backup.Identity {
		t.Errorf("%+v", r.Backup)
	}

	must(t, os.Remove(file))
	_, err = l.run(t)
	_, warnings := l.status(t)
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(warnings, file) {
		t.Errorf("without %s: %v; %s", file, err, warnings)
	}
}
