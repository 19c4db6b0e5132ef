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

	report *RunReport // of that run; nil if it is not known
}

var keptName = regexp.MustCompile(`^database\.before-([a-z]+)-([0-9]{8}T[0-9]{6}Z)(-[0-9]+)?$`)

// kept lists the kept database directories, newest first.
func (d directory) kept() ([]KeptDatabase, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}

	all := []KeptDatabase{}
	for _, e := range entries {
		parts := keptName.FindStringSubmatch(e.Name())
		if parts == nil || !e.IsDir() {
			continue
		}

		if !isDatabase(d.join(e.Name())) {
			continue
		}

		when, err := time.Parse("20060102T150405Z", parts[2])
		if err != nil {
			continue
		}

		k := KeptDatabase{Name: e.Name(), Purpose: parts[1], Time: when, Size: treeSize(d.join(e.Name())), report: d.runOf(e.Name())}
		if k.report != nil {
			k.Run = k.report.ID
		}

		all = append(all, k)
	}

	slices.SortFunc(all, func(a, b KeptDatabase) int {
		return cmp.Or(b.Time.Compare(a.Time), len(b.Name)-len(a.Name), cmp.Compare(b.Name, a.Name))
	})

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
