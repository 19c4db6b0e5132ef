// SPDX-License-Identifier: AGPL-3.0-only

package engine

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// TestVersion compares with the version that libdqlite was installed as.
func TestVersion(t *testing.T) {
	cmd := exec.Command("pkg-config", "--modversion", "dqlite")
	cmd.Env = append(os.Environ(), "PKG_CONFIG_PATH=../../.deps/dqlite/lib/pkgconfig")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}

	if want := string(bytes.TrimSpace(out)); Version() != want {
		t.Errorf("libdqlite %s, want %s", Version(), want)
	}
}
