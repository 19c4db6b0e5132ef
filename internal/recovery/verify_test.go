// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// A file that changes between the check and the packing is an error, whichever it is and whatever it still looks like.
func TestChangedSinceChecked(t *testing.T) {
	from := raftlogtest.Make(t, raftlogtest.Snapshot)
	log, err := raftlog.Open(t.Context(), os.DirFS(from), raftlog.Options{Sums: true})
	must(t, err)
	files := []string{log.Snapshot().File, log.Snapshot().Meta}
	for _, run := range log.Runs() {
		if run.Last > log.Snapshot().Index {
			files = append(files, run.File)
		}
	}

	wantNoticed(t, from, log.LastIndex, raftlog.Options{Sums: true}, append(files, ""))

	before := log.Snapshot().Index - 1 // so that the older one is exported
	wantNoticed(t, from, before, raftlog.Options{AllSums: true}, []string{raftlogtest.OlderSnapshot, raftlogtest.OlderSnapshot + ".meta", ""})
}

// wantNoticed checks that packing notices a change of each of these files, and finds nothing where none is changed, which is "".
func wantNoticed(t *testing.T, from string, last uint64, opts raftlog.Options, files []string) {
	t.Helper()
	for _, file := range files {
		dir := raftlogtest.Copy(t, from)
		log, err := raftlog.Open(t.Context(), os.DirFS(dir), opts)
		must(t, err)
		pieces, _, err := fenced(t.Context(), log, last, os.DirFS(dir), 5000)
		must(t, err)
		if file != "" {
			flipFirst(t, filepath.Join(dir, file))
		}

		manifest := &bundle.Manifest{
			Run:     bundle.NewRun(),
			Created: time.Now(), Cluster: bundle.Cluster{Certificate: strings.Repeat("ab", 32)},
			Members: member.List{{ID: 1, Name: "one", Address: "10.0.0.1:8443", Role: raftlog.Voter}},
		}
		err = bundle.Write(t.Context(), io.Discard, bundle.Content{Manifest: manifest, Pieces: pieces, Key: bundletest.Key(t)})
		if file == "" {
			must(t, err)
		} else if err == nil || !strings.Contains(err.Error(), "the file changed while it was read") {
			t.Errorf("%s: error %v", file, err)
		}
	}
}

// verifyInChild is what the hidden command does.
func verifyInChild(dir string, address string) int {
	err := errors.Join(globaldb.RegisterSums(), engine.Serve(context.Background(), dir, address, globaldb.Name,
		func(ctx context.Context, db *sql.DB) error {
			print, err := globaldb.FingerprintOf(ctx, db)
			return errors.Join(err, json.NewEncoder(os.Stdout).Encode(print))
		}))
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		return 1
	}

	return 0
}

// The verification finds what is exported to be what was read, and nothing else: neither other rows, nor what libdqlite does not load.
// What it does not agree to gets no name.
func TestVerification(t *testing.T) {
	dir := raftlogtest.Global(t, "forgotten/n1-preedit") // its last two entries add profiles
	log := openDir(t, dir)
	whole, fence, err := fenced(t.Context(), log, log.LastIndex, os.DirFS(dir), 5000)
	must(t, err)
	export := func(pieces []bundle.Piece, upTo uint64, noVerify bool) error {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		var served *serving
		if !noVerify {
			served = serve(t.Context(), pieces, fence)
			defer served.end()
		}

		p := startVerification(t.Context(), replayed{log: log, upTo: upTo, what: "the database"}, served)
		err := writeOutput(out, false, func(w io.Writer) error {
			_, err := io.WriteString(w, "tarball")
			return err
		}, p.wait)
		if verifyErr := p.end(); verifyErr != nil {
			err = verifyErr
		}

		left, globErr := filepath.Glob(filepath.Join(filepath.Dir(out), "*"))
		must(t, globErr)
		if hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(out), ".*")); len(hidden) > 0 || (len(left) > 0) != (err == nil) {
			t.Errorf("with the error %v there are %v and %v", err, left, hidden)
		}

		return err
	}
	must(t, export(whole, log.LastIndex, false))

	err = export(whole, log.LastIndex-2, false)
	if err == nil || !strings.Contains(err.Error(), "its rows differ in") {
		t.Errorf("rows that are not in our replay: %v", err)
	}

	holed := slices.Delete(slices.Clone(whole), 3, 4) // a segment is missing
	err = export(holed, log.LastIndex, false)
	if err == nil || !strings.Contains(err.Error(), "libdqlite does not get this database") {
		t.Errorf("what libdqlite does not load: %v", err)
	}

	must(t, export(holed, log.LastIndex, true))
}

// flipFirst flips the first bit of a file.
func flipFirst(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	data[0] ^= 1
	must(t, os.WriteFile(path, data, 0o600))
}

// A snapshot has the recovery entry already: raft cannot give it another term, so there is one more after it.
func TestFencedSnapshotAtEnd(t *testing.T) {
	dir := raftlogtest.Copy(t, raftlogtest.Global(t, "small/n1-afteredit"))
	log := openDir(t, dir)
	database, err := os.ReadFile(filepath.Join(dir, "db.bin"))
	must(t, err)
	name := filepath.Join(dir, fmt.Sprintf("snapshot-%d-%d-777", log.LastTerm, log.LastIndex))
	must(t, os.WriteFile(name, raftlogtest.Compress(raftlogtest.EncodeSnapshot(globaldb.Name, database, nil)), 0o600))
	must(t, os.WriteFile(name+".meta", raftlog.EncodeSnapshotMeta(log.ConfigurationIndex, log.Configuration), 0o600))
	log = openDir(t, dir)
	if !log.Healthy() || !log.Edited || log.Snapshot().Index != log.LastIndex {
		t.Fatalf("snapshot %+v, last %d, edited %v, %v", log.Snapshot(), log.LastIndex, log.Edited, log.Problems)
	}

	pieces, fence, err := fenced(t.Context(), log, log.LastIndex, os.DirFS(dir), 5000)
	must(t, err)
	out := filepath.Join(t.TempDir(), "out")
	must(t, writePieces(out, pieces))
	got := openDir(t, out)
	if !got.Healthy() || !got.Edited || got.LastIndex != log.LastIndex+1 || got.LastTerm != 5000 || fence.Index != got.LastIndex || got.Snapshot() == nil ||
		got.Snapshot().Index != log.LastIndex {
		t.Errorf("fence %+v, last %d, snapshot %+v, %v", fence, got.LastIndex, got.Snapshot(), got.Problems)
	}

	served := serve(t.Context(), pieces, fence)
	defer served.end()
	p := startVerification(t.Context(), replayed{log: log, upTo: log.LastIndex, what: "the database"}, served)
	must(t, p.wait())
}

// Where libdqlite could not do its part, the machine is not taken for the database.
func TestVerificationFails(t *testing.T) {
	log := openDir(t, raftlogtest.Global(t, "small/n2-preimport"))
	for want, failed := range map[string]error{
		"TMPDIR names another place":                  &os.PathError{Op: "write", Path: "scratch", Err: unix.ENOSPC},
		"memory runs out":                             engine.ErrKilled,
		"libdqlite does not get this database out of": errors.New("libdqlite refuses the directory"),
	} {
		done := make(chan struct{})
		close(done)
		p := startVerification(t.Context(), replayed{log: log, upTo: log.LastIndex, what: "the database"}, &serving{done: done, err: failed})
		err := p.wait()
		if !errors.Is(err, failed) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--no-verify") {
			t.Errorf("%v became %v", failed, err)
		}
	}
}
