// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// lab is what all tests start from: a real cluster of three, killed, whose first member was edited and exported.
type lab struct {
	dir     string           // for its own files
	cluster *cluster.Cluster // saved as "edited"
	tarball string
	rows    []string // profiles that its database holds
	edited  tree     // LXD's directory of the first member, after `lxd cluster edit`

	imported *job // the import on the second member
	repaired *job // the same where that has lost its node database
	undone   *job // the rollback of that import
	changed  *job // `cluster edit` of our own, on the first member as it was before LXD's
	mended   *job // the repair of the first member as it was before that, after its last write was cut short

	identity *job // the restore of the second member's identity on a new machine; see identity_test.go
}

// jobs are the commands that are tried. The import without a node database differs from the other one in few calls, and is left to a
// campaign.
func (l *lab) jobs() []*job {
	list := []*job{l.imported, l.undone, l.changed, l.mended}
	if everything {
		list = append(list, l.repaired)
	}

	return list
}

// job is a command on an LXD directory, and what it makes of it.
type job struct {
	name  string
	args  []string
	input string // file for standard input
	start tree   // LXD's directory before
	old   tree   // its database/
	new   tree   // database/ after, in a clean run; without the record, which has the time in it
	keeps string // how the name begins under which it keeps the old one
}

// recordName is the file that an import leaves in the database it made: which import that was, and when.
const recordName = "lxd-recover.yaml"

// getLab returns the lab of LXD 5.0.2, which is made once.
func getLab(t testing.TB) *lab {
	t.Helper()
	l, err := theLab()
	must(t, err)
	return l
}

// getLab6 returns the one of LXD 6.6. It is for what a real LXD does in these tests: ours reads and writes the same of both.
func getLab6(t testing.TB) *lab {
	t.Helper()
	l, err := theLab6()
	must(t, err)
	return l
}

var (
	theLab  = sync.OnceValues(func() (*lab, error) { return newLab(cluster.Debian) })
	theLab6 = sync.OnceValues(func() (*lab, error) { return newLab(cluster.LXD6) })
)

// labs are those that were made.
var labs []*lab

// closeLabs ends their clusters.
func closeLabs() {
	for _, l := range labs {
		err := l.cluster.Close()
		if err != nil {
			fmt.Fprintln(os.Stderr, "faults: close the cluster:", err)
		}
	}
}

func newLab(find func() (cluster.LXD, error)) (*lab, error) {
	ctx, cancel := progress.Within(context.Background(), 5*time.Minute)
	defer cancel()
	lxd, err := find()
	if err != nil {
		return nil, err
	}

	dir, err := os.MkdirTemp(base, "lab-")
	if err != nil {
		return nil, err
	}

	c, err := cluster.New(ctx, cluster.Options{LXD: lxd, Log: os.Stderr})
	if err != nil {
		return nil, err
	}

	l := &lab{cluster: c, dir: dir, tarball: filepath.Join(dir, "lxd_recovery_db.tar.gz")}
	labs = append(labs, l)
	return l, l.make(ctx)
}

func (l *lab) make(ctx context.Context) error {
	c := l.cluster
	for i := range 5 {
		name := fmt.Sprintf("row-%d", i)
		err := c.Member(1).CreateProfile(ctx, name)
		if err != nil {
			return err
		}

		l.rows = append(l.rows, name)
	}

	err := l.makeIdentity(ctx)
	if err != nil {
		return err
	}

	c.KillAll()
	err = errors.Join(l.makeChanged(ctx), l.makeMended())
	if err != nil {
		return err
	}

	err = c.Member(1).EditReplace(ctx, ":8443", ":9393")
	if err == nil {
		err = c.Save(ctx, "edited")
	}

	if err != nil {
		return err
	}

	out, err := c.Member(1).Command(ctx, tool, "cluster", "export-db", l.tarball).CombinedOutput()
	if err != nil {
		return fmt.Errorf("export: %w: %s", err, out)
	}

	l.edited, err = readTree(c.Member(1).Dir())
	if err != nil {
		return err
	}

	start, err := readTree(c.Member(2).Dir())
	if err != nil {
		return err
	}

	addExtras(start)
	l.imported = &job{name: "import", args: []string{"global-db-import", "--yes", l.tarball}, start: start, keeps: "database.before-import-"}
	after, err := l.imported.learn(filepath.Join(l.dir, "run"))
	if err != nil {
		return err
	}

	err = l.makeRepaired(start)
	if err != nil {
		return err
	}

	l.undone = &job{name: "rollback", args: []string{"global-db-rollback", "--yes"}, start: after, keeps: "database.before-rollback-"}
	_, err = l.undone.learn(filepath.Join(l.dir, "run"))
	return err
}

// makeRepaired makes the job that imports on a member that has lost its node database.
func (l *lab) makeRepaired(start tree) error {
	data, err := os.ReadFile(filepath.Join(l.cluster.Member(1).Dir(), "database/local.db"))
	if err != nil {
		return err
	}

	other := filepath.Join(l.dir, "node1-local.db")
	err = os.WriteFile(other, data, 0o600)
	if err != nil {
		return err
	}

	lost := start.without("database/local.db")
	l.repaired = &job{
		name: "import without local.db", args: []string{"global-db-import", "--yes", "--node-db", other, l.tarball},
		start: lost, keeps: "database.before-import-",
	}
	_, err = l.repaired.learn(filepath.Join(l.dir, "run"))
	return err
}

// makeChanged makes the job that edits the first member.
func (l *lab) makeChanged(ctx context.Context) error {
	list, err := l.cluster.Member(1).ShowYAML(ctx)
	if err != nil {
		return err
	}

	input := filepath.Join(l.dir, "members.yaml")
	err = os.WriteFile(input, bytes.ReplaceAll(list, []byte(":8443"), []byte(":9393")), 0o600)
	if err != nil {
		return err
	}

	start, err := readTree(l.cluster.Member(1).Dir())
	if err != nil {
		return err
	}

	addExtras(start)
	l.changed = &job{name: "edit", args: []string{"cluster", "edit"}, input: input, start: start, keeps: "database.before-edit-"}
	_, err = l.changed.learn(filepath.Join(l.dir, "run"))
	return err
}

// makeMended makes the job that repairs the first member.
func (l *lab) makeMended() error {
	start, err := readTree(l.cluster.Member(1).Dir())
	if err != nil {
		return err
	}

	addExtras(start)
	err = cutShort(start, l.cluster.Member(1).Dir())
	if err != nil {
		return err
	}

	l.mended = &job{name: "repair", args: []string{"global-db-repair", "--yes"}, start: start, keeps: "database.before-repair-"}
	_, err = l.mended.learn(filepath.Join(l.dir, "run"))
	return err
}

// cutShort leaves of a batch that was to be written after the last one of a member's log no more than its first block. That has to be
// repaired, and takes nothing away from the other members, who cannot be asked.
func cutShort(lxd tree, dir string) error {
	log, err := raftlog.Open(context.Background(), os.DirFS(filepath.Join(dir, "database", "global")), raftlog.Options{})
	if err != nil {
		return err
	}

	for _, s := range log.Segments {
		if !s.Open || s.Unused {
			continue
		}

		const block = 4096
		name := "database/global/" + s.File
		n := lxd[name]
		n.content = bytes.Clone(n.content)
		batch := raftlog.AppendBatch(nil, raftlog.Entry{Term: s.LastTerm, Type: raftlog.CommandEntry, Data: bytes.Repeat([]byte{1}, 2*block)})
		copy(n.content[s.End:(s.End/block+1)*block], batch)
		lxd[name] = n
		return nil
	}

	return errors.New("the member has no open segment with entries")
}

// addExtras puts things into a member's database directory that an import must carry over, of every sort that there may be.
func addExtras(lxd tree) {
	when := time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC)
	lxd["database/local.db.bak"] = node{mode: 0o640, gid: 7, modified: when, content: []byte("kept by LXD")}
	lxd["database/notes"] = node{mode: fs.ModeDir | 0o750, uid: 7, modified: when}
	lxd["database/notes/today"] = node{mode: 0o400, uid: 7, gid: 7, modified: when, content: []byte("by hand")}
	lxd["database/link"] = node{mode: fs.ModeSymlink | 0o777, gid: 7, modified: when, content: []byte("notes/today")}
}

// learn runs the job once without a fault, on two copies, and notes what it makes of the database: twice the same. It
// returns LXD's directory afterwards.
func (j *job) learn(dir string) (tree, error) {
	j.old = j.start.sub("database")
	p, err := newPlace(dir)
	if err != nil {
		return nil, err
	}

	var after [2]tree
	for i := range after {
		err = p.reset(j.start)
		if err != nil {
			return nil, err
		}

		r := p.run(j)
		if r.status != 0 {
			return nil, fmt.Errorf("%s without a fault: %s", j.name, r)
		}

		after[i], err = readTree(p.lxd())
		if err != nil {
			return nil, err
		}
	}

	j.new = after[1].sub("database").without(recordName)
	diff, err := j.differs(after[0].sub("database"))
	if err != nil {
		return nil, err
	}

	if diff != "" {
		return nil, fmt.Errorf("the %s makes two different databases of one: %s", j.name, diff)
	}

	if j.old.differ(j.new, false) == "" {
		return nil, errors.New("old and new database are the same: nothing could be told from them")
	}

	return after[1], nil
}

// place is a directory to run jobs in, one after the other.
type place struct {
	dir    string
	output string // file for what traced runs print
	number int    // of the worker that it is for

	// after, where there is one, is called after every run, before anybody looks at what it left.
	after func() error
}

func newPlace(dir string) (*place, error) {
	return &place{dir: dir, output: filepath.Join(dir, "output")}, os.MkdirAll(dir, 0o700)
}

func (p *place) lxd() string { return filepath.Join(p.dir, "lxd") }
func (p *place) tmp() string { return filepath.Join(p.dir, "tmp") }

// reset makes LXD's directory what it is at the start of a job, and empties the one for temporary files.
func (p *place) reset(start tree) error {
	err := errors.Join(os.RemoveAll(p.lxd()), os.RemoveAll(p.tmp()), os.MkdirAll(p.tmp(), 0o700))
	if err != nil {
		return err
	}

	err = start.write(p.lxd())
	if err != nil || p.after == nil {
		return err
	}

	return p.sync()
}

// sync brings everything in the place to its disk.
func (p *place) sync() error {
	dir, err := os.Open(p.dir)
	if err != nil {
		return err
	}

	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// sub returns what is in one directory of a tree.
func (t tree) sub(dir string) tree {
	part := tree{}
	for name, n := range t {
		rest, ok := strings.CutPrefix(name, dir+"/")
		switch {
		case name == dir:
			part["."] = n
		case ok:
			part[rest] = n
		}
	}

	return part
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
