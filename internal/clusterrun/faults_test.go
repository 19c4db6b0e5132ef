// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// The tests of this file do something to a run at one of its events: a sample of them, or all with CAMPAIGN=1. After each all members have one database,
// old or new, or the next `resume` or `undo` gets there.

var nodes = []string{"node1", "node2", "node3"}

// atEvents calls try for a sample of events, each in a lab of its own.
func atEvents(t *testing.T, numbers []int, try func(f *farLab, number int)) {
	t.Helper()
	t.Logf("sample: runs over the cluster, %s: at %d of %d events", strings.TrimPrefix(t.Name(), "Test"), len(numbers), wholeEvents)
	for _, number := range numbers {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			f := newFarLab(t)
			try(f, number)
			if f.number < number {
				t.Errorf("the run had %d events: nothing has happened to it", f.number)
			}
		})
	}
}

// TestFrozen stops an agent, or the connection to it, without an end and without a reset. The giver knows within ten seconds; and when what was frozen
// wakes, before or after a resume, it changes no database any more.
func TestFrozen(t *testing.T) {
	t.Parallel()
	for i, kind := range []string{"agent", "relay"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			atEvents(t, sampled(7+5*i, 12), func(f *farLab, number int) { f.freeze(kind, nodes[number%3], number, number%2 == 0) })
		})
	}
}

func (f *farLab) freeze(kind, name string, number int, wakesLate bool) {
	f.beat = 2 * time.Second
	var frozen, known time.Time
	armed := false
	p, err := f.run(func(n int, e clusterrun.Event) {
		switch {
		case n == number:
			f.signal(name, kind, unix.SIGSTOP)
			frozen, armed = time.Now(), f.armedAnywhere()
		case known.IsZero() && strings.Contains(e.Text, "nothing was heard"):
			known = time.Now()
		}
	})
	what := fmt.Sprintf("%s of %s frozen at event %d", kind, name, number)
	if !known.IsZero() && known.Sub(frozen) > 10*time.Second {
		f.t.Errorf("%s: the giver knows after %s", what, known.Sub(frozen))
	}

	if wakesLate && p != nil {
		_, _ = clusterrun.Resume(f.t.Context(), f.options(nil), p) // whatever can be done without that member
	}

	then := f.contents()
	f.signal(name, "agent", unix.SIGCONT)
	f.signal(name, "relay", unix.SIGCONT)
	f.waitNoAgents()
	if !armed && !maps.Equal(f.contents(), then) {
		f.t.Errorf("%s: when it woke it has changed a database", what)
	}

	if kind == "relay" {
		kind = "connection"
	}

	count(kind+" frozen", f.end(what, p, err))
}

// TestConnectionCut cuts a connection half-way through what it carries, in either direction.
func TestConnectionCut(t *testing.T) {
	t.Parallel()
	f := newFarLab(t)
	_, err := f.run(nil)
	must(t, err)
	if f.number != wholeEvents {
		t.Errorf("a run without a fault has %d events, want %d: the faults come at those", f.number, wholeEvents)
	}

	f.waitGone("node2", "relay")
	text, err := os.ReadFile(filepath.Join(f.root, "node2.carried"))
	must(t, err)
	var sent, got int64
	_, err = fmt.Sscan(string(text), &sent, &got)
	must(t, err)
	parts := int64(3)
	if everything {
		parts = 20
	}

	for part := int64(1); part < parts; part++ {
		for _, limit := range []int64{part*sent/parts + 7, -part*got/parts - 7} {
			t.Run(fmt.Sprint(limit), func(t *testing.T) {
				t.Parallel()
				f := newFarLab(t)
				must(t, os.WriteFile(filepath.Join(f.root, "node2.cut"), fmt.Append(nil, limit), 0o600))
				p, err := f.run(nil)
				count("connection cut half-way", f.end(fmt.Sprintf("cut after %d of %d and %d bytes", limit, sent, got), p, err))
			})
		}
	}
}

// TestReboot starts a member's machine anew: no process of it is left, and the boot unit's command runs before anything else does. A part in a run that was
// not armed ends by that.
func TestReboot(t *testing.T) {
	t.Parallel()
	atEvents(t, sampled(6, 6), func(f *farLab, number int) {
		name := nodes[number%3]
		p, err := f.run(func(n int, _ clusterrun.Event) {
			if n == number {
				f.reboot(name)
			}
		})
		count("member rebooted", f.end(fmt.Sprintf("%s rebooted at event %d", name, number), p, err))
	})
}

func (f *farLab) reboot(name string) {
	f.signal(name, "agent", unix.SIGKILL) // first: one that loses its connection takes its part back by itself
	f.signal(name, "relay", unix.SIGKILL)
	f.waitGone(name, "relay", "agent")
	phase := f.phase(name)
	status, said := f.boot(name)
	left := f.phase(name)
	switch {
	case phase == "" || slices.Contains(early, phase):
		if status != 0 || left != "" {
			f.t.Errorf("it had come to %q: the boot unit ends with %d, and leaves %q: %s", phase, status, left, said)
		}

	case status != 3 || left != phase || !strings.Contains(said, "cluster recover resume"):
		f.t.Errorf("it had come to %q: the boot unit ends with %d, and leaves %q: %s", phase, status, left, said)
	}
}

// TestDiskFull fills the disk of a member. Before the run is armed, everything is taken back without room; later, the others go on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	atEvents(t, append([]int{0}, sampled(8, 7)...), func(f *farLab, number int) {
		name := nodes[number%3]
		f.onDisk(name)
		if number == 0 {
			f.fill(name)
		}

		armed := false
		p, err := f.run(func(n int, _ clusterrun.Event) {
			if n == number {
				f.fill(name)
				armed = f.armedAnywhere()
			}
		})
		what := fmt.Sprintf("disk of %s full at event %d", name, number)
		refused := number == 0 || number == 1 && !errors.As(err, new(*clusterrun.TakenBack)) // with the first event the members are being looked at
		if refused {
			wantRefusal(f.t, err, "disk-full")
		}

		f.waitNoAgents()
		if !armed && !refused && (len(f.open()) > 0 || !errors.As(err, new(*clusterrun.TakenBack))) {
			f.t.Errorf("%s: the run is not said to be taken back, or is open on %v: %v", what, f.open(), err)
		}

		must(f.t, os.Remove(f.ballast(name)))
		count("disk full", f.end(what, p, err))
	})
}

// onDisk gives a member's directory a file system of its own.
func (f *farLab) onDisk(name string) {
	f.t.Helper()
	must(f.t, os.WriteFile(f.image(), nil, 0o600))
	must(f.t, os.Truncate(f.image(), 384<<20)) // sparse; the plan wants room for three databases and more
	command(f.t, "mkfs.ext4", "-q", "-F", "-m", "0", f.image())
	dir := f.dirs[name]
	saved := dir + ".saved"
	must(f.t, os.Rename(dir, saved))
	must(f.t, os.Mkdir(dir, 0o700))
	f.mount(dir)
	f.t.Cleanup(func() { // before t.TempDir goes
		for name := range f.dirs {
			f.signal(name, "agent", unix.SIGKILL)
		}

		f.waitNoAgents()
		f.unmount(dir)
	})
	must(f.t, os.CopyFS(dir, os.DirFS(saved)))
	must(f.t, os.RemoveAll(saved))
	root, err := os.Open(dir)
	must(f.t, err)
	must(f.t, errors.Join(unix.Syncfs(int(root.Fd())), root.Close()))
}

func (f *farLab) image() string { return filepath.Join(f.root, "image") }

// mount mounts the disk so that as little as possible gets to it by itself: see tests/faults.
func (f *farLab) mount(dir string) {
	f.t.Helper()
	command(f.t, "mount", "-t", "ext4", "-o", "loop,noauto_da_alloc,commit=600", f.image(), dir)
}

// unmount unmounts a file system. Programs that look through all processes' open files, as ours does, keep it busy for moments.
func (f *farLab) unmount(dir string) {
	f.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := unix.Unmount(dir, 0)
		if err == nil {
			return
		}

		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			f.t.Fatalf("unmount %s: %v", dir, err)
		}

		time.Sleep(5 * time.Millisecond)
	}
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func (f *farLab) ballast(name string) string { return filepath.Join(f.dirs[name], "ballast") }

// fill leaves no room on a member's disk.
func (f *farLab) fill(name string) {
	file, err := os.Create(f.ballast(name))
	must(f.t, err)
	defer file.Close()

	filled := int64(0)
	for size := int64(64 << 20); size >= 4096; {
		err = unix.Fallocate(int(file.Fd()), 0, filled, size)
		if err != nil {
			size /= 2
			continue
		}

		filled += size
	}

	must(f.t, file.Sync()) // what is free only when the journal is written, is not
}

// TestPower cuts the power of a member whose directory is on a disk of its own: what was not synced is gone.
func TestPower(t *testing.T) {
	t.Parallel()
	atEvents(t, sampled(9, 8), func(f *farLab, number int) {
		name := nodes[number%3]
		f.onDisk(name)
		p, err := f.run(func(n int, _ clusterrun.Event) {
			if n == number {
				f.cutPower(name)
			}
		})
		count("power cut on a member", f.end(fmt.Sprintf("power of %s cut at event %d", name, number), p, err))
	})
}

func (f *farLab) cutPower(name string) {
	const (
		ioctlShutdown = 0x8004587d // EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)
		noLogFlush    = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	dir, err := os.Open(f.dirs[name])
	must(f.t, err)
	must(f.t, unix.IoctlSetPointerInt(int(dir.Fd()), ioctlShutdown, noLogFlush))
	must(f.t, dir.Close())
	f.signal(name, "relay", unix.SIGKILL)
	f.signal(name, "agent", unix.SIGKILL)
	f.waitGone(name, "relay", "agent")
	f.unmount(f.dirs[name])
	f.mount(f.dirs[name])
	phase := f.phase(name)
	_, said := f.boot(name)
	if left := f.phase(name); slices.Contains(early, phase) != (left == "" && phase != "") {
		f.t.Errorf("it had come to %q, and after the boot unit to %q: %s", phase, left, said)
	}
}

// TestTwoGivers has another run begin at an event of a first one, while that waits, or goes on. One of them gets all members; or one after the other
// does.
func TestTwoGivers(t *testing.T) {
	t.Parallel()
	atEvents(t, sampled(3, 13), func(f *farLab, number int) {
		var wait sync.WaitGroup
		var second error
		p, err := f.run(func(n int, _ clusterrun.Event) {
			if n != number {
				return
			}

			wait.Go(func() { second = f.another() })
			if number%2 == 0 {
				wait.Wait()
			}
		})
		wait.Wait()
		if err != nil && second != nil && number > 3 {
			f.t.Errorf("neither run was done: %v; %v", err, second)
		}

		if number > 4 && number%2 == 0 && (err != nil || second == nil) {
			f.t.Errorf("while a run waited, another one was let in: %v; %v", err, second)
		}

		f.waitNoAgents()
		if len(f.open()) > 0 {
			f.t.Errorf("a run was left open on %v: %v; %v", f.open(), err, second)
		}

		count("two runs at once", f.end(fmt.Sprintf("another run at event %d", number), p, errors.Join(err, second)))
	})
}

// another gives a second run, whose events are not counted.
func (f *farLab) another() error {
	opts := f.options(nil)
	opts.Event = nil
	p, s, err := clusterrun.MakePlan(f.t.Context(), opts)
	if err != nil {
		return err
	}

	_, err = s.Apply(f.t.Context(), p)
	return errors.Join(err, s.Close())
}

// TestSignals sends signals to the giver, which is a process here: Ctrl-C, twice, and the end of its terminal.
func TestSignals(t *testing.T) {
	t.Parallel()
	for i, s := range []struct {
		name    string
		signals []unix.Signal
	}{
		{"Ctrl-C", []unix.Signal{unix.SIGINT}},
		{"Ctrl-C twice", []unix.Signal{unix.SIGINT, unix.SIGINT}},
		{"terminal gone", []unix.Signal{unix.SIGHUP}},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			atEvents(t, sampled(5+4*i, 11), func(f *farLab, number int) { f.signalGiver(s.name, s.signals, number) })
		})
	}
}

func (f *farLab) signalGiver(name string, signals []unix.Signal, number int) {
	heard := make(chan os.Signal, 1) // in the background, or under nohup, they are ignored, by children too; those that this process listens to are not
	signal.Notify(heard, unix.SIGHUP, unix.SIGINT)
	defer signal.Stop(heard)

	cmd := f.command(f.t.Context(), "--no-start")
	next := 0
	o := f.give(cmd, func(n int, _ clusterrun.Event) {
		if n >= number && next < len(signals) {
			_ = cmd.Process.Signal(signals[next])
			next++
		}
	})
	f.waitNoAgents()
	f.number = o.events
	var err error
	if o.status != 0 {
		err = errors.New(o.text)
	}

	what := fmt.Sprintf("%s at event %d", name, number)
	var p *clusterrun.Plan
	if len(f.open()) > 0 {
		if len(signals) == 1 {
			f.t.Errorf("%s: the run is left open on %v: %s", what, f.open(), o.text)
		}

		p = f.openPlan()
	}

	e := f.end(what, p, err)
	if e.isNew && number <= lookedAgain {
		f.t.Errorf("%s: the run has gone on", what)
	}

	count(name, e)
}

// lookedAgain is the number of the event after which the new database is made, with all that is left to be done before the first member is armed.
const lookedAgain = 11

// openPlan is the plan of the run that is open.
func (f *farLab) openPlan() *clusterrun.Plan {
	look, err := recovery.Look(f.t.Context(), f.dirs[f.open()[0]], recovery.Progress{})
	must(f.t, err)
	p, err := clusterrun.ParsePlan([]byte(look.Open.Plan))
	must(f.t, err)
	return p
}
