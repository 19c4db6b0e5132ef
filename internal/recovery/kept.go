// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
)

// KeptDatabase is a database directory that an import, a rollback, an edit or a repair replaced and kept.
type KeptDatabase struct {
	Name    string    `json:"name" yaml:"name"`       // in LXD's directory
	Purpose string    `json:"purpose" yaml:"purpose"` // what replaced it: import, rollback, edit or repair
	Run     string    `json:"run" yaml:"run"`         // id of that run; empty if it is not known
	Time    time.Time `json:"time" yaml:"time"`       // when
	Size    int64     `json:"size" yaml:"size"`       // bytes of all files in it

	number int        // of several in one second, the later ones have the higher numbers
	report *RunReport // of that run; nil if it is not known
}

var keptName = regexp.MustCompile(`^database\.before-([a-z]+)-([0-9]{8}T[0-9]{6}Z)(?:-([0-9]+))?$`)

// parseKept reads the name of a kept database.
func parseKept(name string) (k KeptDatabase, ok bool) {
	parts := keptName.FindStringSubmatch(name)
	if parts == nil {
		return KeptDatabase{}, false
	}

	when, err := time.Parse(stampLayout, parts[2])
	if err != nil {
		return KeptDatabase{}, false
	}

	number, err := strconv.Atoi(cmp.Or(parts[3], "1"))
	return KeptDatabase{Name: name, Purpose: parts[1], Time: when, number: number}, err == nil
}

// compareKept is negative if a was replaced before b.
func compareKept(a KeptDatabase, b KeptDatabase) int {
	return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.number, b.number), cmp.Compare(a.Name, b.Name))
}

// keepName is the name under which a run keeps the database that it replaces now. Neither a database nor a report has it yet. Within a
// second the numbers grow, whatever the runs are for.
func (d directory) keepName(purpose string, now time.Time) (string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return "", err
	}

	last := 0
	for _, e := range entries {
		k, ok := parseKept(strings.TrimSuffix(e.Name(), reportSuffix))
		if ok && stamp(k.Time) == stamp(now) {
			last = max(last, k.number)
		}
	}

	name := "database.before-" + purpose + "-" + stamp(now)
	if last == 0 {
		return name, nil
	}

	return fmt.Sprintf("%s-%d", name, last+1), nil
}

// kept lists the kept database directories, newest first.
func (d directory) kept() ([]KeptDatabase, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}

	all := []KeptDatabase{}
	for _, e := range entries {
		k, ok := parseKept(e.Name())
		if !ok || !e.IsDir() || !isDatabase(d.join(k.Name)) {
			continue
		}

		k.Size, k.report = treeSize(d.join(k.Name)), d.runOf(k.Name)
		if k.report != nil {
			k.Run = k.report.ID
		}

		all = append(all, k)
	}

	slices.SortFunc(all, func(a, b KeptDatabase) int { return compareKept(b, a) })
	return all, nil
}

// KeptReport lists what is kept on this member.
type KeptReport struct {
	Directory string       `json:"directory" yaml:"directory"` // LXD's, which they are in
	Kept      []KeptDetail `json:"backups" yaml:"backups"`     // newest first
	Size      int64        `json:"size" yaml:"size"`           // of all of them, in bytes
}

// KeptDetail is a kept database with what it takes a look into it to know.
type KeptDetail struct {
	KeptDatabase `yaml:",inline"`
	Raft         *bundle.Position `json:"raft" yaml:"raft"`       // its last entry; null where its log cannot be read
	Healthy      bool             `json:"healthy" yaml:"healthy"` // its log is whole
	Report       string           `json:"report" yaml:"report"`   // name of the file with the report of the run that replaced it; empty where there is none
}

// KeptDatabases lists the databases that are kept, without a look into them.
func KeptDatabases(lxdDir string) ([]KeptDatabase, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return nil, err
	}

	return dir.kept()
}

// ListKept lists the databases that are kept. It changes nothing.
func ListKept(ctx context.Context, lxdDir string, progress Progress) (*KeptReport, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return nil, err
	}

	all, err := dir.kept()
	if err != nil {
		return nil, err
	}

	report := &KeptReport{Directory: dir.path, Kept: []KeptDetail{}, Size: sumSizes(all)}
	for _, b := range all {
		detail, err := dir.detail(ctx, b, progress)
		if err != nil {
			return nil, err
		}

		report.Kept = append(report.Kept, detail)
	}

	return report, nil
}

// detail looks into a kept database. That it cannot be read is no error: it may be kept for the very reason that it is damaged.
func (d directory) detail(ctx context.Context, b KeptDatabase, progress Progress) (KeptDetail, error) {
	detail := KeptDetail{KeptDatabase: b}
	if exists(d.join(b.Name + reportSuffix)) {
		detail.Report = b.Name + reportSuffix
	}

	log, err := readLog(ctx, d.join(b.Name, globalName), progress)
	if err == nil {
		detail.Raft, detail.Healthy = &bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, log.Healthy()
	}

	return detail, ctx.Err()
}

// Space is what the kept databases take in all.
type Space struct {
	Count int   `json:"count" yaml:"count"`
	Size  int64 `json:"size" yaml:"size"` // bytes
}

// space counts the kept databases. It is told and nothing depends on it, so what cannot be read is left out.
func (d directory) space() Space {
	all, _ := d.kept()
	return Space{Count: len(all), Size: sumSizes(all)}
}

func sumSizes(all []KeptDatabase) int64 {
	var n int64
	for _, b := range all {
		n += b.Size
	}

	return n
}

// findKept finds a kept directory by its name, or by its path, as an import prints it.
func (d directory) findKept(name string) (KeptDatabase, error) {
	all, err := d.kept()
	if err != nil {
		return KeptDatabase{}, err
	}

	inside := name == filepath.Base(name) || filepath.Dir(name) == d.path
	for _, b := range all {
		if inside && b.Name == filepath.Base(name) {
			return b, nil
		}
	}

	return KeptDatabase{}, fmt.Errorf("no kept database %q in %s; `lxd-recover global-db-kept list` lists them", name, d.path)
}
