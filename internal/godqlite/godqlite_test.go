// SPDX-License-Identifier: AGPL-3.0-only

package godqlite

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// list has a number that no signed one of 64 bits holds, as most members' are.
var list = member.List{
	{ID: 3297041220608546238, Name: "m1", Address: "10.0.0.1:9001", Role: raftlog.Voter},
	{ID: 18196856851347648105, Name: "m2", Address: "[fd00::2]:9001", Role: raftlog.StandBy},
	{ID: 7, Name: "m3", Address: "host:9001", Role: raftlog.Spare},
}

func TestLists(t *testing.T) {
	data, err := EncodeRecovery(list)
	if err != nil {
		t.Fatal(err)
	}

	got, err := ParseRecovery(data)
	if err != nil || !reflect.DeepEqual(got, list) {
		t.Errorf("%+v, %v, want %+v", got, err, list)
	}

	data, err = EncodeCluster(list)
	if err != nil {
		t.Fatal(err)
	}

	nameless := append(member.List{}, list...)
	for i := range nameless {
		nameless[i].Name = ""
	}

	got, err = ParseCluster(data)
	if err != nil || !reflect.DeepEqual(got, nameless) {
		t.Errorf("%+v, %v, want %+v", got, err, nameless)
	}
}

func TestWrong(t *testing.T) {
	for data, want := range map[string]string{
		"ID: 1":                     "cannot unmarshal",
		"- {ID: 1, Role: 3}":        "unknown role number 3",
		"- {Address: x, Role: 0}":   "a member has no ID",
		"- {ID: -1, Role: 0}":       "cannot unmarshal",
		`- {ID: 1, Address: "\e["}`: "is no address of a member",
	} {
		_, err := ParseCluster([]byte(data))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("cluster.yaml %s: %v, want %s", data, err, want)
		}
	}

	for data, want := range map[string]string{
		"format: 2": "cannot unmarshal",
		"- {id: 1, name: m1, address: x, role: leader}": `unknown role "leader"`,
		`- {id: 1, name: "\e[", role: voter}`:           "is no name of a member",
	} {
		_, err := ParseRecovery([]byte(data))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("recovery.yaml %s: %v, want %s", data, err, want)
		}
	}
}

// What is no file, or too large, is not read.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for want, prepare := range map[string]func(path string) error{
		"not a regular file":  func(path string) error { return os.Mkdir(path, 0o700) },
		"has more than":       func(path string) error { return os.WriteFile(path, make([]byte, maxFile+1), 0o600) },
		"no such file":        func(string) error { return nil },
		"invalid leading UTF": func(path string) error { return os.WriteFile(path, []byte{0xff, 0xc0, 0xfd}, 0o600) },
	} {
		path := filepath.Join(dir, strings.ReplaceAll(want, " ", "-"))
		err := os.Mkdir(path, 0o700)
		if err == nil {
			err = prepare(filepath.Join(path, InfoFile))
		}

		if err != nil {
			t.Fatal(err)
		}

		_, err = ReadInfo(path)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestTrustStore(t *testing.T) {
	state := t.TempDir()
	trust := filepath.Join(state, TrustDir)
	err := os.Mkdir(trust, 0o700)
	for name, content := range map[string]string{
		"m1.yaml": "name: m1\naddress: 10.0.0.1:9001\ncertificate: x\n", "m2.yaml": "name: m2\naddress: 10.0.0.2:9001\n", "m2.yaml.new": "half"} {
		if err == nil {
			err = os.WriteFile(filepath.Join(trust, name), []byte(content), 0o600)
		}
	}

	if err != nil {
		t.Fatal(err)
	}

	got, err := ReadTrustStore(state)
	want := []Trusted{{"m1", "10.0.0.1:9001"}, {"m2", "10.0.0.2:9001"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}

	if IsStateDir(state) {
		t.Error("a trust store alone makes a state directory")
	}
}

func FuzzLists(f *testing.F) {
	for _, encode := range []func(member.List) ([]byte, error){EncodeCluster, EncodeRecovery} {
		data, err := encode(list)
		if err != nil {
			f.Fatal(err)
		}

		f.Add(data)
	}

	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func([]byte) (member.List, error){ParseCluster, ParseRecovery} {
			got, err := parse(data)
			for _, m := range got {
				if err != nil || m.Printable() != nil {
					t.Errorf("%+v, %v", m, err)
				}
			}
		}
	})
}
