// SPDX-License-Identifier: AGPL-3.0-only

package printable

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// harmful are characters that play tricks, each with how it is shown.
var harmful = map[string]string{
	"\x1b[8m": `\x1b[8m`, "\a": `\a`, "\r": `\r`, "\b": `\b`, "\x00": `\x00`, "\x7f": `\x7f`,
	"\u009b31m": `\u009b31m`, "\u0085": `\u0085`, "\xff": `\xff`, "\x9b31m": `\x9b31m`,
	"\u202e": `\u202e`, "\u2066": `\u2066`, "\u200b": `\u200b`, "\u200f": `\u200f`, "\u061c": `\u061c`, "\ufeff": `\ufeff`, "\u00ad": `\u00ad`,
	"\u2028": `\u2028`, "\ue000": `\ue000`, "\U000e0041": `\U000e0041`, "\xe2\x80": `\xe2\x80`,
}

// harmless are texts that are shown as they are.
var harmless = []string{"", "two\nlines\t", "ü 中文 \u00a0é e\u0301 🙂 \ufffd", `back\slash "quoted"`}

func TestText(t *testing.T) {
	for text, want := range harmful {
		if got := Text("a" + text + "z"); got != "a"+want+"z" {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}

	for _, text := range harmless {
		if got := Text(text); got != text {
			t.Errorf("%q: %q", text, got)
		}
	}

	if got := Line("a\nb\tc\x1b"); got != `a\nb\tc\x1b` {
		t.Errorf("in one line: %q", got)
	}
}

// TestWriter writes each text whole and byte by byte.
func TestWriter(t *testing.T) {
	var all, want string
	for text, shown := range harmful {
		all, want = all+text+"ü", want+shown+"ü"
	}

	for _, text := range harmless {
		all, want = all+text, want+text
	}

	for _, size := range []int{1, 2, 3, len(all)} {
		var got strings.Builder
		w := NewWriter(&got)
		for rest := all; rest != ""; {
			n, err := w.Write([]byte(rest[:min(size, len(rest))]))
			if err != nil || n != min(size, len(rest)) {
				t.Fatal(n, err)
			}

			rest = rest[n:]
		}

		if got.String() != want {
			t.Errorf("%d bytes at a time: %q, want %q", size, got.String(), want)
		}
	}

	_, err := NewWriter(failing{}).Write([]byte("x"))
	if !errors.Is(err, errFull) {
		t.Errorf("%v, want %v", err, errFull)
	}
}

var errFull = errors.New("the disk is full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

// TestEncoded wants JSON and YAML to say the same as before, in harmless characters.
func TestEncoded(t *testing.T) {
	for text := range harmful {
		text = strings.ToValidUTF8("a"+text+"z", "?") // which is all that JSON and YAML can say
		data, err := json.Marshal(text)
		var got string
		if err == nil {
			data = JSON(data)
			err = json.Unmarshal(data, &got)
		}

		if err != nil || got != text || !AllHarmless(data) {
			t.Errorf("%q in JSON: %q, %q, %v", text, data, got, err)
		}

		data, err = yaml.Marshal(&yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Value: text, Tag: "!!str"})
		if err == nil {
			data = YAML(data)
			err = yaml.Unmarshal(data, &got)
		}

		if err != nil || got != text || !AllHarmless(data) {
			t.Errorf("%q in YAML: %q, %q, %v", text, data, got, err)
		}
	}

	plain := []byte(`{"a": "ü"}` + "\n")
	if !bytes.Equal(JSON(plain), plain) || !bytes.Equal(YAML(plain), plain) {
		t.Error("what is harmless was changed")
	}
}
