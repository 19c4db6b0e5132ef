// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// obstacles are what no exchange can move, each made below LXD's directory and taken away again by what it returns.
func obstacles(t *testing.T) map[string]func(d directory) func() {
	t.Helper()
	chattr := func(flag string, undo string, path string) func() {
		must(t, exec.Command("chattr", flag, path).Run())
		return func() { must(t, exec.Command("chattr", undo, path).Run()) }
	}
	mount := func(source string, point string, kind string, flags uintptr) func() {
		must(t, os.MkdirAll(point, 0o700))
		must(t, unix.Mount(source, point, kind, flags, ""))
		return func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) }
	}
	return map[string]func(d directory) func(){
		"is mounted below":       func(d directory) func() { return mount(d.global(), d.global(), "", unix.MS_BIND) },
		"/database/deep/er":      func(d directory) func() { return mount("tmpfs", filepath.Join(d.database(), "deep", "er"), "tmpfs", 0) },
		"/database is immutable": func(d directory) func() { return chattr("+i", "-i", d.database()) },
		"local.db is immutable":  func(d directory) func() { return chattr("+i", "-i", d.local()) },
		"is append-only":         func(d directory) func() { return chattr("+a", "-a", d.path) },
		"would hide the new database": func(d directory) func() {
			root = t.TempDir()
			must(t, os.Mkdir(filepath.Join(root, "etc"), 0o700))
			must(t, os.WriteFile(filepath.Join(root, "etc", "fstab"), []byte("/dev/sdb1 "+d.global()+" ext4 defaults 0 2\n"), 0o600))
			return func() { root = "/" }
		},
		"global is a symbolic link": func(d directory) func() {
			must(t, os.Rename(d.global(), d.join("elsewhere")))
			must(t, os.Symlink(d.join("elsewhere"), d.global()))
			return func() {
				must(t, os.Remove(d.global()))
				must(t, os.Rename(d.join("elsewhere"), d.global()))
			}
		},
	}
}

// TestExchangeable has every run that exchanges refuse what no exchange can move, with nothing changed, and the status name it.
func TestExchangeable(t *testing.T) {
	l := newLostLab(t)
	must(t, os.CopyFS(l.dir.join(keptImport), os.DirFS(l.dir.database())))
	runs := map[string]func() error{
		"import": func() error { _, err := l.importDB(t.Context(), nil); return err },
		"dry run": func() error {
			_, err := l.importDB(t.Context(), func(o *ImportOptions) { o.DryRun = true })
			return err
		},
		"edit": func() error { return l.edit(t.Context()) },
		"repair": func() error {
			_, err := Repair(t.Context(), RepairOptions{LXDDir: l.dir.path, NoStart: true})
			return err
		},
		"rollback": func() error {
			_, err := Rollback(t.Context(), RollbackOptions{LXDDir: l.dir.path, NoStart: true, BesideCluster: true})
			return err
		},
	}
	for says, make := range obstacles(t) {
		remove := make(l.dir)
		before := namesAndContent(t, l.dir.path)
		for name, run := range runs {
			wantImpossible(t, name, run(), says)
		}

		r, err := Status(t.Context(), l.dir.path, Progress{})
		must(t, err)
		if !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, says) && strings.Contains(p, "would be refused") }) {
			t.Errorf("%s: the status says %q", says, r.Problems)
		}

		if namesAndContent(t, l.dir.path) != before {
			t.Errorf("%s: something was changed", says)
		}

		remove()
	}

	// In the kept database it is as bad, for what puts that back.
	point := l.dir.join(keptImport, globalName)
	must(t, unix.Mount(point, point, "", unix.MS_BIND, ""))
	wantImpossible(t, "rollback", runs["rollback"](), "is mounted below")
	must(t, unix.Unmount(point, unix.MNT_DETACH))
	must(t, runs["dry run"]())
	replaces(t, l.dir, keptImport)
	must(t, runs["rollback"]())
}

func wantImpossible(t *testing.T, what string, err error, says string) {
	t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Code != "cannot-exchange" || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want a refusal that says %q", what, err, says)
	}
}

// TestRollbackOverlay has a rollback find before its exchange that an overlay cannot rename the database.
func TestRollbackOverlay(t *testing.T) {
	lxd, base := repairDir(t, standaloneLog, nil), t.TempDir()
	must(t, copyTree(t.Context(), filepath.Join(lxd, databaseName), filepath.Join(lxd, keptImport)))
	must(t, unix.Mount("tmpfs", base, "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(base, unix.MNT_DETACH)) }()
	for _, name := range []string{"upper", "work", "lxd"} {
		must(t, os.Mkdir(filepath.Join(base, name), 0o700))
	}

	point := filepath.Join(base, "lxd")
	options := "redirect_dir=off,lowerdir=" + lxd + ",upperdir=" + filepath.Join(base, "upper") + ",workdir=" + filepath.Join(base, "work")
	must(t, unix.Mount("overlay", point, "overlay", 0, options))
	defer func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) }()
	before := namesAndContent(t, point)
	_, err := Rollback(t.Context(), RollbackOptions{LXDDir: point, NoStart: true})
	wantImpossible(t, "rollback", err, "lower layer of an overlay")
	if namesAndContent(t, point) != before {
		t.Error("something was changed")
	}
}

// TestRoom wants to be told before anything is copied that what else is in the database directory does not fit a second time, and a sparse
// file to count for what it takes.
func TestRoom(t *testing.T) {
	d := directory{t.TempDir()}
	must(t, unix.Mount("tmpfs", d.path, "tmpfs", 0, "size=16M"))
	defer func() { must(t, unix.Unmount(d.path, unix.MNT_DETACH)) }()
	must(t, os.Mkdir(d.database(), 0o700))
	must(t, os.Mkdir(d.join(stagingName), 0o700))
	huge := filepath.Join(d.database(), "sparse")
	must(t, os.WriteFile(huge, make([]byte, 1<<20), 0o600))
	must(t, os.Truncate(huge, 1<<40))
	must(t, d.checkRoom(t.Context()))
	_, err := d.copyOtherFiles(t.Context(), nil)
	must(t, err)
	info, err := os.Stat(d.join(stagingName, "sparse"))
	must(t, err)
	if info.Size() != 1<<40 || onDisk(info) > 2<<20 {
		t.Errorf("the copy has %d bytes, and takes %d", info.Size(), onDisk(info))
	}

	must(t, os.WriteFile(filepath.Join(d.database(), "dump"), make([]byte, 8<<20), 0o600))
	_, err = d.copyOtherFiles(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "it takes 9.0 MiB, and 6.0 MiB are free") || !gone(d.join(stagingName, "dump")) {
		t.Errorf("%v, want too little room", err)
	}
}

// TestCarryOverInterrupted wants Ctrl-C to be heard.
func TestCarryOverInterrupted(t *testing.T) {
	d := directory{t.TempDir()}
	must(t, os.Mkdir(d.database(), 0o700))
	must(t, os.Mkdir(d.join(stagingName), 0o700))
	must(t, os.WriteFile(filepath.Join(d.database(), "dump"), make([]byte, 1<<20), 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := d.copyOtherFiles(ctx, otherFiles{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// xattr is an extended attribute of a file, empty if it is not there.
func xattr(t *testing.T, path string, name string) string {
	t.Helper()
	value, err := readXattr(func(to []byte) (int, error) { return unix.Lgetxattr(path, name, to) })
	if err != nil && !errors.Is(err, unix.ENODATA) {
		t.Fatal(err)
	}

	return string(value)
}

// accessList is one that lets the user 1000 read, as the kernel takes it (acl(5), linux/posix_acl_xattr.h): a version, then tag, permissions
// and id of each entry. The mask is the same as the group's bits of the mode.
func accessList() string {
	const nobody = "\xff\xff\xff\xff"
	return "\x02\x00\x00\x00" + "\x01\x00\x07\x00" + nobody + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x00\x00" + nobody +
		"\x10\x00\x04\x00" + nobody + "\x20\x00\x00\x00" + nobody
}

// Names of the attributes with access lists.
const (
	accessName  = "system.posix_acl_access"
	defaultName = "system.posix_acl_default"
)

// TestCopyAttributes wants a copy to have all that its original is besides its content, and no access list that it got where it was made.
func TestCopyAttributes(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	set := func(path string, name string, value string) { must(t, unix.Lsetxattr(path, name, []byte(value), 0)) }
	file := filepath.Join(from, "dir", "file")
	must(t, os.Mkdir(filepath.Dir(file), 0o750))
	must(t, os.WriteFile(file, []byte("x"), 0o640))
	must(t, os.Chown(file, 1001, 1002))
	set(file, label, "system_u:object_r:of_file_t:s0")
	set(file, "user.note", "mine")
	set(file, accessName, accessList())
	set(filepath.Dir(file), label, "system_u:object_r:of_dir_t:s0")
	must(t, os.WriteFile(filepath.Join(from, "dir", "plain"), []byte("x"), 0o600))
	must(t, os.Symlink("file", filepath.Join(from, "dir", "link")))
	for _, name := range []string{"dir/file", "dir/link", "dir"} {
		times := []unix.Timespec{{Sec: 1e9, Nsec: 5}, {Sec: 2e9, Nsec: 7}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(from, name), times, unix.AT_SYMLINK_NOFOLLOW))
	}

	set(to, defaultName, accessList()) // what is made here gets a list
	must(t, copyTree(t.Context(), filepath.Join(from, "dir"), filepath.Join(to, "dir")))
	for _, name := range []string{"dir", "dir/file", "dir/plain", "dir/link"} {
		one, err := os.Lstat(filepath.Join(from, name))
		must(t, err)
		two, err := os.Lstat(filepath.Join(to, name))
		must(t, err)
		a, b := one.Sys().(*syscall.Stat_t), two.Sys().(*syscall.Stat_t)
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim {
			t.Errorf("%s: %+v, want %+v", name, b, a)
		}

		for _, attribute := range []string{label, "user.note", accessName, defaultName} {
			if one.Mode().Type() == os.ModeSymlink && attribute != label {
				continue
			}

			want, got := xattr(t, filepath.Join(from, name), attribute), xattr(t, filepath.Join(to, name), attribute)
			if got != want {
				t.Errorf("%s of %s: %q, want %q", attribute, name, got, want)
			}
		}
	}
}

// TestRunKeepsAttributes wants the directories and files that take the place of others to have their owner, mode, lists and labels.
func TestRunKeepsAttributes(t *testing.T) {
	lxd := repairDir(t, standaloneLog, nil)
	d := directory{lxd}
	flipEntry111(t, d.global())
	must(t, os.WriteFile(filepath.Join(d.database(), "other"), nil, 0o604))
	must(t, os.Chmod(d.global(), 0o711))
	must(t, os.Chmod(d.local(), 0o644))
	must(t, os.Chown(d.database(), 1001, 1002))
	labels := map[string]string{"": "of_database", globalName: "of_global", "local.db": "of_local", "other": "of_other"}
	segments, err := raftFiles(d.global())
	must(t, err)
	for _, name := range segments {
		labels[filepath.Join(globalName, name)] = "of_raft"
	}

	for name, value := range labels {
		must(t, unix.Lsetxattr(filepath.Join(d.database(), name), label, []byte(value), 0))
	}

	must(t, unix.Lsetxattr(d.database(), defaultName, []byte(accessList()), 0))
	_, err = repair(t, lxd, nil)
	must(t, err)
	now, err := raftFiles(d.global())
	must(t, err)
	for _, name := range now {
		labels[filepath.Join(globalName, name)] = "of_raft"
	}

	labels[recordName] = "of_local"
	for name, want := range labels {
		path := filepath.Join(d.database(), name)
		if !gone(path) && xattr(t, path, label) != want {
			t.Errorf("%q has the label %q, want %s", name, xattr(t, path, label), want)
		}
	}

	for path, want := range map[string]os.FileMode{d.global(): 0o711, d.local(): 0o644, filepath.Join(d.database(), "other"): 0o604,
		filepath.Join(d.global(), "metadata1"): 0o600} {
		info, err := os.Stat(path)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm() != want || path == d.local() && st.Uid != 1001 {
			t.Errorf("%s has mode %v and owner %d", path, info.Mode(), st.Uid)
		}
	}

	if xattr(t, d.database(), defaultName) != accessList() || xattr(t, d.global(), accessName) != "" || xattr(t, d.global(), defaultName) != "" {
		t.Error("other access lists than before")
	}
}
