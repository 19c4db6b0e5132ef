// SPDX-License-Identifier: AGPL-3.0-only

//go:build libsqlite3

package engine

// Without this tag github.com/mattn/go-sqlite3 compiles SQLite into the program, and libdqlite uses that one. With it both use the
// system's. Never link -lsqlite3 without the tag: there would be two.

// #cgo LDFLAGS: -lsqlite3
import "C"
