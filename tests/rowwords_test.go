// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// rowWordSteps are lxc commands on node1 of a cluster of three. IMAGE is a directory with an empty image. The network stays
// pending: starting it needs a firewall, its rows do not.
const rowWordSteps = `
storage create fast dir --target node1
storage create fast dir --target node2
storage create fast dir --target node3
storage create fast dir
storage volume create fast vol size=1MiB
storage volume snapshot fast vol s0
project create blue -c features.images=true
profile create p1 --project blue
profile set p1 limits.cpu 2 --project blue
profile device add p1 root disk path=/ pool=fast --project blue
init web1 --empty --profile p1 --project blue --target node2
config set web1 limits.memory 1GiB --project blue
snapshot web1 snap0 --project blue
network create lxdbr7 --target node1
network acl create acl1
network zone create zone.example
image import IMAGE --alias small
config set user.color red
cluster group create gpu
cluster group assign node2 default,gpu
cluster role add node2 ovn-chassis`

// rowWords are rows that they add; FINGERPRINT is the image's.
const rowWords = `
project blue
config features.images=true of project blue
profile p1 in project blue
config limits.cpu=2 of profile p1 in project blue
device root of profile p1 in project blue
config pool=fast of device root of profile p1 in project blue
instance web1 in project blue on member node2
config limits.memory=1GiB of instance web1 in project blue on member node2
use of profile p1 in project blue of instance web1 in project blue on member node2
snapshot snap0 of instance web1 in project blue on member node2
config limits.memory=1GiB of snapshot snap0 of instance web1 in project blue on member node2
storage pool fast
part of storage pool fast on member node3
storage volume custom vol in storage pool fast in project default on member node1
storage volume container web1 in storage pool fast in project blue on member node2
snapshot s0 of storage volume custom vol in storage pool fast in project default on member node1
config size=1MiB of storage volume custom vol in storage pool fast in project default on member node1
network lxdbr7 in project default
part of network lxdbr7 in project default on member node1
network ACL acl1 in project default
network zone zone.example in project default
image FINGERPRINT in project default
image alias small of image FINGERPRINT in project default
copy of image FINGERPRINT in project default on member node1
property os=none of image FINGERPRINT in project default
config user.color=red of the cluster
cluster group gpu
place in cluster group gpu of member node2
role ovn-chassis of member node2`

// Content made with lxc on LXD 5.0.2, in the words of its users: what choosing a member from before would delete.
func TestRowWords(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	m := c.Member(1)
	image := t.TempDir()
	for _, dir := range []string{"rootfs", "templates"} {
		must(t, os.Mkdir(filepath.Join(image, dir), 0o755))
	}

	must(t, os.WriteFile(filepath.Join(image, "metadata.yaml"), []byte("architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: none\n"), 0o644))
	c.KillAll()
	must(t, c.Save(ctx, "empty"))
	must(t, c.StartAll(ctx))
	must(t, c.WaitFormed(ctx))
	for _, line := range strings.Split(strings.TrimSpace(rowWordSteps), "\n") {
		lxc(t, m, strings.Fields(strings.ReplaceAll(line, "IMAGE", image))...)
	}

	waitReplicated(t, c)
	c.KillAll()

	empty := filepath.Join(c.Dir(), "saved", "empty", filepath.Base(c.Member(3).Dir()))
	r, status := compareSources(t, m.Dir(), c.Member(2).Dir(), empty)
	if status != 0 || r.Recommendation.Label == "node3" {
		t.Fatalf("exit status %d, %+v, %+v", status, r.Recommendation, r.Refusal)
	}

	got := changesOf(t, r, "node3")
	fingerprint := sqlOnDisk(t, filepath.Join(m.Dir(), "database", "global"), "SELECT fingerprint FROM images")[0]
	for _, want := range strings.Split(strings.TrimSpace(strings.ReplaceAll(rowWords, "FINGERPRINT", fingerprint[:12])), "\n") {
		if !slices.Contains(got, "delete "+want) {
			t.Errorf("lacks %s", want)
		}
	}

	for _, line := range got {
		if strings.Contains(line, "with id=") || strings.Contains(line, " row of ") || strings.Contains(line, " id=") {
			t.Errorf("no words: %s", line)
		}

		t.Log(line)
	}
}
