// SPDX-License-Identifier: AGPL-3.0-only

package frontend

import (
	"slices"
	"testing"
)

// What is handed over is the environment that this process was started with, whatever was set since.
func TestEnvironment(t *testing.T) {
	before := environment()
	if len(before) == 0 {
		t.Fatal("no environment")
	}

	t.Setenv("LXD_RECOVER_TEST", "1")
	t.Setenv("PATH", "/nowhere")
	after := environment()
	if !slices.Equal(before, after) {
		t.Errorf("%q has become %q", before, after)
	}
}

func TestCalled(t *testing.T) {
	for argv0, want := range map[string]bool{
		"lxd": true, "/usr/local/sbin/lxd": true, "./lxd": true,
		"lxd-recover": false, "/usr/bin/lxd-recover": false, "lxd/lxd-recover": false, "lxc": false, "": false,
	} {
		if (Called(argv0) != nil) != want {
			t.Errorf("%q is called as the front-end: %v", argv0, !want)
		}
	}
}
