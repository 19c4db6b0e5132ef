// SPDX-License-Identifier: AGPL-3.0-only

package progress

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// In the bubbles of synctest time is not the wall's; load is taken from the real machine, and stretches it by most at most.

// What moves is waited for until the far bound, what does not until Still.
func TestUntilGivesUp(t *testing.T) {
	for _, test := range []struct {
		name        string
		mark        func() func() string
		says        string
		least, most time.Duration
	}{
		{"nothing moves", func() func() string { return func() string { return "still" } }, "nothing has moved for", Still, most*Still + time.Minute},
		{"something moves", func() func() string {
			n := 0
			return func() string { n++; return fmt.Sprint(n) }
		}, "not within 10m0s", Far, most*Far + time.Minute},
		{"nobody looks", func() func() string { return nil }, "not within 10m0s", Far, most*Far + time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				watch := Watch{What: "Godot", Every: time.Second, Mark: test.mark(), Seen: func() string { return "a tree" }}
				err := watch.Until(t.Context(), func(context.Context) (bool, error) { return false, errors.New("a boy comes") })
				took := time.Since(begin)
				if err == nil || took < test.least || took > test.most {
					t.Fatalf("%v after %s", err, took)
				}

				for _, part := range []string{"wait for Godot: ", test.says, "a boy comes", "a tree"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("no %q in %q", part, err)
					}
				}
			})
		})
	}
}

// A daemon that has stopped moving is told once each time, and waited for.
func TestUntilStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck, moves := 0, 0
		watch := Watch{
			What: "it", Every: time.Second, Mark: func() string { return fmt.Sprint(moves) },
			StuckAfter: 10 * time.Second, Stuck: func() { stuck++; moves = stuck },
		}
		begin := time.Now()
		err := watch.Until(t.Context(), func(context.Context) (bool, error) { return stuck == 3, nil })
		if err != nil || stuck != 3 || time.Since(begin) < 30*time.Second {
			t.Errorf("stuck %d times after %s: %v", stuck, time.Since(begin), err)
		}
	})

	synctest.Test(t, func(t *testing.T) {
		stuck := 0
		watch := Watch{What: "it", Every: time.Second, Mark: func() string { return "" }, StuckAfter: 10 * time.Second, Stuck: func() { stuck++ }}
		err := watch.Until(t.Context(), func(context.Context) (bool, error) { return false, nil })
		if err == nil || stuck != 1 {
			t.Errorf("stuck %d times where nothing ever moves: %v", stuck, err)
		}
	})
}

// The caller's own end is the caller's error.
func TestUntilCallerEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	err := Watch{What: "it", Every: time.Millisecond}.Until(ctx, func(context.Context) (bool, error) {
		cancel(enough)
		return false, nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
}

func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ctx, cancel := Within(t.Context(), time.Minute)
		defer cancel()
		<-ctx.Done()
		var long *TooLong
		if took := time.Since(begin); took < time.Minute || took > most*time.Minute+tick {
			t.Errorf("ended after %s", took)
		}

		err := context.Cause(ctx)
		if !errors.As(err, &long) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cause %v", err)
		}
	})
}

func TestFactor(t *testing.T) {
	for _, test := range []struct {
		loadavg    string
		processors int
		want       float64
	}{
		{"0.20 0.10 0.05 1/800 123", 2, 1},
		{"8.00 5.74 2.64 3/812 1234", 2, 4},
		{"1.00 5.74 2.64 7/812 1234", 2, 3.5},
		{"90.00 5.74 2.64 3/812 1234", 2, most},
		{"8.00 5.74 2.64 3/812 1234", 16, 1},
		{"", 2, 1},
	} {
		if got := factorOf(test.loadavg, test.processors); got != test.want {
			t.Errorf("%q on %d: %g, want %g", test.loadavg, test.processors, got, test.want)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "log")
	marks := map[string]bool{Files(dir, file): true}
	for i, change := range []func() error{
		func() error { return os.WriteFile(file, []byte("a"), 0o600) },
		func() error { return os.WriteFile(file, []byte("ab"), 0o600) },
		func() error { return os.Chtimes(file, time.Time{}, time.Unix(1, 0)) },
		func() error { return os.Rename(file, file+"2") },
	} {
		err := change()
		if err != nil {
			t.Fatal(err)
		}

		mark := Files(dir, file)
		if marks[mark] {
			t.Errorf("change %d does not move the mark: %s", i, mark)
		}

		marks[mark] = true
	}

	if CPU(os.Getpid()) == "" || CPU(0) != "" {
		t.Errorf("processor times %q, %q", CPU(os.Getpid()), CPU(0))
	}
}

func TestGoroutines(t *testing.T) {
	dump := `time="2026-11-26" msg="before"
SIGABRT: abort
PC=0x1 m=0 sigcode=0

goroutine 0 [idle]:
runtime.futex(0x1, 0x2)
	/usr/lib/go/futex.go:1 +0x1

goroutine 7 [select, 3 minutes]:
github.com/lxc/lxd/lxd/cluster.(*Gateway).LeaderAddress(0xc000, {0x1, 0x2})
	/build/gateway.go:640 +0x1
main.clusterNodesGet(0xc000)
	/build/api_cluster.go:1 +0x1
created by net/http.(*Server).Serve
	/usr/lib/go/server.go:1 +0x1

goroutine 8 [IO wait]:
internal/poll.runtime_pollWait(0x1, 0x2)
	/usr/lib/go/netpoll.go:1
net.(*conn).Read(0x1)
	/usr/lib/go/net.go:1

goroutine 9 [IO wait]:
internal/poll.runtime_pollWait(0x3, 0x2)
	/usr/lib/go/netpoll.go:1
net.(*conn).Read(0x3)
	/usr/lib/go/net.go:1

rax    0x0
`
	want := "1 × idle: \n1 × select, 3 minutes: cluster.(*Gateway).LeaderAddress < main.clusterNodesGet\n" +
		"2 × IO wait: poll.runtime_pollWait < net.(*conn).Read\n"
	if got := Goroutines(dump); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
