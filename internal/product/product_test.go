// SPDX-License-Identifier: AGPL-3.0-only

package product

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOf(t *testing.T) {
	for mark, want := range map[string]*Product{"guestapi": Incus, "devlxd": LXD, "database": LXD} {
		dir := t.TempDir()
		err := os.Mkdir(filepath.Join(dir, mark), 0o700)
		if err != nil {
			t.Fatal(err)
		}

		if got := Of(dir); got != want {
			t.Errorf("with %s: %s, want %s", mark, got.Name, want.Name)
		}
	}

	migrated := t.TempDir() // by lxd-to-incus, which moves all that LXD has
	for _, mark := range []string{"devlxd", "guestapi"} {
		err := os.Mkdir(filepath.Join(migrated, mark), 0o700)
		if err != nil {
			t.Fatal(err)
		}
	}

	if got := Of(migrated); got != Incus {
		t.Errorf("an Incus that was an LXD: %s", got.Name)
	}

	dir := t.TempDir()
	t.Setenv("INCUS_DIR", dir)
	if got, known := Known(dir); got != Incus || !known {
		t.Errorf("what INCUS_DIR names: %v, %v", got, known)
	}

	if got := Places(); !slices.Equal(got, []string{dir}) {
		t.Errorf("places %q", got)
	}
}

func TestByPatches(t *testing.T) {
	for _, test := range []struct {
		applied []string
		want    *Product
	}{
		{nil, LXD},
		{[]string{"network_ovn_enable_nat", "pool_fix_default_permissions"}, LXD}, // LXD has the second one, too
		{[]string{"pool_fix_default_permissions", "runtime_directory"}, Incus},
	} {
		if got := ByPatches(test.applied); got != test.want {
			t.Errorf("%q: %s, want %s", test.applied, got.Name, test.want.Name)
		}
	}
}
