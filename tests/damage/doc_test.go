// SPDX-License-Identifier: AGPL-3.0-only

// Package damage gives damaged raft directories to the real libdqlite, and compares what it does with what raftlog said that it would
// do. libdqlite ruins the directories, and it can take its process down: each question is a child process, this very test program once
// more, and a copy of the directory.
//
// TestTruth and TestReadings damage directories whose whole log is known, and compare what raftlog gives back with that.
//
// The undamaged directories and the damage are raftlogtest's. What raftlog says of each of them, without libdqlite, is tested in
// internal/raftlog.
package damage

import (
	"os"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == childCommand {
		os.Exit(runChild(os.Args[2], os.Args[3]))
	}

	code := m.Run()
	raftlogtest.Cleanup()
	os.Exit(code)
}
