// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// agentDir is where a program that is carried along lies, in DIGEST.PID/lxd-recover, where PID is the agent's. So no agent is in another
// one's way: each removes its own directory, and whose process is dead may be removed by any. All of it is root's, mode 0700. It is not
// in /run, which may be mounted noexec. Tests have it elsewhere.
var agentDir = "/var/lib/lxd-recover/agent"

// programName is the program's name there.
const programName = "lxd-recover"

var carriedName = regexp.MustCompile(`^[0-9a-f]{64}\.[0-9]+$`)

// removeCarried removes this program if it is one that was carried along, and the directories that are empty then.
func removeCarried() {
	program, err := os.Executable()
	if err != nil {
		return
	}

	dir, err := filepath.EvalSymlinks(agentDir) // /var may be a link
	if err != nil {
		return
	}

	own := filepath.Dir(program)
	if filepath.Base(program) != programName || !carriedName.MatchString(filepath.Base(own)) || filepath.Dir(own) != dir {
		return
	}

	_ = os.RemoveAll(own)
	_ = os.Remove(dir) // these two only if they are empty
	_ = os.Remove(filepath.Dir(dir))
}

// sweep removes what agents have left that were killed. What cannot be removed is in nobody's way.
func sweep() {
	entries, err := os.ReadDir(agentDir)
	if err != nil {
		return
	}

	for _, e := range entries {
		_, pid, _ := strings.Cut(e.Name(), ".")
		_, err = os.Stat("/proc/" + pid)
		if carriedName.MatchString(e.Name()) && errors.Is(err, os.ErrNotExist) {
			_ = os.RemoveAll(filepath.Join(agentDir, e.Name()))
		}
	}
}
