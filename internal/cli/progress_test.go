// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal returns a new terminal: what programs see, and what is behind it.
func openTerminal(t testing.TB, columns uint16) (theirs *os.File, ours *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { ours.Close() })
	err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	if err != nil {
		t.Fatal(err)
	}

	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}

	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { theirs.Close() })
	err = unix.IoctlSetWinsize(int(theirs.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	if err != nil {
		t.Fatal(err)
	}

	return theirs, ours
}

// work is a step that has lasted longer than barDelay when half of it is done.
func work(w *os.File) {
	b := &delayedBar{w: w, out: w, hidden: !drawsBars(w)}
	b.start("Checking /var/snap/lxd/common/lxd/database/global", 64<<30)
	b.add(16 << 30)
	b.began = b.began.Add(-2 * barDelay)
	b.add(16 << 30)
	b.done()
}

// TestBar looks at the bar on a terminal of 80 columns: what is done, how much of it, how fast, in one line and without colours.
func TestBar(t *testing.T) {
	t.Setenv("TERM", "xterm-256color")
	theirs, ours := openTerminal(t, 80)
	work(theirs)
	fmt.Fprintln(theirs, "end")
	screen := ""
	buffer := make([]byte, 4096)
	for !strings.Contains(screen, "end") {
		n, err := ours.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}

		screen += string(buffer[:n])
	}

	bar := regexp.MustCompile(`Checking.*e/global +50% .*\(32/64 GiB, [0-9.]+ [KMGTPE]?i?B/s\)`)
	if !bar.MatchString(screen) {
		t.Errorf("the bar is %q", screen)
	}

	for line := range strings.SplitSeq(screen, "\r") {
		if n := len([]rune(strings.Trim(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}

	if strings.Contains(screen, "\x1b[3") || strings.Contains(screen, "\x1b[9") {
		t.Errorf("colours: %q", screen)
	}
}

// TestNoBar wants none in a file, and none on a terminal that cannot go back in its line. What is done is said on both.
func TestNoBar(t *testing.T) {
	t.Setenv("TERM", "dumb")
	theirs, _ := openTerminal(t, 80)
	if drawsBars(theirs) {
		t.Error("a bar on a dumb terminal")
	}

	t.Setenv("TERM", "xterm")
	if !drawsBars(theirs) {
		t.Error("no bar on a terminal")
	}

	path := filepath.Join(t.TempDir(), "out")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}

	defer file.Close()

	work(file)
	progress := newProgress(t.Context(), file)
	progress.Step("Replaying")
	data, err := os.ReadFile(path)
	if err != nil || string(data) != "Replaying\n" {
		t.Errorf("%q, %v", data, err)
	}
}
