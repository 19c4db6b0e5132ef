// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestScripts keeps the scripts to what every login shell hands on as it is.
func TestScripts(t *testing.T) {
	for _, script := range []string{userScript, rootScript} {
		if i := strings.IndexAny(oneLine(script), unquotable); i >= 0 {
			t.Errorf("%q", script[i:])
		}
	}

	for _, bad := range []string{"it's", `a\b`, "a!", "a\nb"} {
		line, err := commandLine([]string{"-c", bad})
		if err == nil {
			t.Errorf("%s", line)
		}
	}
}

// fakes puts programs in place of those of the other machine, by their names, and returns ssh.
func fakes(t *testing.T, programs map[string]string) []string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755)) // for other users
	for name, script := range programs {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}

	return inPlaceOfSSH(`PATH=` + dir + `:$PATH; export PATH; exec sh -c "$command"`)
}

// refused wants a machine to be refused, with an error in one line, and nothing to be left there.
func refused(t *testing.T, opts Options, code string, text string) {
	t.Helper()
	dir := setUp(t)
	conn, err := Dial(bounded(t, 30*time.Second), opts)
	if err == nil {
		_ = conn.Close()
	}

	wantError(t, err, code, text)
	wantEmpty(t, dir)
}

func TestNotRoot(t *testing.T) {
	nobody := `exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$command"`
	opts := testOptions()
	opts.SSH = inPlaceOfSSH(nobody)
	_, err := exec.LookPath("sudo")
	if err != nil {
		refused(t, opts, CodeNotRoot, "n1: the user there is not root (user id 65534), and sudo is not installed: connect as root")
	}

	for script, want := range map[string]string{
		"echo sudo: a password is required >&2; exit 1": "(user id 65534), and `sudo -n` does not work (sudo: a password is required)",
		"exit 1": "`sudo -n` does not work (it says nothing more): connect as root, or allow it with NOPASSWD",
	} {
		opts.SSH = fakes(t, map[string]string{"sudo": script})
		opts.SSH[2] = strings.ReplaceAll(opts.SSH[2], `exec sh`, `exec setpriv --reuid 65534 --regid 65534 --clear-groups sh`)
		refused(t, opts, CodeNotRoot, want)
	}
}

// foreign is a copy of this program that says that it is one for arm64.
func foreign(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(itself)
	must(t, err)
	binary.LittleEndian.PutUint16(data[18:], 183) // e_machine: EM_AARCH64
	path := filepath.Join(t.TempDir(), "for-arm64")
	must(t, os.WriteFile(path, data, 0o755))
	return path
}

func TestArchitecture(t *testing.T) {
	opts := testOptions()
	opts.SSH = fakes(t, map[string]string{"uname": "echo aarch64"})
	refused(t, opts, CodeNoProgram, "n1: the machine is of the architecture arm64, for which there is no program here: give one with --binary arm64=FILE")
	opts.Binaries = map[string]string{"arm64": foreign(t)}
	refused(t, opts, CodeNotStarted, "Exec format error") // it was found, sent and started, here
	opts.SSH = fakes(t, map[string]string{"uname": "echo vax"})
	refused(t, opts, CodeNoProgram, "n1: the machine is of the architecture vax")
	opts.Binaries = map[string]string{"arm64": itself}
	refused(t, opts, CodeNoProgram, "--binary arm64="+itself+": this is a program for another architecture (EM_X86_64)")
	opts.Binaries = map[string]string{"arm64": "/etc/passwd"}
	refused(t, opts, CodeNoProgram, "--binary arm64=/etc/passwd: this is no program for Linux")
	opts.Binaries = map[string]string{"vax": itself}
	refused(t, opts, CodeNoProgram, `"vax" is no architecture that Go knows`)
}

// TestDamaged sends a program that has changed since its sum was made.
func TestDamaged(t *testing.T) {
	path := foreign(t)
	opts := testOptions()
	opts.SSH = fakes(t, map[string]string{"uname": "echo aarch64"})
	opts.Binaries = map[string]string{"arm64": path}
	program, err := measured(path)
	must(t, err)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = file.WriteAt([]byte("X"), program.size/2)
	must(t, errors.Join(err, file.Close()))
	refused(t, opts, CodeNotStarted, "n1: the program has not arrived there as it was sent")
}

func TestNoRoom(t *testing.T) {
	opts := testOptions()
	opts.SSH = fakes(t, map[string]string{"head": "echo head: error writing standard output: No space left on device >&2; exit 1"})
	refused(t, opts, CodeNotStarted, "n1: the program has not arrived there as it was sent: head: error writing standard output: No space left on device")
	opts.SSH = fakes(t, map[string]string{"mkdir": "echo mkdir: cannot create directory: Read-only file system >&2; exit 1"})
	refused(t, opts, CodeNotStarted, "mkdir: cannot create directory: Read-only file system")
}

func TestOtherVersion(t *testing.T) {
	opts := testOptions()
	opts.Version = "1.2.4"
	refused(t, opts, CodeOtherVersion, "n1: the program there is 1.2.3, this one is 1.2.4")
}

// TestUnreachable has the words of OpenSSH 9, and of the real one here.
func TestUnreachable(t *testing.T) {
	for said, want := range map[string]struct{ code, text string }{
		"ssh: connect to host 10.0.0.9 port 22: No route to host": {
			CodeUnreachable, "n1: cannot connect: ssh: connect to host 10.0.0.9 port 22: No route to host"},
		"Welcome.\n\nroot@n1: Permission denied (publickey).": {
			CodeUnreachable, "n1: cannot connect: root@n1: Permission denied (publickey)."},
		"@@@\n@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED@\n@@@\nIT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\n" +
			"Offending ED25519 key in /root/.ssh/known_hosts:3\nHost key for n1 has changed and you have requested strict checking.\n" +
			"Host key verification failed.": {
			CodeHostKey, "n1: cannot connect: Offending ED25519 key in /root/.ssh/known_hosts:3: Host key verification failed."},
		"": {CodeUnreachable, "n1: cannot connect: exit status 255"},
	} {
		opts := testOptions()
		t.Setenv("SAID", said)
		opts.SSH = inPlaceOfSSH(`printf "%s\n" "$SAID" >&2; exit 255`)
		refused(t, opts, want.code, want.text)
	}

	opts := testOptions()
	opts.SSH, opts.Destination, opts.Batch = []string{"ssh", "-F", "none", "-p", "1"}, "127.0.0.1", true
	refused(t, opts, CodeUnreachable, "127.0.0.1: cannot connect: ssh: connect to host 127.0.0.1 port 1: Connection refused")
	opts.SSH = []string{"no-such-ssh"}
	refused(t, opts, CodeNotStarted, "no-such-ssh: not found")
	opts.Destination = "-oProxyCommand=touch /tmp/owned"
	refused(t, opts, CodeNotStarted, "this is no destination of ssh")
}

// TestArguments looks at the arguments of ssh.
func TestArguments(t *testing.T) {
	opts := testOptions()
	opts.SSH, opts.Batch = inPlaceOfSSH(`echo "$@" | sed "s/ -- n1 exec sh .*/ -- n1 COMMAND/" >&2; exit 255`), true
	opts.SSH = append(opts.SSH, "-J", "jump")
	refused(t, opts, CodeUnreachable,
		"-J jump -T -a -x -o RemoteCommand=none -o ClearAllForwardings=yes -o ConnectTimeout=10 -o BatchMode=yes -- n1 COMMAND")
}

// TestStuck has a machine that does not answer.
func TestStuck(t *testing.T) {
	before := batchTime
	t.Cleanup(func() { batchTime = before })
	batchTime = 200 * time.Millisecond
	opts := testOptions()
	opts.Batch = true
	opts.SSH = inPlaceOfSSH(`echo "the last words" >&2; exec sleep 60`)
	refused(t, opts, CodeUnreachable, "n1: the connection was not made in time: the last words")

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()

	opts.Batch = false
	_, err := Dial(ctx, opts)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// TestKilledBefore has what killed agents have left: what is the same program is used again, all else is removed but what belongs to one
// that is alive.
func TestKilledBefore(t *testing.T) {
	dir := setUp(t)
	own, err := measured(itself)
	must(t, err)
	ended := exec.Command("true")
	must(t, ended.Run())
	dead := "." + strconv.Itoa(ended.Process.Pid)
	alive := "." + strconv.Itoa(os.Getpid())
	other := strings.Repeat("0", len(own.digest))
	damaged := strings.Repeat("f", len(own.digest))
	program, err := os.ReadFile(itself)
	must(t, err)
	for name, data := range map[string][]byte{own.digest + dead: program, other + dead: program, damaged + dead: nil, other + alive: program, "notes": nil} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name, programName), data, 0o600))
	}

	opts := testOptions()
	opts.SSH = fakes(t, map[string]string{"head": "exit 1"}) // nothing can be sent
	conn := dial(t, opts)
	if !conn.Peer().Carried {
		t.Error("it was not one that is carried along")
	}

	var pid int
	must(t, conn.Call(t.Context(), "pid", nil, &pid))
	wantNames(t, dir, own.digest+"."+strconv.Itoa(pid), other+alive, "notes")
	must(t, conn.Close())
	wantNames(t, dir, other+alive, "notes")

	// One that is damaged is not used.
	must(t, os.MkdirAll(filepath.Join(dir, own.digest+dead), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, own.digest+dead, programName), program[1:], 0o600))
	conn = dial(t, testOptions())
	must(t, conn.Close())
	wantNames(t, dir, other+alive, "notes")
}

// TestInstalled has the same program in the machine's PATH, and then another one of that name.
func TestInstalled(t *testing.T) {
	dir := setUp(t)
	self, err := os.Executable()
	must(t, err)
	installed := filepath.Join(t.TempDir(), programName)
	must(t, os.Symlink(self, installed))
	opts := testOptions()
	opts.SSH = inPlaceOfSSH(`PATH=$PATH:` + filepath.Dir(installed) + `; export PATH; exec sh -c "$command"`)
	conn := dial(t, opts)
	if conn.Peer().Carried {
		t.Error("it was carried along, and is there")
	}

	must(t, conn.Close())
	must(t, os.Remove(installed))
	must(t, os.WriteFile(installed, []byte("#!/bin/sh\necho another one\n"), 0o755))
	conn = dial(t, opts)
	if !conn.Peer().Carried {
		t.Error("another program was started")
	}

	must(t, conn.Close())
	wantEmpty(t, dir)
}

// wantNames wants a directory to have these entries.
func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	left := map[string]bool{}
	for _, e := range entries {
		left[e.Name()] = true
	}

	for _, name := range want {
		if !left[name] {
			t.Errorf("%s is missing", name)
		}

		delete(left, name)
	}

	for name := range left {
		t.Errorf("%s is left", name)
	}
}

func TestArchitectures(t *testing.T) {
	for arch := range machines {
		if elfMachines[arch] == 0 || architecture(machines[arch]) != arch {
			t.Errorf("%s: %s, %s", arch, machines[arch], elfMachines[arch])
		}
	}

	if machines[runtime.GOARCH] == "" {
		t.Errorf("%s is unknown", runtime.GOARCH)
	}
}
