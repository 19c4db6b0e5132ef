// SPDX-License-Identifier: AGPL-3.0-only

package product

import "strings"

// Microcluster and GoDqlite are applications of go-dqlite, which have the same database and nothing else of LXD: MicroCloud, MicroCeph and MicroOVN; and
// k8s-dqlite, MicroK8s and Juju. They are none of All: nothing looks for them, and nothing changes them.
var (
	Microcluster = &Product{Name: "microcluster", Tarball: "recovery_db.tar.gz", words: applicationWords}
	GoDqlite     = &Product{Name: "go-dqlite", words: applicationWords}
)

// applicationWords has of LXD's words what a look at a database says.
var applicationWords = strings.NewReplacer(
	"lxd-recover", "lxd-recover",
	"LXD runs on this", "The application runs on this", "LXD RUNS", "the application RUNS",
	"LXD's directory or database/, not global/", "the application's directory",
	"LXD's", "the application's", "LXD", "the application",
)

// IsApplication tells whether a product, by its name, is one of these.
func IsApplication(name string) bool { return name == Microcluster.Name || name == GoDqlite.Name }
