// SPDX-License-Identifier: AGPL-3.0-only

package progress

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"time"
)

// most is by how much a busy machine's time is stretched at most: what never ends must end before the test binary's own time limit.
const most = 6

// factor is how much longer than on a quiet machine anything takes just now: how many tasks there are for each processor that run,
// wait for one, or wait for a disk. That is what the kernel calls load; of its average over a minute and what is so at this moment
// the larger one counts.
func factor() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 1
	}

	return factorOf(string(text), runtime.NumCPU())
}

// factorOf reads a line such as "7.53 5.74 2.64 9/812 1234".
func factorOf(loadavg string, processors int) float64 {
	var minute, five, fifteen, running float64
	_, err := fmt.Sscanf(strings.Replace(loadavg, "/", " ", 1), "%g %g %g %g", &minute, &five, &fifteen, &running)
	if err != nil {
		return 1
	}

	return min(max(1, math.Max(minute, running)/float64(processors)), most)
}

// Stretched is how long something may take just now that takes no longer than d on a quiet machine. See Within for what begins quiet
// and ends busy.
func Stretched(d time.Duration) time.Duration {
	return time.Duration(float64(d) * factor())
}

// tick is how often the load is looked at.
const tick = 250 * time.Millisecond

// Within returns a context that ends when so much time has passed as the machine had to give: while it is busy, less than the time
// on the wall, a sixth at least.
func Within(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	begin := time.Now()
	ctx, cancel := context.WithCancelCause(parent)
	go func() {
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		last := begin
		for left := d; ; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}

			now := time.Now()
			left -= time.Duration(float64(now.Sub(last)) / factor())
			last = now
			if left <= 0 {
				cancel(&TooLong{Limit: d, Took: time.Since(begin)})
				return
			}
		}
	}()

	return ctx, func() { cancel(context.Canceled) }
}

// TooLong is the cause of the end of a context made by Within.
type TooLong struct {
	Limit, Took time.Duration // in the machine's time, and on the wall
}

// Error implements error.
func (e *TooLong) Error() string {
	return fmt.Sprintf("not within %s (%s on this machine, as busy as it is)", e.Limit, e.Took.Round(time.Second))
}

// Is says that it is what others call a deadline exceeded.
func (e *TooLong) Is(target error) bool { return target == context.DeadlineExceeded }
