// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"testing"
)

// Only another directory that is a cluster member's counts as a second LXD.
func TestSecondLXD(t *testing.T) {
	root := t.TempDir()
	dir := func(name string, parts ...string) string {
		for _, part := range parts {
			must(t, os.MkdirAll(filepath.Join(root, name, part), 0o700))
		}

		return filepath.Join(root, name)
	}
	snap, deb := dir("snap", databaseName, clusterCertificateName), dir("deb", databaseName, clusterCertificateName)
	standalone, leftover, none := dir("standalone", databaseName), dir("leftover", clusterCertificateName), filepath.Join(root, "none")
	for _, test := range []struct{ second, want string }{{deb, deb}, {snap, ""}, {standalone, ""}, {leftover, ""}, {none, ""}} {
		got := secondLXD(snap, []string{snap, test.second})
		if got != test.want {
			t.Errorf("beside it %s: %q, want %q", test.second, got, test.want)
		}
	}

	if got := secondLXD(deb, []string{snap, deb}); got != snap {
		t.Errorf("beside the package: %q, want %s", got, snap)
	}
}
