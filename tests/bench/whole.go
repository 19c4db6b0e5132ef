// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/machines"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// wholeSizes are the clusters that are recovered as a whole, with the size of their databases in MiB; 0 is that of the options.
var wholeSizes = []struct {
	members int
	size    int64
}{{3, 64}, {7, 64}, {20, 64}, {3, 0}}

// wholeTime bounds one recovery.
const wholeTime = 30 * time.Minute

// whole is a cluster that is down, and is recovered by several ways; its members have a machine each.
type whole struct {
	*machines.Lab
	memory machines.Memory
}

// way is how a cluster is recovered, and how long it took.
type way struct {
	before time.Duration // from the command until the first LXD is started
	leader time.Duration // until the first LXD answers
}

// benchWhole measures runs over whole clusters, beside a shell loop, and beside LXD's own procedure.
func benchWhole(ctx context.Context, p *page, opts options, tool string) error {
	lxd, err := cluster.LXD6()
	if err != nil {
		return err
	}

	p.text("## Recovering a whole cluster")
	p.text("Members of %s, each on a machine of its own (namespaces with sshd, all on this computer's processors), are down; all are recovered by "+
		"a machine that is none of them, over ssh. \"To a leader\" is from the command until the first LXD answers, \"without LXD's start\" until the "+
		"first one is started. LXD's own time to stop and to start all members is beside it. The shell loop copies lxd-recover to all, edits and exports "+
		"on one, copies the tarball, and imports. LXD's own procedure is its `cluster edit`, scp, and its import at start, of which \"without LXD's "+
		"start\" has the first two only.", lxd.Name)
	var rows [][]string
	for i, c := range wholeSizes {
		if opts.last && i < len(wholeSizes)-1 {
			continue
		}

		if c.size == 0 {
			c.size = opts.size
		}

		fmt.Fprintf(os.Stderr, "A cluster of %d, %d MiB…\n", c.members, c.size)
		row, err := measureWhole(ctx, lxd, tool, c.members, c.size)
		if err != nil {
			return fmt.Errorf("a cluster of %d: %w", c.members, err)
		}

		fmt.Fprintln(os.Stderr, strings.Join(row, " | "))
		rows = append(rows, row)
	}

	p.table([]string{"", "LXD stops", "LXD starts", "`cluster recover`, to a leader", "without LXD's start", "shell loop", "without LXD's start",
		"LXD's own", "without LXD's start", "memory of the giver", "of an agent"}, rows)
	return nil
}

// measureWhole forms a cluster and measures all ways.
func measureWhole(ctx context.Context, lxd cluster.LXD, tool string, members int, size int64) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*wholeTime)
	defer cancel()

	lab, err := machines.New(ctx, cluster.Options{LXD: lxd, Members: members}, tool)
	if err != nil {
		return nil, err
	}

	defer lab.Close()
	w := &whole{Lab: lab}
	err = errors.Join(w.named(ctx), w.grow(ctx, size))
	if err != nil {
		return nil, err
	}

	started, err := w.startAll(ctx)
	if err != nil {
		return nil, err
	}

	began := time.Now()
	err = w.Cluster.StopAll(ctx)
	if err != nil {
		return nil, err
	}

	row := []string{fmt.Sprintf("%d members, %d MiB", members, size), seconds(time.Since(began)), seconds(started)}
	for _, measured := range []func(context.Context) (way, error){w.ours, w.loop, w.lxds} {
		err = errors.Join(w.Restore(ctx, "grown"), flush(ctx))
		if err != nil {
			return nil, err
		}

		found, err := measured(ctx)
		if err != nil {
			return nil, err
		}

		row = append(row, seconds(found.leader), seconds(found.before))
	}

	_, agent := w.memory.Agent()
	return append(row, mib(w.memory.Giver), mib(agent)), nil
}

// named waits until each member's node database has all members' names, which come with heartbeats: LXD's own procedure fails on one
// that lacks a name.
func (w *whole) named(ctx context.Context) error {
	return progress.Watch{What: "each member to know all names", Every: time.Second}.Until(ctx, func(ctx context.Context) (bool, error) {
		for _, m := range w.Cluster.Members() {
			node, err := nodedb.Read(ctx, filepath.Join(m.Dir(), "database"))
			if err != nil {
				return false, err
			}

			if slices.ContainsFunc(node.Members, func(m member.Member) bool { return m.Name == "" }) || len(node.Members) < len(w.Cluster.Members()) {
				return false, fmt.Errorf("%s knows %v", m.Name, node.Members)
			}
		}

		return true, nil
	})
}

// grow makes the database of all members that have one so large, and keeps that.
func (w *whole) grow(ctx context.Context, size int64) error {
	err := w.Cluster.StopAll(ctx)
	if err != nil {
		return err
	}

	self, err := os.Executable()
	if err != nil {
		return err
	}

	first := global(w.Cluster.Member(1))
	_, err = once(exec.CommandContext(ctx, self, "-child", "grow", "-size", fmt.Sprint(size), first))
	if err != nil {
		return err
	}

	for _, m := range w.Cluster.Members()[1:] {
		has, err := filepath.Glob(filepath.Join(global(m), "metadata*"))
		if err != nil || len(has) == 0 { // a spare
			continue
		}

		err = errors.Join(os.RemoveAll(global(m)), copyTree(ctx, first, global(m)))
		if err != nil {
			return err
		}
	}

	return w.Cluster.Save(ctx, "grown")
}

// startAll starts all members, and returns how long it took until the first one answered.
func (w *whole) startAll(ctx context.Context) (time.Duration, error) {
	s := &starting{began: time.Now()}
	for _, m := range w.Cluster.Members() {
		s.start(ctx, m)
	}

	return s.wait()
}

// starting is members that are being started.
type starting struct {
	began time.Time
	group sync.WaitGroup
	mu    sync.Mutex
	first time.Duration // until the first one answered
	errs  []error
}

func (s *starting) start(ctx context.Context, m *cluster.Member) {
	s.group.Go(func() {
		err := m.Start(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.first == 0 {
			s.first = time.Since(s.began)
		}

		s.errs = append(s.errs, err)
	})
}

func (s *starting) wait() (time.Duration, error) {
	s.group.Wait()
	return s.first, errors.Join(s.errs...)
}

// ours is `lxd-recover cluster recover`. LXD is started where it says so.
func (w *whole) ours(ctx context.Context) (found way, err error) {
	first := w.Cluster.Member(1)
	cmd := w.Giver.Command(ctx, "lxd-recover", "cluster", "recover", "--yes", "--format", "json", "--host", first.Name+"="+first.IP())
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return found, err
	}

	stop := w.WatchMemory()
	s := &starting{began: time.Now()}
	err = cmd.Start()
	if err != nil {
		return found, err
	}

	for events := json.NewDecoder(out); ; {
		var e struct{ Member, Phase, Text string }
		if events.Decode(&e) != nil {
			break
		}

		if e.Text != "" { // else it is the report
			fmt.Fprintf(os.Stderr, "%6.2f s  %s  %s  %s\n", time.Since(s.began).Seconds(), e.Member, e.Phase, e.Text)
		}

		i := slices.IndexFunc(w.Cluster.Members(), func(m *cluster.Member) bool { return m.Name == e.Member })
		if e.Phase != "started" || i < 0 {
			continue
		}

		if found.before == 0 {
			found.before = time.Since(s.began)
		}

		s.start(ctx, w.Cluster.Members()[i])
	}

	err = cmd.Wait()
	w.memory = stop()
	found.leader, s.errs = s.first, append(s.errs, err)
	_, err = s.wait()
	if err != nil {
		return found, fmt.Errorf("%w: %s", err, &said)
	}

	return found, nil
}

// loopScript is what an administrator would write. $1 is the first member's address, the others follow.
const loopScript = `set -e
each() { for h; do eval "$what" & pids="$pids $!"; done; for p in $pids; do wait "$p"; done; pids=; }
first=$1; pids=
what='scp -q /usr/bin/lxd-recover "$h":/root/lxd-recover'; each "$@"
ssh "$first" './lxd-recover cluster edit --yes && ./lxd-recover cluster export-db /root/db.tar.gz' < /root/list
scp -q "$first":/root/db.tar.gz /root/db.tar.gz
what='scp -q /root/db.tar.gz "$h":/root/in.tar.gz'; each "$@"
what='ssh "$h" ./lxd-recover global-db-import --yes --no-start --discard-local-entries /root/in.tar.gz > /dev/null'; each "$@"
`

// loop is a shell loop of scp and our two commands.
func (w *whole) loop(ctx context.Context) (way, error) {
	list, err := w.moved(ctx)
	if err != nil {
		return way{}, err
	}

	return w.script(ctx, loopScript, list)
}

// voterFirst are all members; the first one is a voter, which those that LXD has stopped first are not any more.
func (w *whole) voterFirst(ctx context.Context) ([]*cluster.Member, error) {
	all := slices.Clone(w.Cluster.Members())
	for i, m := range all {
		node, err := nodedb.Read(ctx, filepath.Join(m.Dir(), "database"))
		if err != nil {
			return nil, err
		}

		self, ok := node.Members.ByID(node.Self.ID)
		if ok && self.Role == raftlog.Voter {
			all[0], all[i] = all[i], all[0]
			return all, nil
		}
	}

	return nil, errors.New("no member is a voter")
}

// moved is the member list with another port for all, as `lxd cluster edit` reads it.
func (w *whole) moved(ctx context.Context) (string, error) {
	all, err := w.voterFirst(ctx)
	if err != nil {
		return "", err
	}

	list, err := all[0].ShowYAML(ctx)
	return strings.ReplaceAll(string(list), ":8443", ":9393"), err
}

// lxdScript is what LXD's documentation says.
const lxdScript = `set -e
first=$1; shift
tarball=/var/lib/lxd/database/lxd_recovery_db.tar.gz
ssh "$first" "lxd cluster edit && mv $tarball /root/db.tar.gz" < /root/list
scp -q "$first":/root/db.tar.gz /root/db.tar.gz
for h; do scp -q /root/db.tar.gz "$h":$tarball & pids="$pids $!"; done
for p in $pids; do wait "$p"; done
`

// lxds is LXD's own procedure.
func (w *whole) lxds(ctx context.Context) (way, error) {
	list, err := w.moved(ctx)
	if err != nil {
		return way{}, err
	}

	return w.script(ctx, lxdScript, list)
}

// script runs a script on the giver, and then starts LXD on all members.
func (w *whole) script(ctx context.Context, script string, list string) (found way, err error) {
	put := w.Giver.Command(ctx, "tee", "/root/list")
	put.Stdin = strings.NewReader(list)
	err = put.Run()
	if err != nil {
		return found, err
	}

	all, err := w.voterFirst(ctx)
	if err != nil {
		return found, err
	}

	args := []string{"-c", script, "sh"}
	for _, m := range all {
		args = append(args, m.IP())
	}

	began := time.Now()
	out, err := w.Giver.Command(ctx, "bash", args...).CombinedOutput()
	if err != nil {
		return found, fmt.Errorf("%w: %s", err, out)
	}

	found.before = time.Since(began)
	started, err := w.startAll(ctx)
	found.leader = found.before + started
	return found, err
}
