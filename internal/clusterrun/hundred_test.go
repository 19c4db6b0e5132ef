// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

const hundred = 100

// giverBound is what a plan of that size may take of memory, bytes.
const giverBound = 64 << 20

func fakeName(id int) string { return fmt.Sprintf("node%d", id) }

func fakeAddress(id int) string { return fmt.Sprintf("10.55.%d.1:8443", id) }

// fakeRole has three voters, two stand-bys, and spares.
func fakeRole(id int) int {
	switch {
	case id <= 3:
		return 0
	case id <= 5:
		return 1
	}

	return 2
}

// hundredGlobal is the environment variable with the raft directory of which TestMakeHundred makes one of a hundred members.
const hundredGlobal = "LXD_RECOVER_TEST_HUNDRED"

// TestMakeHundred is a child process, as libdqlite is to run in one.
func TestMakeHundred(t *testing.T) {
	global := os.Getenv(hundredGlobal)
	if global == "" {
		return
	}

	address := fmt.Sprintf("@lxd-recover-hundred-%d", os.Getpid())
	must(t, engine.Reconfigure(global, []engine.Node{engine.NewNode(engine.ServeID, address, 0)}))
	must(t, engine.Serve(t.Context(), global, address, globaldb.Name, func(ctx context.Context, db *sql.DB) error {
		for id := 1; id <= hundred; id++ {
			_, err := db.ExecContext(ctx, `INSERT OR REPLACE INTO nodes (id, name, description, address, schema, api_extensions, heartbeat, state, arch)
				SELECT ?, ?, '', ?, schema, api_extensions, heartbeat, state, arch FROM nodes WHERE id = 1`, id, fakeName(id), fakeAddress(id))
			if err != nil {
				return err
			}
		}

		return nil
	}))
	var nodes []engine.Node
	for id := 1; id <= hundred; id++ {
		nodes = append(nodes, engine.NewNode(uint64(id), fakeAddress(id), fakeRole(id)))
	}

	must(t, engine.Reconfigure(global, nodes))
}

// hundredMember is LXD's directory of one of a hundred members, made of one of three; be makes it another one's.
func hundredMember(t *testing.T) (dir string, be func(id int)) {
	t.Helper()
	dir = t.TempDir()
	database := filepath.Join(dir, "database")
	must(t, os.CopyFS(database, os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "forgotten", "n1-preedit/database"))))
	key := bundletest.Key(t)
	bundletest.WritePair(t, dir, "cluster", bundletest.Certificate(t, key, time.Now().Add(-time.Hour)), key)
	child := exec.Command(os.Args[0], "-test.run=^TestMakeHundred$")
	child.Env = append(os.Environ(), hundredGlobal+"="+filepath.Join(database, "global"))
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	local, err := sql.Open("sqlite3", filepath.Join(database, nodedb.File))
	must(t, err)
	t.Cleanup(func() { must(t, local.Close()) })
	_, err = local.Exec("DELETE FROM raft_nodes")
	must(t, err)
	for id := 1; id <= hundred; id++ {
		_, err = local.Exec("INSERT INTO raft_nodes (id, address, role, name) VALUES (?, ?, ?, ?)", id, fakeAddress(id), fakeRole(id), fakeName(id))
		must(t, err)
	}

	return dir, func(id int) {
		_, err := local.Exec("UPDATE config SET value = ? WHERE key IN ('cluster.https_address', 'core.https_address')", fakeAddress(id))
		must(t, err)
	}
}

// TestPlanForHundredFakeMembers makes, writes and reads the plan for a hundred members, none of which runs. The giver is a process of its own, and
// what was seen of the members comes to it as JSON, as over a connection.
func TestPlanForHundredFakeMembers(t *testing.T) {
	dir, be := hundredMember(t)
	whole, err := recovery.Look(t.Context(), dir, recovery.Progress{})
	must(t, err)
	must(t, os.RemoveAll(filepath.Join(dir, "database/global")))
	must(t, os.Mkdir(filepath.Join(dir, "database/global"), 0o700)) // as a spare has it
	var seen []*recovery.MemberLook
	for id := 1; id <= hundred; id++ {
		be(id)
		look, err := recovery.Look(t.Context(), dir, recovery.Progress{})
		must(t, err)
		seen = append(seen, look)
	}

	for name, logs := range map[string]int{"five have a log, and the others are spares": 5, "all have a log": hundred} {
		looks := t.TempDir()
		for i, look := range seen {
			if i < logs {
				look = withLog(look, whole)
			}

			data, err := json.Marshal(look)
			must(t, err)
			must(t, os.WriteFile(filepath.Join(looks, fakeName(i+1)), data, 0o600))
		}

		t.Run(name, func(t *testing.T) {
			giver := exec.Command(os.Args[0], "-test.run=^TestPlanOfLooks$", "-test.v")
			giver.Env = append(os.Environ(), looksVariable+"="+looks, "GOGC=200", "GOMEMLIMIT=20MiB") // as package cli sets them
			out, err := giver.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "a plan for 100 members") {
				t.Errorf("%v: %s", err, out)
			}

			t.Logf("%s", out)
		})
	}
}

// withLog is what is seen of a member that has the log of another one.
func withLog(look *recovery.MemberLook, whole *recovery.MemberLook) *recovery.MemberLook {
	with, inspect := *look, *whole.Inspect
	is := look.Status.Member
	inspect.Member = &recovery.InspectMember{ID: is.ID, Name: is.Name, Address: is.Address}
	with.Inspect, with.Place = &inspect, whole.Place
	return &with
}

// looksVariable is the environment variable with the directory of which TestPlanOfLooks makes a plan.
const looksVariable = "LXD_RECOVER_TEST_LOOKS"

// TestPlanOfLooks is the giver: a child process.
func TestPlanOfLooks(t *testing.T) {
	looks := os.Getenv(looksVariable)
	if looks == "" {
		return
	}

	plan, session, err := clusterrun.MakePlan(t.Context(), clusterrun.Options{
		Version: "test", Giver: "here", Hosts: map[string]string{"node1": "10.55.1.1"}, Lost: []string{"node2", "node3"},
		Connect: func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
			return fakeAgent{file: filepath.Join(looks, m.Name)}, nil
		},
	})
	must(t, err)
	must(t, session.Close())
	file := filepath.Join(t.TempDir(), "plan.yaml")
	must(t, plan.Write(file))
	read, err := clusterrun.ReadPlan(file)
	must(t, err)
	peak := peakMemory(t)
	info, err := os.Stat(file)
	must(t, err)
	t.Logf("a plan for %d members, %d KiB; %d MiB of memory", len(plan.Members), info.Size()>>10, peak>>20)
	if !reflect.DeepEqual(read, plan) {
		t.Errorf("it is read as\n%+v\nand was\n%+v", read, plan)
	}

	if peak > raceFactor*giverBound {
		t.Errorf("it has taken %d MiB of memory, more than %d", peak>>20, giverBound>>20)
	}

	roles := map[string]int{}
	for _, m := range plan.Members {
		roles[m.NewRole]++
	}

	if len(plan.Members) != hundred || roles["voter"] != 3 || roles["stand-by"] != 2 || len(plan.Lost()) != 2 || plan.Members[99].Name != "node100" {
		t.Errorf("%d members, roles %v, lost %v", len(plan.Members), roles, plan.Lost())
	}
}

// fakeAgent says what was seen before.
type fakeAgent struct {
	agent.Agent
	file string
}

func (f fakeAgent) Look(context.Context) (*recovery.MemberLook, error) {
	look := &recovery.MemberLook{}
	data, err := os.ReadFile(f.file)
	if err == nil {
		err = json.Unmarshal(data, look)
	}

	look.Clock = time.Now()
	return look, err
}

func (f fakeAgent) Probe(context.Context, agent.ProbeOptions) (*agent.ProbeReport, error) {
	return &agent.ProbeReport{}, nil
}

func (f fakeAgent) Close() error { return nil }

// peakMemory is the most resident memory of this process so far, bytes.
func peakMemory(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	text, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	must(t, err)
	return kib << 10
}
