// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"testing"

	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
)

// Killed before every call that touches the disk, and after every one that touches LXD's directory.
func TestKill(t *testing.T) {
	eachJob(t, systrace.Change, (*job).kills)
}

// kills are a job's, before and after its system calls.
func (j *job) kills(all []step) (faults []fault) {
	for _, at := range sample(all, each) {
		faults = append(faults, fault{sort: j.name + " killed before a system call", at: at, kind: systrace.Change, action: always(systrace.KillBefore)})
	}

	for _, at := range sample(all, lasting) {
		faults = append(faults, fault{sort: j.name + " killed after a system call", at: at, kind: systrace.Change, action: always(systrace.KillAfter)})
	}

	return faults
}

func always(a systrace.Action) func(*place, *systrace.Call) systrace.Action {
	return func(*place, *systrace.Call) systrace.Action { return a }
}
