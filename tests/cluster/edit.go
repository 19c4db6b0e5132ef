// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ShowYAML returns what `lxd cluster show` prints, for which the daemon must be down.
func (m *Member) ShowYAML(ctx context.Context) ([]byte, error) {
	out, err := m.LXD(ctx, "cluster", "show")
	return []byte(out), err
}

// Edit runs `lxd cluster edit` on a member whose daemon is down. It is given what change makes of ShowYAML. The tarball that some
// LXDs write is moved to OwnTarball: the member would not start with it.
func (m *Member) Edit(ctx context.Context, change func(yaml []byte) []byte) error {
	before, err := m.ShowYAML(ctx)
	if err != nil {
		return err
	}

	_, err = m.admin(ctx, bytes.NewReader(change(before)), "cluster", "edit")
	if err == nil && m.cluster.opts.LXD.WritesTarball {
		err = os.Rename(m.LoadedTarball(), m.OwnTarball())
	}

	return err
}

// OwnTarball is where Edit leaves the tarball of LXD's own `cluster edit`, if it writes one.
func (m *Member) OwnTarball() string {
	return filepath.Join(m.cluster.dir, "saved", m.Name+".tar.gz")
}

// LoadedTarball is where LXDs that load a recovery tarball at their start look for it, and where their `cluster edit` puts it.
func (m *Member) LoadedTarball() string {
	return filepath.Join(m.dir, "database", "lxd_recovery_db.tar.gz")
}

// EditReplace is Edit with pairs of old and new strings, as strings.NewReplacer takes them. It is an error if an old one
// does not occur.
func (m *Member) EditReplace(ctx context.Context, oldnew ...string) error {
	var missing []string
	err := m.Edit(ctx, func(before []byte) []byte {
		for i := 0; i < len(oldnew); i += 2 {
			if !bytes.Contains(before, []byte(oldnew[i])) {
				missing = append(missing, oldnew[i])
			}
		}

		if missing != nil {
			return before
		}

		return []byte(strings.NewReplacer(oldnew...).Replace(string(before)))
	})
	if err == nil && missing != nil {
		err = fmt.Errorf("%s: cluster show does not contain %q", m.Name, missing)
	}

	return err
}
