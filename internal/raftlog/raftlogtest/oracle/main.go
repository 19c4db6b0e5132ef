//go:build libsqlite3

// Command oracle asks the real libdqlite what it makes of a raft directory, and
// ruins the directory on the way: run it on scratch copies only. It is a program
// of its own because libdqlite may take the process down.
//
//	oracle load DIR    load as `lxd cluster edit` does: append a recovery entry
//	oracle begin DIR   start a node on the directory and stop it
//	oracle serve DIR   after load: start the only voter, and query its database
//
// It exits with 0 when libdqlite did it, with 1 and a message when libdqlite
// refused; anything else is a crash.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"time"

	dqlite "github.com/canonical/go-dqlite/v3"
	"github.com/canonical/go-dqlite/v3/client"
	"github.com/canonical/go-dqlite/v3/driver"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: oracle load|begin|serve DIR")
		os.Exit(1)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(what, dir string) error {
	// The address has to be the same for load and serve.
	address := "@lxd-recover-oracle" + dir
	if len(address) > 100 {
		address = address[:19] + address[len(address)-80:]
	}
	self := dqlite.NodeInfo{ID: 1, Address: address, Role: client.Voter}
	if what == "load" {
		return dqlite.ReconfigureMembershipExt(dir, []dqlite.NodeInfo{self})
	}
	node, err := dqlite.New(self.ID, self.Address, dir, dqlite.WithBindAddress(self.Address))
	if err != nil {
		return err
	}
	if err := node.Start(); err != nil {
		return err
	}
	if what == "serve" {
		err = query(self)
	}
	if closeErr := node.Close(); err == nil {
		err = closeErr
	}
	return err
}

// query reads the database's schema through the leader, which has to be us:
// that makes it apply every entry of the log.
func query(self dqlite.NodeInfo) error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	store := client.NewInmemNodeStore()
	if err := store.Set(ctx, []client.NodeInfo{self}); err != nil {
		return err
	}
	d, err := driver.New(store)
	if err != nil {
		return err
	}
	sql.Register("dqlite", d)
	db, err := sql.Open("dqlite", "db.bin")
	if err != nil {
		return err
	}
	defer db.Close()
	var tables int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&tables); err != nil {
		return err
	}
	if tables == 0 {
		return fmt.Errorf("the database is empty")
	}
	return nil
}
