// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// Kinds of sources, of which more is to be known than what they are called.
const (
	kindLXD    = "LXD directory"
	kindKept   = "kept database"
	kindBackup = "LXD database backup"
	kindOwn    = "backup" // that global-db-backup has made

	kindArchive = "archive" // its newest part
)

// isKind tells whether a source is of a kind, in the words of any product.
func isKind(kind string, of string) bool {
	return slices.ContainsFunc(product.All, func(p *product.Product) bool { return p.Text(of) == kind })
}

// Source is a global database to look into: a directory, or a tarball unpacked to a scratch directory.
type Source struct {
	Path   string // as it was given
	Kind   string // what it is, in words
	global string // the raft directory
	nodes  string // the directory that holds local.db, empty where there is none

	product  *product.Product  // whose database it is, LXD if nothing tells
	app      *application      // that it is of if that is not LXD
	database string            // that was chosen, of one that may have several
	bundle   *bundle.Extracted // of a recovery tarball
	daemon   string            // the daemon that runs on it, empty where none does
	remove   func()
}

// Close removes what a tarball was unpacked to.
func (s *Source) Close() {
	if s.remove != nil {
		s.remove()
	}
}

// openSource finds out what a path is: LXD's directory, a database/ or global/ directory, a recovery tarball (ours or LXD's
// own), or one of LXD's database backups. An empty path is this machine's LXD. Directories are only read, also beside a
// running daemon.
func openSource(ctx context.Context, name string, progress Progress) (*Source, error) {
	if name == "" {
		dir, err := FindLXD()
		if err != nil {
			return nil, err
		}

		name = dir
	}

	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}

	if !info.IsDir() {
		return openTarball(ctx, name, info.Size(), progress)
	}

	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}

	isArchive := archive.Is(abs)
	if isArchive {
		abs, err = newestPart(abs)
	} else {
		err = lackingIn(abs)
	}

	if err != nil {
		return nil, err
	}

	s := &Source{Path: name, product: product.LXD}
	switch {
	case exists(filepath.Join(abs, databaseName, globalName)):
		s.Kind, s.nodes = kindLXD, filepath.Join(abs, databaseName)
		s.global = filepath.Join(s.nodes, globalName)
	case s.openApplication(abs):
	case exists(filepath.Join(abs, globalName)):
		s.Kind, s.nodes, s.global = "database directory", abs, filepath.Join(abs, globalName)
		if keptName.MatchString(filepath.Base(abs)) {
			s.Kind = kindKept
		}

	default:
		s.Kind, s.global = kindRaft, abs
		if filepath.Base(abs) == globalName && exists(filepath.Join(filepath.Dir(abs), nodedb.File)) {
			s.nodes = filepath.Dir(abs)
		} else if filepath.Base(abs) != globalName && !isArchive {
			s.app = &application{}
		}
	}

	if isArchive {
		s.Kind = kindArchive
	}

	p, known := knownProduct(ctx, s.global)
	if s.isApplication() {
		p, known = s.app.product, true
	}

	if known {
		s.product = p
		product.Use(p)
	}

	if !s.isApplication() {
		s.Kind = product.Text(s.Kind)
	}

	files, err := raftFiles(s.global)
	if len(files) == 0 && s.isApplication() && (err == nil || errors.Is(err, os.ErrNotExist)) {
		return nil, s.app.lacksDatabase(s)
	}

	if err != nil {
		return nil, err
	}

	if len(files) == 0 {
		return nil, product.Errorf("%s holds no global database of LXD: neither metadata nor segments are in %s", name, s.global)
	}

	holders, err := daemon.Writers(s.global)
	if err != nil {
		return nil, err
	}

	if len(holders) > 0 {
		s.daemon = holders[0].String()
	}

	return s, nil
}

// newestPart is the directory of an archive's part that was added to last.
func newestPart(dir string) (string, error) {
	parts, err := partsOf(dir)
	if err != nil {
		return "", err
	}

	return parts[0].Dir, nil
}

func openTarball(ctx context.Context, name string, size int64, progress Progress) (*Source, error) {
	dir, remove, err := scratch.Dir("source")
	if err != nil {
		return nil, err
	}

	s := &Source{Path: name, product: product.LXD, global: filepath.Join(dir, globalName), remove: remove}
	err = s.unpack(ctx, dir, size, progress)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}

	if s.isApplication() {
		s.product = s.app.product
		product.Use(s.product)
	}

	return s, nil
}

func (s *Source) unpack(ctx context.Context, scratch string, size int64, progress Progress) error {
	f, err := newfile.Open(s.Path)
	if err != nil {
		return err
	}

	defer f.Close()

	done := progress.start("Reading "+s.Path, size)
	defer done()

	err = os.Mkdir(s.global, 0o700)
	if err != nil {
		return err
	}

	isBackup, err := bundle.IsBackup(ctx, f)
	if err != nil {
		return err
	}

	_, err = f.Seek(0, io.SeekStart)
	if err != nil {
		return err
	}

	if isBackup {
		s.Kind, s.nodes = product.Text(kindBackup), scratch
		return s.unpackBackup(ctx, f, scratch, progress)
	}

	root, err := os.OpenRoot(s.global)
	if err != nil {
		return err
	}

	defer root.Close()

	s.bundle, err = bundle.Extract(ctx, f, root, bundle.ExtractOptions{Progress: progress.add, Microcluster: true})
	if err != nil {
		return err
	}

	s.Kind = "recovery tarball"
	if s.bundle.Manifest != nil {
		s.product = product.ByName(s.bundle.Manifest.Cluster.Product)
	}

	switch {
	case s.bundle.Microcluster:
		s.Kind, s.app = kindMicroclusterTarball, &application{product: product.Microcluster, recovered: s.bundle.Members}
		s.bundle = nil
	case s.bundle.Manifest == nil:
		s.Kind = product.Text("recovery tarball of LXD's own")
	case s.bundle.Manifest.IsBackup():
		s.Kind = kindOwn
	}

	return nil
}

func (s *Source) unpackBackup(ctx context.Context, r io.Reader, scratch string, progress Progress) error {
	root, err := os.OpenRoot(scratch)
	if err != nil {
		return err
	}

	defer root.Close()

	ofMicrocluster, err := bundle.ExtractBackup(ctx, r, root, progress.add)
	if err != nil {
		return err
	}

	if ofMicrocluster {
		s.Kind, s.nodes, s.app = kindMicroclusterBackup, "", &application{product: product.Microcluster}
	}

	// An LXD that was interrupted makes one.
	files, err := raftFiles(s.global)
	if err == nil && len(files) == 0 {
		err = errors.New("this backup has no global database: there is no file of raft in database/global")
	}

	return err
}

// names are the members' names, as far as the source tells them: a log can be read without.
func (s *Source) names(ctx context.Context, log *raftlog.Log) (member.List, error) {
	if s.isApplication() {
		return s.app.names(ctx, s, log, nil)
	}

	return s.lxdNames(ctx), nil
}

func (s *Source) lxdNames(ctx context.Context) member.List {
	if s.bundle != nil {
		return s.bundle.Members
	}

	if s.nodes == "" || !exists(filepath.Join(s.nodes, nodedb.File)) {
		return nil
	}

	node, err := nodedb.Read(ctx, s.nodes)
	if err != nil {
		return nil
	}

	return node.Members
}

// inPlace tells whether a source is a directory, whose files have their own times, and not unpacked from a tarball.
func (s *Source) inPlace() bool { return s.remove == nil }

// damageOf is what is wrong with a source's log, nil where it is healthy.
func damageOf(src *Source, log *raftlog.Log) *DamageError {
	if log.Healthy() {
		return nil
	}

	advice := fmt.Sprintf("What is shown is sound, up to index %d.", log.SoundIndex)
	if len(log.LeftOut) > 0 {
		advice += " It leaves out:"
		for _, o := range log.LeftOut {
			advice += "\n  " + o.String()
		}
	}

	return &DamageError{What: src.Path, Problems: log.Problems, Advice: advice}
}

// within checks that the database can be told at an index.
func within(src *Source, log *raftlog.Log, index uint64) error {
	oldest := globaldb.Oldest(log)
	switch {
	case log.SoundIndex == 0:
		return &DamageError{What: src.Path, Problems: log.Problems, Advice: "Nothing in its log is sound."}
	case index > log.LastIndex:
		return fmt.Errorf("%s ends at index %d: there is no index %d", src.Path, log.LastIndex, index)
	case index > log.SoundIndex:
		return &DamageError{What: src.Path, Problems: log.Problems, Advice: fmt.Sprintf("It is sound up to index %d: nothing can be said about index %d.",
			log.SoundIndex, index)}
	case index < oldest:
		return fmt.Errorf("%s reaches no further back than index %d: what was before is in its snapshot, where one entry cannot be told from another",
			src.Path, oldest)
	}

	return nil
}

// Looking at a directory in which a daemon works may fail for no other reason than that: files get other names, and an entry that is
// being written looks like damage. So it is looked at again, after pauses that double: for more than 6 seconds, as a segment that libdqlite
// closes for a snapshot looks like one whose end is lost until a busy disk has it.
const (
	liveTries = 8
	livePause = 50 * time.Millisecond
)

// whileLive has a directory looked at until nothing is wrong with it, as far as that may come from a daemon that works there. With the
// last try what is wrong counts, and so it does at once if no daemon runs.
func whileLive(ctx context.Context, live bool, look func(last bool) (sound bool, err error)) error {
	for try, pause := 1, livePause; ; try, pause = try+1, 2*pause {
		last := !live || try == liveTries
		sound, err := look(last)
		if last || sound && err == nil {
			return err
		}

		select {
		case <-ctx.Done():
			return ctx.Err() // even if the look has no error: what it saw does not count
		case <-time.After(pause):
		}
	}
}

// liveLog is the log in a raft directory.
type liveLog struct {
	global   string
	live     bool // a daemon works in the directory
	progress Progress
	opts     raftlog.Options
}

// read hands the log to use; again if a daemon got in the way of the reading or the use.
func (l liveLog) read(ctx context.Context, use func(log *raftlog.Log) (sound bool, err error)) error {
	return whileLive(ctx, l.live, func(last bool) (bool, error) {
		log, letGo, err := openLive(ctx, l.global, l.live, l.progress, l.opts)
		defer letGo()

		if err != nil || !log.HealthySoFar() && !last {
			return false, err
		}

		return use(log)
	})
}

// log is the log of a source, as it is to be read.
func (s *Source) log(progress Progress) liveLog {
	return liveLog{global: s.global, live: s.daemon != "", progress: progress, opts: raftlog.Options{Database: s.databaseName()}}
}

// readSource opens a source, reads its log and hands both to use; again if LXD got in the way.
func readSource(ctx context.Context, source string, progress Progress, use func(*Source, *raftlog.Log) error) error {
	return readSourceDatabase(ctx, source, "", progress, use)
}

// readSourceDatabase is readSource for one of several databases, empty for the only one.
func readSourceDatabase(ctx context.Context, source string, database string, progress Progress, use func(*Source, *raftlog.Log) error) error {
	src, err := openSource(ctx, source, progress)
	if err != nil {
		return err
	}

	defer src.Close()

	err = src.choose(database)
	if err != nil {
		return err
	}

	return src.log(progress).read(ctx, func(log *raftlog.Log) (bool, error) {
		return true, use(src, log)
	})
}
