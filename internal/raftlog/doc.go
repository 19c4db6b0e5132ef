// SPDX-License-Identifier: AGPL-3.0-only

// Package raftlog reads the raft directory of dqlite (LXD's database/global): metadata, segments, snapshots, configurations and
// commands, with every checksum. It answers two questions, apart: what the disk holds, the fullest log that the files prove (see
// [Reading]), and what libdqlite would make of them (see [Loaded]).
//
// It exists because libdqlite cannot be asked: merely looking at a directory with it deletes, renames and truncates files, drops good
// entries after a damaged one, reports success, and on some inputs crashes the process. So the first rule here is that reading changes
// nothing: the package works on an [io/fs.FS], never opens anything for writing, and never calls libdqlite.
//
// The second rule is that input is hostile. Every length is compared with what the file can hold before memory is allocated for it,
// memory is bounded by one batch of entries whatever the size of the directory, and damage is never an error or a panic but a [Problem]
// with the place, the reason, what libdqlite would do about it and what the operator can do.
//
// The third rule is caution: [Log.Healthy] is true only when every version of libdqlite from 1.11 to 1.18 would load the directory and
// have all that the disk holds; and where the files can be read as several logs, none is taken silently.
//
// How a directory is read, and what can never be known, is in docs/raft-directory.md, "Readings".
//
// All integers on disk are unsigned and little endian, except inside SQLite's own pages. Nothing in this package knows about LXD.
package raftlog
