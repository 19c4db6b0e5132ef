// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

// moment is when a fakeSystemd breaks a connection.
type moment string

const (
	onConnect  moment = "on connect"  // before anything is said
	afterAuth  moment = "after auth"  // at the first question
	onProperty moment = "on property" // at the first one for a unit's property
	onJob      moment = "on job"      // after a job was begun, and before it is told that it has ended
)

// fakeSystemd speaks as much D-Bus on a real unix socket as Service needs of systemd. It breaks the first connections that get to
// a moment, or says nothing more on them.
type fakeSystemd struct {
	t        *testing.T
	listener net.Listener
	at       moment
	left     int  // connections that are still to be broken
	silent   bool // they are left open

	unfinished bool // no job ever ends

	mu    sync.Mutex
	units map[string]string // name: ActiveState
	jobs  []string          // "StopUnit lxd.service"
	loads int               // how often it has read its units
	files []string          // "EnableUnitFiles lxd-recover-backup.timer"

	properties map[string]map[string]any  // by unit and name: what else they say
	conditions map[string][]fakeCondition // by unit: of the drop-ins, as they were when it read its units
	conns      []*fakeConn
}

// fakeCondition is an element of a unit's property Conditions.
type fakeCondition struct {
	Name            string
	Trigger, Negate bool
	Parameter       string
	State           int32
}

type fakeConn struct {
	net.Conn
	mu sync.Mutex // one message at a time
}

// startFakeSystemd puts a fake in systemd's place for the time of a test.
func startFakeSystemd(t *testing.T, at moment, breaks int, units map[string]string) *fakeSystemd {
	t.Helper()
	real := systemdSocket
	systemdSocket = filepath.Join(t.TempDir(), "private")
	listener, err := net.Listen("unix", systemdSocket)
	if err != nil {
		t.Fatal(err)
	}

	f := &fakeSystemd{t: t, listener: listener, at: at, left: breaks, units: units}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}

			c := &fakeConn{Conn: conn}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			group.Go(func() { f.serve(c) })
		}
	})

	t.Cleanup(func() {
		systemdSocket = real
		_ = listener.Close()
		f.mu.Lock()
		for _, c := range f.conns {
			_ = c.Close()
		}

		f.mu.Unlock()
		group.Wait()
	})

	return f
}

// change changes something about the fake.
func (f *fakeSystemd) change(what func()) {
	f.mu.Lock()
	defer f.mu.Unlock()

	what()
}

// breaks tells whether a connection is to be broken at this moment.
func (f *fakeSystemd) breaks(now moment) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now != f.at || f.left == 0 {
		return false
	}

	f.left--
	return true
}

func (f *fakeSystemd) serve(c *fakeConn) {
	defer c.Close()
	if f.breaks(onConnect) {
		f.end(c)
		return
	}

	in := bufio.NewReader(c)
	if !authenticate(in, c) {
		return
	}

	if f.breaks(afterAuth) {
		f.end(c)
		return
	}

	for {
		call, err := dbus.DecodeMessage(in)
		if err != nil || !f.answer(c, call) {
			return
		}
	}
}

// end is what becomes of a connection that is to be broken: a silent one ends when the other side hangs up.
func (f *fakeSystemd) end(c net.Conn) {
	f.mu.Lock()
	silent := f.silent
	f.mu.Unlock()
	if silent {
		_, _ = io.Copy(io.Discard, c)
	}
}

// authenticate takes whoever comes.
func authenticate(in *bufio.Reader, c net.Conn) bool {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}

		answer := "ERROR\r\n"
		switch words := strings.Fields(strings.TrimLeft(line, "\x00")); {
		case len(words) == 1 && words[0] == "BEGIN":
			return true
		case len(words) == 1 && words[0] == "AUTH":
			answer = "REJECTED EXTERNAL\r\n"
		case words[0] == "AUTH":
			answer = "OK 0123456789abcdef0123456789abcdef\r\n"
		case words[0] == "NEGOTIATE_UNIX_FD":
			answer = "AGREE_UNIX_FD\r\n"
		}

		_, err = c.Write([]byte(answer))
		if err != nil {
			return false
		}
	}
}

// answer answers one call, and returns false where the connection is to be broken.
func (f *fakeSystemd) answer(c *fakeConn, call *dbus.Message) bool {
	member, _ := call.Headers[dbus.FieldMember].Value().(string)
	switch member {
	case "Get":
		if f.breaks(onProperty) {
			f.end(c)
			return false
		}

		path, _ := call.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
		value, err := f.property(string(path), call.Body[1].(string))
		if err != "" {
			return c.send(&dbus.Message{Type: dbus.TypeError, Headers: replyTo(call, err), Body: []any{"said by a fake"}})
		}

		return c.send(&dbus.Message{Type: dbus.TypeMethodReply, Headers: replyTo(call, ""), Body: []any{dbus.MakeVariant(value)}})
	case "Reload":
		f.load()
	case "EnableUnitFiles", "DisableUnitFiles":
		return c.send(&dbus.Message{Type: dbus.TypeMethodReply, Headers: replyTo(call, ""), Body: f.unitFiles(member, call.Body[0].([]string))})
	case "StopUnit", "StartUnit", "RestartUnit":
		return f.job(c, call, member, call.Body[0].(string))
	}

	return c.send(&dbus.Message{Type: dbus.TypeMethodReply, Headers: replyTo(call, "")})
}

// unitFiles notes what is enabled or disabled, and returns the answer to that.
func (f *fakeSystemd) unitFiles(member string, names []string) []any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files = append(f.files, member+" "+strings.Join(names, " "))
	changes := []struct{ Type, File, Destination string }{}
	if member == "EnableUnitFiles" {
		return []any{true, changes}
	}

	return []any{changes}
}

// property is what a unit's property says, or the name of the error.
func (f *fakeSystemd) property(path string, name string) (any, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for unit, state := range f.units {
		if path != "/org/freedesktop/systemd1/unit/"+pathName(unit) {
			continue
		}

		if value, ok := f.properties[unit][name]; ok {
			return value, ""
		}

		switch {
		case name == "ActiveState":
			return state, ""
		case name == "LoadState":
			return "loaded", ""
		case name == "NeedDaemonReload":
			return false, ""
		case name == "MainPID":
			return uint32(0), ""
		case name == "ExecStart":
			return [][]string{}, ""
		case name == "Conditions":
			return append([]fakeCondition{}, f.conditions[unit]...), ""
		case name == "TriggeredBy" && unit == "lxd.service":
			return []string{"lxd.socket"}, ""
		}

		return []string{}, ""
	}

	return nil, "org.freedesktop.systemd1.NoSuchUnit"
}

func pathName(unit string) string { return strings.NewReplacer(".", "_2e", "-", "_2d").Replace(unit) }

// job does what a job does, and tells everybody when it has ended.
func (f *fakeSystemd) job(c *fakeConn, call *dbus.Message, member string, unit string) bool {
	f.mu.Lock()
	f.jobs = append(f.jobs, member+" "+unit)
	outcome := "done"
	if member == "StartUnit" && !f.met(unit) {
		outcome = "skipped"
	} else {
		f.units[unit] = map[string]string{"StopUnit": "inactive", "StartUnit": "active", "RestartUnit": "active"}[member]
	}

	id := uint32(len(f.jobs))
	conns := slices.Clone(f.conns)
	f.mu.Unlock()

	path := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", id))
	if !c.send(&dbus.Message{Type: dbus.TypeMethodReply, Headers: replyTo(call, ""), Body: []any{path}}) {
		return false
	}

	if f.breaks(onJob) {
		for _, other := range conns { // the one for signals, too, as when systemd is executed again
			_ = other.Close()
		}

		return false
	}

	if f.unfinished {
		return true
	}

	for _, other := range conns {
		other.send(&dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/systemd1")),
			dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.systemd1.Manager"),
			dbus.FieldMember:    dbus.MakeVariant("JobRemoved"),
		}, Body: []any{id, path, unit, outcome}})
	}

	return true
}

// load reads the conditions of all drop-ins, those with % as they are.
func (f *fakeSystemd) load() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loads++
	f.conditions = map[string][]fakeCondition{}
	for _, dir := range []string{unitDir, runtimeDir} {
		paths, _ := filepath.Glob(filepath.Join(dir, "*.d", "*.conf"))
		for _, path := range paths {
			text, _ := os.ReadFile(path)
			for line := range strings.Lines(string(text)) {
				unit := strings.TrimSuffix(filepath.Base(filepath.Dir(path)), ".d")
				if file, ok := strings.CutPrefix(strings.TrimSpace(line), "ConditionPathExists=!"); ok {
					f.conditions[unit] = append(f.conditions[unit], fakeCondition{Name: "ConditionPathExists", Negate: true, Parameter: file})
				}
			}
		}
	}
}

// met tells whether a unit's conditions hold.
func (f *fakeSystemd) met(unit string) bool {
	return !slices.ContainsFunc(f.conditions[unit], func(c fakeCondition) bool {
		_, err := os.Stat(c.Parameter)
		return err == nil
	})
}

// replyTo are the headers of an answer to a call: with a name it is an error.
func replyTo(call *dbus.Message, errorName string) map[dbus.HeaderField]dbus.Variant {
	headers := map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(call.Serial())}
	if errorName != "" {
		headers[dbus.FieldErrorName] = dbus.MakeVariant(errorName)
	}

	return headers
}

func (c *fakeConn) send(m *dbus.Message) bool {
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	return m.EncodeTo(c, binary.LittleEndian) == nil
}

// begun are the jobs so far.
func (f *fakeSystemd) begun() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.jobs)
}

// timer is the state of the timer, and how often systemd has read its units.
func (f *fakeSystemd) timer() (state string, loads int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.units[testTimer], f.loads
}

// enabling is what was asked about files of units so far.
func (f *fakeSystemd) enabling() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.files)
}

// lets tells whether a unit would be started.
func (f *fakeSystemd) lets(unit string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.met(unit)
}
