// SPDX-License-Identifier: AGPL-3.0-only

package cluster_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// A cluster loses two members for good, and LXD's own edit makes a cluster of the third one.
func Example() {
	ctx := context.Background()
	lxd, err := cluster.Debian()
	if err != nil {
		log.Fatal(err)
	}

	c, err := cluster.New(ctx, cluster.Options{LXD: lxd, Log: os.Stderr})
	if err != nil {
		log.Fatal(err)
	}

	defer c.Close()

	survivor := c.Member(1)
	c.KillAll()
	_, err = survivor.LXD(ctx, "cluster", "recover-from-quorum-loss", "--quiet")
	if err != nil {
		log.Print(err)
	}

	err = survivor.Start(ctx)
	if err != nil {
		log.Print(err)
	}

	fmt.Println(survivor.Profiles(ctx))
}
