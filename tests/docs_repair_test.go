// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// newStandaloneLab boots one machine whose LXD is no member of a cluster, without our tool on it.
func newStandaloneLab(t *testing.T, variant string) *docsLab {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	l := &docsLab{variant: variant, lxdDir: guestLXD, guests: map[string]*guest.Guest{}, real: map[string]string{}}
	g := guest.ForTest(t, guest.Options{Name: "server1", Address: "10.78.0.1/16", WithoutLXD: variant == "snap"})
	l.guests[g.Name] = g
	must(t, g.Put(ctx, tool, "/root/lxd-recover", 0o755))
	if variant == "snap" {
		l.lxdDir = guest.LXDSnapDir
		must(t, g.InstallLXDSnap(ctx))
		must(t, g.Put(ctx, packSnap(t, "docs-repair"), "/root/lxd-recover.snap", 0o644))
	}

	must(t, g.StartStandalone(ctx))
	lxcInGuest(t, g, "profile", "create", "precious")
	return l
}

// spoil has LXD fail to start, as the page tells it: a copy of a segment lies beside it, under the name of a later one.
func (l *docsLab) spoil(t *testing.T) {
	t.Helper()
	g, global := l.guests["server1"], l.lxdDir+"/database/global"
	inGuest(t, g, "systemctl", "stop", l.unit()) // which closes the open segment
	l.kill(t, g)
	names := strings.Fields(inGuest(t, g, "ls", global))
	for _, name := range names {
		var first, last uint64
		n, _ := fmt.Sscanf(name, "%016d-%016d", &first, &last)
		if n == 2 && last > first {
			inGuest(t, g, "cp", "-a", global+"/"+name, global+"/"+raftlog.SegmentName(first+10000, last+10000))
			return
		}
	}

	t.Fatalf("no segment with several entries among %v", names)
}

// repair runs docs/howto-repair.md on a standalone server that does not start.
func (l *docsLab) repair(t *testing.T, p *page) {
	l.spoil(t)
	sections := p.runnable()
	for i, section := range sections {
		if section == "Undo" {
			l.wantPrecious(t, "server1")
		}

		l.run(t, p, sections[i:i+1], "repair")
	}
}
