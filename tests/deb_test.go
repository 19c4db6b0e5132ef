// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// TestDeb installs the Debian package on a machine, uses what is in it, updates it, and removes it: nothing of it stays, and no
// front-end that leads nowhere. It installs none unasked.
func TestDeb(t *testing.T) {
	t.Parallel()
	first, next := packDeb(t, "v1.0", "022", "xz"), packDeb(t, "v1.0-1-gabcdef0", "022", "none")
	wantSameFiles(t, first, packDeb(t, "v1.0", "077", "xz"))
	g := guest.ForTest(t, guest.Options{Name: "server1", Mask: []string{"lxd.service", "lxd.socket"}})
	must(t, g.Put(t.Context(), first, "/root/first.deb", 0o644))
	must(t, g.Put(t.Context(), next, "/root/next.deb", 0o644))
	before := filesOf(t, g)

	inGuest(t, g, "dpkg", "--install", "/root/first.deb")
	wantMissing(t, g.Root()+"/usr/local/sbin/lxd")
	got := inGuest(t, g, "sh", "-c", "command -v lxd-recover && lxd-recover version")
	if !strings.HasPrefix(got, "/usr/bin/lxd-recover\nlxd-recover ") || !strings.Contains(got, "libdqlite ") {
		t.Errorf("version: %q", got)
	}

	page := inGuest(t, g, "zcat", "/usr/share/man/man8/lxd-recover-global-db-import.8.gz")
	if !strings.Contains(page, ".TH \"LXD-RECOVER-GLOBAL-DB-IMPORT\" \"8\"") || !strings.Contains(page, "recovery tarball") {
		t.Errorf("the man page is %q", page)
	}

	complete := inGuest(t, g, "bash", "-c", ". /usr/share/bash-completion/completions/lxd-recover && complete -p lxd-recover")
	if !strings.Contains(complete, "__start_lxd-recover lxd-recover") {
		t.Errorf("completion: %q", complete)
	}

	for _, file := range []string{"/usr/share/zsh/vendor-completions/_lxd-recover", "/usr/share/fish/vendor_completions.d/lxd-recover.fish",
		"/usr/share/doc/lxd-recover/copyright", "/usr/share/doc/lxd-recover/changelog.gz"} {
		inGuest(t, g, "test", "-s", file)
	}

	inGuest(t, g, "dpkg", "--verify", "lxd-recover")
	inGuest(t, g, "systemd-analyze", "verify", "--man=no", resumeUnit)
	inGuest(t, g, "systemctl", "daemon-reload") // what the next start of the machine does
	if wants := property(t, g, "multi-user.target", "Wants"); !strings.Contains(wants, resumeUnit) {
		t.Errorf("the machine starts without %s, with %s", resumeUnit, wants)
	}

	inGuest(t, g, "lxd-recover", "frontend", "install")
	front := func(part string) {
		t.Helper()
		if help := inGuest(t, g, "lxd", "global-db-status", "--help"); !strings.Contains(help, "lxd global-db-status [flags]") {
			t.Errorf("%s: %s", part, help)
		}
	}
	front("the front-end")
	inGuest(t, g, "dpkg", "--install", "/root/next.deb")
	if version := inGuest(t, g, "dpkg-query", "--show", "--showformat", "${Version}", "lxd-recover"); version != "1.0+1.gabcdef0" {
		t.Errorf("updated to %s", version)
	}

	front("the front-end after an update")

	inGuest(t, g, "dpkg", "--purge", "lxd-recover")
	if after := filesOf(t, g); after != before {
		t.Errorf("files after the removal:\n%s\n--- before\n%s", after, before)
	}

	// A front-end of another copy is not the package's.
	inGuest(t, g, "dpkg", "--install", "/root/first.deb")
	inGuest(t, g, "sh", "-c", "cp /usr/bin/lxd-recover /usr/local/bin/ && /usr/local/bin/lxd-recover frontend install && dpkg --remove lxd-recover")
	front("the front-end of another copy")
}

// packDeb packs bin/, as somebody with that umask does.
func packDeb(t testing.TB, version, umask, compression string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "umask "+umask+" && deb/pack.sh '"+version+"' "+dir)
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "SOURCE_DATE_EPOCH=1764000000", "COMPRESSION="+compression)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	file := strings.TrimSpace(string(out))
	if filepath.Dir(file) != dir {
		t.Fatalf("packed %q", out)
	}

	return file
}

// wantSameFiles wants what was built twice to be the same to the byte.
func wantSameFiles(t testing.TB, one, two string) {
	t.Helper()
	first, err := os.ReadFile(one)
	must(t, err)
	second, err := os.ReadFile(two)
	must(t, err)
	if !bytes.Equal(first, second) {
		t.Errorf("%s and %s differ", one, two)
	}
}

// filesOf lists the files of a guest where packages and front-ends put theirs.
func filesOf(t testing.TB, g *guest.Guest) string {
	t.Helper()
	return inGuest(t, g, "find", "/usr", "/etc", "/opt", "/var/lib/dpkg/info", "-xdev", "-not", "-path", "/usr/share/lintian", "-not", "-name", "*cache*")
}

// TestDebVersion orders versions as they come: dpkg must take each for newer than the one before.
func TestDebVersion(t *testing.T) {
	given := []string{"unknown", "8985120-dirty", "v1.0-rc1", "v1.0", "v1.0-dirty", "v1.0-1-gabcdef0", "v1.0-12-g1234567-dirty", "v1.1-beta", "v1.1", "v1.10"}
	before := ""
	for _, version := range given {
		cmd := exec.CommandContext(t.Context(), "../deb/version.sh", version, "1700000000")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", version, err, out)
		}

		made := strings.TrimSpace(string(out))
		if before != "" && version != "8985120-dirty" { // without a tag the name says nothing
			must(t, exec.CommandContext(t.Context(), "dpkg", "--compare-versions", before, "lt", made).Run())
		}

		before = made
	}
}
