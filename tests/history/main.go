// SPDX-License-Identifier: AGPL-3.0-only

// Command history makes tests/fixtures/history-6.6-member.tar.xz: the directory of a member of a real LXD 6.6 cluster after a life of
// some thousand transactions, with elections, clean stops and kills between them, killed hard at the end. The cluster and its keys exist for
// that alone. The other histories there were made the same way with LXD 5.0.2.
//
//	go run -tags libsqlite3,netgo,osusergo ./tests/history FILE.tar.xz
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// How long the life is: LXD's libdqlite takes a snapshot every 1024 entries and keeps the last two.
const (
	years    = 5  // starts of the cluster
	profiles = 50 // in each of them; one takes some thirteen entries
)

// member is whose directory is kept. It follows, so that its batches have several entries now and then; the first one leads.
const member = 2

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: history FILE.tar.xz")
		os.Exit(2)
	}

	err := history(ctx, os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "history:", err)
		os.Exit(1)
	}
}

func history(ctx context.Context, archive string) (err error) {
	lxd, err := cluster.LXD6()
	if err != nil {
		return err
	}

	c, err := cluster.New(ctx, cluster.Options{LXD: lxd, Members: 3, Log: os.Stderr})
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, c.Close()) }()

	for year := range years {
		err = live(ctx, c.Member(1), year)
		if err != nil {
			return err
		}

		if year == years-1 {
			break
		}

		err = restart(ctx, c, year%2 == 0)
		if err != nil {
			return err
		}
	}

	c.KillAll()
	return pack(ctx, c.Member(member).Dir(), archive)
}

// restart ends all members, by a signal that they heed or by one that they do not, and starts them again: somebody is elected.
func restart(ctx context.Context, c *cluster.Cluster, clean bool) error {
	if clean {
		err := c.StopAll(ctx)
		if err != nil {
			return err
		}
	}

	c.KillAll()
	err := c.StartAll(ctx)
	if err != nil {
		return err
	}

	return c.WaitOnline(ctx, len(c.Members()))
}

// live is what people do to an LXD: projects and profiles come, change and go.
func live(ctx context.Context, m *cluster.Member, year int) error {
	var project string
	for i := range profiles {
		if i%10 == 0 {
			project = fmt.Sprintf("project-%d-%d", year, i/10)
			_, err := m.Query(ctx, http.MethodPost, "/1.0/projects", map[string]string{"name": project})
			if err != nil {
				return err
			}
		}

		err := profile(ctx, m, project, i)
		if err != nil {
			return err
		}
	}

	return nil
}

// profile makes a profile, changes it, and sometimes deletes it again.
func profile(ctx context.Context, m *cluster.Member, project string, i int) error {
	name := fmt.Sprintf("profile-%d", i)
	path := "/1.0/profiles/" + name + "?project=" + project
	_, err := m.Query(ctx, http.MethodPost, "/1.0/profiles?project="+project, map[string]any{
		"name": name, "description": fmt.Sprintf("made as number %d", i),
	})
	if err != nil {
		return err
	}

	for change := range 2 {
		_, err = m.Query(ctx, http.MethodPut, path, map[string]any{
			"description": fmt.Sprintf("changed %d times", change+1),
			"config":      map[string]string{"limits.memory": fmt.Sprintf("%dMiB", 128*(1+i%9)), "user.change": fmt.Sprint(change)},
		})
		if err != nil {
			return err
		}
	}

	if i%3 == 0 {
		_, err = m.Query(ctx, http.MethodDelete, path, nil)
	}

	return err
}

// pack keeps what recovery looks at: the databases and the certificates.
func pack(ctx context.Context, dir string, archive string) error {
	out, err := exec.CommandContext(ctx, "tar", "--create", "--xz", "--file", archive, "--sparse", "--directory", dir, "--owner=0", "--group=0",
		"--transform", "s,^,history/,", "cluster.crt", "cluster.key", "server.crt", "server.key", "database").CombinedOutput()
	if err != nil {
		return fmt.Errorf("pack %s: %w: %s", dir, err, out)
	}

	return nil
}
