// SPDX-License-Identifier: AGPL-3.0-only

package mounts

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mount mounts something for the time of a test.
func mount(t testing.TB, source string, point string, kind string, flags uintptr) {
	t.Helper()
	must(t, os.MkdirAll(point, 0o700))
	must(t, unix.Mount(source, point, kind, flags, ""))
	t.Cleanup(func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) })
}

func points(t testing.TB, dir string, pids ...int) []string {
	t.Helper()
	found, err := Below(dir, pids...)
	must(t, err)
	var names []string
	for _, m := range found {
		names = append(names, m.Point)
	}

	slices.Sort(names)
	return names
}

// TestBelow wants each mount below a directory, by whatever name it is reached, and none beside it.
func TestBelow(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "with blank")
	dir, beside := filepath.Join(parent, "database"), filepath.Join(parent, "database2")
	must(t, os.MkdirAll(filepath.Join(dir, "deep", "er"), 0o700))
	mount(t, "tmpfs", beside, "tmpfs", 0)
	if got := points(t, dir); got != nil {
		t.Errorf("nothing is mounted there: %q", got)
	}

	global := filepath.Join(dir, "global")
	mount(t, "tmpfs", global, "tmpfs", 0)
	mount(t, "tmpfs", filepath.Join(global, "on a mount"), "tmpfs", 0) // goes where the one goes that it is on
	mount(t, filepath.Join(dir, "deep"), filepath.Join(dir, "deep", "er"), "", unix.MS_BIND)
	want := []string{filepath.Join(dir, "deep", "er"), global}
	if got := points(t, dir); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	link := filepath.Join(t.TempDir(), "lxd")
	must(t, os.Symlink(parent, link))
	if got := points(t, filepath.Join(link, "database")); !slices.Equal(got, want) {
		t.Errorf("through a link: %q, want %q", got, want)
	}

	m, err := Of(global)
	if err != nil || m.Type != "tmpfs" || m.Point != global || m.Root != "/" {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestBelowBind has the directory seen through a bind mount of its parent, below which another name has the mount.
func TestBelowBind(t *testing.T) {
	parent, bind := t.TempDir(), filepath.Join(t.TempDir(), "bind")
	mount(t, "tmpfs", filepath.Join(parent, "database", "global"), "tmpfs", 0)
	mount(t, parent, bind, "", unix.MS_BIND) // not recursively: the mount is not there by this name
	if got, want := points(t, filepath.Join(bind, "database")), []string{filepath.Join(parent, "database", "global")}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestBelowOther has a mount at the same place of another file system.
func TestBelowOther(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for _, dir := range []string{one, two} {
		mount(t, "tmpfs", dir, "tmpfs", 0)
		must(t, os.Mkdir(filepath.Join(dir, "database"), 0o700))
	}

	mount(t, "tmpfs", filepath.Join(two, "database", "global"), "tmpfs", 0)
	if got := points(t, filepath.Join(one, "database")); got != nil {
		t.Errorf("on another file system: %q", got)
	}
}

// TestBelowElsewhere has a mount in the namespace of another process only.
func TestBelowElsewhere(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tmpfs theirs "$0" && echo mounted && exec cat`, dir)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = stdin.Close()
		must(t, cmd.Wait())
	})
	_, err = stdout.Read(make([]byte, 1))
	must(t, err)
	if got := points(t, dir); got != nil {
		t.Errorf("in this namespace: %q", got)
	}

	if got := points(t, dir, cmd.Process.Pid, 1<<30); !slices.Equal(got, []string{dir}) {
		t.Errorf("in theirs: %q, want %s", got, dir)
	}
}

// TestAnnounced wants what fstab and systemd's units have for a directory, each place once.
func TestAnnounced(t *testing.T) {
	root, lxd := t.TempDir(), filepath.Join(t.TempDir(), "lx d")
	dir := filepath.Join(lxd, "database")
	must(t, os.MkdirAll(dir, 0o700))
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(lxd, link))
	file := func(name string, lines ...string) {
		path := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
	}
	octal := strings.ReplaceAll(dir, " ", `\040`)
	file("etc/fstab", "# /dev/sdz "+octal+"/comment ext4 defaults 0 0", "",
		"/dev/sda1 "+octal+"/global ext4 noauto 0 2", "/dev/sda1 "+octal+"2 ext4 defaults 0 2", "/dev/sda2 "+filepath.Dir(octal)+" ext4 defaults 0 2",
		"none none swap sw 0 0", "/dev/sda3 "+link+"/database/ ext4 defaults 0 2")
	unit := func(path string) string {
		name := strings.ReplaceAll(strings.Trim(path, "/"), "-", `\x2d`)
		return strings.ReplaceAll(strings.ReplaceAll(name, " ", `\x20`), "/", "-")
	}
	file("etc/systemd/system/"+unit(dir+"/of-unit")+".mount", "[Mount]")
	file("run/systemd/generator/"+unit(dir+"/global")+".mount", "[Mount]") // which is fstab's
	file("lib/systemd/system/"+unit(dir+"/auto")+".automount", "[Automount]")
	file("lib/systemd/system/"+unit(dir+"/service")+".service", "[Service]")
	must(t, os.Symlink(os.DevNull, filepath.Join(root, "etc/systemd/system", unit(dir+"/masked")+".mount")))

	found, err := Announced(root, dir)
	must(t, err)
	var got []string
	for _, a := range found {
		got = append(got, a.String())
	}

	want := []string{
		dir + "/global (" + root + "/etc/fstab)",
		link + "/database (" + root + "/etc/fstab)",
		dir + "/of-unit (" + root + "/etc/systemd/system/" + unit(dir+"/of-unit") + ".mount)",
		dir + "/auto (" + root + "/lib/systemd/system/" + unit(dir+"/auto") + ".automount)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}

	found, err = Announced(t.TempDir(), dir)
	if len(found) > 0 || err != nil {
		t.Errorf("without an fstab: %v, %v", found, err)
	}
}
