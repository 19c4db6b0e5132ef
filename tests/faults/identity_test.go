// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
)

// movedAside is how the name of the directory begins to which a restore moves what is in its way.
const movedAside = "before-identity-"

// makeIdentity makes the job that restores the second member's identity where another LXD was started once. It needs a cluster that works. What comes of
// it is noted in new: all of LXD's directory, and not its database alone.
func (l *lab) makeIdentity(ctx context.Context) error {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}

	file, backup := filepath.Join(l.dir, "key.txt"), filepath.Join(l.dir, "backup.tar.gz")
	err = os.WriteFile(file, []byte(key.String()+"\n"), 0o600)
	if err != nil {
		return err
	}

	m := l.cluster.Member(2)
	out, err := m.Command(ctx, tool, "global-db-backup", "--nonce", "--identity", key.Recipient().String(), backup).CombinedOutput()
	if err != nil {
		return fmt.Errorf("backup: %w: %s", err, out)
	}

	when := time.Unix(1700000000, 0)
	start := tree{
		".":               {mode: fs.ModeDir | 0o711, modified: when},
		"images":          {mode: fs.ModeDir | 0o700, modified: when},
		"images/one":      {mode: 0o600, modified: when, content: []byte("an image")},
		"server.crt":      {mode: 0o644, modified: when, content: []byte("of the LXD that was started")},
		"server.key":      {mode: 0o600, modified: when, content: []byte("its key")},
		"database":        {mode: fs.ModeDir | 0o750, modified: when},
		"database/global": {mode: fs.ModeDir | 0o750, modified: when},
		"database/global/0000000000000001-0000000000000001": {mode: 0o600, modified: when, content: []byte("its log")},
	}
	l.identity = &job{name: "identity restore", args: []string{"global-db-identity", "restore", "--key", file, "--replace", backup}, start: start}
	p, err := newPlace(filepath.Join(l.dir, "run"))
	if err == nil {
		err = p.reset(start)
	}

	if err != nil {
		return err
	}

	r := p.run(l.identity)
	if r.status != 0 {
		return fmt.Errorf("restore without a fault: %s", r)
	}

	now, err := readTree(p.lxd())
	if err != nil {
		return err
	}

	l.identity.new = timeless(now)
	for _, name := range []string{"server.key", "cluster.key", "database/local.db", "database/global/logs.db", movedAside + "TIME/database/global"} {
		if _, ok := l.identity.new[name]; !ok {
			return fmt.Errorf("restore without a fault: there is no %s", name)
		}
	}

	return nil
}

// timeless is a tree with the same name for what was moved away, whenever that was.
func timeless(t tree) tree {
	renamed := tree{}
	for name, n := range t {
		top, rest, _ := strings.Cut(name, "/")
		if strings.HasPrefix(top, movedAside) {
			name = filepath.Join(movedAside+"TIME", rest)
		}

		renamed[name] = n
	}

	return renamed.without(".")
}

// TestIdentity kills a restore of an identity before and after every call that touches the disk, has each of them fail, and cuts the power at those that touch
// LXD's directory. At no moment LXD finds a database that is not whole, or its member's without all certificates and keys; nothing that was there is lost; and
// the same command finishes.
func TestIdentity(t *testing.T) {
	l := getLab(t)
	j := l.identity
	disks := newDisks(t)
	all, err := j.steps(disks[0], systrace.Change)
	must(t, err)
	t.Logf("%d system calls", len(all))
	var cutOff []fault
	for _, at := range append(sample(all, lasting), end) {
		cutOff = append(cutOff, fault{sort: j.name + ", power cut before a system call", at: at, kind: systrace.Change, power: true, action: cut})
	}

	known := setOf(all)
	try := func(p *place, f fault) result {
		r, why := j.restoreWith(t, p, known, f)
		if why != "" {
			t.Errorf("%s at %s: %s", f.sort, f.at, why)
		}

		return r
	}
	places := newPlaces(t)
	tryAt(places, j.kills(all), func(p *place, f fault) {
		r := try(p, f)
		if r.signal != unix.SIGKILL {
			t.Errorf("%s at %s: it was not killed: %s", f.sort, f.at, r)
		}
	})
	tryAt(places, j.failures(all), func(p *place, f fault) { try(p, f) })
	tryAt(disks, cutOff, func(p *place, f fault) { try(p, f) })
}

// restoreWith restores with one fault, and then without. It returns how the run with the fault ended, and what is wrong.
func (j *job) restoreWith(t *testing.T, p *place, known map[step]bool, f fault) (r result, why string) {
	t.Helper()
	r, err := j.attempt(t, p, known, f)
	if err != nil {
		return r, err.Error()
	}

	state, why := j.restored(p)
	table.add(f.sort, func(row *figures) {
		row.injected++
		switch {
		case why != "":
			row.lost++
		case state == wholeNew:
			row.new++
		default:
			row.old++
		}
	})
	if why == "" && r.status == 0 && state != wholeNew {
		why = "success, and the identity is not in place"
	}

	if why != "" {
		return r, fmt.Sprintf("%s\nthe run: %s", why, r)
	}

	why = j.restoreAgain(p)
	table.add(f.sort, func(row *figures) {
		if why == "" {
			row.again++
		} else {
			row.wedged++
		}
	})
	return r, why
}

// restoreAgain gives the command again. If all was done, it says that a member of a cluster is there.
func (j *job) restoreAgain(p *place) string {
	before, err := readTree(p.lxd())
	if err != nil {
		return err.Error()
	}

	all, temporary := timeless(before).differ(j.new, false) == "", len(p.temporary())
	again := p.run(j)
	refused := again.status == 3 && strings.Contains(again.output, "of a member of a cluster")
	now, err := readTree(p.lxd())
	switch {
	case err != nil:
		return err.Error()
	case again.status != 0 && (!all || !refused):
		return fmt.Sprintf("the second run failed: %s", again)
	case len(p.temporary()) > temporary:
		return "the second run left temporary files"
	}

	diff := timeless(now).differ(j.new, false)
	if diff != "" {
		return fmt.Sprintf("after the second run: %s", diff)
	}

	return ""
}

// restored tells what a fault left: nothing that LXD would take for the member, or all of it; and what is wrong with it.
func (j *job) restored(p *place) (verdict, string) {
	read, err := readTree(p.lxd())
	if err != nil {
		return broken, err.Error()
	}

	now, state := timeless(read), wholeOld
	if _, ok := now["database/local.db"]; ok {
		state = wholeNew
	}

	for name, want := range j.new {
		have, ok := now[name]
		top, _, _ := strings.Cut(name, "/")
		if state == wholeNew && (!ok || !sameNode(have, want)) {
			return broken, "the database is in place, and not, or not as it should be: " + name
		}

		was, before := j.start[name]
		if state == wholeOld && top != movedAside+"TIME" && ok && !sameNode(have, want) && (!before || !sameNode(have, was)) {
			return broken, "neither the old nor the new one: " + name
		}
	}

	for name, was := range j.start.without(".") {
		if !sameNode(now[name], was) && !sameNode(now[filepath.Join(movedAside+"TIME", name)], was) {
			return broken, "lost: " + name
		}
	}

	return state, ""
}

// sameNode tells whether two files have the same content and permissions.
func sameNode(a node, b node) bool { return tree{"it": a}.differ(tree{"it": b}, false) == "" }
