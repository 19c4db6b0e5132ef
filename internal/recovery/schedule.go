// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/retention"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// scheduleFormat is the version of the configuration of scheduled backups.
const scheduleFormat = 1

// Names of what belongs to scheduled backups.
const (
	scheduleName     = "backup.yaml"          // the configuration: it is there as long as they are enabled
	backupStateName  = "backup-state.json"    // of the last run
	backupLockName   = "backup.lock"          // held by a run
	backupMarkName   = ".lxd-recover-backups" // in the directory of the backups
	backupArchiveDir = "archive-"             // there, too, and the member's name
)

// MaxArchiveDays is the highest number of days that an archive may be told to reach back.
const MaxArchiveDays = 36500

// Intervals are how often backups may be taken, by the names that systemd has for them.
var intervals = map[string]time.Duration{"hourly": time.Hour, "daily": 24 * time.Hour, "weekly": 7 * 24 * time.Hour}

// Intervals returns the names of the intervals at which backups may be taken, the shortest first.
func Intervals() []string {
	names := slices.Collect(maps.Keys(intervals))
	slices.SortFunc(names, func(a, b string) int { return int(intervals[a] - intervals[b]) })
	return names
}

// Schedule is the configuration of backups that are taken at set times.
type Schedule struct {
	Format    int              `json:"-" yaml:"format"`
	Enabled   time.Time        `json:"enabled" yaml:"enabled"`     // UTC
	Directory string           `json:"directory" yaml:"directory"` // of the backups
	Every     string           `json:"every" yaml:"every"`         // see Intervals
	Keep      retention.Policy `json:"keep" yaml:"keep"`
	Archive   bool             `json:"archive" yaml:"archive"` // keep the raft log, too

	// Identity is whom each backup's identity is encrypted for, see sealed.LockFor; none: backups are without.
	Identity []string `json:"identity" yaml:"identity,omitempty"`

	ArchiveDays uint  `json:"archive_days" yaml:"archive_days,omitempty"` // that the archive reaches back; 0: all
	ArchiveSize int64 `json:"archive_size" yaml:"archive_size,omitempty"` // bytes that it may have; 0: any
}

// scheduleDirs returns where the configuration and the state of scheduled backups are: for the package, and for the snap. Tests put other directories there.
var scheduleDirs = func() (config string, state string) {
	if InOwnSnap() {
		return ownSnapCommon, ownSnapCommon
	}

	return "/etc/lxd-recover", product.Text("/var/lib/lxd-recover")
}

// ownSnapCommon is $SNAP_COMMON of lxd-recover's snap: what calls us as `lxd` does not set that.
const ownSnapCommon = "/var/snap/lxd-recover/common"

var ownSnapProgram = regexp.MustCompile(`^(/var/lib/snapd)?/snap/lxd-recover/[^/]+/bin/`)

// InOwnSnap tells whether this program runs out of its snap.
func InOwnSnap() bool {
	program, err := os.Executable()
	return err == nil && ownSnapProgram.MatchString(program)
}

func schedulePath() string {
	config, _ := scheduleDirs()
	return filepath.Join(config, scheduleName)
}

func statePath(name string) string {
	_, state := scheduleDirs()
	return filepath.Join(state, name)
}

// validate checks what the administrator may have written.
func (s *Schedule) validate() error {
	switch {
	case !filepath.IsAbs(s.Directory):
		return fmt.Errorf("the directory %q is no absolute path", s.Directory)
	case s.ArchiveDays > MaxArchiveDays || s.ArchiveSize < 0:
		return fmt.Errorf("archive_days takes 0 to %d, and archive_size 0 or more", MaxArchiveDays)
	case intervals[s.Every] == 0:
		return fmt.Errorf("every %q is none of %s", s.Every, strings.Join(Intervals(), ", "))
	}

	err := s.Keep.Validate()
	if err != nil {
		return fmt.Errorf("what to keep of backups: %w", err)
	}

	return nil
}

// lock is whom identities are encrypted for; nil without.
func (s *Schedule) lock() (*sealed.Lock, error) {
	if len(s.Identity) == 0 {
		return nil, nil
	}

	return sealed.LockFor(s.Identity)
}

// readSchedule returns the configuration, or nil where no backups are scheduled.
func readSchedule() (*Schedule, error) {
	path := schedulePath()
	data, err := newfile.Read(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	s := &Schedule{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err = dec.Decode(s)
	switch {
	case err != nil:
	case s.Format != scheduleFormat:
		err = fmt.Errorf("format %d, and this lxd-recover reads format %d: use the version that wrote it", s.Format, scheduleFormat)
	default:
		err = s.validate()
	}

	if err != nil {
		return nil, fmt.Errorf("%s: %w; `lxd-recover backup enable` writes it anew", path, err)
	}

	return s, nil
}

func (s *Schedule) write() error {
	s.Format = scheduleFormat
	data, err := yaml.Marshal(s)
	if err != nil {
		return err
	}

	return replaceSmall(schedulePath(), append([]byte("# Written by `lxd-recover backup enable`.\n"), data...))
}

// replaceSmall writes a small file, mode 0600, all or nothing, and makes its directory.
func replaceSmall(path string, data []byte) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err != nil {
		return err
	}

	return swapdir.WriteFile(path, data)
}

// Timer is what has backups taken at set times.
type Timer interface {
	// Known returns an error where there is no such timer.
	Known(ctx context.Context) error

	// Enable switches it on. One that is on takes the new interval, see Intervals.
	Enable(ctx context.Context, every string) error

	// Disable switches it off. It may be off.
	Disable(ctx context.Context) error
}

// EnableBackupsOptions say what is to be taken where to, and when.
type EnableBackupsOptions struct {
	LXDDir string
	Schedule
	Timer Timer // nil where something else calls `lxd-recover backup run`
}

// EnableBackupsReport is what was enabled.
type EnableBackupsReport struct {
	Schedule `yaml:",inline"`
	File     string   `json:"file" yaml:"file"` // the configuration
	Timer    bool     `json:"timer" yaml:"timer"`
	Warnings []string `json:"warnings" yaml:"warnings"`
}

// EnableBackups has backups taken at set times from now on. Where they are already, what is given here takes the place of what was.
func EnableBackups(ctx context.Context, opts EnableBackupsOptions) (*EnableBackupsReport, error) {
	s := opts.Schedule
	s.Enabled = time.Now().UTC()
	err := s.validate()
	if err != nil {
		return nil, err
	}

	dir, err := openDirectory(opts.LXDDir)
	if err == nil {
		err = dir.clusterOnly(ctx)
	}

	if err == nil {
		err = dir.keepBackupsOut(s.Directory)
	}

	if err == nil && opts.Timer != nil {
		err = opts.Timer.Known(ctx)
	}

	if err != nil {
		return nil, err
	}

	report := &EnableBackupsReport{File: schedulePath(), Timer: opts.Timer != nil, Warnings: []string{}}
	report.Warnings, err = makeBackupDir(s.Directory)
	if err != nil {
		return nil, err
	}

	before, err := newfile.Read(report.File)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}

	err = s.write()
	if err != nil {
		return nil, err
	}

	report.Schedule = s
	if opts.Timer == nil {
		return report, nil
	}

	err = opts.Timer.Enable(ctx, s.Every)
	if err != nil { // nothing is scheduled that was not before
		return nil, errors.Join(err, restoreSmall(report.File, before))
	}

	return report, nil
}

// restoreSmall gives a small file the content of before, or removes it if there was none.
func restoreSmall(path string, before []byte) error {
	if before != nil {
		return replaceSmall(path, before)
	}

	return removeDurably(path)
}

// keepBackupsOut refuses a directory for backups that goes where LXD goes, or where this snap goes.
func (d directory) keepBackupsOut(path string) error {
	err := d.keepOut(filepath.Join(path, "any"))
	if err != nil {
		return err
	}

	parent := realParent(filepath.Join(path, "any"))
	places := []string{d.path}
	if InOwnSnap() { // snapd removes these with the snap
		places = append(places, filepath.Dir(ownSnapCommon))
	}

	for _, place := range places {
		real, err := filepath.EvalSymlinks(place)
		if err == nil && (parent == real || strings.HasPrefix(parent, strings.TrimSuffix(real, "/")+"/")) {
			return &Refusal{Code: "backups-in-lxd", Reason: fmt.Sprintf("%s is in %s, and what happens to that happens to the backups: "+
				"name a directory elsewhere, on another disk if there is one", path, place)}
		}
	}

	return nil
}

// makeBackupDir makes the directory for backups, which may be there, and marks it. What it is in must exist, as what is to be mounted there may not be.
func makeBackupDir(path string) (warnings []string, err error) {
	warnings = []string{}
	err = os.Mkdir(path, 0o700)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist: make it, or mount what it is on", filepath.Dir(path))
	case err != nil && !errors.Is(err, os.ErrExist):
		return nil, err
	}

	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}

	if !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory", path)
	}

	if info.Mode().Perm()&0o077 != 0 {
		warnings = append(warnings, fmt.Sprintf("other users than root may look into %s, or write to it: its mode is %04o. "+
			"The backups themselves are root's alone, but whoever may write there may delete them: `chmod 700 %[1]s` mends it", path, info.Mode().Perm()))
	}

	mark := filepath.Join(path, backupMarkName)
	if exists(mark) {
		return warnings, nil
	}

	return warnings, replaceSmall(mark,
		[]byte(product.Text("Backups of LXD's global database by lxd-recover. Where this file is missing no backup is written.\n")))
}

// DisableBackupsReport is what was disabled.
type DisableBackupsReport struct {
	Enabled   bool   `json:"was_enabled" yaml:"was_enabled"`
	Directory string `json:"directory" yaml:"directory"` // where the backups are, which stay
}

// DisableBackups ends what EnableBackups began. Backups stay, and a run that is under way goes on.
func DisableBackups(ctx context.Context, timer Timer) (*DisableBackupsReport, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}

	report := &DisableBackupsReport{Enabled: exists(schedulePath())}
	s, err := readSchedule()
	if err == nil && s != nil { // one that cannot be read is removed, too
		report.Directory = s.Directory
	}

	err = timer.Disable(ctx)
	if err != nil {
		return nil, err
	}

	return report, removeDurably(schedulePath())
}
