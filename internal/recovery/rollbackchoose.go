// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"strings"
)

// choose finds the kept database to put back: by its name, by the run that replaced it, the oldest since which LXD has not run, or the
// newest.
func (rb *rollback) choose() error {
	var err error
	rb.kept, err = rb.dir.kept()
	if err != nil {
		return err
	}

	if len(rb.kept) == 0 && rb.opts.Kept == "" {
		return fmt.Errorf("no database is kept in %s: there is nothing to roll back to", rb.dir.path)
	}

	switch {
	case rb.opts.Kept != "":
		rb.report.Restored, err = rb.dir.findKept(rb.opts.Kept)
	case rb.opts.Before != "":
		rb.report.Restored, err = before(rb.kept, rb.opts.Before)
	case rb.opts.Original:
		rb.report.Restored, rb.report.NothingToDo = rb.original()
	default:
		rb.report.Restored = rb.kept[0]
		rb.report.NothingToDo = rb.kept[0].Purpose == purposeRollback
	}

	return err
}

// before finds the database that was replaced by a run, given by its id or how that begins: the first one, if the run came here again.
func before(all []KeptDatabase, run string) (KeptDatabase, error) {
	var found *KeptDatabase
	for i, k := range all { // the oldest one is the last
		switch {
		case k.Run == "" || !strings.HasPrefix(k.Run, strings.ToLower(run)):
		case found != nil && found.Run != k.Run:
			return KeptDatabase{}, fmt.Errorf("several runs begin with %q; `lxd-recover global-db-kept list` lists them", run)
		default:
			found = &all[i]
		}
	}

	if found == nil {
		return KeptDatabase{}, fmt.Errorf("no kept database was replaced by a run %q; `lxd-recover global-db-kept list` lists them", run)
	}

	return *found, nil
}

// original finds what was in place before the first of all runs since LXD last ran. A run makes a new database of it, but for a rollback,
// which may have put back the very one: then there is nothing to do. If LXD has run since all of them were replaced it is the newest,
// which is refused later, with the reason.
func (rb *rollback) original() (oldest KeptDatabase, nothingToDo bool) {
	oldest = rb.kept[0]
	live, _ := rb.dir.originOf(databaseName, rb.kept)
	if live == used || live == restored {
		return oldest, live == restored
	}

	for _, k := range rb.kept {
		oldest = k
		o, _ := rb.dir.originOf(k.Name, rb.kept)
		if o == used || o == restored {
			break // what is older was replaced before LXD ran
		}
	}

	return oldest, false
}
