// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"os"
	"runtime"
	"sync"
	"testing"
)

const (
	resyncSample   = 20000
	resyncCampaign = 200000
	wrongCampaign  = 20000
)

func campaign() bool { return os.Getenv("CAMPAIGN") == "1" }

// each runs clusters with the seeds from 0 on, on all processors, until the function that gets each of them says no, and adds up their figures.
func each(runs int, back way, goOn func(seed uint64, c *cluster) bool) map[string]int {
	figures := map[string]int{}
	enough := false
	var mutex sync.Mutex // of both
	var wait sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for worker := range workers {
		wait.Go(func() {
			for seed := worker; seed < runs; seed += workers {
				c := newCluster(uint64(seed))
				c.run(back)
				mutex.Lock()
				if !enough {
					figures["entries committed"] += len(c.committed)
					for name, n := range c.figures {
						figures[name] += n
					}

					enough = !goOn(uint64(seed), c)
				}

				stop := enough
				mutex.Unlock()
				if stop {
					return
				}
			}
		})
	}

	wait.Wait()
	return figures
}

// TestResyncHistories brings members back in clusters that go on working, as Resync decides. Whatever happens, raft's promises hold: one leader a
// term, logs that match, everybody applies the same, and nobody leads, or can be elected, without all that is committed. What a disk
// proves to be committed is; and what Compare says of the logs is true after a resync, too.
func TestResyncHistories(t *testing.T) {
	runs := resyncSample
	if campaign() {
		runs = resyncCampaign
	}

	failed := 0
	figures := each(runs, asDecided, func(seed uint64, c *cluster) bool {
		if c.violation != "" {
			failed++
			t.Errorf("seed %d: %s", seed, c.describe())
		}

		return failed < 3
	})
	t.Logf("sample: resync in simulated clusters: %d of %d, seed 0: %d members brought back, %d of them with metadata lost; raft's promises broken: %d",
		runs, resyncCampaign, figures["resyncs"], figures["with metadata lost"], failed)
	t.Logf("%v", figures)
	for name, share := range map[string]int{
		"resyncs": 4, "as a voter": 5, "with metadata lost": 10, "metadata kept": 50, "with the nonce in the snapshot": 100,
		"with another one damaged": 100, "of a backup": 400, "led after a resync": 50, "elected by one that resynced": 50, "snapshots installed": 100,
		"proven by two transactions": 1, "proven by the only voter": 20000, "refused: no-nonce": 1, "refused: nonce-not-committed": 5,
		"refused: not-a-member": 100, "refused: source-damaged": 5, "compared: known": 2,
	} {
		if figures[name] < runs/share {
			t.Errorf("only %d times in %d clusters: %s", figures[name], runs, name)
		}
	}
}
