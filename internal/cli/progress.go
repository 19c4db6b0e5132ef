package cli

import (
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// barDelay is how long a step must last before its bar is drawn.
const barDelay = time.Second

// newProgress shows steps and bars on a terminal; steps only where it is none.
func newProgress(w *os.File) recovery.Progress {
	p := recovery.Progress{Step: func(what string) { fmt.Fprintln(w, what) }}
	if !isTerminal(w) {
		return p
	}

	b := &delayedBar{w: w}
	p.Start, p.Add, p.Done = b.start, b.add, b.done
	return p
}

// delayedBar draws a progress bar for a step that lasts longer than barDelay.
type delayedBar struct {
	w     *os.File
	what  string
	total int64
	began time.Time
	count int64                    // bytes so far
	bar   *progressbar.ProgressBar // nil while it is not drawn
}

func (b *delayedBar) start(what string, bytes int64) {
	*b = delayedBar{w: b.w, what: what, total: bytes, began: time.Now()}
}

func (b *delayedBar) add(bytes int64) {
	b.count += bytes
	if b.bar == nil {
		if time.Since(b.began) < barDelay {
			return
		}

		b.bar = progressbar.NewOptions64(b.total,
			progressbar.OptionSetDescription(b.what),
			progressbar.OptionSetWriter(b.w),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetWidth(20),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
	}

	_ = b.bar.Set64(min(b.count, b.total))
}

func (b *delayedBar) done() {
	if b.bar != nil {
		_ = b.bar.Finish()
	}
}
