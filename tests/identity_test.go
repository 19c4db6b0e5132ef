// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// Every disk of a cluster is lost, and new machines become its members: each gets its identity from its own backup, and all the database of the newest one. On
// one of the new machines LXD was started before, as it is by the first lxc.
func TestIdentity(t *testing.T) {
	t.Parallel()
	if os.Getenv("CAMPAIGN") != "" {
		cluster.EachLXD(t, everyDiskLost)
		return
	}

	lxd, err := cluster.Debian()
	must(t, err)
	everyDiskLost(t, lxd)
}

func everyDiskLost(t *testing.T, lxd cluster.LXD) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 5*time.Minute)
	dir := t.TempDir()
	key, recipient := ageKey(t)
	backups := map[string]string{}
	newest := ""
	for _, m := range c.Members() {
		must(t, m.CreateProfile(ctx, "before-"+m.Name))
		newest = filepath.Join(dir, m.Name+".tar.gz")
		backups[m.Name] = newest
		r := decode[recovery.BackupReport](t, mustRecover(t, m, "global-db-backup", "--nonce", "--identity", recipient, "--format", "json", newest))
		if !r.Identity || r.Source.Name != m.Name {
			t.Errorf("%s: %+v", m.Name, r)
		}
	}

	c.KillAll()
	for _, m := range c.Members() {
		must(t, os.Rename(m.Dir(), m.Dir()+".lost"))
		must(t, os.Mkdir(m.Dir(), 0o711))
	}

	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	must(t, two.Start(ctx)) // alone, with a new certificate
	recoverTool(t, two, "global-db-identity", "restore", "--key", key, "--replace", backups[two.Name]).want(t, 3, lxd.Names.Product+" is", "stop it first")
	must(t, two.Stop(ctx))
	recoverTool(t, two, "global-db-identity", "restore", "--key", key, backups[two.Name]).want(t, 3, "server.crt, server.key, database already", "--replace")
	other, _ := ageKey(t)
	recoverTool(t, one, "global-db-identity", "restore", "--key", other, backups[one.Name]).want(t, 1, "the key does not fit")
	mustRecover(t, one, "global-db-identity", "restore", "--key", key, backups[one.Name])
	mustRecover(t, two, "global-db-identity", "restore", "--key", key, "--replace", backups[two.Name])
	mustRecover(t, three, "global-db-identity", "restore", "--key", key, backups[three.Name])
	for _, m := range c.Members() {
		for _, name := range []string{"server.crt", "server.key", "cluster.crt", "cluster.key"} {
			wantSameFile(t, filepath.Join(m.Dir()+".lost", name), filepath.Join(m.Dir(), name))
		}
	}

	for _, m := range c.Members() {
		wantNoStart(t, ctx, m)
	}

	restoreMoved(t, c, newest)
	must(t, c.StartAll(ctx))
	must(t, c.WaitOnline(ctx, 3))
	for _, m := range c.Members() {
		names := profiles(t, m)
		for _, of := range c.Members() {
			if !slices.Contains(names, "before-"+of.Name) {
				t.Errorf("%s lacks before-%s: %v", m.Name, of.Name, names)
			}
		}
	}

	must(t, two.CreateProfile(ctx, "after"))
}

// restoreMoved gives all members the database of a backup, at other addresses than they had: one has it first, and gets the new ones by an edit.
func restoreMoved(t *testing.T, c *cluster.Cluster, backup string) {
	t.Helper()
	one, dir := c.Member(1), t.TempDir()
	var oldnew []string
	for _, m := range c.Members() {
		ip := strings.Replace(m.IP(), "10.77.0.", "10.77.1.", 1)
		must(t, m.AddAddress(t.Context(), ip+"/16")) // beside the old one: nobody answers there, and that is known at once
		oldnew = append(oldnew, m.IP(), ip)
	}

	first, tarball := filepath.Join(dir, "first.tar.gz"), filepath.Join(dir, "recovery.tar.gz")
	mustRecover(t, one, "cluster", "export-db", "--yes", "--source", backup, first)
	mustRecover(t, one, "global-db-import", "--yes", "--no-start", first)
	mustEdit(t, one, listOf(t, one, oldnew...))
	mustRecover(t, one, "cluster", "export-db", tarball)
	for _, m := range c.Members()[1:] {
		mustRecover(t, m, "global-db-import", "--yes", "--no-start", tarball)
	}
}

// wantNoStart starts LXD, and wants it not to come as far as raft: with id 1 it would make a database of its own.
func wantNoStart(t *testing.T, ctx context.Context, m *cluster.Member) {
	t.Helper()
	before := filesIn(t, filepath.Join(m.Dir(), "database", "global"))
	must(t, m.Spawn())
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	status, err := m.Wait(ctx)
	must(t, err)
	if words := m.LogTail(1); status == 0 || !strings.Contains(words, "Unsupported upgrade path") {
		t.Errorf("%s: LXD ended with status %d: %s", m.Name, status, words)
	}

	if after := filesIn(t, filepath.Join(m.Dir(), "database", "global")); !slices.Equal(before, after) || !slices.Equal(after, []string{"logs.db"}) {
		t.Errorf("%s: LXD has made %v of %v", m.Name, after, before)
	}

	r := decode[recovery.StatusReport](t, mustRecover(t, m, "global-db-status", "--format", "json"))
	if r.Identity == nil || r.Identity.State != recovery.IdentityNoDatabase || r.Identity.Next != "lxd-recover cluster export-db --source BACKUP" {
		t.Errorf("%s: %+v", m.Name, r.Identity)
	}
}

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}

	return names
}

// ageKey makes a private key of age, in a file, and its public key.
func ageKey(t *testing.T) (file string, recipient string) {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	must(t, err)
	file = filepath.Join(t.TempDir(), "key.txt")
	must(t, os.WriteFile(file, []byte(k.String()+"\n"), 0o600))
	return file, k.Recipient().String()
}

// wantSameFile wants a file to have the content and the mode of another one.
func wantSameFile(t *testing.T, was string, is string) {
	t.Helper()
	one, err := os.ReadFile(was)
	must(t, err)
	two, err := os.ReadFile(is)
	must(t, err)
	before, err := os.Stat(was)
	must(t, err)
	after, err := os.Stat(is)
	must(t, err)
	if string(one) != string(two) || before.Mode() != after.Mode() {
		t.Errorf("%s: mode %v, was %v; the same content: %v", is, after.Mode(), before.Mode(), string(one) == string(two))
	}
}
