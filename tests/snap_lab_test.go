// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// Where things are in a guest whose LXD is a snap.
const (
	snapLXD     = guest.LXDSnapDir
	snapService = "snap.lxd.daemon.service"
	snapSocket  = "snap.lxd.daemon.unix.socket"
	snapStopped = snapLXD + "/database.stopped.yaml"
)

// packedSnaps are the snaps that packSnap has packed, by version.
var packedSnaps struct {
	sync.Mutex
	files map[string]string
}

// packSnap packs what `make` built as the snap that `make snap` packs, once in a run of these tests.
func packSnap(t testing.TB, version string) (file string) {
	t.Helper()
	packedSnaps.Lock()
	defer packedSnaps.Unlock()
	if file, ok := packedSnaps.files[version]; ok {
		return file
	}

	dir := filepath.Join(filepath.Dir(tool), "test")
	must(t, os.MkdirAll(dir, 0o755))
	_, err := os.Stat(filepath.Join(filepath.Dir(tool), "completions"))
	if err != nil {
		t.Fatalf("%v: run make man", err)
	}

	cmd := exec.CommandContext(within(t, 2*time.Minute), "../snap/local/pack.sh", version, dir)
	cmd.Env = append(os.Environ(), "COMPRESSION=lzo")
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	must(t, err)
	if packedSnaps.files == nil {
		packedSnaps.files = map[string]string{}
	}

	packedSnaps.files[version] = strings.TrimSpace(string(out))
	return packedSnaps.files[version]
}

// snapGuests boots guests with LXD and lxd-recover as snaps, all at once: much of the time is snapd's.
func snapGuests(t testing.TB, tool string, options ...guest.Options) []*guest.Guest {
	t.Helper()
	guests := make([]*guest.Guest, len(options))
	for i, o := range options {
		o.WithoutLXD = true
		guests[i] = guest.ForTest(t, o)
	}

	errs := make([]error, len(guests))
	var all sync.WaitGroup
	for i, g := range guests {
		all.Go(func() {
			errs[i] = g.InstallLXDSnap(t.Context())
			if errs[i] == nil {
				errs[i] = g.InstallSnap(t.Context(), tool, "--classic")
			}
		})
	}

	all.Wait()
	for _, err := range errs {
		must(t, err)
	}

	return guests
}

// startSnap starts all of LXD's snap, and returns when LXD answers.
func startSnap(t testing.TB, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "systemctl", "reset-failed")
	inGuest(t, g, "snap", "start", "lxd")
	lxcInGuest(t, g, "cluster", "list")
}

// freezeSnap keeps LXD from doing anything, so that neither its database changes nor whoever stops it gets any further.
func freezeSnap(t testing.TB, g *guest.Guest) (thaw func()) {
	t.Helper()
	pid := strings.TrimSpace(inGuest(t, g, "cat", "/var/snap/lxd/common/lxd.pid"))
	inGuest(t, g, "kill", "-STOP", pid)
	return func() {
		t.Helper()
		inGuest(t, g, "kill", "-CONT", pid)
	}
}

// background is lxd-recover at work in a guest.
type background struct {
	t     testing.TB
	g     *guest.Guest
	cmd   *exec.Cmd
	said  []byte // read from standard error so far
	lines io.Reader
}

const backgroundPID = "/run/background.pid"

// inBackground starts lxd-recover in the guest.
func inBackground(t testing.TB, g *guest.Guest, args ...string) *background {
	t.Helper()
	shell := "echo $$ > " + backgroundPID + "; exec lxd-recover \"$@\"" // snap run keeps the process, too
	b := &background{t: t, g: g, cmd: g.Command(within(t, 2*time.Minute), "sh", append([]string{"-c", shell, "sh"}, args...)...)}
	lines, err := b.cmd.StderrPipe()
	must(t, err)
	b.lines = lines
	must(t, b.cmd.Start())
	return b
}

// until reads what it writes to standard error, up to this.
func (b *background) until(want string) {
	b.t.Helper()
	buffer := make([]byte, 4096)
	for !strings.Contains(string(b.said), want) {
		n, err := b.lines.Read(buffer)
		b.said = append(b.said, buffer[:n]...)
		if err != nil {
			b.t.Fatalf("lxd-recover ended without %q (%v): %q", want, err, b.said)
		}
	}
}

// signal sends it a signal.
func (b *background) signal(name string) {
	b.t.Helper()
	inGuest(b.t, b.g, "sh", "-c", "kill -"+name+" $(cat "+backgroundPID+")")
}

// end waits for its end, and returns its exit status.
func (b *background) end() int {
	b.t.Helper()
	rest, err := io.ReadAll(b.lines)
	must(b.t, err)
	_ = b.cmd.Wait()
	b.said = append(b.said, rest...)
	b.t.Logf("exit status %d: %s", b.cmd.ProcessState.ExitCode(), b.said)
	return b.cmd.ProcessState.ExitCode()
}

// importBesideFrozen starts an import while LXD is frozen, and returns when it waits for LXD to stop. LXD must be thawed.
func importBesideFrozen(t testing.TB, g *guest.Guest) (b *background, thaw func()) {
	t.Helper()
	newFence(t, g)
	thaw = freezeSnap(t, g)
	b = inBackground(t, g, "global-db-import", "--yes", "--discard-local-entries", guestTarball)
	b.until("Stopping LXD (snap lxd)")
	waitUnit(t, g, snapSocket, "inactive") // then LXD itself is told
	return b, thaw
}

// waitUnit waits until systemd has a unit in this state.
func waitUnit(t testing.TB, g *guest.Guest, unit, state string) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	for property(t, g, unit, "ActiveState") != state {
		select {
		case <-ctx.Done():
			t.Fatalf("%s was never %s", unit, state)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// heldUntil is until when snapd holds refreshes of the snap lxd; "" for not at all.
func heldUntil(t testing.TB, g *guest.Guest) string {
	t.Helper()
	var answer struct {
		Result struct{ Hold string }
	}
	must(t, json.Unmarshal([]byte(inGuest(t, g, "snap", "debug", "api", "/v2/snaps/lxd")), &answer))
	return answer.Result.Hold
}

// wantFree checks that nothing of an import is left that keeps the snap lxd from being refreshed, or resume busy.
func wantFree(t testing.TB, g *guest.Guest) {
	t.Helper()
	if hold := heldUntil(t, g); hold != "" {
		t.Errorf("refreshes are held until %s", hold)
	}

	wantMissing(t, g.Root()+snapStopped)
	wantMissing(t, g.Root()+snapLXD+"/database.import")
	wantMissing(t, g.Root()+snapLXD+"/database.swap.yaml")
}

// statusInGuest is how the guest stands.
func statusInGuest(t testing.TB, g *guest.Guest) recovery.StatusReport {
	t.Helper()
	return decode[recovery.StatusReport](t, toolInGuest(t, g, "global-db-status", "--format", "json"))
}

// snapSetting is what `snap get lxd-recover` has for a key; "" if it is not set.
func snapSetting(t testing.TB, g *guest.Guest, key string) string {
	t.Helper()
	r := run(t, g.Command(within(t, time.Minute), "snap", "get", "lxd-recover", key))
	if r.status != 0 && !strings.Contains(r.stderr, "no \""+key+"\" configuration option") && !strings.Contains(r.stderr, "has no configuration") {
		t.Errorf("snap get: %s", r.stderr)
	}

	return strings.TrimSpace(r.stdout)
}

// snapSet asks for something with `snap set lxd-recover`.
func snapSet(t testing.TB, g *guest.Guest, values ...string) result {
	t.Helper()
	return run(t, g.Command(within(t, 2*time.Minute), "snap", append([]string{"set", "lxd-recover"}, values...)...))
}

// snapStarts are the times at which systemd started LXD, for whatever reason. It does not say when it begins to start a unit
// that is up as soon as it is started, as this one is.
func snapStarts(t testing.TB, g *guest.Guest) []time.Time {
	t.Helper()
	return unitStarts(t, g, snapService, "39f53479d3a045ac8e11786248231fbf") // SD_MESSAGE_UNIT_STARTED
}

// exportFromSnap does what an administrator does on the chosen member: stop LXD, give it another port, export.
func exportFromSnap(t testing.TB, g *guest.Guest, tarball string) {
	t.Helper()
	inGuest(t, g, "snap", "stop", "lxd")
	inGuest(t, g, "sh", "-c", "lxd cluster show | sed s/:8443/:9393/ | lxd cluster edit")
	inGuest(t, g, "lxd-recover", "cluster", "export-db", tarball)
	keepExported(t, g, snapLXD)
}

// snapVersion is the version of a snap that the guest runs.
func snapVersion(t testing.TB, g *guest.Guest, name string) string {
	t.Helper()
	return strings.Fields(strings.Split(inGuest(t, g, "snap", "list", name), "\n")[1])[1]
}

// snapBackups are the databases that are kept.
func snapBackups(t testing.TB, g *guest.Guest) []string {
	t.Helper()
	found, err := filepath.Glob(g.Root() + snapLXD + "/database.before-*[Z0-9]") // not their reports
	must(t, err)
	return found
}
