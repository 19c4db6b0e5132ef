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

// reportOf reads the report of the run that replaced a kept database. It is nil where there is none, or none that can be read: then
// nothing is known of that run but its name.
func (d directory) reportOf(kept string) *RunReport {
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

// ranSince tells whether LXD may have run since a kept database was replaced: on the live one, or on any that was in place in between. all
// are the kept databases, the newest first, and i is the place of that one among them. A database on which LXD has not run is as a run of
// ours has made it, or as a rollback has put it back. What cannot be told counts as a run; why says which database it is about.
func (d directory) ranSince(all []KeptDatabase, i int) (ran bool, why string) {
	placed := map[string]bool{}
	for _, k := range all {
		run := d.reportOf(k.Name)
		if run != nil && run.State != "" {
			placed[run.State] = true
		}
	}

	names := []string{databaseName}
	for _, k := range all[:i] {
		names = append(names, k.Name)
	}

	for _, name := range names {
		now, err := raftState(d.join(name, globalName))
		switch {
		case err != nil:
			return true, fmt.Sprintf("it cannot be told whether LXD has run on the database in %s: %v", d.join(name), err)
		case placed[now] || d.asMade(name):
		case len(placed) == 0:
			return true, fmt.Sprintf("it is not known whether LXD has run on the database in %s: the report of the run that put it in place is missing",
				d.join(name))
		default:
			return true, fmt.Sprintf("LXD has run on the database in %s since a run of lxd-recover has put it in place", d.join(name))
		}
	}

	return false, ""
}

// asMade tells whether a database was made by a run of ours, and LXD has not run on it.
func (d directory) asMade(name string) bool {
	record, err := readRecord(d.join(name))
	if err != nil || record == nil || record.State == "" {
		return false
	}

	state, err := raftState(d.join(name, globalName))
	return err == nil && state == record.State
}

// putBack tells whether the live database is one that a rollback has put back, and LXD has not run on it.
func (d directory) putBack(all []KeptDatabase) bool {
	now, err := raftState(d.global())
	if err != nil {
		return false
	}

	for _, k := range all {
		run := d.reportOf(k.Name)
		if run != nil && run.Run == purposeRollback && run.State == now {
			return true
		}
	}

	return false
}
