package recovery

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/nodedb"
)

// Backup is a database directory that an import or a rollback replaced and kept.
type Backup struct {
	Name    string    `json:"name" yaml:"name"`       // in LXD's directory
	Purpose string    `json:"purpose" yaml:"purpose"` // what replaced it: import or rollback
	Time    time.Time `json:"time" yaml:"time"`       // when
	Size    int64     `json:"size" yaml:"size"`       // bytes of all files in it
}

var backupName = regexp.MustCompile(`^database\.before-([a-z]+)-([0-9]{8}T[0-9]{6}Z)(-[0-9]+)?$`)

// backups lists the kept database directories, newest first.
func (d directory) backups() ([]Backup, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}

	all := []Backup{}
	for _, e := range entries {
		parts := backupName.FindStringSubmatch(e.Name())
		if parts == nil || !e.IsDir() {
			continue
		}

		_, err = os.Stat(d.join(e.Name(), nodedb.File))
		if err != nil {
			continue
		}

		when, err := time.Parse("20060102T150405Z", parts[2])
		if err != nil {
			continue
		}

		all = append(all, Backup{Name: e.Name(), Purpose: parts[1], Time: when, Size: treeSize(d.join(e.Name()))})
	}

	slices.SortFunc(all, func(a, b Backup) int {
		return cmp.Or(b.Time.Compare(a.Time), len(b.Name)-len(a.Name), cmp.Compare(b.Name, a.Name))
	})

	return all, nil
}

// treeSize is the sum of the sizes of all files below dir, in bytes.
func treeSize(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}

		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}

		return nil
	})

	return n
}
