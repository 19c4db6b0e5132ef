// SPDX-License-Identifier: AGPL-3.0-only

// Package recovery holds the use cases: export a member's global database, import it on another member, roll that back,
// and tell how a member stands. Each is one function that takes a context and its options and returns a report; it knows
// nothing of the command line, and asks through callbacks.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Names inside LXD's directory and inside its database directory.
const (
	databaseName = "database"
	stagingName  = "database.import"
	globalName   = "global"
	patchName    = "patch.global.sql"
	recordName   = "lxd-recover.yaml" // what the import left in a database directory, see Record
	lockName     = "dqlite-lock"
)

// clusterCertificateName is the file in LXD's directory with the cluster certificate. A standalone server has none.
const clusterCertificateName = "cluster.crt"

// serverCertificateName is the file in LXD's directory with this server's own certificate.
const serverCertificateName = "server.crt"

// FindLXD returns LXD's directory on this machine: $LXD_DIR, else the snap's, else the package's; or Incus's, by the same rules. With databases of both,
// one of the variables has to say which is meant.
func FindLXD() (string, error) {
	candidates := product.Places()
	if len(candidates) == 1 {
		return filepath.Abs(candidates[0])
	}

	found := ""
	for _, dir := range candidates {
		_, err := os.Stat(filepath.Join(dir, databaseName))
		switch {
		case err != nil && !errors.Is(err, os.ErrPermission):
		case found == "":
			found = dir
		case product.Of(found) != product.Of(dir):
			return "", fmt.Errorf("there is a database of %s in %s, and one of %s in %s: set %s or %s to the directory that is meant",
				product.Of(found).Name, found, product.Of(dir).Name, dir, product.Of(found).Variable, product.Of(dir).Variable)
		}
	}

	if found != "" {
		return found, nil
	}

	for _, dir := range candidates {
		if (directory{dir}).identityBegun() != nil { // what opens it says so
			return dir, nil
		}
	}

	return "", errors.New("no LXD found in " + strings.Join(candidates, " or ") + ": set LXD_DIR to its directory, or INCUS_DIR to that of an Incus")
}

// directory is LXD's directory on this machine.
type directory struct{ path string }

// openDirectory checks that path is an LXD directory that we may work on; an empty one is this machine's, see FindLXD.
func openDirectory(path string) (directory, error) {
	if path == "" {
		found, err := FindLXD()
		if err != nil {
			return directory{}, err
		}

		path = found
	}

	d := directory{path: path}
	err := refuseApplication(path)
	if err != nil {
		return d, err
	}

	product.Use(d.product())
	if os.Geteuid() != 0 {
		return d, ErrNotRoot
	}

	_, err = os.Stat(d.database())
	if errors.Is(err, os.ErrNotExist) {
		begun := d.identityBegun()
		if begun != nil {
			return d, errors.New(begun.text(d))
		}

		return d, product.Errorf("%s is not the directory of an LXD: %s is missing; set LXD_DIR to the one that is", path, d.database())
	}

	if err != nil {
		return d, err
	}

	// Where one of the two is missing, what needs it says so itself: it is still an LXD's directory, and may be repaired.
	if !isDatabase(d.database()) {
		return d, product.Errorf("%s is not the directory of an LXD: neither %s nor %s is there; set LXD_DIR to the one that is", path, d.global(), d.local())
	}

	return d, nil
}

// openToChange opens a directory that is about to be changed and keeps other lxd-recover processes away from it until the
// returned function is called. A member that is part of a run over the whole cluster is changed by that run alone.
func openToChange(path string) (directory, func(), error) {
	d, unlock, err := openAlone(path)
	if err != nil {
		return d, nil, err
	}

	err = d.refuseOpenRun()
	if err != nil {
		unlock()
		return d, nil, err
	}

	return d, unlock, nil
}

// openAlone is openToChange for the run over the whole cluster itself.
func openAlone(path string) (directory, func(), error) {
	d, err := openDirectory(path)
	if err != nil {
		return d, nil, err
	}

	// A look at the status locks the directory for a moment, too: that is no reason to give up.
	for range lockTries {
		unlock, err := d.lock(unix.LOCK_EX)
		if !errors.Is(err, ErrBusy) {
			return d, unlock, err
		}

		time.Sleep(lockPause)
	}

	unlock, err := d.lock(unix.LOCK_EX)
	return d, unlock, err
}

// How often, and how far apart, the lock is tried.
const (
	lockTries = 10
	lockPause = 20 * time.Millisecond
)

// Idle returns an error while an import, a rollback, an edit or a repair is under way in an LXD directory.
func Idle(path string) error {
	d, err := openDirectory(path)
	if err != nil {
		return nil // and nothing to be changed, either
	}

	unlock, err := d.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}

	unlock()
	return nil
}

func (d directory) database() string { return filepath.Join(d.path, databaseName) }
func (d directory) global() string   { return filepath.Join(d.path, databaseName, globalName) }
func (d directory) local() string    { return filepath.Join(d.path, databaseName, nodedb.File) }
func (d directory) join(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}

// ErrBusy says that an import, a rollback, an edit or a repair is under way.
var ErrBusy = errors.New("another lxd-recover is working")

// lock keeps other lxd-recover processes away from the directory until the returned function is called. It is a flock on
// the directory itself: no file is left, and the kernel lets go when the process ends.
func (d directory) lock(how int) (func(), error) {
	f, err := os.Open(d.path)
	if err != nil {
		return nil, err
	}

	err = flock(f, how)
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w on %s: wait until it is done", ErrBusy, d.path)
		}

		return nil, fmt.Errorf("lock %s: %w", d.path, err)
	}

	return func() { _ = f.Close() }, nil
}

// lockDqlite takes the lock that libdqlite (1.16.5 and later) holds while a raft node runs, where its file exists.
func lockDqlite(global string) (func(), error) {
	path := filepath.Join(global, lockName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}

	if err != nil {
		return nil, err
	}

	err = flock(f, unix.LOCK_EX)
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is locked: a raft node still runs on it; `fuser %s` tells which process, stop that first", path, path)
		}

		return nil, fmt.Errorf("lock %s: %w", path, err)
	}

	return func() { _ = f.Close() }, nil
}

// flock locks a file, or fails at once with EWOULDBLOCK where somebody else has it locked.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// clusterCertificate returns the fingerprint of the cluster certificate.
func (d directory) clusterCertificate() (string, error) {
	print, err := fingerprint(d.join(clusterCertificateName))
	if errors.Is(err, os.ErrNotExist) {
		return "", d.errNoCertificate()
	}

	return print, err
}

// errNoCertificate is what is wrong with a member of a cluster that has no cluster certificate.
func (d directory) errNoCertificate() error {
	return fmt.Errorf("%s is missing: copy it, and cluster.key, from another member: all members have the same ones", d.join(clusterCertificateName))
}

// serverCertificate returns the fingerprint of this member's own certificate.
func (d directory) serverCertificate() (string, error) {
	return fingerprint(d.join(serverCertificateName))
}

// readLog reads the raft directory of a member or of a staged database.
func readLog(ctx context.Context, global string, progress Progress) (*raftlog.Log, error) {
	return openLog(ctx, global, progress, raftlog.Options{})
}

func openLog(ctx context.Context, global string, progress Progress, opts raftlog.Options) (*raftlog.Log, error) {
	log, _, err := openLive(ctx, global, false, progress, opts)
	return log, err
}

// openLive reads a raft directory in which a daemon works if it is live: then its files as they were in one moment, which are held until letGo. The log
// reads of them when it is asked for entries. letGo is never nil.
func openLive(ctx context.Context, global string, live bool, progress Progress, opts raftlog.Options) (log *raftlog.Log, letGo func(), err error) {
	err = checkGlobal(global)
	if err != nil {
		return nil, func() {}, err
	}

	if !live {
		log, err = openFiles(ctx, global, os.DirFS(global), progress, opts)
		return log, func() {}, err
	}

	held, err := raftlog.HoldAll(ctx, global)
	if err != nil {
		return nil, func() {}, err
	}

	opts.Live = true
	log, err = openFiles(ctx, global, held, progress, opts)
	return log, held.Close, err
}

func openFiles(ctx context.Context, global string, files fs.FS, progress Progress, opts raftlog.Options) (*raftlog.Log, error) {
	done := progress.start("Checking "+global, dirSize(global))
	defer done()

	opts.Progress = progress.add
	opts = engineOptions(ctx, global, opts)
	log, err := raftlog.Open(ctx, files, opts)
	if err != nil {
		return nil, err
	}

	return settle(ctx, files, log, opts)
}

// namedServers gives the servers of a raft configuration the names that the members have in LXD.
func namedServers(servers raftlog.Configuration, names member.List) member.List {
	list := make(member.List, len(servers))
	for i, s := range servers {
		known, _ := names.ByID(s.ID)
		list[i] = member.Member{ID: s.ID, Name: known.Name, Address: s.Address, Role: s.Role}
	}

	return list
}

// stamp is a time as it stands in the names of kept directories: UTC, to the second, without characters that need quoting.
func stamp(t time.Time) string { return t.UTC().Format(stampLayout) }

const stampLayout = "20060102T150405Z"

// withCertificate finds the one of these members that a database knows by a certificate.
func withCertificate(ctx context.Context, db *globaldb.DB, members member.List, certificate string) (m member.Member, ok bool, err error) {
	for _, m := range members {
		its, err := db.MemberCertificate(ctx, m.Name)
		if err != nil {
			return member.Member{}, false, err
		}

		if its == certificate {
			return m, true, nil
		}
	}

	return member.Member{}, false, nil
}
