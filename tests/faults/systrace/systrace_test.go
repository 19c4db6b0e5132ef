// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package systrace

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// start runs a shell command in a directory of its own. decide is asked about calls of one name.
func start(t *testing.T, dir string, name string, act Action, script string) (unix.WaitStatus, []string, error) {
	t.Helper()
	return startProgram(t, Program{Dir: dir}, name, act, script)
}

// startProgram is start with more of the program given.
func startProgram(t *testing.T, p Program, name string, act Action, script string) (unix.WaitStatus, []string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}

	defer out.Close()
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}

	var calls []string
	p.Path, p.Args, p.Env, p.Output = shell, []string{"-c", script}, os.Environ(), out
	if p.Roots == nil {
		p.Roots = []string{p.Dir}
	}

	status, err := Run(p, func(c *Call) Action {
		calls = append(calls, c.String())
		if c.Name == name {
			return act
		}

		return Proceed
	})
	return unix.WaitStatus(status), calls, err
}

func TestActions(t *testing.T) {
	for _, test := range []struct {
		name   string
		act    Action
		made   bool // the directory
		killed bool
		status int
		says   string
	}{
		{"proceed", Proceed, true, false, 0, ""},
		{"killed before", KillBefore, false, true, -1, ""},
		{"killed after", KillAfter, true, true, -1, ""},
		{"failed", Fail(unix.ENOSPC), false, false, 1, ""},
		{"failed after", FailAfter(unix.EIO), true, false, 1, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			// In the shell's child, to see that those are followed; the shell itself ends as its child did.
			status, calls, err := start(t, dir, "mkdir", test.act, "mkdir one && true")
			if err != nil {
				t.Fatal(err)
			}

			_, err = os.Stat(filepath.Join(dir, "one"))
			if made := err == nil; made != test.made {
				t.Errorf("made: %v", made)
			}

			if status.Signaled() != test.killed || status.ExitStatus() != test.status {
				t.Errorf("ended with %#x", status)
			}

			if calls[0] != "mkdir one" {
				t.Errorf("calls: %v", calls)
			}
		})
	}
}

func TestCoverage(t *testing.T) {
	for script, says := range map[string]string{
		"sync":                     "system call number 162",
		"mkdir ../outside":         "outside the directories",
		"echo > ../outside":        "outside the directories",
		"mkdir in; mv in ../out":   "outside the directories",
		"cd /; echo > tmp/1/2/3":   "outside the directories",
		"exec 3>>../x; echo x >&3": "outside the directories",
	} {
		dir := filepath.Join(t.TempDir(), "root")
		err := os.Mkdir(dir, 0o700)
		if err != nil {
			t.Fatal(err)
		}

		_, _, err = start(t, dir, "", Proceed, script)
		if !errors.Is(err, ErrCoverage) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", script, err)
		}

		// A lenient run lets that be, and still sees what changes below the root.
		status, calls, err := startProgram(t, Program{Dir: dir, Lenient: true}, "mkdir", KillAfter, script+"; mkdir "+dir+"/seen")
		if script == "sync" && (err != nil || !status.Signaled() || len(calls) != 1 || calls[0] != "mkdir seen") {
			t.Errorf("%s, lenient: %#x, %v, calls %v", script, status, err, calls)
		}

		if errors.Is(err, ErrCoverage) {
			t.Errorf("%s, lenient: %v", script, err)
		}
	}
}

// Every call of a sequence of changes is seen, in order, with the files that it works on.
func TestCalls(t *testing.T) {
	dir := t.TempDir()
	_, calls, err := start(t, dir, "", Proceed, "echo text > one; ln one two; mv two three; chmod 600 three; rm one; mkdir sub; cd sub; ln -s ../three link")
	if err != nil {
		t.Fatal(err)
	}

	text := strings.Join(calls, "\n")
	for _, want := range []string{"openat one\n", "write one\n", "linkat one two\n",
		"two three\n", "fchmodat three\n", "unlinkat one\n", "mkdir sub\n", "link"} {
		_, rest, found := strings.Cut(text, want)
		if !found {
			t.Fatalf("no %q in the right place:\n%s", want, strings.Join(calls, "\n"))
		}

		text = rest
	}
}

// A child that is set aside is not decided about, may make calls in no list, and is caught all the same where it changes what it must not.
func TestAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	scratch := t.TempDir()
	err := os.Mkdir(dir, 0o700)
	if err != nil {
		t.Fatal(err)
	}

	child := func(script string) string { return "sh aside '" + script + "'; mkdir " + dir + "/seen" }
	run := func(script string) ([]string, error) {
		err := os.WriteFile(filepath.Join(scratch, "aside"), []byte("eval \"$1\"\n"), 0o600)
		if err != nil {
			t.Fatal(err)
		}

		_, calls, err := startProgram(t, Program{Dir: dir, Aside: "aside", Roots: []string{dir, scratch}}, "", Proceed, "cd "+scratch+"; "+script)
		return calls, err
	}
	calls, err := run(child("echo > made; times > /dev/null"))
	if err != nil || strings.Join(calls, ",") != "mkdir seen" {
		t.Errorf("calls %v, %v", calls, err)
	}

	_, err = run(child("echo > " + dir + "/made"))
	if !errors.Is(err, ErrCoverage) || !strings.Contains(err.Error(), "by a child that is to work on scratch files") {
		t.Errorf("%v", err)
	}
}
