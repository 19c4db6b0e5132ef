// SPDX-License-Identifier: AGPL-3.0-only

// Package progress bounds the waits of tests: by whether anything moves, and not by the clock on the wall. What takes a second on a
// quiet machine takes half a minute on a busy one, and is no failure there; what has stopped moving is one on either.
//
// Until waits for a process, say, as long as it makes progress, with a far bound; Within bounds a step whose progress nobody can see,
// in time as the machine has it to give.
package progress

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// Far bounds every wait, however much still moves: in the machine's time, see Within.
	Far = 10 * time.Minute

	// Still is for how long nothing may move, in the machine's time.
	Still = 2 * time.Minute
)

// Watch is what to wait for, and how to see whether there is progress.
type Watch struct {
	What  string        // for the error
	Every time.Duration // how often it is looked at

	// Mark is where what is waited for stands now: any change is progress. Where there is none, only Far counts.
	Mark func() string

	// Seen tells what was seen last, for the error: the end of a log, say.
	Seen func() string

	// Stuck, where there is one, is called when nothing has moved for StuckAfter, in the machine's time: once for each time that it
	// has stopped moving.
	StuckAfter time.Duration
	Stuck      func()
}

// Until waits until done reports true. The error says what was waited for, what done said last, and what was seen.
func (w Watch) Until(ctx context.Context, done func(ctx context.Context) (bool, error)) error {
	ctx, cancel := Within(ctx, Far)
	defer cancel()

	mark, still, last, stuck := "", time.Duration(0), time.Now(), false
	for {
		ok, err := done(ctx)
		if ok {
			return nil
		}

		if ctx.Err() != nil {
			return w.failed(context.Cause(ctx), err)
		}

		now := time.Now()
		still += time.Duration(float64(now.Sub(last)) / factor())
		last = now
		if w.Mark != nil {
			m := w.Mark()
			if m != mark {
				mark, still, stuck = m, 0, false
			}

			if still > Still {
				return w.failed(fmt.Errorf("nothing has moved for %s", Still), err)
			}

			if w.Stuck != nil && !stuck && still > w.StuckAfter {
				stuck = true
				w.Stuck()
			}
		}

		select {
		case <-ctx.Done():
			return w.failed(context.Cause(ctx), err)
		case <-time.After(w.Every):
		}
	}
}

func (w Watch) failed(why error, last error) error {
	err := errors.Join(fmt.Errorf("wait for %s: %w", w.What, why), last)
	if w.Seen != nil {
		err = fmt.Errorf("%w\n%s", err, w.Seen())
	}

	return err
}

// Files is a mark: names, sizes and times of the files in some directories, and of files. What is not there is left out.
func Files(paths ...string) string {
	var mark strings.Builder
	note := func(path string) {
		info, err := os.Lstat(path)
		if err == nil {
			fmt.Fprintln(&mark, path, info.Size(), info.ModTime().UnixNano())
		}
	}

	for _, path := range paths {
		note(path)
		entries, err := os.ReadDir(path)
		if err != nil {
			continue
		}

		for _, e := range entries {
			note(filepath.Join(path, e.Name()))
		}
	}

	return mark.String()
}

// cpuStep is how much processor time counts as progress: a daemon that only waits takes less than that while nothing may move.
const cpuStep = 5 * time.Second

// CPU is a mark: the processor time of a process. It moves in large steps, as a process that only waits takes some, too.
func CPU(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}

	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return ""
	}

	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	const ticks = 100 // of the kernel's, a second
	return strconv.Itoa((user + system) / ticks / int(cpuStep/time.Second))
}
