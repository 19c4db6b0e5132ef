// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/microcluster"
)

// microclusterStarts is how often a start of microcluster's daemons with a forgotten member is tried. CAMPAIGN=1 does it ten times, with a log that
// begins with a snapshot.
const microclusterStarts = 3

var microclusterCampaign = os.Getenv("CAMPAIGN") != ""

// microclusterFill is how many transactions it takes until raft has taken a snapshot, with some to spare.
const microclusterFill = 1100

// microclusterLost are rows that two members of three have committed, and the third lacks.
var microclusterLost = []string{"lost1", "lost2"}

// TestMicrocluster has microcluster's own loader take the tarball that we export after its own edit, on two members of three. The third is started as it was,
// with a log that lacks rows that the others had committed, in a later term than an edit's: it must not win an election and take the rows away.
func TestMicrocluster(t *testing.T) {
	t.Parallel()
	c := microcluster.New(t)
	one, two, three := c.Members[0], c.Members[1], c.Members[2]
	lookAtMicrocluster(t, c)
	microclusterBehind(t, c)
	compareMicrocluster(t, c)
	starts := microclusterStarts
	if microclusterCampaign {
		starts = 10
	}

	for i := range starts {
		t.Run(fmt.Sprintf("fenced start %d", i+1), func(t *testing.T) {
			ctx := within(t, 3*time.Minute)
			fenceMicrocluster(t, c, microcluster.SameMembers, two)
			must(t, c.StartAll(ctx))
			wantKeys(t, c, c.Members...)
		})
	}

	// The choice is between m2 and m3, and without a fence the one with the higher term wins, which is the one without the rows.
	t.Run("fenced, m1 last", func(t *testing.T) {
		ctx := within(t, 3*time.Minute)
		fenceMicrocluster(t, c, microcluster.SameMembers, two)
		must(t, c.StartAll(ctx, two, three))
		must(t, c.StartAll(ctx, one))
		wantKeys(t, c, c.Members...)
	})

	t.Run("new addresses", func(t *testing.T) {
		ctx := within(t, 3*time.Minute)
		fenceMicrocluster(t, c, func(line string) string { return strings.ReplaceAll(line, ":9001", ":9009") }, two, three)
		must(t, c.StartAll(ctx))
		wantKeys(t, c, c.Members...)
	})

	t.Run("the only survivor", func(t *testing.T) {
		ctx := within(t, 3*time.Minute)
		fenceMicrocluster(t, c, func(line string) string {
			if strings.Contains(line, "name: m1,") {
				return line
			}

			return strings.ReplaceAll(line, "role: voter", "role: spare")
		})
		must(t, c.StartAll(ctx, one))
		wantKeys(t, c, one)
		must(t, one.Insert(ctx, "zz"))
	})

	// If the rows did not vanish with its own tarball, then the starts above had shown nothing.
	t.Run("control without a fence, m1 last", func(t *testing.T) {
		must(t, c.Restore(within(t, time.Minute), "behind"))
		must(t, one.Edit(within(t, time.Minute), microcluster.SameMembers))
		loaded, forgotten := lastTerm(t, recovery.MicroclusterTarball(one.Dir)), lastTerm(t, three.Dir)
		if loaded >= forgotten { // raft elects the one with the higher term
			t.Fatalf("its own tarball ends in term %d, and the forgotten member in term %d: nothing would be lost without a fence", loaded, forgotten)
		}

		started := false
		for attempt := 1; attempt <= unfencedStarts && !started; attempt++ {
			err := startUnfencedMicrocluster(t, c)
			started = err == nil
			if err != nil {
				t.Logf("attempt %d: %v", attempt, err)
			}
		}

		if !started { // as of LXD: now and then these two elect nobody, and what was seen above has to do
			t.Logf("sample: microcluster, control without a fence: in %d attempts the members did not start", unfencedStarts)
			return
		}

		keys, err := one.Keys(within(t, time.Minute))
		must(t, err)
		if slices.Contains(keys, microclusterLost[0]) || !slices.Contains(keys, "kept") {
			t.Errorf("no row was lost: %q", keys)
		}
	})
}

// startUnfencedMicrocluster has the second member load the tarball of microcluster's own edit on the first one, and starts it with the one that was forgotten.
func startUnfencedMicrocluster(t *testing.T, c *microcluster.Cluster) error {
	t.Helper()
	ctx := within(t, time.Minute)
	one, two, three := c.Members[0], c.Members[1], c.Members[2]
	must(t, c.Restore(ctx, "behind"))
	must(t, one.Edit(ctx, microcluster.SameMembers))
	copyTarball(t, one, two)
	err := c.StartAll(ctx, two, three)
	if err != nil {
		return err
	}

	return c.StartAll(ctx, one)
}

// lastTerm is the term of the last entry of a source.
func lastTerm(t *testing.T, source string) uint64 {
	t.Helper()
	return decode[recovery.InspectReport](t, toolOn(t, "global-db-inspect", "--format", "json", source)).Raft.LastTerm
}

// toolOn runs lxd-recover.
func toolOn(t testing.TB, args ...string) result {
	t.Helper()
	return run(t, exec.CommandContext(t.Context(), tool, args...))
}

// lookAtMicrocluster checks what is said of members whose daemons run, and that those are left alone.
func lookAtMicrocluster(t *testing.T, c *microcluster.Cluster) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	one := c.Members[0]
	must(t, one.Insert(ctx, "kept"))
	for _, m := range c.Members {
		r := decode[recovery.InspectReport](t, toolOn(t, "global-db-inspect", "--format", "json", m.Dir))
		if r.Member == nil || r.Member.Name != m.Name || r.Member.Address != m.Address || len(r.Members) != len(c.Members) || r.RunningDaemon == "" {
			t.Errorf("%s: %+v, members %+v, daemon %q", m.Name, r.Member, r.Members, r.RunningDaemon)
		}

		if !r.Healthy || r.Product != "microcluster" {
			t.Errorf("%s, %s: healthy %v, %+v", m.Name, r.Product, r.Healthy, r.Problems)
		}
	}

	tarball := filepath.Join(t.TempDir(), "x.tar.gz")
	toolOn(t, "cluster", "export-db", "--state-dir", one.Dir, tarball).want(t, 1, "the daemon of "+one.Dir+" is running")
	if _, err := os.Stat(tarball); err == nil {
		t.Error("there is a tarball of a running daemon's")
	}
}

// microclusterBehind kills a cluster whose third member lacks committed rows, at a term above 1, and saves it as "behind".
func microclusterBehind(t *testing.T, c *microcluster.Cluster) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	if microclusterCampaign {
		must(t, c.Members[0].Fill(ctx, microclusterFill))
	}

	for range 2 {
		c.KillAll() // and elections, so that the terms are above that of a recovery entry
		must(t, c.StartAll(ctx))
	}

	c.Members[2].Kill()
	for _, key := range microclusterLost {
		must(t, c.Members[0].Insert(ctx, key))
	}

	c.KillAll()
	must(t, c.Save(ctx, "behind"))
}

// compareMicrocluster checks which member is recommended of those that were killed.
func compareMicrocluster(t *testing.T, c *microcluster.Cluster) {
	t.Helper()
	r := decode[recovery.CompareReport](t, toolOn(t, "global-db-compare", "--format", "json", c.Members[2].Dir, c.Members[1].Dir, c.Members[0].Dir))
	if r.Recommendation == nil || r.Recommendation.Label == c.Members[2].Name || !r.Certain {
		t.Errorf("recommended %+v, certain %v, %+v", r.Recommendation, r.Certain, r.Refusal)
	}

	told := fmt.Sprint(r.Rows)
	for _, key := range microclusterLost {
		if !strings.Contains(told, key) {
			t.Errorf("the comparison does not tell of %s: %s", key, told)
		}
	}
}

// fenceMicrocluster brings back the members of "behind", edits the first one, fences what that leaves, and puts it into place on others.
func fenceMicrocluster(t *testing.T, c *microcluster.Cluster, change func(line string) string, others ...*microcluster.Member) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	one := c.Members[0]
	must(t, c.Restore(ctx, "behind"))
	must(t, one.Edit(ctx, change))
	tarball := recovery.MicroclusterTarball(one.Dir)
	if r := decode[recovery.InspectReport](t, toolOn(t, "global-db-inspect", "--format", "json", tarball)); r.Fenced == nil || *r.Fenced {
		t.Errorf("its own tarball is said to be fenced: %v", r.Fenced)
	}

	before := tree(t, filepath.Join(one.Dir, "database"))
	r := toolOn(t, "cluster", "export-db", "--state-dir", one.Dir)
	if r.status != 0 {
		t.Fatalf("exit status %d: %s", r.status, r.stderr)
	}

	if tree(t, filepath.Join(one.Dir, "database")) != before {
		t.Error("the export has changed the database")
	}

	for _, m := range others {
		copyTarball(t, one, m)
	}

	inspected := decode[recovery.InspectReport](t, toolOn(t, "global-db-inspect", "--format", "json", tarball))
	if inspected.Fenced == nil || !*inspected.Fenced || !inspected.Healthy || len(inspected.Members) != len(c.Members) {
		t.Errorf("fenced %v, healthy %v, members %+v", inspected.Fenced, inspected.Healthy, inspected.Members)
	}
}

func copyTarball(t *testing.T, from *microcluster.Member, to *microcluster.Member) {
	t.Helper()
	data, err := os.ReadFile(recovery.MicroclusterTarball(from.Dir))
	must(t, err)
	must(t, os.WriteFile(recovery.MicroclusterTarball(to.Dir), data, 0o600))
}

// wantKeys checks that members serve all rows, and that each has them on its own disk in the end; and that those with a tarball have loaded it.
func wantKeys(t *testing.T, c *microcluster.Cluster, members ...*microcluster.Member) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	want := append([]string{"kept"}, microclusterLost...)
	for _, m := range members {
		keys, err := m.Keys(ctx)
		must(t, err)
		if !slices.Equal(keys, want) {
			t.Errorf("%s serves %q, want %q", m.Name, keys, want)
		}

		_, err = os.Stat(recovery.MicroclusterTarball(m.Dir))
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has not loaded its tarball: %v", m.Name, err)
		}
	}

	must(t, c.Wait(ctx, "all rows on all disks", func(ctx context.Context) (bool, error) {
		for _, m := range members {
			query := []string{"global-db-sql", "--format", "csv", "--source", m.Dir, "SELECT key FROM extended_table ORDER BY key"}
			out, err := exec.CommandContext(ctx, tool, query...).Output()
			if keys := strings.Fields(string(out)); err != nil || !slices.Equal(keys, append([]string{"key"}, want...)) {
				return false, fmt.Errorf("%s has %q on its disk: %w", m.Name, keys, err)
			}
		}

		return true, nil
	}))
}
