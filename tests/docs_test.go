// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// howto are the sections of docs/howto-recover.md from the first step to the tarball on every member.
var (
	howtoBegin = []string{"Before you begin", "1. Stop LXD on every member", "2. Choose the member to recover from"}
	howtoTake  = []string{"4. Export the database", "5. Copy the tarball"}
	howtoEnd   = []string{"7. Start LXD", "8. Check"}
)

const deletedSection = "Take back an accidental delete"

const howtoOne = "With one command"

const howtoImport = "6. Import it on every surviving member"

// TestDocs runs every command of the pages as it stands there, on machines with LXD as Debian's package and as a snap.
func TestDocs(t *testing.T) {
	t.Parallel()
	howto, trouble := readPage(t, "docs/howto-recover.md"), readPage(t, "docs/howto-troubleshoot.md")
	readme, backup := readPage(t, "README.md"), readPage(t, "docs/howto-backup.md")
	t.Run("machines", func(t *testing.T) {
		for _, variant := range []string{"package", "snap"} {
			t.Run(variant, func(t *testing.T) {
				t.Parallel()
				l := newDocsLab(t, variant)
				l.scenarios(t, howto, trouble, backup)
				if variant == "package" { // it has nothing that differs
					l.readme(t, howto, readme)
				}
			})
		}
	})
	repair := readPage(t, "docs/howto-repair.md")
	t.Run("standalone", func(t *testing.T) {
		for _, variant := range []string{"package", "snap"} {
			t.Run(variant, func(t *testing.T) {
				t.Parallel()
				newStandaloneLab(t, variant).repair(t, repair)
			})
		}
	})
	howto.wantAllRun(t)
	backup.wantAllRun(t)
	trouble.wantAllRun(t)
	repair.wantAllRun(t)
	readme.wantAllRun(t)
}

// docsAll are all machines, and docsAddresses those of their LXDs, in the same order.
var (
	docsAll       = []string{"server1", "server2", "server3", "server4"}
	docsAddresses = []string{"https://10.78.0.1:8443", "https://10.78.0.2:8443", "https://10.78.0.3:8443", "https://10.78.0.4:8443"}
)

// scenarios runs the pages for one reader after the other, each with a cluster that has just been formed.
func (l *docsLab) scenarios(t *testing.T, howto, trouble, backup *page) {
	t.Run("one command", func(t *testing.T) { l.oneCommand(t, howto) })
	if l.variant == "package" { // nothing differs
		t.Run("one command at new addresses", func(t *testing.T) { l.oneCommandMoved(t, howto) })
	}

	t.Run("quorum loss", func(t *testing.T) { l.quorumLoss(t, howto, trouble) })
	if l.variant == "package" {
		t.Run("backup and a broken member", func(t *testing.T) { l.brokenMember(t, howto, backup) })
	}

	t.Run("change of addresses", func(t *testing.T) { l.changeOfAddresses(t, howto) })
	t.Run("accidental delete", func(t *testing.T) { l.accidentalDelete(t, howto) })
	t.Run("one survivor", func(t *testing.T) { l.oneSurvivor(t, howto) })
	if l.variant == "snap" {
		t.Run("quorum loss, imported through snapd", func(t *testing.T) { l.importThroughSnapd(t, howto) })
	}
}

// oneCommand recovers the survivors of a quorum loss with one command, and takes that back.
func (l *docsLab) oneCommand(t *testing.T, howto *page) {
	l.reset(t)
	l.start(t, docsAll...)
	l.wantMembers(t, "server1", docsAddresses...)
	l.lost(t, "server2", "server3")
	l.awaitLoss(t, "server1")
	l.run(t, howto, []string{howtoOne, "Members are lost", "Look again", "It was cut off", "Take it all back"}, "lost")
	for _, server := range []string{"server1", "server4"} {
		if slices.Contains(profileNames(t, l.guests[server]), "later") {
			t.Errorf("%s has not gone back", server)
		}
	}

	l.wantPrecious(t, "server1", "server4")
}

// awaitLoss waits until LXD on a survivor has noticed that the quorum is lost: its leader answers for a few seconds more.
func (l *docsLab) awaitLoss(t *testing.T, server string) {
	t.Helper()
	watch := progress.Watch{What: "LXD to notice the loss", Every: 500 * time.Millisecond, Seen: func() string { return l.waiting(t, server) }}
	must(t, watch.Until(t.Context(), func(ctx context.Context) (bool, error) {
		_, err := l.guests[server].Exec(ctx, "timeout", "--signal=KILL", "5", l.client(), "cluster", "list")
		return err != nil, nil
	}))
}

// oneCommandMoved recovers a cluster all of whose members are in another network.
func (l *docsLab) oneCommandMoved(t *testing.T, howto *page) {
	l.reset(t)
	l.network(t, "10.79")
	l.run(t, howto, []string{howtoOne, "The addresses have changed"}, "moved")
	l.wantPrecious(t, docsAll...)
}

// takeAfterQuorumLoss is the way from a quorum loss to the tarball on every member. Two of the three voters end while all is well:
// an LXD that is started without a quorum would not heed being stopped.
func (l *docsLab) takeAfterQuorumLoss(t *testing.T, howto *page) {
	t.Helper()
	l.reset(t)
	l.start(t, docsAll...)
	l.wantMembers(t, "server1", docsAddresses...)
	l.lost(t, "server2", "server3")
	l.run(t, howto, howtoBegin, "quorum")
	l.run(t, howto, []string{"After a quorum loss"}, "quorum")
	l.run(t, howto, howtoTake, "quorum")
}

// quorumLoss goes all the way, looks for trouble, and takes a lost member back.
func (l *docsLab) quorumLoss(t *testing.T, howto, trouble *page) {
	l.takeAfterQuorumLoss(t, howto)
	l.run(t, howto, []string{howtoImport}, "quorum")
	l.run(t, howto, howtoEnd, "quorum")
	l.wantPrecious(t, "server1", "server4")
	l.run(t, trouble, trouble.runnable())

	l.found(t, "server3")
	l.run(t, howto, []string{"A lost member is found again", "A lost member is gone for good"})
	l.wantPrecious(t, "server1", "server3", "server4")
}

// changeOfAddresses goes all the way with all members in another network, and back by an undo.
func (l *docsLab) changeOfAddresses(t *testing.T, howto *page) {
	l.reset(t)
	l.network(t, "10.79")
	l.run(t, howto, howtoBegin, "addresses")
	l.run(t, howto, []string{"After a change of addresses"}, "addresses")
	l.run(t, howto, howtoTake, "addresses")
	l.run(t, howto, []string{howtoImport}, "addresses")
	l.run(t, howto, howtoEnd, "addresses")
	l.wantPrecious(t, docsAll...)

	// And back: the addresses are the old ones again.
	l.each(t, func(g *guest.Guest) { l.kill(t, g) })
	l.network(t, "10.78")
	l.run(t, howto, []string{"Undo"})
	l.start(t, docsAll...)
	for _, server := range docsAll {
		l.wantMembers(t, server, docsAddresses...)
	}

	l.wantPrecious(t, docsAll...)
}

// accidentalDelete runs the section about it, whose blocks stand between steps of the usual way.
func (l *docsLab) accidentalDelete(t *testing.T, howto *page) {
	l.reset(t)
	l.start(t, docsAll...)
	l.wantMembers(t, "server1", docsAddresses...)
	l.run(t, howto, howtoBegin[:1], "addresses")
	blocks := howto.section(t, deletedSection, "deleted", eventually)
	l.runBlock(t, blocks[0])
	l.awaitHeartbeat(t, "server1") // the page shows that LXD has made transactions of its own since
	l.run(t, howto, howtoBegin[1:2], "addresses")
	l.runBlock(t, blocks[1])
	l.runBlock(t, blocks[2])
	l.run(t, howto, howtoTake[1:], "addresses")
	l.runBlock(t, blocks[3])
	l.run(t, howto, howtoEnd[:1], "addresses")
	l.runBlock(t, blocks[4])
	l.wantPrecious(t, docsAll...)
}

// awaitHeartbeat waits until the leader has written one more heartbeat into the global database, as it does every ten seconds.
func (l *docsLab) awaitHeartbeat(t *testing.T, server string) {
	t.Helper()
	last := func(ctx context.Context) (string, error) {
		return l.guests[server].Exec(ctx, "lxd", "sql", "global", "SELECT max(heartbeat) FROM nodes")
	}
	before, err := last(within(t, time.Minute))
	must(t, err)
	watch := progress.Watch{What: "a heartbeat", Every: 500 * time.Millisecond, Seen: func() string { return l.waiting(t, server) }}
	must(t, watch.Until(t.Context(), func(ctx context.Context) (bool, error) {
		ctx, cancel := progress.Within(ctx, callTimeout)
		defer cancel()

		now, err := last(ctx)
		return err == nil && now != before, err
	}))
}

// brokenMember takes a backup, breaks one member and brings it back, and brings the whole cluster back when all databases are lost.
func (l *docsLab) brokenMember(t *testing.T, howto, backup *page) {
	l.reset(t)
	l.start(t, docsAll...)
	l.wantMembers(t, "server1", docsAddresses...)
	l.run(t, howto, []string{howtoOne})
	l.run(t, backup, []string{"Back up", "Reach further back"})
	three := l.guests["server3"]
	l.kill(t, three)
	inGuest(t, three, "rm", "-r", l.lxdDir+"/database/global")
	inGuest(t, three, "mkdir", "-m", "700", l.lxdDir+"/database/global")
	putTool(t, three)
	l.run(t, backup, []string{"One member is broken"})
	l.wantPrecious(t, docsAll...)

	l.each(t, func(g *guest.Guest) {
		l.kill(t, g)
		inGuest(t, g, "rm", "-r", l.lxdDir+"/database/global")
	})
	l.run(t, backup, []string{"All databases are lost, and there is a backup"}, "all-lost")
	for _, server := range docsAll {
		if server != "server1" {
			inGuest(t, l.guests["server1"], "scp", "-q", "lxd_recovery_db.tar.gz", server+":")
			putTool(t, l.guests[server])
		}

		inGuest(t, l.guests[server], "lxd-recover", "global-db-import", "--yes", "--no-start", "--discard-local-entries", "lxd_recovery_db.tar.gz")
	}

	l.start(t, docsAll...)
	l.wantMembers(t, "server1", docsAddresses...)
	l.wantPrecious(t, docsAll...)
}

// putTool gives a machine the program.
func putTool(t *testing.T, g *guest.Guest) {
	t.Helper()
	must(t, g.Put(t.Context(), tool, "/usr/local/bin/lxd-recover", 0o755))
}

// oneSurvivor has one member make a cluster of its own.
func (l *docsLab) oneSurvivor(t *testing.T, howto *page) {
	l.reset(t)
	l.lost(t, "server2", "server3", "server4")
	l.run(t, howto, howtoBegin[:1])
	l.run(t, howto, []string{"Only one member has survived"})
	l.wantPrecious(t, "server1")
	l.wantMembers(t, "server1", docsAddresses[0])
}

// importThroughSnapd is quorumLoss with an import by `snap set`.
func (l *docsLab) importThroughSnapd(t *testing.T, howto *page) {
	l.takeAfterQuorumLoss(t, howto)
	l.run(t, howto, []string{"Import through snapd"})
	l.run(t, howto, howtoEnd, "quorum")
	l.wantPrecious(t, "server1", "server4")
}

// readme runs what the README shows, where the howto has installed the program.
func (l *docsLab) readme(t *testing.T, howto, readme *page) {
	t.Run("README", func(t *testing.T) {
		l.reset(t)
		l.lost(t, "server2", "server3")
		l.run(t, howto, []string{howtoOne})
		l.run(t, readme, []string{"lxd-recover"})
		l.wantPrecious(t, "server1", "server4")

		// What the page says of a lost member that is just started.
		l.found(t, "server2")
		l.start(t, "server2")
		l.wantMembers(t, "server2", docsAddresses...)
		l.wantPrecious(t, "server2", "server1")
	})
}

// wantMembers waits until a member lists these members, and no others.
func (l *docsLab) wantMembers(t *testing.T, server string, addresses ...string) {
	t.Helper()
	watch := progress.Watch{What: fmt.Sprintf("%s to list %v", server, addresses), Every: 500 * time.Millisecond, Seen: func() string {
		state, _ := l.guests[server].Exec(t.Context(), "sh", "-c", "systemctl status '*lxd*' | head --lines=60; "+
			"journalctl --since=-6min --unit='*lxd*' | grep -v CGroup | tail --lines=100")
		return state + l.waiting(t, server)
	}}
	must(t, watch.Until(t.Context(), func(ctx context.Context) (bool, error) {
		ctx, cancel := progress.Within(ctx, callTimeout)
		defer cancel()
		list, err := l.guests[server].Exec(ctx, "lxc", "cluster", "list", "--format", "csv")
		right := err == nil && strings.Count(list, "https://") == len(addresses)
		for _, a := range addresses {
			right = right && strings.Contains(list, a)
		}

		if !right {
			l.startStaleAgain(t, server, list, err)
		}

		return right, errors.Join(fmt.Errorf("it lists %s", list), err)
	}))
}

// staleRole tells whether LXD takes itself for a voter and is none any more, and therefore does not find the leader: see "LXD's own
// failing starts" in docs/architecture.md. said and err are what `lxc cluster list` has just printed.
func staleRole(t testing.TB, g *guest.Guest, said string, err error) bool {
	t.Helper()
	if !strings.Contains(said+fmt.Sprint(err), "context deadline exceeded") {
		return false
	}

	role, err := g.Exec(within(t, time.Minute), "lxd", "sql", "local",
		"SELECT 'no' || 'voter' FROM raft_nodes JOIN config ON value = address WHERE key = 'cluster.https_address' AND role <> 0")
	return err == nil && strings.Contains(role, "novoter")
}
