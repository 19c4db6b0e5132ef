package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	dqlite "github.com/canonical/go-dqlite/v3"
	"github.com/canonical/go-dqlite/v3/client"
	"github.com/canonical/go-dqlite/v3/driver"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// How a directory grows: that many transactions, each of rows of so many bytes of random text. libdqlite takes a snapshot
// every 1024 entries and keeps the last two, and the dump is one more copy, so that a directory is about four times what
// was written into the database.
const (
	transactions = 4800
	rowBytes     = 2000
	copies       = 4
)

// grow lets a real libdqlite write to a member's raft directory until it has about size bytes, and leaves a db.bin beside,
// as LXD does when it stops. For that time the directory is that of a single voter; afterwards the members are back in it. It
// is for a child process, as libdqlite holds the database in memory.
func grow(ctx context.Context, dir string, size int64) error {
	log, err := raftlog.Open(ctx, os.DirFS(dir), raftlog.Options{})
	if err != nil {
		return err
	}
	var members []engine.Node
	for _, s := range log.Configuration {
		members = append(members, engine.NewNode(s.ID, s.Address, s.Role.API()))
	}
	self := dqlite.NodeInfo{ID: 1, Address: fmt.Sprintf("@lxd-recover-bench-%d", os.Getpid()), Role: client.Voter}
	if err := engine.Reconfigure(dir, []engine.Node{self}); err != nil {
		return err
	}
	node, err := dqlite.New(self.ID, self.Address, dir, dqlite.WithBindAddress(self.Address))
	if err != nil {
		return err
	}
	if err := node.Start(); err != nil {
		return err
	}
	if err := write(ctx, self, max(1, int(size/copies/transactions/rowBytes))); err != nil {
		return err
	}
	if err := dump(ctx, self, dir); err != nil {
		return err
	}
	if err := node.Close(); err != nil {
		return err
	}
	return engine.Reconfigure(dir, members)
}

// write adds rows of random text to a table of its own.
func write(ctx context.Context, self dqlite.NodeInfo, rows int) error {
	store := client.NewInmemNodeStore()
	if err := store.Set(ctx, []client.NodeInfo{self}); err != nil {
		return err
	}
	d, err := driver.New(store)
	if err != nil {
		return err
	}
	sql.Register("dqlite", d)
	db, err := sql.Open("dqlite", globaldb.Name)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE TABLE bench (id INTEGER PRIMARY KEY, text TEXT)"); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range transactions {
		values := make([]any, rows)
		for i := range values {
			values[i] = randomText(random)
		}
		places := strings.TrimSuffix(strings.Repeat("(?),", rows), ",")
		if _, err := db.ExecContext(ctx, "INSERT INTO bench (text) VALUES "+places, values...); err != nil {
			return err
		}
	}
	return nil
}

func randomText(random *rand.Rand) string {
	text := make([]byte, rowBytes)
	for n := range text {
		text[n] = 'a' + byte(random.IntN(26))
	}
	return string(text)
}

// dump leaves what LXD leaves when it stops: db.bin and db.bin-wal.
func dump(ctx context.Context, self dqlite.NodeInfo, dir string) error {
	c, err := client.New(ctx, self.Address)
	if err != nil {
		return err
	}
	files, err := c.Dump(ctx, globaldb.Name)
	for _, f := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o600))
	}
	return errors.Join(err, c.Close())
}
