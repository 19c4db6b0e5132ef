// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/cli"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// oursVariable is set once the test process is in its own namespaces.
const oursVariable = "LXD_RECOVER_CLUSTERRUN_NAMESPACE"

// TestMain is the program itself, or a relay, if it was started as a child. The tests run in a mount namespace of their own, so that whatever ends them no
// mount stays, and in a network namespace without a network: a run asks at the members' addresses.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "relay":
		os.Exit(relay(os.Args[2:]))
	case len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-"):
		os.Exit(cli.Main(os.Args))
	case os.Getenv(oursVariable) == "":
		fmt.Fprintln(os.Stderr, "own namespaces (as root):", ownNamespace())
		os.Exit(1)
	}

	status := m.Run()
	raftlogtest.Cleanup()
	_ = os.RemoveAll(template.root)
	os.Exit(status)
}

// ownNamespace runs this program again in namespaces that end with it.
func ownNamespace() error {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}

	self, err := os.Executable()
	if err != nil {
		return err
	}

	args := append([]string{unshare, "--net", "--mount", "--propagation", "private", "--", self}, os.Args[1:]...)
	return syscall.Exec(unshare, args, append(os.Environ(), oursVariable+"=1"))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lab is a cluster of three that were stopped; node3 lacks what the others have committed. Nothing starts an LXD there.
type lab struct {
	t      testing.TB
	dirs   map[string]string // LXD's directories, by the members' names
	mu     sync.Mutex
	events []clusterrun.Event
	asked  []clusterrun.Question
	no     string // code of a question that is answered with no
	down   string // a member that is not reached
	from3  bool   // runs are given with the database of node3
}

// template is what all labs begin with; it is made once.
var template struct {
	once sync.Once
	root string // has a directory for each member
}

func newLab(t testing.TB) *lab {
	t.Helper()
	template.once.Do(func() {
		root, err := os.MkdirTemp("", "lxd-recover-clusterrun-")
		must(t, err)
		makeTemplate(t, root)
		template.root = root
	})
	if template.root == "" {
		t.Fatal("another test could not make the template")
	}

	return newLabFrom(t, template.root)
}

// newOtherLab is a lab of another cluster.
func newOtherLab(t testing.TB) *lab {
	t.Helper()
	root := t.TempDir()
	makeTemplate(t, root)
	return newLabFrom(t, root)
}

func newLabFrom(t testing.TB, root string) *lab {
	t.Helper()
	l := &lab{t: t, dirs: map[string]string{}}
	for i := range 3 {
		name := fmt.Sprintf("node%d", i+1)
		l.dirs[name] = t.TempDir()
		must(t, os.CopyFS(l.dirs[name], os.DirFS(filepath.Join(root, name))))
	}

	return l
}

func makeTemplate(t testing.TB, root string) {
	t.Helper()
	key := bundletest.Key(t)
	der := bundletest.Certificate(t, key, time.Now().Add(-time.Hour))
	fixtures := filepath.Join(raftlogtest.Fixtures(t), "forgotten")
	log, err := raftlog.Open(t.Context(), os.DirFS(filepath.Join(fixtures, "n1-preedit/database/global")), raftlog.Options{})
	must(t, err)
	db, err := globaldb.Open(t.Context(), log, log.LastIndex)
	must(t, err)
	defer db.Close()

	certificates, err := db.Certificates(t.Context())
	must(t, err)
	for i := range 3 {
		name := fmt.Sprintf("node%d", i+1)
		dir := filepath.Join(root, name)
		must(t, os.CopyFS(filepath.Join(dir, "database"), os.DirFS(filepath.Join(fixtures, fmt.Sprintf("n%d-preedit/database", i+1)))))
		bundletest.WritePair(t, dir, "cluster", der, key)
		own := slices.IndexFunc(certificates, func(c globaldb.Certificate) bool { return c.Name == name })
		must(t, os.WriteFile(filepath.Join(dir, "server.crt"), []byte(certificates[own].PEM), 0o600))
	}
}

// options are those of a run from node1.
func (l *lab) options() clusterrun.Options {
	from := ""
	if l.from3 {
		from = "node3"
	}

	return clusterrun.Options{
		From: from, Version: "test", Giver: "here", Here: true, NoStart: true, StartTime: time.Second,
		Connect: func(_ context.Context, m clusterrun.Member) (agent.Agent, error) { return l.connect(m) },
		Ask: func(_ context.Context, q clusterrun.Question) error {
			l.mu.Lock()
			defer l.mu.Unlock()

			l.asked = append(l.asked, q)
			if q.Code == l.no {
				return errNo
			}

			return nil
		},
		Event: func(e clusterrun.Event) {
			l.mu.Lock()
			defer l.mu.Unlock()

			l.events = append(l.events, e)
		},
	}
}

var errNo = errors.New("no")

func (l *lab) connect(m clusterrun.Member) (agent.Agent, error) {
	name := m.Name
	if name == "" {
		name = "node1"
	}

	if name == l.down {
		return nil, errors.New("no route to host")
	}

	return agent.NewLocal(agent.Options{LXDDir: l.dirs[name], Version: "test", Timeout: time.Minute}), nil
}

// contents are digests of the members' databases, by their names.
func (l *lab) contents() map[string]string {
	l.t.Helper()
	all := map[string]string{}
	for name, dir := range l.dirs {
		sum := sha256.New()
		root := os.DirFS(filepath.Join(dir, "database"))
		entries := []string{}
		must(l.t, filepath.WalkDir(filepath.Join(dir, "database"), func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				entries = append(entries, path)
			}

			return err
		}))
		_ = root
		for _, path := range entries {
			data, err := os.ReadFile(path)
			must(l.t, err)
			fmt.Fprintf(sum, "%s %d\n", strings.TrimPrefix(path, dir), len(data))
			sum.Write(data)
		}

		all[name] = fmt.Sprintf("%x", sum.Sum(nil))
	}

	return all
}

// ends are the last index and term of the members' logs, by their names.
func (l *lab) ends() map[string]string {
	l.t.Helper()
	all := map[string]string{}
	for name, dir := range l.dirs {
		log, err := raftlog.Open(l.t.Context(), os.DirFS(filepath.Join(dir, "database/global")), raftlog.Options{})
		must(l.t, err)
		all[name] = fmt.Sprintf("%d/%d", log.LastIndex, log.LastTerm)
	}

	return all
}

// wantOne wants all of these members to have one new database, whole, and nothing to be left of the run.
func (l *lab) wantNew(names ...string) {
	l.t.Helper()
	ends := l.ends()
	rows := map[string]bool{}
	for _, name := range names {
		if ends[name] != ends[names[0]] {
			l.t.Errorf("not one database: %v", ends)
		}

		log, err := raftlog.Open(l.t.Context(), os.DirFS(filepath.Join(l.dirs[name], "database/global")), raftlog.Options{})
		must(l.t, err)
		db, err := globaldb.Open(l.t.Context(), log, log.LastIndex)
		must(l.t, err)
		found := 0
		must(l.t, db.Query(l.t.Context(), "SELECT name FROM profiles WHERE name = 'lostrow'", globaldb.Receiver{
			Columns: func([]string) error { return nil },
			Row:     func([]any) error { found++; return nil },
		}))
		must(l.t, db.Close())
		rows[name] = found == 1
		if found != 1 {
			l.t.Errorf("%s lacks a committed row", name)
		}
	}

	l.wantClean()
}

// wantClean wants nothing of a run to be left but kept databases.
func (l *lab) wantClean() {
	l.t.Helper()
	for _, dir := range l.dirs {
		left, err := filepath.Glob(filepath.Join(dir, "database.*"))
		must(l.t, err)
		left = slices.DeleteFunc(left, func(path string) bool {
			return strings.Contains(path, ".before-") || strings.HasSuffix(path, "high-water.yaml")
		})
		if len(left) > 0 {
			l.t.Errorf("left: %v", left)
		}
	}
}

func (l *lab) wantOld(before map[string]string) {
	l.t.Helper()
	if now := l.contents(); !maps.Equal(now, before) {
		l.t.Errorf("not all have what they had: %v, before %v", now, before)
	}

	l.wantClean()
}

func (l *lab) codes() (codes []string) {
	for _, q := range l.asked {
		codes = append(codes, q.Code)
	}

	return codes
}
