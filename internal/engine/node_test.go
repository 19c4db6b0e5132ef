// SPDX-License-Identifier: AGPL-3.0-only

package engine

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mattn/go-sqlite3"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	raftlogtest.Cleanup()
	os.Exit(code)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The roles that the log gets are those that were given, whose numbers LXD and raft do not share.
func TestReconfigure(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Stopped)
	must(t, Reconfigure(dir, []Node{NewNode(1, "10.0.0.1:8443", 0), NewNode(2, "10.0.0.2:8443", 1), NewNode(7, "10.0.0.7:8443", 2)}))
	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
	must(t, err)
	want := raftlog.Configuration{
		{ID: 1, Address: "10.0.0.1:8443", Role: raftlog.Voter},
		{ID: 2, Address: "10.0.0.2:8443", Role: raftlog.StandBy},
		{ID: 7, Address: "10.0.0.7:8443", Role: raftlog.Spare},
	}
	if !slices.Equal(log.Configuration, want) || log.LastIndex != raftlogtest.StoppedLast+1 || !log.Edited {
		t.Errorf("configuration %v at index %d, edited %v", log.Configuration, log.LastIndex, log.Edited)
	}
}

// What libdqlite does not take is an error with its own words, at each of the steps.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"open": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "metadata1"), make([]byte, 33), 0o600) }, "metadata1"},
		"load": {func(dir string) error { return os.Remove(filepath.Join(dir, raftlog.SegmentName(2, 26))) }, "unexpected closed segment"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := raftlogtest.Make(t, raftlogtest.Killed)
			must(t, c.damage(dir))
			err := Reconfigure(dir, []Node{NewNode(ServeID, "a", 0)})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("reconfigure: %v, want: %s", err, c.want)
			}

			dir = raftlogtest.Make(t, raftlogtest.Killed) // libdqlite holds its lock on the first one
			must(t, c.damage(dir))
			server, err := Open(ServeID, "a", dir)
			if name == "open" {
				if err == nil {
					t.Error("opened")
				}

				return
			}

			must(t, err)
			err = server.Start(fmt.Sprintf("@lxd-recover-%s-%d", t.Name(), os.Getpid()))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("start: %v, want: %s", err, c.want)
			}

			must(t, server.Close())
		})
	}
}

// libdqlite serves the rows of the log, with the SQLite that the rest of the program uses: two of them in one process would hold
// different locks and memory.
func TestOneSQLite(t *testing.T) {
	address := start(t)
	db, err := Connect(t.Context(), address, "db.bin")
	must(t, err)
	defer db.Close()

	var version string
	var tables int
	must(t, db.QueryRowContext(t.Context(), "SELECT sqlite_version(), count(*) FROM sqlite_master").Scan(&version, &tables))
	want, _, _ := sqlite3.Version()
	if version != want || tables == 0 {
		t.Errorf("libdqlite has SQLite %s, Go has %s; %d tables", version, want, tables)
	}
}

// A client that goes away while it is answered does not end the process: libdqlite's thread gets SIGPIPE for that.
func TestClientGoesAway(t *testing.T) {
	address := start(t)
	leader := binary.LittleEndian.AppendUint64([]byte{1, 0, 0, 0, 0, 0, 0, 0}, 0) // a request for the leader: one word, type 0
	for range 100 {
		conn, err := net.Dial("unix", address)
		must(t, err)
		_, err = conn.Write(binary.LittleEndian.AppendUint64(nil, 1)) // the protocol's version
		must(t, err)
		_, err = conn.Write(leader)
		must(t, err)
		must(t, conn.Close())
	}

	db, err := Connect(t.Context(), address, "db.bin")
	must(t, err)
	must(t, db.PingContext(t.Context()))
	must(t, db.Close())
}

// start serves a log to this process, and returns where.
func start(t *testing.T) string {
	t.Helper()
	dir := raftlogtest.Make(t, raftlogtest.Stopped)
	address := fmt.Sprintf("@lxd-recover-%s-%d", t.Name(), os.Getpid())
	must(t, Reconfigure(dir, []Node{NewNode(ServeID, address, 0)}))
	server, err := Open(ServeID, address, dir)
	must(t, err)
	t.Cleanup(func() {
		err := server.Close()
		if err != nil {
			t.Error(err)
		}
	})

	must(t, server.Start(address))
	return address
}
