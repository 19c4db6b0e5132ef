// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// TestLostOf counts what is lost, and what is not.
func TestLostOf(t *testing.T) {
	replaced := raftlog.LeftOut{File: "x", Entries: 3, Sound: true, Reason: raftlog.ReasonReplaced}
	unreadable := raftlog.LeftOut{File: "open-1", Entries: 2, Reason: "they cannot be read"}
	cut := raftlog.LeftOut{File: "open-1", Entries: 1, Reason: raftlog.ReasonUnfinished}
	log := &raftlog.Log{Segments: []raftlog.Segment{{File: "open-0", Open: true}, {File: "open-1", Open: true}, {File: "open-2", Open: true, Unused: true}}}
	for name, test := range map[string]struct {
		left []raftlog.LeftOut
		want Lost
	}{
		"nothing":               {nil, Lost{}},
		"replaced":              {[]raftlog.LeftOut{replaced}, Lost{}},
		"unreadable":            {[]raftlog.LeftOut{replaced, unreadable}, Lost{Entries: 2, Some: true}},
		"unfinished":            {[]raftlog.LeftOut{replaced, cut}, Lost{Entries: 1, Some: true, Unfinished: true}},
		"and unreadable":        {[]raftlog.LeftOut{cut, unreadable}, Lost{Entries: 3, Some: true}},
		"in another file":       {[]raftlog.LeftOut{{File: "open-0", Entries: 1, Reason: raftlog.ReasonUnfinished}}, Lost{Entries: 1, Some: true}},
		"an unknown number":     {[]raftlog.LeftOut{{File: "open-1", Reason: "they cannot be read"}}, Lost{Some: true}},
		"unreadable, then that": {[]raftlog.LeftOut{unreadable, cut}, Lost{Entries: 3, Some: true}},
	} {
		log.LeftOut = test.left
		got := lostOf(log)
		if got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
