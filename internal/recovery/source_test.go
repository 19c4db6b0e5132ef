// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"testing/synctest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// What looks damaged beside a daemon is looked at again, and what is sound then counts. Without one the first look does.
func TestWhileLive(t *testing.T) {
	broken := errors.New("a file got another name")
	for name, test := range map[string]struct {
		live  bool
		sound int // the look that finds nothing wrong, 0: none does
		err   error
		looks int
	}{
		"no daemon, sound":           {false, 1, nil, 1},
		"no daemon, damaged":         {false, 0, nil, 1},
		"no daemon, not to be read":  {false, 0, broken, 1},
		"daemon, sound":              {true, 1, nil, 1},
		"daemon, sound at last":      {true, 3, broken, 3},
		"daemon, damaged":            {true, 0, nil, liveTries},
		"daemon, cannot be read now": {true, 0, broken, liveTries},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				looks := 0
				err := whileLive(t.Context(), test.live, func(last bool) (bool, error) {
					looks++
					if last != (looks == liveTries || !test.live) {
						t.Errorf("look %d is the last one: %v", looks, last)
					}

					if looks == test.sound {
						return true, nil
					}

					return false, test.err
				})

				want := test.err
				if test.sound > 0 {
					want = nil
				}

				if looks != test.looks || !errors.Is(err, want) || want == nil && err != nil {
					t.Errorf("%d looks, %v, want %d, %v", looks, err, test.looks, want)
				}
			})
		})
	}

	ctx, cancel := context.WithCancel(t.Context())
	err := whileLive(ctx, true, func(bool) (bool, error) {
		cancel()
		return false, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("an interruption is told as %v", err)
	}
}

// What is read of a directory in which a daemon works is read from its files as they were, whatever becomes of them.
func TestOpenLive(t *testing.T) {
	for _, live := range []bool{true, false} {
		global := filepath.Join(t.TempDir(), globalName)
		must(t, os.CopyFS(global, os.DirFS(raftlogtest.Global(t, "small/n2-preimport"))))
		log, letGo, err := openLive(t.Context(), global, live, Progress{}, raftlog.Options{})
		must(t, err)
		before := replay(t.Context(), log)
		must(t, before.dbErr)
		defer before.close()

		must(t, os.RemoveAll(global))
		after := replay(t.Context(), log)
		defer after.close()

		if live != (after.dbErr == nil) {
			t.Errorf("live %v: the files are gone: %v", live, after.dbErr)
		}

		if live {
			want, err := before.db.Fingerprint(t.Context())
			must(t, err)
			got, err := after.db.Fingerprint(t.Context())
			must(t, err)
			if len(want) == 0 || !reflect.DeepEqual(got, want) {
				t.Errorf("rows %v, want %v", got, want)
			}
		}

		letGo()
	}
}

// A directory is told by what is in it.
func TestSourceKinds(t *testing.T) {
	global := raftlogtest.Global(t, "small/n2-preimport")
	lxd := t.TempDir()
	database := filepath.Join(lxd, databaseName)
	must(t, os.Mkdir(database, 0o700))
	must(t, os.CopyFS(filepath.Join(database, globalName), os.DirFS(global)))
	kept := filepath.Join(lxd, keptImport)
	must(t, os.CopyFS(kept, os.DirFS(database)))
	for path, want := range map[string]string{
		lxd:                                 kindLXD,
		database:                            "database directory",
		kept:                                kindKept,
		filepath.Join(database, globalName): "raft directory",
	} {
		src, err := openSource(t.Context(), path, Progress{})
		must(t, err)
		if src.Kind != want || !src.inPlace() || src.Path != path {
			t.Errorf("%+v, want %s", src, want)
		}

		src.Close()
	}

	_, err := openSource(t.Context(), t.TempDir(), Progress{})
	wantError(t, err, "holds no global database of LXD")
}

// A member that a new leader has made remove a segment looks as if one were lost, but for the daemon that works there.
func TestOpenLiveCut(t *testing.T) {
	h := raftlogtest.HistoryOf(t, raftlogtest.HistoryNames()[0])
	var d *raftlogtest.Directory
	for seed := uint64(0); d == nil || !d.CutAway(); seed++ {
		d = h.LiveWithCuts(rand.New(rand.NewPCG(seed, 4)))
	}

	global := filepath.Join(t.TempDir(), globalName)
	must(t, os.Mkdir(global, 0o700))
	must(t, d.Write(global))
	for _, live := range []bool{true, false} {
		log, letGo, err := openLive(t.Context(), global, live, Progress{}, raftlog.Options{})
		must(t, err)
		if log.Healthy() != live || live && log.LastIndex != d.Last {
			t.Errorf("live %v: healthy %v, up to index %d of %d: %v", live, log.Healthy(), log.LastIndex, d.Last, log.Problems)
		}

		letGo()
	}
}
