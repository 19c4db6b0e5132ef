// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/netns"
)

// together is the second demonstration: three machines with systemd, which let each other in by ssh, and one command for all of them.
type together struct {
	ctx    context.Context
	guests []*guest.Guest
}

// demoTogether recovers all members with one command, takes that back, and does it again.
func demoTogether(ctx context.Context, tool string) (err error) {
	say("The same with one command. Three machines with systemd and LXD, which let each other in by ssh; lxd-recover is on the first one only.")
	network, err := netns.NewSwitch(ctx)
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, network.Close()) }()
	t := &together{ctx: ctx}
	defer func() {
		for _, g := range t.guests {
			err = errors.Join(err, g.Close())
		}
	}()
	for i := range 3 {
		g, err := guest.Boot(ctx, guest.Options{Name: fmt.Sprintf("server%d", i+1), Network: network, Address: fmt.Sprintf("10.78.0.%d/16", i+1)})
		if err != nil {
			return err
		}

		t.guests = append(t.guests, g)
	}

	err = t.guests[0].Put(ctx, filepath.Join(tool, "lxd-recover"), "/usr/local/bin/lxd-recover", 0o755)
	if err == nil {
		err = guest.FormCluster(ctx, t.guests...)
	}

	if err == nil {
		err = guest.LetIn(ctx, newAddress, t.guests...)
	}

	if err != nil {
		return err
	}

	return t.play()
}

// newAddress is a machine's address in the other network.
func newAddress(g *guest.Guest) string { return strings.Replace(g.IP(), "10.78.", "10.79.", 1) }

func (t *together) play() error {
	err := t.enter("lxc profile create kept")
	if err != nil {
		return err
	}

	say("Disaster. All three LXDs die, and the machines get addresses in another network.")
	var addresses []string
	for _, g := range t.guests {
		_, err := g.Exec(t.ctx, "sh", "-c", "systemctl stop lxd.socket; systemctl kill --signal=KILL lxd.service; systemctl stop lxd.service; "+
			"ip addr add "+newAddress(g)+"/16 dev eth0")
		if err != nil {
			return err
		}

		note("%s: LXD was killed; %s is now %s", g.Name, g.IP(), newAddress(g))
		addresses = append(addresses, fmt.Sprintf("%s=%s:8443", g.Name, newAddress(g)))
	}

	recovery := "lxd-recover cluster recover --yes --address " + strings.Join(addresses, ",")
	for _, step := range []struct{ said, line, want string }{
		{"One command, on the first machine: all members are looked at, stopped, given one database, and started.", recovery, ""},
		{"All members are at their new addresses, with every row.", "lxc cluster list; lxc profile list -f csv | cut -d, -f1", "kept"},
		{"And back: every member as it was before that run. What was changed since is named, and given up: here the new addresses.",
			"lxd-recover cluster recover undo --yes --discard-local-entries", ""},
		{"The old addresses, and every row.", "lxc cluster list; lxc profile list -f csv | cut -d, -f1", "kept"},
		{"And again: the cluster works, so this is a planned move.", recovery + " --move", ""},
		{"Is this one cluster, and complete? By each member's disk, not by LXD's word:", "lxd-recover cluster recover verify", ""},
	} {
		say("%s", step.said)
		err := t.enterWant(step.line, step.want)
		if err != nil {
			return err
		}
	}

	return nil
}

// enter runs a command line on the first machine as if it were typed there, and shows what it prints.
func (t *together) enter(line string) error { return t.enterWant(line, "") }

// enterWant is enter, and fails if what is printed lacks a text.
func (t *together) enterWant(line string, want string) error {
	one := t.guests[0]
	fmt.Printf("\n%s%s#%s %s\n", bold, one.Name, plain, line)
	var printed strings.Builder
	cmd := one.Command(t.ctx, "sh", "-c", line)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(os.Stdout, &printed), os.Stderr
	err := cmd.Run()
	if err == nil && !strings.Contains(printed.String(), want) {
		err = fmt.Errorf("it does not show %s", want)
	}

	if err != nil {
		return fmt.Errorf("%s: %s: %w", one.Name, line, err)
	}

	return nil
}
