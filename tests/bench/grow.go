// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/canonical/go-dqlite/v3/client"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// How a directory grows: that many transactions, each of rows of so many bytes of random text. libdqlite takes a snapshot every 1024
// entries and keeps the last two, and the dump is one more copy, so that a directory is about four times what was written into the
// database.
const (
	transactions = 4800
	rowBytes     = 2000
	copies       = 4
)

// grow lets a real libdqlite write to a member's raft directory until it has about size bytes, and leaves a db.bin beside, as LXD does
// when it stops. For that time the directory is that of a single voter; afterwards the members are back in it. It is for a child
// process, as libdqlite holds the database in memory.
func grow(ctx context.Context, dir string, size int64) error {
	log, err := raftlog.Open(ctx, os.DirFS(dir), raftlog.Options{})
	if err != nil {
		return err
	}

	var members []engine.Node
	for _, s := range log.Configuration {
		members = append(members, engine.NewNode(s.ID, s.Address, s.Role.API()))
	}

	address := fmt.Sprintf("@lxd-recover-bench-%d", os.Getpid())
	err = engine.Reconfigure(dir, []engine.Node{engine.NewNode(engine.ServeID, address, 0)})
	if err != nil {
		return err
	}

	server, err := engine.Open(engine.ServeID, address, dir)
	if err != nil {
		return err
	}

	err = server.Start(address)
	if err == nil {
		err = write(ctx, address, max(1, int(size/copies/transactions/rowBytes)))
	}

	if err == nil {
		err = dump(ctx, address, dir)
	}

	err = errors.Join(err, server.Close())
	if err != nil {
		return err
	}

	return engine.Reconfigure(dir, members)
}

// write adds rows of random text to a table of its own.
func write(ctx context.Context, address string, rows int) error {
	db, err := engine.Connect(ctx, address, globaldb.Name)
	if err != nil {
		return err
	}

	defer db.Close()

	_, err = db.ExecContext(ctx, "CREATE TABLE bench (id INTEGER PRIMARY KEY, text TEXT)")
	if err != nil {
		return err
	}

	random := rand.New(rand.NewPCG(1, 2))
	for range transactions {
		values := make([]any, rows)
		for i := range values {
			values[i] = randomText(random)
		}

		places := strings.TrimSuffix(strings.Repeat("(?),", rows), ",")
		_, err = db.ExecContext(ctx, "INSERT INTO bench (text) VALUES "+places, values...)
		if err != nil {
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
func dump(ctx context.Context, address string, dir string) error {
	c, err := client.New(ctx, address)
	if err != nil {
		return err
	}

	files, err := c.Dump(ctx, globaldb.Name)
	for _, f := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o600))
	}

	return errors.Join(err, c.Close())
}
