// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"os"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	raftlogtest.Cleanup()
	os.Exit(code)
}
