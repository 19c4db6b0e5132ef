// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// Where scheduled backups are in a guest.
const (
	scheduledDir     = "/srv/backups"
	scheduledService = "lxd-recover-backup.service"
	scheduledTimer   = "lxd-recover-backup.timer"
)

// testScheduled has systemd take backups, by the package: none unasked, one that fails is seen, and no backup goes with the package.
func testScheduled(t *testing.T, g *guest.Guest) {
	must(t, g.Put(t.Context(), packDeb(t, "v1.0", "022", "none"), "/root/lxd-recover.deb", 0o644))
	inGuest(t, g, "dpkg", "--install", "/root/lxd-recover.deb")
	inGuest(t, g, "systemd-analyze", "verify", "--man=no", scheduledService, scheduledTimer)
	wantTimer(t, g, scheduledTimer, "inactive", "disabled")
	if status := statusInGuest(t, g); status.Backup != nil {
		t.Errorf("nothing was enabled, and the status says %+v", status.Backup)
	}

	toolInGuest(t, g, "backup", "enable", guestLXD+"/backups").want(t, 3, "is in "+guestLXD)
	inGuest(t, g, "lxd-recover", "backup", "enable", scheduledDir, "--every", "daily", "--keep-last", "2", "--keep-hourly", "0", "--keep-daily", "0",
		"--keep-weekly", "0", "--archive")
	wantTimer(t, g, scheduledTimer, "active", "enabled")
	if calendar := property(t, g, scheduledTimer, "TimersCalendar"); strings.Count(calendar, "OnCalendar=") != 1 || !strings.Contains(calendar, "00:00:00") {
		t.Errorf("the timer elapses at %s", calendar)
	}

	inGuest(t, g, "systemctl", "start", scheduledService)
	first := wantBackedUpNow(t, g)
	inGuest(t, g, "sh", "-c", "test $(stat -c %a "+scheduledDir+") = 700 && test -s "+first+" && ls -d "+scheduledDir+"/archive-*/*/00*")
	inGuest(t, g, "lxd-recover", "global-db-inspect", first)

	// Another file system is mounted there, then it has no room.
	inGuest(t, g, "mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", scheduledDir)
	wantBackupFailed(t, g, first, "mounted")
	inGuest(t, g, "touch", scheduledDir+"/.lxd-recover-backups")
	wantBackupFailed(t, g, first, "no space left on device")
	toolInGuest(t, g, "backup", "run").want(t, 1, "no space left on device")
	inGuest(t, g, "umount", scheduledDir)

	for range 2 {
		inGuest(t, g, "systemctl", "start", scheduledService)
	}

	last := wantBackedUpNow(t, g)
	files := strings.Fields(inGuest(t, g, "sh", "-c", "ls "+scheduledDir+"/*.tar.gz"))
	if len(files) != 2 || !slices.Contains(files, last) || slices.Contains(files, first) {
		t.Errorf("there are %s", files)
	}

	// The package takes the timer with it, and knows it again.
	inGuest(t, g, "dpkg", "--remove", "lxd-recover")
	wantState(t, g, "inactive", scheduledTimer)
	inGuest(t, g, "dpkg", "--install", "/root/lxd-recover.deb")
	wantTimer(t, g, scheduledTimer, "active", "enabled")
	inGuest(t, g, "lxd-recover", "backup", "disable")
	wantTimer(t, g, scheduledTimer, "inactive", "disabled")
	if status := statusInGuest(t, g); status.Backup != nil {
		t.Errorf("disabled, and the status says %+v", status.Backup)
	}

	inGuest(t, g, "lxd-recover", "backup", "enable", scheduledDir)
	inGuest(t, g, "dpkg", "--purge", "lxd-recover")
	if left := inGuest(t, g, "sh", "-c", "find /etc /var/lib/lxd-recover -name '*lxd-recover*' 2> /dev/null || true"); left != "" {
		t.Errorf("a purge leaves %s", left)
	}

	inGuest(t, g, "test", "-s", last)
}

// wantTimer wants a timer to be in a state, now and after the next start of the machine.
func wantTimer(t testing.TB, g *guest.Guest, timer, active, enabled string) {
	t.Helper()
	wantState(t, g, active, timer)
	if now := property(t, g, timer, "UnitFileState"); now != enabled {
		t.Errorf("%s is %s, want %s", timer, now, enabled)
	}
}

// wantBackedUpNow wants the status to say that a backup has just succeeded, and returns its file.
func wantBackedUpNow(t testing.TB, g *guest.Guest) string {
	t.Helper()
	b := statusInGuest(t, g).Backup
	if b == nil || b.LastSuccess == nil || time.Since(*b.LastSuccess) > time.Minute || b.Error != "" || b.Overdue || b.Running {
		t.Fatalf("the status says %+v", b)
	}

	if said := inGuest(t, g, "lxd-recover", "global-db-status"); !strings.Contains(said, "last backup") || !strings.Contains(said, b.LastFile) {
		t.Errorf("the status is %s", said)
	}

	return b.LastFile
}

// wantBackupFailed has a backup fail, and wants systemd and the status to say so, with the last one that succeeded.
func wantBackupFailed(t testing.TB, g *guest.Guest, last, says string) {
	t.Helper()
	r := run(t, g.Command(within(t, 2*time.Minute), "systemctl", "start", scheduledService))
	if r.status == 0 || property(t, g, scheduledService, "ActiveState") != "failed" {
		t.Errorf("systemctl: %+v", r)
	}

	status := statusInGuest(t, g)
	warnings := strings.Join(status.Warnings, "\n")
	if b := status.Backup; b == nil || b.LastFile != last || !strings.Contains(b.Error, says) || !strings.Contains(warnings, b.Error) {
		t.Errorf("the status says %+v, %q; want %q", b, status.Warnings, says)
	}
}

// testSnapScheduled has snapd take backups: none unasked, at set times once that is enabled.
func testSnapScheduled(t *testing.T, g *guest.Guest) {
	const timer = "snap.lxd-recover.backup.timer"
	wantTimer(t, g, timer, "inactive", "disabled")
	toolInGuest(t, g, "backup", "enable", "/var/snap/lxd-recover/common/backups").want(t, 3, "in /var/snap/lxd-recover")
	if said := inGuest(t, g, "lxd-recover", "backup", "enable", scheduledDir); !strings.Contains(said, "/var/snap/lxd-recover/common/backup.yaml") {
		t.Errorf("enable says %s", said)
	}

	wantTimer(t, g, timer, "active", "enabled")
	inGuest(t, g, "systemctl", "start", "snap.lxd-recover.backup.service")
	file := wantBackedUpNow(t, g)
	inGuest(t, g, "systemctl", "start", "snap.lxd-recover.backup.service") // it is not due
	if status := statusInGuest(t, g); status.Backup.LastFile != file {
		t.Errorf("another backup was taken: %+v", status.Backup)
	}

	inGuest(t, g, "lxd-recover", "backup", "disable")
	wantTimer(t, g, timer, "inactive", "disabled")
	inGuest(t, g, "test", "-s", file)
}
