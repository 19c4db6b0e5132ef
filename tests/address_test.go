// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// A mistyped address of the member itself: nothing lets it through that is not told to, LXD does not start with it, and the refusal says
// just that. An address that the machine gets later is as good as any.
func TestAddressAbsent(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	c.KillAll()
	one, typo := c.Member(1), "10.77.0.142"
	says := []string{"this machine does not have the address " + typo + ":8443", "cannot assign requested address", "--address-absent overrides this"}
	list, none := listOf(t, one, one.IP(), typo), listOf(t, one, one.IP(), "10.77.0.256")
	check := unchanged(t, one.Dir())
	edit(t, one, list).want(t, 3, says...)
	edit(t, one, none).want(t, 1, "10.77.0.256 is not an IP address")
	check()

	mustEdit(t, one, list, "--address-absent")
	tarball := export(t, one)
	check = unchanged(t, one.Dir())
	for _, args := range [][]string{{"--dry-run"}, {"--yes"}} {
		recoverTool(t, one, append([]string{"global-db-import", tarball}, args...)...).want(t, 3, says...)
	}

	check()
	s := status(t, one)
	if len(s.Findings) != 1 || s.Findings[0].Code != preflight.CodeAddressAbsent || !s.Findings[0].Fatal || len(s.Problems) != 1 {
		t.Errorf("status: findings %v, problems %q", s.Findings, s.Problems)
	}

	r := decode[recovery.ImportReport](t, mustRecover(t, one, "global-db-import", "--yes", "--address-absent", "--format", "json", tarball))
	if !r.Done && !r.NothingToDo {
		t.Errorf("with the flag: %+v", r)
	}

	must(t, one.Spawn())
	waitLog(t, one, 0, "Unable to bind") // LXD tries again for a minute, and ends then
	one.Kill()
	must(t, one.AddAddress(ctx, typo+"/16"))
	importOn(t, tarball, c.Member(2), c.Member(3))
	if s = status(t, one); len(s.Findings) > 0 || len(s.Problems) > 0 {
		t.Errorf("once the machine has the address: findings %v, problems %q", s.Findings, s.Problems)
	}

	must(t, c.StartAll(ctx))
	wantWorking(t, c, []string{typo + ":8443", c.Member(2).Address(), c.Member(3).Address()}, c.Members()...)
}

// The schema that LXD makes is found in its program, and is that of the databases that it has made.
func TestInstalledLXD(t *testing.T) {
	t.Parallel()
	for _, known := range []struct {
		find   func() (cluster.LXD, error)
		schema int
	}{{cluster.Debian, 60}, {cluster.LXD6, 78}} {
		lxd, err := known.find()
		must(t, err)
		schema, err := preflight.SchemaOf(filepath.Join(lxd.BinDir, "lxd"))
		if err != nil || schema != known.schema {
			t.Errorf("%s: %d (%v), want %d", lxd.Name, schema, err, known.schema)
		}
	}

	c := cluster.ForTest(t, cluster.Options{Members: 1})
	m := c.Member(1)
	rows, err := m.SQL(t.Context(), "SELECT max(version) FROM schema")
	must(t, err)
	s := status(t, m)
	if len(rows) != 1 || rows[0][0] != "60" || s.LXD.Version != "5.0.2" || s.LXD.Schema != 60 || len(s.Findings) > 0 {
		t.Errorf("the database has schema %v, status says %+v, %v", rows, s.LXD, s.Findings)
	}
}
