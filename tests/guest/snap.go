// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/repository"
)

// LXDSnapDir is LXD's directory in a guest with LXD as a snap.
const LXDSnapDir = "/var/snap/lxd/common/lxd"

// SnapSet is where the packed snaps of build-snaps.sh are. They are fakes for tests, and say so in their versions.
type SnapSet struct {
	Bases []string  // snapd and core24, in the order in which snapd wants them
	LXD   [2]string // Debian's LXD behind the real snap's names, twice, so that it can be refreshed
}

// Snaps returns the snaps that guests can be given. The first call on a machine packs them, beside the image: 11 s and 60 MB.
func Snaps(ctx context.Context) (*SnapSet, error) {
	image, err := Image(ctx)
	if err != nil {
		return nil, err
	}

	repository, err := repository.Root()
	if err != nil {
		return nil, err
	}

	cmd := exec.CommandContext(ctx, filepath.Join(repository, "tests", "guest", "build-snaps.sh"), filepath.Dir(image))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pack the guests' snaps: %w: %s", err, bytes.TrimSpace(out))
	}

	file := func(name string) string { return filepath.Join(filepath.Dir(image), "snaps", name) }
	return &SnapSet{
		Bases: []string{file("snapd.snap"), file("core24.snap")},
		LXD:   [2]string{file("lxd-1.snap"), file("lxd-2.snap")},
	}, nil
}

// InstallSnap installs a snap of this machine's, or refreshes it, without asking who made it.
func (g *Guest) InstallSnap(ctx context.Context, file string, flags ...string) error {
	inside := "/srv/" + filepath.Base(file)
	err := g.Put(ctx, file, inside, 0o600)
	if err != nil {
		return err
	}

	_, err = g.Exec(ctx, "snap", append([]string{"install", "--dangerous", inside}, flags...)...)
	return err
}

// InstallBases installs what snapd wants to see before any other snap.
func (g *Guest) InstallBases(ctx context.Context) error {
	snaps, err := Snaps(ctx)
	if err != nil {
		return err
	}

	for _, file := range snaps.Bases {
		err := g.InstallSnap(ctx, file)
		if err != nil {
			return err
		}
	}

	return nil
}

// InstallLXDSnap installs the first of the two LXD snaps, and what it needs. The guest must have been booted with WithoutLXD.
// `lxd` and `lxc` are the snap's then, as on a machine with the real one.
func (g *Guest) InstallLXDSnap(ctx context.Context) error {
	if !g.opts.WithoutLXD {
		return errors.New(g.Name + " has Debian's LXD in the snap's way: boot it with WithoutLXD")
	}

	err := g.InstallBases(ctx)
	if err != nil {
		return err
	}

	snaps, err := Snaps(ctx)
	if err != nil {
		return err
	}

	err = g.InstallSnap(ctx, snaps.LXD[0], "--classic")
	if err != nil {
		return err
	}

	_, err = g.Exec(ctx, "snap", "alias", "lxd.lxc", "lxc") // what the store does for the real one
	return err
}

// hideLXD makes the guest one on which Debian's LXD was never installed.
func (g *Guest) hideLXD() error {
	for _, list := range []string{"lxd.list", "lxd-client.list"} {
		names, err := os.ReadFile(filepath.Join(g.opts.Image, "var/lib/dpkg/info", list))
		if err != nil {
			return err
		}

		for name := range strings.Lines(string(names)) {
			err := g.hide(strings.TrimSpace(name))
			if err != nil {
				return err
			}
		}
	}

	for _, name := range []string{"/etc/systemd/system/multi-user.target.wants/lxd-containers.service", "/etc/systemd/system/sockets.target.wants/lxd.socket"} {
		err := g.hide(name)
		if err != nil {
			return err
		}
	}

	return nil
}

// hide takes a file of the image, or LXD's own directories, out of the guest's file system, by what overlayfs calls a whiteout.
// Other directories stay.
func (g *Guest) hide(name string) error {
	info, err := os.Lstat(filepath.Join(g.opts.Image, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	if err != nil {
		return err
	}

	if info.IsDir() && name != "/var/lib/lxd" && name != "/var/log/lxd" {
		return nil
	}

	upper := filepath.Join(g.dir, "up", name)
	err = os.MkdirAll(filepath.Dir(upper), 0o755)
	if err != nil {
		return err
	}

	err = unix.Mknod(upper, unix.S_IFCHR, 0)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("hide %s: %w", name, err)
	}

	return nil
}
