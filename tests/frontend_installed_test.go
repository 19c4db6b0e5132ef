// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/frontend"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// Where programs called lxd, and ours, are on a machine that has both as packages.
const (
	frontEndLink = "/usr/local/sbin/lxd"
	packagedLXD  = "/usr/bin/lxd"
	packagedTool = "/usr/bin/lxd-recover"
)

// rootShells are the ways in which root gets to type a command.
var rootShells = map[string][]string{
	"login shell": {"bash", "--login", "-c"},
	"su":          {"su", "-", "-c"},
	"plain shell": {"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c"}, // sudo's secure_path
}

// TestFrontEndInstalled is about a machine with LXD as a package: what root types, in whatever shell.
func TestFrontEndInstalled(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "node1"})
	must(t, g.Put(t.Context(), tool, packagedTool, 0o755))
	wantFound(t, g, packagedLXD)
	version := typed(t, g, "su", "lxd --version")
	if r := frontEndStatus(t, g); r.Installed || r.Effective || r.Found != packagedLXD || r.LXD != packagedLXD || len(r.Warnings) != 0 {
		t.Errorf("before: %+v", r)
	}

	installFrontEnd(t, g)
	wantInstalled(t, g, version)
	wantDaemonStarts(t, g)
	updatePackage(t, g)
	forgetLink(t, g)
	removeFrontEnd(t, g)
	wantForeignKept(t, g)
}

// typed is what a command prints that root types in a shell of this kind.
func typed(t testing.TB, g *guest.Guest, kind string, line string) string {
	t.Helper()
	shell := rootShells[kind]
	args := append(shell[1:len(shell):len(shell)], line)
	return strings.TrimSpace(inGuest(t, g, shell[0], args...))
}

// wantFound checks which program every shell finds as lxd.
func wantFound(t testing.TB, g *guest.Guest, want string) {
	t.Helper()
	for kind := range rootShells {
		if got := typed(t, g, kind, "command -v lxd"); got != want {
			t.Errorf("%s: lxd is %q, want %s", kind, got, want)
		}
	}
}

// frontEndStatus is what the front-end says of itself.
func frontEndStatus(t testing.TB, g *guest.Guest) frontend.Report {
	t.Helper()
	return decode[frontend.Report](t, toolInGuest(t, g, "frontend", "status", "--format", "json"))
}

// installFrontEnd installs it, and once more, which changes nothing.
func installFrontEnd(t *testing.T, g *guest.Guest) {
	t.Helper()
	r := toolInGuest(t, g, "frontend", "install")
	if r.stderr != "" || !strings.Contains(r.stdout, frontEndLink+" points to "+packagedTool+" now") || !strings.Contains(r.stdout, packagedLXD) {
		t.Errorf("install: %+v", r)
	}

	if r := toolInGuest(t, g, "frontend", "install"); r.stderr != "" || !strings.Contains(r.stdout, "there already") {
		t.Errorf("install again: %+v", r)
	}
}

// wantInstalled checks that lxd is the front-end for everybody, which hands on what is LXD's, and that only root may remove it.
func wantInstalled(t *testing.T, g *guest.Guest, version string) {
	t.Helper()
	wantFound(t, g, frontEndLink)
	r := frontEndStatus(t, g)
	if !r.Installed || !r.Effective || r.Target != packagedTool || r.Found != frontEndLink || r.LXD != packagedLXD || len(r.Warnings) != 0 {
		t.Errorf("installed: %+v", r)
	}

	for kind := range rootShells {
		if got := typed(t, g, kind, "lxd --version"); got != version {
			t.Errorf("%s: lxd --version says %q, want %q", kind, got, version)
		}

		if got := typed(t, g, kind, "lxd cluster export-db --help"); !strings.Contains(got, "recovery tarball") {
			t.Errorf("%s: lxd cluster export-db --help says %q", kind, got)
		}
	}

	if got := typed(t, g, "su", "su nobody -s /bin/sh -c 'lxd --version'"); got != version {
		t.Errorf("as nobody, lxd --version says %q, want %q", got, version)
	}

	other := run(t, g.Command(t.Context(), "setpriv", "--reuid", "nobody", "--clear-groups", packagedTool, "frontend", "remove"))
	other.want(t, 1, "needs root")
}

// wantDaemonStarts checks that the daemon does not notice.
func wantDaemonStarts(t *testing.T, g *guest.Guest) {
	t.Helper()
	startLXD(t, g)
	inGuest(t, g, "systemctl", "restart", "lxd.service")
	lxcInGuest(t, g, "list")
	typed(t, g, "su", "lxd waitready --timeout 30")
}

// updatePackage has another file take our program's name: the front-end is that one then.
func updatePackage(t *testing.T, g *guest.Guest) {
	t.Helper()
	must(t, g.Put(t.Context(), tool, packagedTool+".new", 0o755))
	inGuest(t, g, "mv", packagedTool+".new", packagedTool)
	if got := typed(t, g, "su", "lxd global-db-status --help"); !strings.Contains(got, "lxd global-db-status") {
		t.Errorf("after the update: %q", got)
	}
}

// forgetLink has the package removed for a while, and the link forgotten: LXD's own comes to its right.
func forgetLink(t *testing.T, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "mv", packagedTool, packagedTool+".gone")
	wantFound(t, g, packagedLXD)
	inGuest(t, g, "mv", packagedTool+".gone", packagedTool)
}

// removeFrontEnd removes it, and once more, which changes nothing.
func removeFrontEnd(t *testing.T, g *guest.Guest) {
	t.Helper()
	if r := toolInGuest(t, g, "frontend", "remove"); r.stderr != "" || !strings.Contains(r.stdout, frontEndLink+" is removed") {
		t.Errorf("remove: %+v", r)
	}

	if r := toolInGuest(t, g, "frontend", "remove"); !strings.Contains(r.stdout, "nothing was changed") {
		t.Errorf("remove again: %+v", r)
	}

	wantFound(t, g, packagedLXD)
}

// wantForeignKept checks that somebody else's program in the place of the link is neither replaced nor removed.
func wantForeignKept(t *testing.T, g *guest.Guest) {
	t.Helper()
	putText(t, g, frontEndLink, "#!/bin/sh\n")
	for _, what := range []string{"install", "remove"} {
		run(t, g.Command(t.Context(), "lxd-recover", "frontend", what)).want(t, 1, frontEndLink, "mv ")
	}

	if got := inGuest(t, g, "cat", frontEndLink); got != "#!/bin/sh\n" {
		t.Errorf("%s is %q now", frontEndLink, got)
	}
}
