// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/retention"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// ForgetOptions say which backups of a directory to keep.
type ForgetOptions struct {
	Directory string
	Keep      retention.Policy
	DryRun    bool // only say what would be removed

	member  string // only those of this member of the cluster; empty for all members of all clusters
	cluster string
}

// ForgetReport is what became of the backups in a directory.
type ForgetReport struct {
	Directory string            `json:"directory" yaml:"directory"`
	DryRun    bool              `json:"dry_run" yaml:"dry_run"`
	Backups   []ScheduledFile   `json:"backups" yaml:"backups"` // by cluster and member, the newest first
	Removed   int               `json:"removed" yaml:"removed"` // of these; with DryRun those that would be
	Freed     int64             `json:"freed" yaml:"freed"`     // bytes
	Others    map[string]string `json:"others" yaml:"others"`   // files that have the name of a backup and are left alone, and why
}

// ScheduledFile is a backup in a directory.
type ScheduledFile struct {
	Name    string    `json:"name" yaml:"name"`
	Member  string    `json:"member" yaml:"member"` // on which it was taken
	Cluster string    `json:"cluster_certificate" yaml:"cluster_certificate"`
	Time    time.Time `json:"time" yaml:"time"` // when it was begun, by that member's clock; UTC
	Size    int64     `json:"size" yaml:"size"` // bytes
	Kept    bool      `json:"kept" yaml:"kept"`
	Reasons []string  `json:"reasons" yaml:"reasons"` // why it is kept: see package retention

	info fs.FileInfo
}

var scheduledName = regexp.MustCompile(`^lxd-.+-[0-9]{8}T[0-9]{6}Z\.tar\.gz$`)

// scheduledFileName is the name of a backup of a member.
func scheduledFileName(member string, at time.Time) string {
	return fmt.Sprintf("lxd-%s-%s.tar.gz", member, stamp(at))
}

// Forget removes the backups of a directory that a policy does not keep. The backups of each member of each cluster are looked at by themselves. Only files are
// removed that are named like scheduled backups, and whose manifest says that they are backups; never the newest of a member.
func Forget(ctx context.Context, opts ForgetOptions) (*ForgetReport, error) {
	err := opts.Keep.Validate()
	if err != nil {
		return nil, fmt.Errorf("what to keep of backups: %w", err)
	}

	root, err := os.OpenRoot(opts.Directory)
	if err != nil {
		return nil, err
	}

	defer root.Close()

	report := &ForgetReport{Directory: opts.Directory, DryRun: opts.DryRun, Backups: []ScheduledFile{}, Others: map[string]string{}}
	err = report.find(ctx, root)
	if err != nil {
		return nil, err
	}

	report.Backups = slices.DeleteFunc(report.Backups, func(f ScheduledFile) bool {
		return opts.member != "" && (f.Member != opts.member || f.Cluster != opts.cluster)
	})
	report.apply(opts.Keep, time.Now())
	if opts.DryRun {
		return report, nil
	}

	return report, report.remove(ctx, root)
}

// find lists the backups in the directory.
func (r *ForgetReport) find(ctx context.Context, root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}

	for _, e := range entries {
		if !scheduledName.MatchString(e.Name()) {
			continue
		}

		file, err := readScheduled(ctx, root, e.Name())
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // somebody else has removed it
		case err != nil:
			r.Others[e.Name()] = err.Error()
		default:
			r.Backups = append(r.Backups, *file)
		}
	}

	slices.SortFunc(r.Backups, func(a, b ScheduledFile) int {
		return cmp.Or(strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Member, b.Member), b.Time.Compare(a.Time), strings.Compare(b.Name, a.Name))
	})
	return nil
}

// readScheduled reads the head of a backup. The error says why it is none.
func readScheduled(ctx context.Context, root *os.Root, name string) (*ScheduledFile, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}

	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}

	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	manifest, err := bundle.ReadHead(ctx, f)
	if err != nil {
		return nil, err
	}

	if !manifest.IsBackup() {
		return nil, errors.New("it is a recovery tarball, and no backup")
	}

	return &ScheduledFile{Name: name, Member: manifest.Source.Name, Cluster: manifest.Cluster.Certificate, Time: manifest.Backup.Began.UTC(),
		Size: info.Size(), Reasons: []string{}, info: info}, nil
}

// apply decides which of the backups, which are in order, are kept.
func (r *ForgetReport) apply(policy retention.Policy, now time.Time) {
	for rest := r.Backups; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Member == rest[0].Member && rest[n].Cluster == rest[0].Cluster {
			n++
		}

		times := make([]time.Time, n)
		for i := range times {
			times[i] = rest[i].Time
		}

		for i, reasons := range policy.Apply(now, times) {
			rest[i].Kept = len(reasons) > 0
			rest[i].Reasons = append(rest[i].Reasons, reasons...)
			if !rest[i].Kept {
				r.Removed++
				r.Freed += rest[i].Size
			}
		}

		rest = rest[n:]
	}
}

// remove removes what is not kept, the oldest first.
func (r *ForgetReport) remove(ctx context.Context, root *os.Root) error {
	for _, f := range slices.Backward(r.Backups) {
		if f.Kept {
			continue
		}

		if ctx.Err() != nil {
			return ctx.Err()
		}

		now, err := root.Lstat(f.Name)
		if err == nil && !os.SameFile(now, f.info) { // another file has got its name since
			return fmt.Errorf("%s was replaced meanwhile, and is left alone: run the command again", filepath.Join(r.Directory, f.Name))
		}

		if err == nil {
			err = root.Remove(f.Name)
		}

		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a backup: %w", err)
		}
	}

	if r.Removed == 0 {
		return nil
	}

	return swapdir.SyncDir(r.Directory)
}
