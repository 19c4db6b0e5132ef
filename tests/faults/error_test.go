// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
)

// errnos are the errors that a disk, a quota or a signal can cause.
var errnos = []unix.Errno{unix.ENOSPC, unix.EIO, unix.EDQUOT, unix.EROFS, unix.EINTR}

// Every call that touches LXD's directory fails with each of the errors; those that touch temporary files only, and there are
// many alike, with one of them in turn.
func TestError(t *testing.T) {
	eachJob(t, systrace.Change, func(j *job, all []step) []fault {
		faults := j.failures(all)
		for _, at := range allOf(all, func(s step) bool { return s.rename }) {
			for _, errno := range []unix.Errno{unix.EIO, unix.EINTR} {
				faults = append(faults, fault{sort: j.name + ", renamed and reported to have failed",
					at: at, kind: systrace.Change, action: always(systrace.FailAfter(errno))})
			}
		}

		return j.thin(all, faults)
	})
}

// failures are calls of a job that fail.
func (j *job) failures(all []step) (faults []fault) {
	for i, at := range sample(all, each) {
		for e, errno := range errnos {
			if at.scratch && e != i%len(errnos) {
				continue
			}

			faults = append(faults, fault{sort: j.name + ", " + unix.ErrnoName(errno), at: at, kind: systrace.Change, action: fails(errno)})
		}
	}

	return faults
}

// A disk that has become read-only, or is full, stays so: from one call on, all fail.
func TestErrorThatLasts(t *testing.T) {
	eachJob(t, systrace.Change, func(j *job, all []step) (faults []fault) {
		for _, at := range sample(all, lasting) {
			faults = append(faults, fault{sort: j.name + ", EROFS from then on", at: at, kind: systrace.Change, lasts: true, action: fails(unix.EROFS)})
		}

		return faults
	})
}

// Every call that reads LXD's directory, the temporary files or the tarball's copy fails once.
func TestErrorReading(t *testing.T) {
	eachJob(t, systrace.Read, func(j *job, all []step) (faults []fault) {
		for _, at := range sample(all, lasting) {
			faults = append(faults, fault{sort: j.name + ", EIO on reading", at: at, kind: systrace.Read, action: fails(unix.EIO)})
		}

		return j.thin(all, faults)
	})
}

// thin keeps every fourth of an edit's and a repair's errors, but for what is near the exchange, so that all faults take a quarter of an
// hour: they prepare their database by the same functions as an import, where every error is tried. Four has no divisor in common with the
// number of errors, so all of them are among those that stay. Kills and power cuts are never thinned out.
func (j *job) thin(all []step, faults []fault) []fault {
	if j.name != "edit" && j.name != "repair" || !everything {
		return faults
	}

	near := map[step]bool{}
	if at := exchangeOf(all); at >= 0 {
		for _, s := range all[max(at-8, 0):] {
			near[s] = true
		}
	}

	var kept []fault
	for i, f := range faults {
		if i%4 == 0 || near[f.at] {
			kept = append(kept, f)
		}
	}

	return kept
}

// fails makes calls fail. A close that fails has closed nevertheless.
func fails(errno unix.Errno) func(*place, *systrace.Call) systrace.Action {
	return func(_ *place, c *systrace.Call) systrace.Action {
		if c.Name == "close" {
			return systrace.FailAfter(errno)
		}

		return systrace.Fail(errno)
	}
}
