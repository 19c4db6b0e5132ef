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

// raftState sums up what a raft directory holds: the names and sizes of raft's files, and the metadata with their content. Whatever a
// daemon has written, acknowledged or voted since has changed it (raft writes no closed segment again, and makes an open one for each
// new entry); a daemon that has only looked has not. The result is lower-case hexadecimal.
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
		if strings.HasPrefix(name, "metadata") {
			data, err := os.ReadFile(filepath.Join(global, name))
			if err != nil {
				return "", err
			}

			fmt.Fprintf(sum, "%x\n", data)
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

// ranSince tells whether LXD may have run since a kept database was replaced: on the database that took its place, or on any that
// came after that, the live one included. all are the kept databases, the newest first, and i is the place of that one among them.
// What cannot be told counts as a run; why says which database it is about.
func (d directory) ranSince(all []KeptDatabase, i int) (ran bool, why string) {
	for j := i; j >= 0; j-- {
		next := databaseName // what took the place of all[j], as it was when it was replaced itself
		if j > 0 {
			next = all[j-1].Name
		}

		placed := d.placedState(all[j].Name, next)
		now, err := raftState(d.join(next, globalName))
		switch {
		case err != nil:
			return true, fmt.Sprintf("it cannot be told whether LXD has run on the database in %s: %v", d.join(next), err)
		case placed == "":
			return true, fmt.Sprintf("it is not known whether LXD has run on the database in %s: the report of the %s that put it in place is missing",
				d.join(next), all[j].Purpose)
		case placed != now:
			return true, fmt.Sprintf("LXD has run on the database in %s since the %s that put it in place", d.join(next), all[j].Purpose)
		}
	}

	return false, ""
}

// placedState is the state of the raft directory that took the place of a kept one, as it was then; next is where that is now. The
// result is empty if it is not known.
func (d directory) placedState(kept string, next string) string {
	run := d.reportOf(kept)
	if run != nil && run.State != "" {
		return run.State
	}

	record, err := readRecord(d.join(next))
	if err != nil || record == nil || record.Kept != kept {
		return ""
	}

	return record.State
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
