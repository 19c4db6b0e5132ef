// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"bytes"
	"os"
)

// autogroup says whether the kernel shares a processor among sessions first, and among the processes of each then.
const autogroup = "/proc/sys/kernel/sched_autogroup_enabled"

// FairProcessors has the kernel share each processor among processes, for as long as the tests of a package run; restore undoes it.
// What has run before stays as it is, so it is called before anything is started.
//
// With one group for each session a guest's systemd, pinned to one processor and alone in its group, got nothing of it for up to two
// minutes, while all that the tests had started shared another group: see "A systemd that does not answer" in docs/architecture.md. And
// `nice` of one group says nothing to another. If the kernel has no such groups, there is nothing to do.
func FairProcessors() (restore func()) {
	before, err := os.ReadFile(autogroup)
	if err != nil || !bytes.Equal(bytes.TrimSpace(before), []byte("1")) {
		return func() {}
	}

	err = os.WriteFile(autogroup, []byte("0"), 0)
	if err != nil {
		return func() {}
	}

	return func() { _ = os.WriteFile(autogroup, before, 0) }
}
