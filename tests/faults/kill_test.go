//go:build linux && amd64

package faults

import (
	"testing"

	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
)

// Killed before every call that touches the disk, and after every one that touches LXD's directory.
func TestKill(t *testing.T) {
	l := getLab(t)
	for _, j := range l.jobs() {
		t.Run(j.name, func(t *testing.T) {
			p, err := newPlace(t.TempDir())
			must(t, err)
			all, err := j.steps(p, systrace.Change)
			must(t, err)
			t.Logf("%d system calls touch the disk", len(all))
			var faults []fault
			for _, at := range sample(all, 25, each) {
				faults = append(faults, fault{sort: j.name + " killed before a system call", at: at, kind: systrace.Change, action: always(systrace.KillBefore)})
			}
			for _, at := range sample(all, 25, lasting) {
				faults = append(faults, fault{sort: j.name + " killed after a system call", at: at, kind: systrace.Change, action: always(systrace.KillAfter)})
			}
			j.inject(t, all, faults)
		})
	}
}

func always(a systrace.Action) func(*place, *systrace.Call) systrace.Action {
	return func(*place, *systrace.Call) systrace.Action { return a }
}
