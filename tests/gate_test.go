// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// gatedLXD is an LXD in a guest, and the ways in which somebody would start it.
type gatedLXD struct {
	dir    string
	unit   string   // of LXD itself
	units  []string // all that are gated
	starts []string // command lines; whether they fail is their own business
	stop   func(t *testing.T, g *guest.Guest)
}

var gatedPackage = gatedLXD{
	dir:   guestLXD,
	unit:  "lxd.service",
	units: []string{"lxd-containers.service", "lxd.service", "lxd.socket"},
	starts: []string{
		"systemctl start lxd.service", "systemctl start lxd.socket", "systemctl restart lxd.service", "systemctl start lxd-containers.service",
		"lxc list", "lxd activateifneeded", "for i in $(seq 20); do systemctl start lxd.socket lxd.service; done",
	},
	stop: func(t *testing.T, g *guest.Guest) { wantStopped(t, g, guestLXD, "1m", "killed false\n") },
}

var gatedSnap = gatedLXD{
	dir:  snapLXD,
	unit: snapService,
	units: []string{"snap.lxd.activate.service", snapService, snapSocket, "snap.lxd.user-daemon.service",
		"snap.lxd.user-daemon.unix.socket"},
	starts: []string{
		"snap start lxd", "snap start --enable lxd.daemon", "snap restart lxd", "systemctl start " + snapService, "systemctl restart " + snapSocket,
		"lxc list", "for i in $(seq 20); do systemctl start " + snapSocket + " " + snapService + "; done",
	},
	stop: stopSnapTwice,
}

// TestGate keeps LXD from being started as long as a file exists, whoever tries, also when the machine starts anew; a container goes on running
// while LXD is stopped, and is not touched by what the gate keeps from being started.
func TestGate(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "node1", Address: "10.78.0.1/16"})
	must(t, guest.FormCluster(t.Context(), g))
	testGate(t, g, gatedPackage)
}

// TestGateSnap is the same with the snap.
func TestGateSnap(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "node1", Address: "10.78.0.1/16", WithoutLXD: true})
	must(t, g.InstallLXDSnap(t.Context()))
	must(t, guest.FormCluster(t.Context(), g))
	testGate(t, g, gatedSnap)
	if enabled := strings.Count(inGuest(t, g, "snap", "services", "lxd"), " enabled "); enabled != 3 {
		t.Errorf("services: %s", inGuest(t, g, "snap", "services", "lxd"))
	}
}

func testGate(t *testing.T, g *guest.Guest, lxd gatedLXD) {
	// systemd expands %, and splits at spaces and quotes elsewhere.
	file := lxd.dir + `/run 100%u "q" 'r' \s.yaml`
	putServiceHelper(t, g)
	lxcInGuest(t, g, "profile", "create", "kept")
	container := startContainer(t, g)
	wantGates(t, g)
	before := strings.TrimSpace(run(t, g.Command(within(t, time.Minute), "systemctl", "is-system-running", "--wait")).stdout)

	// As long as the file is not there nothing changes, and then not before LXD is stopped.
	mustService(t, g, "gate", lxd.dir, file)
	wantGates(t, g, lxd.units...)
	inGuest(t, g, "touch", file)
	if property(t, g, lxd.unit, "MainPID") == "0" {
		t.Errorf("%s is down", lxd.unit)
	}

	lxd.stop(t, g)
	wantRunning(t, g, container)
	wantGated(t, g, lxd)
	wantRunning(t, g, container)
	softReboot(t, g)
	wantMissing(t, g.Root()+"/proc/"+container)
	if now := strings.TrimSpace(run(t, g.Command(within(t, time.Minute), "systemctl", "is-system-running")).stdout); now != before {
		t.Errorf("after a reboot the machine is %s, was %s: %s", now, before, inGuest(t, g, "systemctl", "--failed"))
	}

	lxd.starts = lxd.starts[:2]
	wantGated(t, g, lxd)
	r := service(t, g, "start", lxd.dir)
	r.want(t, 1, "LXD is kept from being started", file, "lxd-recover cluster recover resume")

	// The gate goes away together with what was noted of it, and LXD is where it was.
	inGuest(t, g, "rm", file)
	mustService(t, g, "ungate", lxd.dir)
	wantGates(t, g)
	wantDown(t, g, lxd)
	mustService(t, g, "ungate", lxd.dir)
	mustService(t, g, "start", lxd.dir)
	wantProfiles(t, g, "default", "kept")
	if lxd.unit == gatedPackage.unit {
		waitUnit(t, g, "lxd-containers.service", "active") // it has to, when the machine is shut down
	}
}

// wantStopped stops LXD, and wants that to be told of it.
func wantStopped(t *testing.T, g *guest.Guest, lxdDir, patience, said string) {
	t.Helper()
	if r := mustService(t, g, "stop", lxdDir, patience); r.stdout != said {
		t.Errorf("a stop with the patience of %s: %q, want %q", patience, r.stdout, said)
	}
}

// stopSnapTwice stops an LXD that heeds SIGTERM, and one that heeds nothing. Either way the snap, which would shut down all instances, sees that
// nothing is left to be done.
func stopSnapTwice(t *testing.T, g *guest.Guest) {
	t.Helper()
	leaveCgroup(t, g)
	wantStopped(t, g, snapLXD, "1m", "killed false\n")
	wantState := func(want string) {
		t.Helper()
		if state := strings.TrimSpace(inGuest(t, g, "cat", "/var/snap/lxd/common/state")); state != want {
			t.Errorf("the snap's state is %q, want %q", state, want)
		}
	}
	wantState("shutdown")
	file := run(t, g.Command(within(t, time.Minute), "sh", "-c", "mv "+snapLXD+"/run* /root/")) // open for a moment
	mustService(t, g, "start", snapLXD)
	if file.status != 0 {
		t.Fatal(file.stderr)
	}

	leaveCgroup(t, g)
	freezeSnap(t, g)
	inGuest(t, g, "sh", "-c", "mv /root/run* "+snapLXD)
	wantStopped(t, g, snapLXD, "1s", "killed true\n")
	wantState("crashed")
}

// leaveCgroup takes LXD, and the shell that waits for it, out of the unit's cgroup, as the real snap does.
func leaveCgroup(t *testing.T, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "sh", "-ec", "mkdir -p /sys/fs/cgroup/.lxc; for pid in $(systemctl show --value --property=MainPID "+snapService+
		") $(cat /var/snap/lxd/common/lxd.pid); do echo $pid > /sys/fs/cgroup/.lxc/cgroup.procs; done")
}

// TestStopFirmly stops a member without a quorum, which does not heed SIGTERM for a long time: one that has lost the others, and one that waits
// for them. Its container goes on, and systemd, which would kill it in the end, has no need to.
func TestStopFirmly(t *testing.T) {
	t.Parallel()
	network := guest.NetworkForTest(t)
	lost := guest.ForTest(t, guest.Options{Name: "node1", Network: network, Address: "10.78.0.1/16"})
	g := guest.ForTest(t, guest.Options{Name: "node2", Network: network, Address: "10.78.0.2/16"})
	must(t, guest.FormCluster(t.Context(), lost, g))
	putServiceHelper(t, g)
	container := startContainer(t, g)
	must(t, lost.Close())
	for _, member := range []string{"has lost the other", "waits for it"} {
		wantStopped(t, g, guestLXD, "1s", "killed true\n")
		wantState(t, g, "inactive", "lxd.socket", "lxd.service") // and not failed
		wantRunning(t, g, container)
		timedOut := "lxd.service: State 'stop-sigterm' timed out"
		if journal := inGuest(t, g, "journalctl", "--quiet", "--unit=lxd.service"); strings.Contains(journal, timedOut) {
			t.Errorf("a member that %s: systemd has killed it: %s", member, journal)
		}

		if member == "waits for it" {
			break
		}

		inGuest(t, g, "systemctl", "start", "--no-block", "lxd.service")
		waitOpen(t, g)
	}
}

// waitOpen waits until LXD uses its database.
func waitOpen(t *testing.T, g *guest.Guest) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	for inGuest(t, g, "sh", "-c", "find /proc/[0-9]*/fd -lname '"+guestLXD+"/database/*' 2>&-; true") == "" {
		select {
		case <-ctx.Done():
			t.Fatal("LXD does not open its database")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// wantGated tries in every way to start LXD, which stays down, and fails nothing.
func wantGated(t *testing.T, g *guest.Guest, lxd gatedLXD) {
	t.Helper()
	wantDown(t, g, lxd)
	for _, start := range lxd.starts {
		run(t, g.Command(within(t, time.Minute), "bash", "-c", start))
		wantDown(t, g, lxd)
	}

	if failed := inGuest(t, g, "systemctl", "list-units", "--failed", "--no-legend", "lxd*", "snap.lxd*"); failed != "" {
		t.Errorf("failed: %s", failed)
	}
}

// wantDown wants LXD not to run, and nothing to listen in its place.
func wantDown(t *testing.T, g *guest.Guest, lxd gatedLXD) {
	t.Helper()
	for _, unit := range lxd.units {
		// lxd-containers.service stays up as long as nobody stops it: that would shut down instances.
		if state := property(t, g, unit, "ActiveState"); state != "inactive" && unit != "lxd-containers.service" {
			t.Errorf("%s is %s", unit, state)
		}
	}

	// The monitor of a container is called lxd, too.
	open := inGuest(t, g, "sh", "-c", "find /proc/[0-9]*/fd -lname '"+lxd.dir+"/database/*' 2>&-; true")
	if open != "" {
		t.Errorf("LXD runs: %s%s", open, inGuest(t, g, "ps", "-ef"))
	}
}

// wantGates wants these units to be gated, sorted, and nothing else to be left in systemd's directories.
func wantGates(t *testing.T, g *guest.Guest, units ...string) {
	t.Helper()
	var found []string
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system"} {
		paths, err := filepath.Glob(g.Root() + dir + "/*lxd*.d")
		must(t, err)
		for _, path := range paths {
			found = append(found, strings.TrimSuffix(filepath.Base(path), ".d"))
		}
	}

	slices.Sort(found)
	slices.Sort(units)
	if !slices.Equal(found, slices.Clone(units)) {
		t.Errorf("drop-ins of %q, want %q", found, units)
	}
}

// startContainer starts a container that LXD runs, and returns the pid of its init as the guest sees it.
func startContainer(t *testing.T, g *guest.Guest) string {
	t.Helper()
	inGuest(t, g, "bash", "-ec", `
		mkdir -p /root/image/rootfs/{dev,proc,sys,tmp,etc,sbin}
		cd /root/image
		for file in /bin/sleep $(ldd /bin/sleep | grep -o '/[^ ]*'); do cp --dereference --parents $file rootfs; done
		mv rootfs/bin/sleep rootfs/sbin/init
		echo '{"architecture": "x86_64", "creation_date": 1}' > metadata.yaml
		tar -czf ../image.tar.gz metadata.yaml rootfs
		for member in $(lxc cluster list --format csv | cut -d, -f1); do lxc storage create pool dir --target $member; done
		lxc storage create pool dir
		lxc image import ../image.tar.gz --alias image
		lxc init image container --target $HOSTNAME -s pool -c security.privileged=true \
			-c raw.lxc=$'lxc.apparmor.profile=unconfined\nlxc.init.cmd=/sbin/init 100000'
		lxc start container`)
	pid := strings.TrimSpace(inGuest(t, g, "sh", "-c", "lxc info container | sed -n 's/^PID: //p'"))
	wantRunning(t, g, pid)
	return pid
}

// wantRunning wants a container's init to run.
func wantRunning(t *testing.T, g *guest.Guest, pid string) {
	t.Helper()
	if cgroup := inGuest(t, g, "cat", "/proc/"+pid+"/cgroup"); !strings.Contains(cgroup, "/lxc.payload.container") {
		t.Errorf("process %s is in %s", pid, cgroup)
	}
}
