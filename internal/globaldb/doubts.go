// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Doubts finds what nothing else does in snapshots without a checksum, as cowsql writes them: damage in the values of rows. Such a snapshot must
// have the rows that the entries up to it make, from an older snapshot or from the beginning of the log, if those are all there. It returns the
// ones that have others, by file. Those that sound says have been found sound before are not looked at again; found is told of each that is.
func Doubts(ctx context.Context, log *raftlog.Log, sound func(*raftlog.Snapshot) bool, found func(*raftlog.Snapshot)) (map[string]raftlog.Doubt, error) {
	work := *log
	work.Snapshots = slices.Clone(log.Snapshots) // of which damaged ones are taken out, so that no later one is compared with them
	log = &work
	var raw []*raftlog.Snapshot
	for i := range log.Snapshots {
		s := &log.Snapshots[i]
		if s.Usable && !s.Compressed {
			raw = append(raw, s)
		}
	}

	slices.SortFunc(raw, func(a, b *raftlog.Snapshot) int { return cmp.Compare(a.Index, b.Index) })
	doubts, proven := map[string]raftlog.Doubt{}, map[string]bool{}
	for _, s := range raw {
		before := log.Before(s)
		if before == nil {
			continue
		}

		base := before.Snapshot()
		certain := base == nil || base.Compressed || proven[base.File]
		if certain && sound(s) {
			proven[s.File] = true
			continue
		}

		reason, err := misled(ctx, log, s)
		switch {
		case err != nil:
			return nil, err
		case reason == "" && certain:
			proven[s.File] = true
			found(s)
		case reason != "" && certain:
			s.Usable = false
			doubts[s.File] = raftlog.Doubt{Certain: true, Text: fmt.Sprintf("it is damaged: it has other rows than the entries up to index %d make", s.Index)}
		case reason != "":
			doubts[s.File] = raftlog.Doubt{Text: fmt.Sprintf("it has other rows than the entries make that come after the snapshot at index %d: "+
				"one of the two is damaged", base.Index)}
		}
	}

	return doubts, nil
}
