// SPDX-License-Identifier: AGPL-3.0-only

package machines

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is the most resident memory that processes of lxd-recover have had, bytes.
type Memory struct {
	Giver    int64
	Agents   map[string]int64 // by the members' names
	Children int64            // of the largest child process of an agent, in which libdqlite is
}

// memoryPause is how far apart two looks are. What a process has had so far is never forgotten by the kernel, until its end.
const memoryPause = 50 * time.Millisecond

// WatchMemory watches all processes of lxd-recover in the machines until stop is called.
func (l *Lab) WatchMemory() (stop func() Memory) {
	seen := Memory{Agents: map[string]int64{}}
	machines := map[uint64]*Machine{}
	for _, m := range append([]*Machine{l.Giver}, l.machines...) {
		var info unix.Stat_t
		if unix.Fstat(int(m.pids.Fd()), &info) == nil {
			machines[info.Ino] = m
		}
	}

	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			seen.look(machines)
			select {
			case <-end:
				return
			case <-time.After(memoryPause):
			}
		}
	}()
	return func() Memory {
		close(end)
		<-ended
		return seen
	}
}

// look looks at all processes once. Those that end meanwhile are left out.
func (m *Memory) look(machines map[uint64]*Machine) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range all {
		program, err := os.Readlink(process + "/exe")
		if err != nil || strings.TrimSuffix(filepath.Base(program), " (deleted)") != "lxd-recover" {
			continue
		}

		var info unix.Stat_t
		machine := (*Machine)(nil)
		if unix.Stat(process+"/ns/pid", &info) == nil {
			machine = machines[info.Ino]
		}

		command, err := os.ReadFile(process + "/cmdline")
		if machine == nil || err != nil {
			continue
		}

		peak := PeakOf(process)
		switch {
		case machine.Member == nil:
			m.Giver = max(m.Giver, peak)
		case bytes.HasSuffix(command, []byte("\x00agent\x00")):
			m.Agents[machine.Name] = max(m.Agents[machine.Name], peak)
		default:
			m.Children = max(m.Children, peak)
		}
	}
}

// PeakOf is the most resident memory that a process has had so far, bytes; 0 if it is gone. process is its directory in /proc.
func PeakOf(process string) int64 {
	f, err := os.Open(process + "/status")
	if err != nil {
		return 0
	}

	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		text, ok := strings.CutPrefix(lines.Text(), "VmHWM:")
		if ok {
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return kib << 10
		}
	}

	return 0
}

// Agent is the largest agent: its member's name, and its memory in bytes.
func (m Memory) Agent() (name string, peak int64) {
	for n, p := range m.Agents {
		if p > peak {
			name, peak = n, p
		}
	}

	return name, peak
}

func (m Memory) String() string {
	name, peak := m.Agent()
	return fmt.Sprintf("giver %d MiB, %d agents at most %d MiB (%s), libdqlite's child %d MiB", m.Giver>>20, len(m.Agents), peak>>20, name, m.Children>>20)
}
