// SPDX-License-Identifier: AGPL-3.0-only

// Package product says in which ways LXD and Incus differ, which have the same database: their names, directories, files, programs and engine.
// One value has it all, and what is in a directory decides which: no other code asks for a product by its name.
//
// Messages are written in LXD's words in the code, and Text has them in the words of the product that this process works on, as gettext has them
// in a reader's language. Only constant texts go through it, never what they are filled with: a member called LXD keeps its name.
package product

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
)

// Engine is the raft engine that a product keeps its database with.
type Engine int

const (
	// Dqlite is libdqlite, of all versions from 1.11 on.
	Dqlite Engine = iota

	// Cowsql is libcowsql with its own raft, a fork of libdqlite 1.14. Snapshots are raw, and need be no LZ4 frames since 0.17.3. The entry of a recovery
	// has the term of the entry before it, and not 1, since 0.20.
	Cowsql
)

// RawSnapshots tells whether the engine writes and reads snapshots that are no LZ4 frames.
func (e Engine) RawSnapshots() bool { return e == Cowsql }

// String is what people call it.
func (e Engine) String() string {
	if e == Cowsql {
		return "cowsql"
	}

	return "libdqlite"
}

// RecoversInTerm tells whether a recovery's entry has the term of the entry before it.
func (e Engine) RecoversInTerm() bool { return e == Cowsql }

// Product is LXD or one of its relatives.
type Product struct {
	Name   string
	Engine Engine

	Variable    string   // the variable of the environment that names its directory
	Directories []string // where it has its directory, the likeliest first
	mark        string   // what only it makes in its directory
	patches     []string // names in the table patches of its node database that LXD does not have

	Program  string   // of the daemon, which the front-end takes the place of
	Prefix   string   // the word that may stand before `cluster` on the program's command line
	Programs []string // the directories with the program, if PATH has none

	Loads   string // the tarball in its database directory that it loads when it starts; empty if there is none
	Unpacks string // where it unpacks that

	Tarball string // what an export is called by default
	Backup  string // what a backup is called by default

	Units []string // units of systemd whose journals tell what it did

	words *strings.Replacer
}

// LXD is Canonical's LXD, as a snap or as a package.
var LXD = &Product{
	Name:        "LXD",
	Variable:    "LXD_DIR",
	Directories: []string{"/var/snap/lxd/common/lxd", "/var/lib/lxd"},
	mark:        "devlxd",
	Program:     "lxd",
	Programs:    []string{"/snap/bin", "/var/lib/snapd/snap/bin", "/usr/bin", "/usr/sbin"},
	Loads:       "lxd_recovery_db.tar.gz",
	Unpacks:     "global.recover",
	Tarball:     "lxd_recovery_db.tar.gz",
	Backup:      "lxd_database_backup.tar.gz",
	Units:       []string{"lxd.service", "lxd.socket", "snap.lxd.daemon.service", "snap.lxd.daemon.unix.socket"},
	words:       strings.NewReplacer(),
}

// Incus is LXD's fork, 6.0 and later. Its packages have the daemon where PATH does not look, and `incus admin ARGUMENTS` starts it from there.
var Incus = &Product{
	Name:        "Incus",
	Engine:      Cowsql,
	Variable:    "INCUS_DIR",
	Directories: []string{"/var/lib/incus"},
	mark:        "guestapi",
	patches:     []string{"runtime_directory", "lvm_node_force_reuse", "auth_openfga_viewer"},
	Program:     "incusd",
	Prefix:      "admin",
	Programs:    []string{"/usr/libexec/incus", "/usr/lib/incus", "/opt/incus/bin", "/usr/bin", "/usr/sbin"},
	Tarball:     "incus_recovery_db.tar.gz",
	Backup:      "incus_database_backup.tar.gz",
	Units:       []string{"incus.service", "incus.socket", "incus-startup.service"},
	words: strings.NewReplacer(
		"/var/lib/lxd-recover", "/var/lib/lxd-recover", "lxd-recover", "lxd-recover", // as they are, whatever comes below
		"/var/snap/lxd/common/lxd", "/var/lib/incus", "/var/lib/lxd", "/var/lib/incus",
		"`snap install lxd`", "the package incus",
		"LXD_DIR", "INCUS_DIR",
		"lxd_recovery_db", "incus_recovery_db", "lxd_database_backup", "incus_database_backup",
		"lxd cluster ", "incus admin cluster ", "lxd sql ", "incus admin sql ", "lxd shutdown", "incus admin shutdown",
		"lxd global-db-", "incusd global-db-",
		"lxc ", "incus ",
		"lxd-has-run", "lxd-has-run", "lxd-runs", "lxd-runs", "lxd-down", "lxd-down",
		`"lxd"`, `"incusd"`, "`lxd`", "`incusd`", "lxd in this PATH", "incusd in this PATH",
		"/lxd-$(date", "/incus-$(date", "lxd.tar.gz", "incus.tar.gz", "DIR/lxd-NAME", "DIR/incus-NAME", "/lxd,", "/incusd,", "/lxd ", "/incusd ",
		"LXD", "Incus",
	),
}

// All are the products that there are, those first that are looked for first.
var All = []*Product{LXD, Incus}

// Of is the product whose directory this is, by what is in it; LXD if nothing tells.
func Of(dir string) *Product {
	p, known := Known(dir)
	if !known {
		return LXD
	}

	return p
}

// Known is the product whose directory this is, if what is in it, or where it is, tells.
func Known(dir string) (p *Product, known bool) {
	for _, p := range slices.Backward(All) { // an Incus that was an LXD may have what LXD has made as well
		_, err := os.Stat(filepath.Join(dir, p.mark))
		if err == nil {
			return p, true
		}
	}

	for _, p := range All {
		if slices.Contains(p.places(), filepath.Clean(dir)) {
			return p, true
		}
	}

	return nil, false
}

// ByPatches is the product of a node database, by the names in its table patches. An Incus that was an LXD has the patches of both.
func ByPatches(applied []string) *Product {
	for _, p := range All {
		if slices.ContainsFunc(p.patches, func(name string) bool { return slices.Contains(applied, name) }) {
			return p
		}
	}

	return LXD
}

// ByName is the product with that name, LXD if none has it.
func ByName(name string) *Product {
	for _, p := range All {
		if p.Name == name {
			return p
		}
	}

	return LXD
}

// places are where a product may have its directory: where its variable says, or the usual ones.
func (p *Product) places() []string {
	dir := os.Getenv(p.Variable)
	if dir != "" {
		return []string{filepath.Clean(dir)}
	}

	return p.Directories
}

// Places are where the directory of a product may be: where one of the variables says, or the usual ones; of all products, unless Only was called.
func Places() []string {
	var named, usual []string
	for _, p := range All {
		if only.Load() != nil && only.Load() != p {
			continue
		}

		dir := os.Getenv(p.Variable)
		if dir != "" {
			named = append(named, dir)
		}

		usual = append(usual, p.Directories...)
	}

	if named != nil {
		return named
	}

	return usual
}

// current is the product whose words this process uses. only is the one that it works on, nil for any.
var current, only atomic.Pointer[Product]

// Only has this process work on a product and no other one.
func Only(p *Product) {
	only.Store(p)
	Use(p)
}

// Use has this process use the words of a product from now on.
func Use(p *Product) { current.Store(p) }

// Current is the product whose words this process uses: LXD until Use says another one.
func Current() *Product {
	p := current.Load()
	if p == nil {
		return LXD
	}

	return p
}

// Text is a text of this program's, written in LXD's words, in those of the current product. What is said of several products is not for it.
func Text(text string) string { return Current().Text(text) }

// Text is a text of this program's, written in LXD's words, in those of the product.
func (p *Product) Text(text string) string { return p.words.Replace(text) }

// Error is an error of a constant text in LXD's words, which it has in those of the current product.
type Error string

func (e Error) Error() string { return Text(string(e)) }

// ByProgram is the product whose daemon's program has this name; nil if none has.
func ByProgram(path string) *Product {
	for _, p := range All {
		if filepath.Base(path) == p.Program {
			return p
		}
	}

	return nil
}
