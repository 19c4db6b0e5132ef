// SPDX-License-Identifier: AGPL-3.0-only

package printable_test

import (
	"os/exec"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/printable"
)

// A shell takes each word for what it was.
func TestWord(t *testing.T) {
	for _, text := range []string{"", "server1", "a b", "$(id)", "it's", "`id`", "a;b", "~", "*", "#x", "a\\b", "!x", "größe", "host.example:8443"} {
		out, err := exec.Command("sh", "-c", "printf %s "+printable.Word(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("%q is %q to a shell, as %s: %v", text, out, printable.Word(text), err)
		}
	}

	if got := printable.Word("server1.example"); got != "server1.example" {
		t.Errorf("a plain name is %s", got)
	}
}
