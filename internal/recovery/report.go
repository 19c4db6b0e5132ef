// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// A run's report is kept beside the database that the run replaced, as NAME.report.json. It is written under reportName, and
// renamed once that database has its name: what has that name is the report of an exchange that was carried out, and whatever
// cuts a run short leaves at most a file reportName, which the next run puts in its place or removes (placeReport).
const (
	reportName   = "database.report.json"
	reportSuffix = ".report.json"
)

// reportFormat is the version of its format.
const reportFormat = 1

// RunReport is the report of a run that replaced a database.
type RunReport struct {
	Format  int       `json:"format"`
	Run     string    `json:"run"`                // import, rollback, edit, repair
	Version string    `json:"version"`            // of lxd-recover
	ID      string    `json:"id"`                 // of the run: that of its tarball, or its own
	State   string    `json:"state"`              // of the raft directory that it put in place, see raftState
	Kept    string    `json:"kept"`               // name of the kept database
	PutBack string    `json:"put_back,omitempty"` // name that the database had which a rollback put in place
	Time    time.Time `json:"time"`               // of the exchange

	// Finished is when the run ended; null where it was cut short after the exchange, and could not tell what came after.
	Finished *time.Time `json:"finished"`

	// Error is what failed after the exchange, such as the start of LXD.
	Error string `json:"error,omitempty"`

	// Report is what the command printed with --format json: an ImportReport, a RollbackReport, an EditReport or a
	// RepairReport.
	Report any `json:"report"`
}

// reporter keeps the report of a run under way. No run fails for its report: a disk that cannot take it will be noticed by what
// matters more, and after the exchange there is nothing left that an error could save.
type reporter struct {
	dir directory
	run RunReport
}

func newReporter(dir directory, purpose string, version string) *reporter {
	return &reporter{dir: dir, run: RunReport{Format: reportFormat, Run: purpose, Version: version}}
}

// prepare writes the report as it is if the run is cut short right after the exchange, which is about to come.
func (r *reporter) prepare(kept string, report any) {
	r.run.Kept, r.run.Time, r.run.Report = kept, time.Now().UTC().Truncate(time.Second), report
	_ = r.write()
}

// place puts it beside the kept database, once the exchange was carried out and that has its name.
func (r *reporter) place() error {
	return errors.Join(os.Rename(r.dir.join(reportName), r.dir.join(r.run.Kept+reportSuffix)), swapdir.SyncDir(r.dir.path))
}

// exchanged follows what became of the exchange. Where it is not complete the report waits for placeReport.
func (r *reporter) exchanged(done bool, err error) {
	switch {
	case !done:
		r.drop()
	case err == nil:
		_ = r.place()
	}
}

// drop forgets about an exchange that was not carried out.
func (r *reporter) drop() { r.dir.forget(reportName) }

// forget removes a file for good: after a power cut it must not be back and look like what an interrupted run left.
func (d directory) forget(name string) {
	err := os.Remove(d.join(name))
	if err == nil {
		_ = swapdir.SyncDir(d.path)
	}
}

// finish writes the report again when the run has ended, with what became of LXD. It returns a warning where that failed.
func (r *reporter) finish(report any, failed error) []string {
	now := time.Now().UTC().Truncate(time.Second)
	r.run.Finished, r.run.Report = &now, report
	if failed != nil {
		r.run.Error = failed.Error()
	}

	err := r.write()
	if err == nil {
		err = r.place()
	}

	if err != nil {
		return []string{fmt.Sprintf("the report of this run was not kept in %s: %v", r.dir.join(r.run.Kept+reportSuffix), err)}
	}

	return nil
}

func (r *reporter) write() error {
	data, err := json.MarshalIndent(r.run, "", "  ")
	if err != nil {
		return err
	}

	return swapdir.WriteFile(r.dir.join(reportName), append(data, '\n'))
}

// placeReport puts the report of an interrupted run in its place, if that run exchanged the databases, and removes it if not.
// Call it when the exchange itself is settled. What cannot be done now is left to the next run.
func (d directory) placeReport() {
	d.forget(reportName + ".tmp") // see swapdir.WriteFile
	data, err := newfile.Read(d.join(reportName))
	if err != nil {
		return
	}

	r := &reporter{dir: d}
	err = json.Unmarshal(data, &r.run)
	if err == nil && keptName.MatchString(r.run.Kept) && exists(d.join(r.run.Kept)) {
		_ = r.place()
		return
	}

	r.drop()
}
