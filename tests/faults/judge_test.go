// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// verdict is what a fault left of LXD's directory.
type verdict int

const (
	// broken is what must not be: a database that is neither the old nor the new one, or an old one that is gone.
	broken verdict = iota
	wholeOld
	wholeNew
)

// judge tells what a fault left: which database is in place, to the byte, with modes, owners and, for the old one, times. The
// other one, where it existed before, must still be there, whole, under some name, and the rest of LXD's directory as it was.
func (j *job) judge(p *place) (verdict, string) {
	now, err := readTree(p.lxd())
	if err != nil {
		return broken, err.Error()
	}

	var complaints []string
	rest := func(t tree) tree {
		t = t.without(".") // its time changes, with the names in it
		for name := range t {
			if strings.HasPrefix(name, "database") {
				delete(t, name)
			}
		}

		return t
	}
	if diff := rest(now).differ(rest(j.start), true); diff != "" {
		complaints = append(complaints, "beside the database: "+diff)
	}

	for name, want := range j.wholes() {
		if !slices.ContainsFunc(now.databases(), func(dir string) bool { return now.sub(dir).differ(want, true) == "" }) {
			complaints = append(complaints, "the database "+name+" is nowhere whole")
		}
	}

	live := now.sub("database")
	notOld := live.differ(j.old, true)
	notNew, err := j.differs(live)
	if err != nil {
		return broken, err.Error()
	}

	switch {
	case len(complaints) > 0:
		return broken, strings.Join(complaints, "\n")
	case notOld == "":
		return wholeOld, ""
	case notNew == "":
		return wholeNew, ""
	}

	return broken, fmt.Sprintf("not the old database: %snor the new one: %s", notOld, notNew)
}

// wholes are the databases that were there at the start, and must never cease to be: the live one and those that are kept.
func (j *job) wholes() map[string]tree {
	all := map[string]tree{}
	for _, name := range j.start.databases() {
		all[name] = j.start.sub(name)
	}

	return all
}

// databases returns the names of the directories of a tree that could hold a database.
func (t tree) databases() []string {
	var names []string
	for name, n := range t {
		if strings.HasPrefix(name, "database") && n.mode.IsDir() && !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}

	return names
}

// notDone tells what is wrong with LXD's directory after a job that succeeded: the new database must be in place, the old one
// kept under one new name, and nothing else be left.
func (j *job) notDone(p *place) string {
	v, why := j.judge(p)
	if v != wholeNew {
		return "the new database is not in place: " + why
	}

	return j.keptOne(p)
}

// keptOne tells what is wrong with what is beside the database in place.
func (j *job) keptOne(p *place) string {
	paths, err := filepath.Glob(filepath.Join(p.lxd(), "database*"))
	if err != nil {
		return err.Error()
	}

	var kept, reports []string
	for _, path := range paths {
		name := filepath.Base(path)
		backup, report := strings.CutSuffix(name, reportSuffix)
		_, before := j.start[name]
		switch {
		case name == "database", name == "database.high-water.yaml":
		case before && report: // of the run that is undone
		case report && strings.HasPrefix(name, j.keeps):
			reports = append(reports, backup)
			if why := reportComplaint(path, backup); why != "" {
				return why
			}
		case strings.HasPrefix(name, j.keeps):
			kept = append(kept, name)
		default:
			return name + " is left over"
		}
	}

	if len(kept) != 1 || !slices.Equal(kept, reports) {
		return fmt.Sprintf("kept: %q, reports of %q, want one", kept, reports)
	}

	return ""
}

// reportSuffix is how the name ends of the report that is beside a kept database.
const reportSuffix = ".report.json"

// reportComplaint tells what is wrong with the report of a run that replaced a database.
func reportComplaint(path string, backup string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}

	var r struct {
		Kept   string
		Report struct {
			Kept string
			Done bool
		}
	}
	err = json.Unmarshal(data, &r)
	if err != nil || r.Kept != backup || filepath.Base(r.Report.Kept) != backup || !r.Report.Done {
		return fmt.Sprintf("%s: %v: not the report of the run that made %s: %s", path, err, backup, data)
	}

	return ""
}
