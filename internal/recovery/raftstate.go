// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// raftState sums up what a raft directory holds: the names and sizes of raft's files, and the content of metadata and open segments.
// Whatever a daemon has written, acknowledged or voted since has changed it (raft writes no closed segment again); a daemon that has only
// looked has not. The result is lower-case hexadecimal.
func raftState(global string) (string, error) {
	names, err := raftFiles(global)
	if err != nil {
		return "", err
	}

	sum := sha256.New()
	for _, name := range names { // in the order of their names
		info, err := os.Stat(filepath.Join(global, name))
		if err != nil {
			return "", err
		}

		fmt.Fprintln(sum, name, info.Size())
		if strings.HasPrefix(name, "metadata") || strings.HasPrefix(name, "open-") { // an open segment has its size before anything is in it
			data, err := os.ReadFile(filepath.Join(global, name))
			if err != nil {
				return "", err
			}

			fmt.Fprintf(sum, "%x\n", sha256.Sum256(data))
		}
	}

	return hex.EncodeToString(sum.Sum(nil)), nil
}

// runOf reads the report of the run that replaced a kept database. It is nil where there is none, or none that can be read: then
// nothing is known of that run but its name.
func (d directory) runOf(kept string) *RunReport {
	data, err := os.ReadFile(d.join(kept + reportSuffix))
	if err != nil {
		return nil
	}

	run := &RunReport{}
	err = json.Unmarshal(data, run)
	if err != nil || run.Kept != kept {
		return nil
	}

	return run
}

// origin is what a database directory is, as its raft files are now.
type origin int

const (
	used     origin = iota // LXD may have run on it: what cannot be told counts as a run
	made                   // as a run of ours made it
	restored               // LXD has run on it earlier; it is as a rollback put it back
)

// originOf tells what the live database or a kept one is. all are the kept databases; why says of a used one why it counts as used.
func (d directory) originOf(name string, all []KeptDatabase) (o origin, why string) {
	now, err := raftState(d.join(name, globalName))
	if err != nil {
		return used, product.Sprintf("it cannot be told whether LXD has run on the database in %s: %v", d.join(name), err)
	}

	record, err := readRecord(d.join(name))
	if err == nil && record != nil && record.State == now {
		return made, ""
	}

	known := false
	for _, k := range all {
		if k.report == nil || k.report.State == "" {
			continue
		}

		known = true
		switch {
		case k.report.State != now:
		case k.report.Run == purposeRollback:
			o = restored
		default:
			return made, ""
		}
	}

	switch {
	case o == restored:
		return restored, ""
	case !known:
		return used, product.Sprintf("it is not known whether LXD has run on the database in %s: the report of the run that put it in place is missing",
			d.join(name))
	default:
		return used, product.Sprintf("LXD has run on the database in %s since a run of lxd-recover has put it in place", d.join(name))
	}
}

// ranSince tells whether LXD may have run since a kept database was replaced: on the live one, or on any that was in place in between. all
// are the kept databases, the newest first, and i is the place of that one among them. why says which database it is about.
func (d directory) ranSince(all []KeptDatabase, i int) (ran bool, why string) {
	names := []string{databaseName}
	for _, k := range all[:i] {
		names = append(names, k.Name)
	}

	for _, name := range names {
		o, why := d.originOf(name, all)
		switch {
		case o == used:
			return true, why
		case o == restored && d.usedAfter(name, all, all[i]):
			return true, product.Sprintf("LXD has run on the database in %s before it was replaced and put back", d.join(name))
		}
	}

	return false, ""
}

// usedAfter tells whether LXD may have run on a database after another one was replaced, and before a run replaced it and a rollback put
// it back.
func (d directory) usedAfter(name string, all []KeptDatabase, other KeptDatabase) bool {
	first := d.firstReplaced(name, all)
	return first.Name == "" || compareKept(other, first) < 0
}

// firstReplaced is what a database that a rollback has put back was called when a run replaced it for the first time, as far as reports of
// rollbacks tell. Until then LXD may have run on it. It has no name if nothing is known.
func (d directory) firstReplaced(name string, all []KeptDatabase) (first KeptDatabase) {
	now, err := raftState(d.join(name, globalName))
	if err != nil {
		return KeptDatabase{}
	}

	for _, k := range all {
		if k.report == nil || k.report.Run != purposeRollback || k.report.State != now {
			continue
		}

		was, ok := parseKept(k.report.PutBack)
		if ok && (first.Name == "" || compareKept(was, first) < 0) {
			first = was
		}
	}

	return first
}
