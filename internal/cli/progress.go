// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// barDelay is how long a step must last before its bar is drawn.
const barDelay = time.Second

// newProgress shows steps and bars on a terminal that can draw them; steps only if it is none. All steps go to the log.
func newProgress(ctx context.Context, w *os.File) recovery.Progress {
	log := logOf(ctx)
	out := &steady{to: asCalled(w)}
	b := &delayedBar{w: w, out: out, hidden: !drawsBars(w)}
	return recovery.Progress{
		Step: func(what string) {
			log.Info("step", "what", what)
			fmt.Fprintln(out, printable.Line(what))
		},
		Start: func(what string, bytes int64) {
			log.Info("step", "what", what, "bytes", bytes)
			b.start(printable.Line(what), bytes)
		},
		Add:  b.add,
		Done: b.done,
	}
}

// drawsBars tells whether a bar can be drawn: on a terminal, unless that is one that cannot go back in its line. There are no colours
// anywhere, so there is nothing that NO_COLOR has to turn off.
func drawsBars(w *os.File) bool { return isTerminal(w) && os.Getenv("TERM") != "dumb" }

// delayedBar draws a progress bar for a step that lasts longer than barDelay: what is done, how much of it, and how fast.
type delayedBar struct {
	w      *os.File
	out    io.Writer // to w
	hidden bool      // w is not for bars
	total  int64
	began  time.Time
	count  int64 // bytes so far
	bar    *progressbar.ProgressBar
	drawn  bool
}

func (b *delayedBar) start(what string, bytes int64) {
	*b = delayedBar{w: b.w, out: b.out, hidden: b.hidden, total: bytes, began: time.Now()}
	if !b.hidden {
		b.bar = newBar(b.out, terminalWidth(b.w), what, bytes) // which measures the rate from here on
	}
}

func (b *delayedBar) add(bytes int64) {
	b.count += bytes
	if b.bar == nil || time.Since(b.began) < barDelay {
		return
	}

	b.drawn = true
	_ = b.bar.Set64(min(b.count, b.total))
}

// barWidth is how wide the bar itself is, and besideBar what stands after it at most: " 100% |…| (1023.9/1023.9 MiB, 1023 MiB/s) [10m:10m]".
const (
	barWidth  = 10
	besideBar = 62
)

func newBar(w io.Writer, width int, what string, bytes int64) *progressbar.ProgressBar {
	return progressbar.NewOptions64(bytes,
		progressbar.OptionSetDescription(shorten(what, width-besideBar)),
		progressbar.OptionSetWriter(w),
		progressbar.OptionShowCount(),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(barWidth),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

// shorten leaves out the middle of a text that is too long: the beginning says what is done, the end to which file.
func shorten(text string, width int) string {
	runes := []rune(text)
	width = max(width, 9)
	if len(runes) <= width {
		return text
	}

	head := width / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(width-head-1):])
}

func terminalWidth(w *os.File) int {
	columns, _ := strconv.Atoi(os.Getenv("COLUMNS"))
	return cmp.Or(widthOf(w), columns, 80)
}

func (b *delayedBar) done() {
	if b.drawn {
		_ = b.bar.Finish()
	}
}
