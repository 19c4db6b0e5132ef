// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/snapcore/snapd/client"
)

func TestStatus(t *testing.T) {
	unit := &systemd{unit: "lxd.service"}
	holder := Process{PID: 7, Name: "lxd", File: "global/metadata1"}
	for _, test := range []struct {
		status                Status
		running, up, wakeable bool
		text                  string
	}{
		{Status{}, false, false, false, "not running"},
		{Status{Service: unit}, false, false, false, "not running"},
		{Status{Service: unit, Activity: OnDemand}, false, false, true, "not running, started on demand by systemd unit lxd.service"},
		{Status{Service: unit, Activity: Up}, false, true, true, "being started by systemd unit lxd.service"},
		{Status{Answers: true}, true, true, true, "running: its socket answers"},
		{Status{Holders: []Process{holder}}, true, true, true, "running: lxd (pid 7, has global/metadata1 open)"},
		{
			Status{Holders: []Process{holder, {PID: 8, Name: "cat", File: "local.db"}}, Service: unit, Activity: Up, Answers: true},
			true, true, true,
			"running: lxd (pid 7, has global/metadata1 open), cat (pid 8, has local.db open) (systemd unit lxd.service)",
		},
	} {
		s := &test.status
		if s.Running() != test.running || s.Up() != test.up || s.Wakeable() != test.wakeable || s.String() != test.text {
			t.Errorf("%+v: running %v, up %v, wakeable %v, %q; want %v, %v, %v, %q",
				test.status, s.Running(), s.Up(), s.Wakeable(), s, test.running, test.up, test.wakeable, test.text)
		}
	}
}

func TestUnitUp(t *testing.T) {
	for state, want := range map[string]bool{
		"active": true, "activating": true, "deactivating": true, "reloading": true, "inactive": false, "failed": false,
	} {
		if up(state) != want {
			t.Errorf("%s: %v", state, !want)
		}
	}
}

func TestStoppable(t *testing.T) {
	err := (&systemd{unit: "snap.lxd.daemon.service"}).Stoppable()
	if err == nil || !strings.Contains(err.Error(), "snap stop") {
		t.Errorf("a unit of snapd's: %v", err)
	}

	err = errors.Join((&systemd{unit: "lxd.service"}).Stoppable(), newSnapd("lxd").Stoppable())
	if err != nil {
		t.Error(err)
	}
}

func TestSnapListens(t *testing.T) {
	for _, test := range []struct {
		active []bool
		want   bool
	}{{nil, false}, {[]bool{false}, false}, {[]bool{false, true}, true}} {
		app := &client.AppInfo{}
		for _, active := range test.active {
			app.Activators = append(app.Activators, client.AppActivator{Active: active})
		}

		if listens(app) != test.want {
			t.Errorf("%v: %v", test.active, !test.want)
		}
	}
}

func TestSnapDir(t *testing.T) {
	for path, want := range map[string]string{
		"/var/snap/lxd/common/lxd": "lxd", "/var/snap/lxd_two/common/lxd": "lxd_two", "/var/lib/lxd": "", "/x/var/snap/lxd/common/lxd": "",
		"/var/snap/lxd/common/lxd/database": "", "/var/snap/../common/lxd": "",
	} {
		parts := snapDir.FindStringSubmatch(path)
		if (parts == nil) != (want == "") || parts != nil && parts[1] != want {
			t.Errorf("%s: %v", path, parts)
		}
	}
}

// A process that has a file open is found through whatever name, and this process is not.
func TestHolders(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "global", "open-1")
	err := errors.Join(os.Mkdir(filepath.Join(dir, "global"), 0o700), os.WriteFile(file, []byte("x"), 0o600), os.Symlink(dir, dir+".link"))
	if err != nil {
		t.Fatal(err)
	}

	own, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}

	defer own.Close()
	holders, err := Holders(dir)
	if err != nil || len(holders) != 0 {
		t.Errorf("holders beside this process: %v, %v", holders, err)
	}

	child := exec.Command("cat") // reads what never comes
	input, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}

	child.ExtraFiles = []*os.File{own}
	err = child.Start()
	if err != nil {
		t.Fatal(err)
	}

	defer func() { _ = child.Wait() }()
	defer input.Close()
	for _, name := range []string{dir, dir + ".link"} {
		holders, err = Holders(name)
		if err != nil || len(holders) != 1 || holders[0].PID != child.Process.Pid || holders[0].File != "global/open-1" {
			t.Errorf("holders of %s: %v, %v", name, holders, err)
		}
	}

	holders, err = Writers(dir) // which it is not
	if err != nil || len(holders) != 0 {
		t.Errorf("writers: %v, %v", holders, err)
	}

	holders, err = Holders(filepath.Join(dir, "missing"))
	if err != nil || holders != nil {
		t.Errorf("holders of what is not there: %v, %v", holders, err)
	}
}

// A process that may write is told from one that only reads, and the file that it may write to is named.
func TestWriters(t *testing.T) {
	dir := t.TempDir()
	var files []*os.File
	for name, how := range map[string]int{"a": os.O_RDONLY, "b": os.O_WRONLY, "c": os.O_RDONLY, "d": os.O_RDWR} {
		file, err := os.OpenFile(filepath.Join(dir, name), how|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}

		defer file.Close()
		files = append(files, file)
	}

	for n := range files {
		child := exec.Command("cat")
		input, err := child.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}

		child.ExtraFiles = files[n:]
		err = child.Start()
		if err != nil {
			t.Fatal(err)
		}

		var want []string
		for _, file := range files[n:] {
			if name := filepath.Base(file.Name()); name == "b" || name == "d" {
				want = append(want, name)
			}
		}

		writers, err := Writers(dir)
		if err != nil || len(writers) != min(1, len(want)) || len(want) > 0 && !slices.Contains(want, writers[0].File) {
			t.Errorf("writers %v, %v; want one with one of %v", writers, err, want)
		}

		err = errors.Join(input.Close(), child.Wait())
		if err != nil {
			t.Error(err)
		}
	}
}

func TestDial(t *testing.T) {
	socket := filepath.Join(t.TempDir(), socketName)
	if dial(t.Context(), socket) {
		t.Error("a socket that is not there answers")
	}

	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}

	if !dial(t.Context(), socket) {
		t.Error("a socket that is listened on does not answer")
	}

	_ = listener.Close()
	if dial(t.Context(), socket) {
		t.Error("a socket that was closed answers")
	}
}

// What is said to people works as it stands: with the sockets, which would start LXD again at once, and without what stops along with it.
func TestByHand(t *testing.T) {
	for want, s := range map[[2]string]Service{
		{"snap stop lxd", "snap start lxd"}: &snapd{snap: "lxd"},
		{"systemctl stop --job-mode=ignore-dependencies lxd.socket lxd.service", "systemctl start lxd.socket lxd.service"}: &systemd{
			unit: "lxd.service", triggers: []string{"lxd.socket"}},
	} {
		status := Status{Service: s}
		if got := [2]string{status.StopByHand(), status.StartByHand()}; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}

	unknown := Status{}
	if unknown.StopByHand() != "" || unknown.StartByHand() != "" {
		t.Error("a command for what is not known")
	}
}
