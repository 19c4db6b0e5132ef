// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"strings"
	"testing"
)

// What the live database has and a kept one lacks is told, and nothing the other way round.
func TestKeptLoss(t *testing.T) {
	for _, test := range []struct{ live, kept, want string }{{"n1-preedit", "n3-preedit", "lostrow"}, {"n3-preedit", "n1-preedit", ""}} {
		l := newRollbackLab(t)
		l.withKept(t, test.live, test.kept)
		before := namesAndContent(t, l.dir.path)
		r, err := KeptLoss(t.Context(), l.dir.path, keptImport, Progress{})
		must(t, err)
		text := strings.Join(Lines(r.Found), "\n")
		if (test.want == "") != (text == "") || !strings.Contains(text, test.want) || len(r.Untold) != 0 {
			t.Errorf("%s beside %s: %q, untold %v", test.live, test.kept, text, r.Untold)
		}

		if namesAndContent(t, l.dir.path) != before {
			t.Error("something was changed")
		}
	}

	// One that cannot be read may have anything.
	l := newRollbackLab(t)
	l.withKept(t, "n1-preedit", "n3-preedit")
	must(t, os.RemoveAll(l.dir.global()))
	r, err := KeptLoss(t.Context(), l.dir.path, keptImport, Progress{})
	must(t, err)
	if len(r.Untold) != 1 {
		t.Errorf("%+v", r)
	}
}
