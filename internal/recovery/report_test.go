// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What an interrupted run has left of its report goes beside the database that it replaced, if it came so far.
func TestSettleReport(t *testing.T) {
	for name, test := range map[string]struct {
		prepared string
		kept     string // beside which it goes, empty: nowhere
	}{
		"exchanged":            {`{"kept": "` + keptImport + `"}`, keptImport},
		"not exchanged":        {`{"kept": "database.before-import-20261122T213500Z"}`, ""},
		"half written":         {`{"kept": "` + keptImport, ""},
		"of the live one":      {`{"kept": "database"}`, ""},
		"of another directory": {`{"kept": "outside/` + keptEdit + `"}`, ""},
		"nothing":              {``, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := directory{path: makeKept(t)}
			want := namesIn(t, dir.path)
			must(t, os.WriteFile(dir.join(reportName), []byte(test.prepared), 0o600))
			must(t, os.WriteFile(dir.join(reportName+".tmp"), []byte("{"), 0o600))
			if test.kept != "" {
				want = append(want, test.kept+reportSuffix)
				slices.Sort(want)
			}

			for range 2 {
				dir.placeReport()
				if got := namesIn(t, dir.path); !slices.Equal(got, want) {
					t.Errorf("%q, want %q", got, want)
				}
			}
		})
	}
}

// A report is whole at every moment: right after the exchange it says that this is done, at the end what became of the rest.
func TestReporter(t *testing.T) {
	dir := directory{path: makeKept(t)}
	r := newReporter(dir, purposeImport, "1.0")
	path := dir.join(keptImport + reportSuffix)
	read := func() (RunReport, ImportReport) {
		t.Helper()
		report := ImportReport{}
		run := RunReport{Report: &report}
		data, err := os.ReadFile(path)
		must(t, err)
		must(t, json.Unmarshal(data, &run))
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode %s", info.Mode())
		}

		return run, report
	}

	r.prepare(keptImport, ImportReport{Done: true, Tarball: "/root/a.tar.gz"})
	if exists(path) {
		t.Error("a report before the exchange")
	}

	r.exchanged(true, nil)
	if got, report := read(); got.Finished != nil || !report.Done || got.Kept != keptImport || got.Run != purposeImport || got.Version != "1.0" ||
		got.Format != reportFormat {
		t.Errorf("after the exchange: %+v", got)
	}

	if warnings := r.finish(ImportReport{Done: true, Ready: true}, errors.New("LXD is late")); len(warnings) > 0 {
		t.Error(warnings)
	}

	if got, report := read(); got.Finished == nil || !report.Ready || got.Error != "LXD is late" {
		t.Errorf("at the end: %+v", got)
	}

	when := time.Date(2026, 11, 22, 21, 36, 0, 0, time.UTC)
	name, err := dir.keepName(purposeEdit, when)
	must(t, err)
	must(t, os.WriteFile(dir.join(name+reportSuffix), nil, 0o600))
	for _, purpose := range []string{purposeEdit, purposeImport} {
		other, err := dir.keepName(purpose, when)
		must(t, err)
		if name != "database.before-edit-20261122T213600Z" || other != "database.before-"+purpose+"-20261122T213600Z-2" {
			t.Errorf("after %s comes %s", name, other)
		}
	}

	r.prepare(keptEdit, ImportReport{})
	r.exchanged(false, errors.New("no"))
	r.prepare(keptRollback, ImportReport{})
	r.exchanged(true, errors.New("not all is done"))
	reports, err := filepath.Glob(dir.join("database.before-*" + reportSuffix))
	must(t, err)
	if !slices.Equal(reports, []string{dir.join(name + reportSuffix), path}) {
		t.Errorf("%q", reports)
	}

	// The last one waits for the run that completes the exchange.
	if data, err := os.ReadFile(dir.join(reportName)); err != nil || len(data) == 0 {
		t.Errorf("%v: %q", err, data)
	}
}

// No run fails for its report, it only says so.
func TestReporterFails(t *testing.T) {
	r := newReporter(directory{path: filepath.Join(t.TempDir(), "gone")}, purposeImport, "1.0")
	r.prepare(keptImport, ImportReport{})
	r.exchanged(true, nil)
	if warnings := r.finish(ImportReport{}, nil); len(warnings) != 1 {
		t.Errorf("%q", warnings)
	}
}
