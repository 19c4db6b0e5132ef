// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/tests/repository"
)

// LXD is one build of LXD, or of Incus: where its programs and libraries are, what it calls things, and what it does that others do not.
type LXD struct {
	Name   string // for messages and subtests: "LXD 5.0.2"
	BinDir string // holds the programs of Names
	LibDir string // for LD_LIBRARY_PATH; empty if the programs find their libraries by themselves
	Names  Names

	// Image is the root directory of a Debian that has this build installed, for machines; empty: the guests' image is taken, which has
	// Debian's LXD.
	Image string

	// WritesTarball says that its `lxd cluster edit` writes a recovery tarball, with which the edited member does not start, and
	// that its daemon loads one (5.21.3 and later, 6.2 and later).
	WritesTarball bool

	// KeepsTerm says that its own edit gives the recovery entry the term of the entry before it, instead of 1.
	KeepsTerm bool

	// FailsWith is a regular expression for a daemon's last words when a start fails that would have succeeded on another try; empty
	// where no such failure is known.
	FailsWith string
}

// Names is what LXD and Incus call their own.
type Names struct {
	Product string // in what people read
	Daemon  string // the daemon's program
	Client  string // the client's program
	Admin   string // begins the commands for the administrator of one server: `lxd init`, `incus admin init`
	Dir     string // the variable that says where its directory is
	Conf    string // the variable that says where the client's configuration is
	Home    string // where its directory is if nothing else is said
}

var (
	lxdNames   = Names{Product: "LXD", Daemon: "lxd", Client: "lxc", Admin: "lxd", Dir: "LXD_DIR", Conf: "LXD_CONF", Home: "/var/lib/lxd"}
	incusNames = Names{Product: "Incus", Daemon: "incusd", Client: "incus", Admin: "incus admin", Dir: "INCUS_DIR", Conf: "INCUS_CONF",
		Home: "/var/lib/incus"}
)

// losesLeader is how each of them ends when the leader is lost while it starts, as on a machine so busy that the leader's heartbeats come
// late. A service manager starts it again then, and so must whoever runs it without one: see docs/architecture.md, "LXD's own failing
// starts".
const losesLeader = `(?i)Failed to initialize global database: .*(interrupted|leader exec failed|no available (dqlite|cowsql) leader server found|` +
	`context deadline exceeded|context canceled|check(ing)? if schema table is there)`

// EachLXD runs a test on both generations of LXD, as subtests, side by side: they wait for elections and heartbeats most of the
// time. It must be the last call of the test.
func EachLXD(t *testing.T, test func(t *testing.T, lxd LXD)) {
	t.Helper()
	onEach(t, test, Debian, LXD6)
}

// EachProduct is EachLXD on both generations of LXD and on Incus.
func EachProduct(t *testing.T, test func(t *testing.T, build LXD)) {
	t.Helper()
	onEach(t, test, Debian, LXD6, Incus)
}

func onEach(t *testing.T, test func(t *testing.T, build LXD), builds ...func() (LXD, error)) {
	t.Helper()
	for _, find := range builds {
		build, err := find()
		if err != nil {
			t.Fatal(err)
		}

		t.Run(build.Name, func(t *testing.T) {
			t.Parallel()
			test(t, build)
		})
	}
}

// Debian returns Debian's LXD 5.0.2 as `make test-deps` unpacks it into .deps/lxd5 of this repository.
func Debian() (LXD, error) {
	root, err := repository.Root()
	if err != nil {
		return LXD{}, err
	}

	tree := filepath.Join(root, ".deps", "lxd5")
	_, err = os.Stat(filepath.Join(tree, ".done"))
	if err != nil {
		return LXD{}, fmt.Errorf("no LXD to test with in %s: run `make test-deps` first", tree)
	}

	libs, err := filepath.Glob(filepath.Join(tree, "root/usr/lib/*/libdqlite.so.0"))
	if err != nil || len(libs) != 1 {
		return LXD{}, fmt.Errorf("%s has %d libdqlite.so.0, want one: remove it and run `make test-deps`", tree, len(libs))
	}

	return LXD{
		Name:   "LXD 5.0.2",
		BinDir: filepath.Join(tree, "root/usr/bin"),
		LibDir: filepath.Dir(libs[0]),
		Names:  lxdNames,

		FailsWith: losesLeader,
	}, nil
}

// LXD6 returns LXD 6.6 as `make test-peers` builds it into .deps/lxd6 of this repository.
func LXD6() (LXD, error) {
	root, err := repository.Root()
	if err != nil {
		return LXD{}, err
	}

	dir := filepath.Join(root, ".deps", "lxd6")
	_, err = os.Stat(filepath.Join(dir, ".done"))
	if err != nil {
		return LXD{}, fmt.Errorf("no LXD 6.6 to test with in %s: run `make test-peers` first", dir)
	}

	return LXD{
		Name:          "LXD 6.6",
		BinDir:        filepath.Join(dir, "bin"),
		Names:         lxdNames,
		WritesTarball: true,
		FailsWith:     losesLeader,
	}, nil
}

// Incus returns Debian 13's Incus 6.0.4 as `make test-peers` puts it into .deps/incus of this repository.
func Incus() (LXD, error) {
	root, err := repository.Root()
	if err != nil {
		return LXD{}, err
	}

	dir := filepath.Join(root, ".deps", "incus")
	_, err = os.Stat(filepath.Join(dir, ".done"))
	if err != nil {
		return LXD{}, fmt.Errorf("no Incus to test with in %s: run `make test-peers` first", dir)
	}

	return LXD{
		Name:      "Incus 6.0.4",
		BinDir:    filepath.Join(dir, "bin"),
		Names:     incusNames,
		Image:     filepath.Join(dir, "root"),
		KeepsTerm: true,
		FailsWith: losesLeader,
	}, nil
}

// check says early and clearly what would otherwise fail late inside a namespace.
func (l LXD) check() error {
	for _, program := range []string{l.Names.Daemon, l.Names.Client} {
		_, err := os.Stat(filepath.Join(l.BinDir, program))
		if err != nil {
			return fmt.Errorf("%s: %w", l.Name, err)
		}
	}

	return nil
}

// notInherited are the variables that must not reach LXD or a client: they would point it at another LXD, or lead it out of
// its namespace through a proxy.
var notInherited = []string{"LXD_", "INCUS_", "XDG_", "LD_", "NOTIFY_", "LISTEN_", "HOME=", "PATH=", "EDITOR=", "VISUAL=",
	"HTTP_PROXY=", "HTTPS_PROXY=", "ALL_PROXY=", "NO_PROXY="}

// environ is this process's environment with LXD's programs first in PATH, without anything listed in notInherited.
func (l LXD) environ() []string {
	var env []string
next:
	for _, variable := range os.Environ() {
		for _, prefix := range notInherited {
			if strings.HasPrefix(strings.ToUpper(variable), prefix) {
				continue next
			}
		}

		env = append(env, variable)
	}
	env = append(env, "PATH="+l.BinDir+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "EDITOR=false", "VISUAL=false")
	if l.LibDir != "" {
		env = append(env, "LD_LIBRARY_PATH="+l.LibDir)
	}

	return env
}
