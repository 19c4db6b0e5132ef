// SPDX-License-Identifier: AGPL-3.0-only

package member

import (
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	for _, good := range []string{"a", "server1", "server1.example.net", "Server_1", "@odd", "none", "größer", "two words", strings.Repeat("a", 255)} {
		err := ValidName(good)
		if err != nil {
			t.Error(err)
		}
	}

	for bad, says := range map[string]string{
		"": "empty", "a/b": "no name", strings.Repeat("a", 256): "more than 255 bytes", "a\nb": `"a\nb"`, "a\x1b[8mb": `"a\x1b[8mb"`,
		"a\u202eb": `"a\u202eb"`, "a\u009bb": `"a\u009bb"`, "a\u200bb": `"a\u200bb"`, "a\x7f": `"a\x7f"`, "a\xff": `"a\xff"`, "\t": `"\t"`,
	} {
		err := ValidName(bad)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %s", bad, err, says)
		}
	}
}

func TestPrintable(t *testing.T) {
	for _, good := range []Member{{}, {Name: "a", Address: "1"}, {Address: "x y"}} {
		err := good.Printable()
		if err != nil {
			t.Error(err)
		}
	}

	for says, bad := range map[string]Member{`"\x1b" is no name`: {Name: "\x1b"}, `"\x1b" is no address`: {Name: "a", Address: "\x1b"}} {
		err := bad.Printable()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %s", bad, err, says)
		}
	}
}
