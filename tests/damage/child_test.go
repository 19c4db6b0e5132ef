// SPDX-License-Identifier: AGPL-3.0-only

package damage

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// What a child is asked to do with a directory.
const (
	load  = "load"  // append a recovery entry, as LXD's own edit does
	begin = "begin" // start a node on it, and stop it
	serve = "serve" // after load: start the only voter, and query its database
	rows  = "rows"  // the same, and print what all its rows come to
)

// childCommand is the first argument of a child; what it is asked and the directory follow.
const childCommand = "ask-libdqlite"

// Bounds on one question. A voter that is alone leads within milliseconds.
const (
	askTimeout   = 2 * time.Minute
	queryTimeout = 4 * time.Second
)

// ask has a child do one of these with a scratch directory, which it changes or ruins, and says how it ended: LoadsClean if libdqlite
// reported success, Refuses or Crashes if not, with what it said.
func ask(t *testing.T, what, dir string) (raftlog.Outcome, string) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), askTimeout)
	defer cancel()

	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, self, childCommand, what, dir)
	cmd.Env = append(os.Environ(), "GOTRACEBACK=none")
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	said, _, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	var exit *exec.ExitError
	switch {
	case err == nil:
		return raftlog.LoadsClean, said
	case ctx.Err() != nil:
		return raftlog.Refuses, fmt.Sprintf("nothing within %s", askTimeout)
	case !errors.As(err, &exit):
		t.Fatalf("run a child: %v", err)
	case exit.ExitCode() == 1:
		return raftlog.Refuses, said
	}

	// A signal ended it; or Go's run-time made exit status 2 of SIGSEGV or SIGABRT in C code.
	return raftlog.Crashes, said
}

// runChild is what a child does. It returns 0 if libdqlite did it, and 1 with a message if it refused.
func runChild(what, dir string) int {
	err := do(what, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}

	return 0
}

func do(what, dir string) error {
	address := addressFor(dir)
	switch what {
	case load:
		return engine.Reconfigure(dir, []engine.Node{engine.NewNode(engine.ServeID, address, 0)})
	case rows:
		err := globaldb.RegisterSums()
		if err != nil {
			return err
		}

		return engine.Serve(context.Background(), dir, address, globaldb.Name, printRows)
	case form:
		return engine.Reconfigure(filepath.Join(dir, "1"), five())
	case voter:
		return beVoter(dir)
	}

	server, err := engine.Open(engine.ServeID, address, dir)
	if err != nil {
		return err
	}

	err = server.Start(address)
	if err == nil && what == serve {
		err = query(address)
	}

	return errors.Join(err, server.Close())
}

// addressFor is an abstract socket for a directory: the same one for load and for serve, and no longer than such names may be.
func addressFor(dir string) string {
	return "@lxd-recover-damage" + dir[max(0, len(dir)-80):]
}

// query reads the schema of the database from the leader, which has to be the node of this process: it applies every entry of the log
// for that.
func query(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()

	db, err := engine.Connect(ctx, address, globaldb.Name)
	if err != nil {
		return err
	}

	defer db.Close()

	var tables int
	err = db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&tables)
	if err != nil {
		return err
	}

	if tables == 0 {
		return errors.New("the database is empty")
	}

	return nil
}

// printRows prints the fingerprint of the database as a line of JSON.
func printRows(ctx context.Context, db *sql.DB) error {
	print, err := globaldb.FingerprintOf(ctx, db)
	if err != nil {
		return err
	}

	return json.NewEncoder(os.Stdout).Encode(print)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
