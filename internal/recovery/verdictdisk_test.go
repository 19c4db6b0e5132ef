// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// How lines begin.
const (
	notOne     = "Not one cluster: "
	notWorking = "One cluster that does not work as a whole: "
	notInOrder = "One cluster that is not in order: "
	untold     = "Whether this is one cluster cannot be told: "
)

// brokenDisk is what is broken in the third member's directory, or is worth a note, and what the verdict is.
type brokenDisk struct {
	code  string
	line  string // what it begins with
	spoil func(t *testing.T, dir directory)
}

// wantBroken checks that each is found, and is the worst that is found.
func (l *verdictLab) wantBroken(t *testing.T, cases map[string]brokenDisk) {
	t.Helper()
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			v := JudgeCluster(l.again(t, test.spoil), l.expected)
			who, other := map[string]string{"split-recoveries": "", "log-apart": "node1"}[test.code]
			if !other {
				who = "node3"
			}

			wantFinding(t, v, test.code, who)
			if !strings.HasPrefix(v.Line, test.line) {
				t.Errorf("line %q, want %q", v.Line, test.line)
			}
		})
	}
}

// A member of another recovery, or of none, is found by its log.
func TestVerdictRecoveries(t *testing.T) {
	l := newVerdictLab(t)
	l.wantBroken(t, map[string]brokenDisk{
		"the old log": {"without-recovery", notOne + "node3 does not have this recovery: its log ends at index 125, term 2, before the recovery entry at " +
			"index 128, term 8589934592, although LXD says ONLINE.", l.restoreOld},
		"an old log that goes on": {"without-recovery", notOne + "node3 does not have this recovery: its log has an entry of term 2 in the place of the " +
			"recovery entry", func(t *testing.T, dir directory) {
			l.restoreOld(t, dir)
			for range 3 {
				on(dir).transact(t, "UPDATE config SET value = value || 'x'")
			}
		}},
		"another recovery": {"split-recoveries", "Split: node1, node2 come from recovery " + l.expected.Run[:8] + "…, and node3 comes from recovery ",
			func(t *testing.T, dir directory) {
				l.restoreOld(t, dir)
				l.importOn(t, dir, l.signed.exportFenced(t, l.signed.key, 1<<34))
			}},
		"another run": {"other-recovery", notOne + "node3 comes from recovery feedfeed…, and not from recovery " + l.expected.Run[:8] + "….",
			func(t *testing.T, dir directory) { editRecord(t, dir, l.expected.Run, "feedfeedfeedfeed") }},
		"no record": {"no-record", "One cluster of 3 members, complete, from recovery " + l.expected.Run[:8] + "… of ",
			func(t *testing.T, dir directory) { must(t, os.Remove(filepath.Join(dir.database(), recordName))) }},
		"an older record": {"older-record", "One cluster of 3 members, complete, from recovery " + l.expected.Run[:8] + "… of ",
			func(t *testing.T, dir directory) {
				editRecord(t, dir, "term: 8589934592", "term: 3", l.expected.Run, "feedfeed")
			}},
		"a snapshot beyond": {"snapshot-beyond", notOne + "node3 does not have this recovery: it has a snapshot at index 1000125, term 2, beyond the " +
			"recovery entry at index 128, term 8589934592, so that its raft takes nothing of what the others have, " +
			"although LXD says ONLINE.", l.snapshotBeyond},
		"another cluster": {"other-cluster", notOne + "node3 has the cluster certificate ", func(t *testing.T, dir directory) {
			l.signed.newCertificate(t, dir.path, l.signed.key, time.Now().Add(-time.Minute))
		}},
		"no cluster certificate": {"problem", notInOrder + "node3: ", func(t *testing.T, dir directory) {
			must(t, os.Remove(dir.join(clusterCertificateName)))
		}},
	})
}

// Rows and addresses on a member's disk that are not the others' are found.
func TestVerdictContent(t *testing.T) {
	l := newVerdictLab(t)
	l.wantBroken(t, map[string]brokenDisk{
		"a row that nobody else has": {"rows-differ", notOne + "node3 has other rows than node1 at index 129, in config.",
			func(t *testing.T, dir directory) {
				l.restoreOld(t, dir)
				l.importOn(t, dir, l.signed.tarball)
				must(t, os.Remove(filepath.Join(dir.database(), patchName)))
				on(dir).transact(t, "UPDATE nodes SET address = replace(address, '8443', '9393'); INSERT INTO config (key, value) VALUES ('user.other', 'x')")
			}},
		"an entry of another term": {"log-apart", notOne + "the log of node1 has an entry of term 8589934592 at index 129, " +
			"and that of node3 one of term 8589934599; and ", func(t *testing.T, dir directory) {
			l.restoreOld(t, dir)
			l.importOn(t, dir, l.signed.tarball)
			must(t, os.Remove(filepath.Join(dir.database(), patchName)))
			lab := on(dir)
			lab.appendIn(t, 1<<33+7, raftlog.ChangeEntry, raftlog.EncodeConfiguration(openDir(t, dir.global()).Configuration))
		}},
		"its address in local.db": {"address-local", notInOrder + "on node3 the table raft_nodes of local.db has 10.0.0.9:1 for node2, " +
			"and it is to be 10.96.6.102:9393.", func(t *testing.T, dir directory) {
			execSQL(t, dir.local(), "UPDATE raft_nodes SET address = '10.0.0.9:1' WHERE id = 2")
		}},
		"its cluster.https_address": {"address-cluster", notInOrder + "on node3 cluster.https_address is 10.0.0.9:1, and it is to be " +
			"10.96.6.103:9393", func(t *testing.T, dir directory) {
			execSQL(t, dir.local(), "UPDATE config SET value = '10.0.0.9:1' WHERE key = 'cluster.https_address'; "+
				"UPDATE raft_nodes SET address = '10.0.0.9:1' WHERE id = 3")
		}},
		"a stranger in local.db": {"address-local", notInOrder + "on node3 the table raft_nodes of local.db has member 9 (node9) at " +
			"10.0.0.9:1, which is not in raft's configuration.", func(t *testing.T, dir directory) {
			execSQL(t, dir.local(), "INSERT INTO raft_nodes VALUES (9, '10.0.0.9:1', 2, 'node9')")
		}},
		"damage": {"rows-untold", untold + "the rows of node3 at index 129 cannot be told: the log is sound up to index 0 only; and ",
			func(t *testing.T, dir directory) {
				must(t, os.WriteFile(filepath.Join(dir.global(), raftlog.SegmentName(1, 1)), []byte("garbage"), 0o600))
			}},
	})
}

// What is pending is found.
func TestVerdictPending(t *testing.T) {
	l := newVerdictLab(t)
	l.wantBroken(t, map[string]brokenDisk{
		"a patch": {"pending", notInOrder + "on node3 something is pending: ", func(t *testing.T, dir directory) {
			on(dir).pend(t, "UPDATE nodes SET arch = 1")
		}},
		"a plan": {"pending", notInOrder + "on node3 something is pending: the import of 2026-11-22T21:33:00Z was interrupted",
			func(t *testing.T, dir directory) {
				must(t, os.MkdirAll(dir.join(stagingName, globalName), 0o700))
				writePlan(t, dir, false)
			}},
		"what a run has staged": {"pending", notInOrder + "on node3 something is pending: ", func(t *testing.T, dir directory) {
			must(t, os.MkdirAll(dir.join(stagingName, globalName), 0o700))
		}},
		"what a run has stopped": {"pending", notInOrder + "on node3 something is pending: the import of ", func(t *testing.T, dir directory) {
			must(t, dir.writeStopped(Stopped{Purpose: purposeImport, Since: time.Now()}))
		}},
		"what LXD's loader has unpacked": {"pending", notInOrder + "on node3 something is pending: ", func(t *testing.T, dir directory) {
			must(t, os.Mkdir(filepath.Join(dir.database(), product.LXD.Unpacks), 0o700))
		}},
		"an open run": {"open-run", notInOrder + "node3 is part of a run over the whole cluster", func(t *testing.T, dir directory) {
			must(t, os.WriteFile(dir.join(openRunName), []byte("run: x\n"), 0o600))
		}},
	})
}

// restoreOld gives a member the database that it had before the recovery.
func (l *verdictLab) restoreOld(t *testing.T, dir directory) {
	must(t, os.RemoveAll(dir.database()))
	must(t, os.CopyFS(dir.database(), os.DirFS(l.old[2])))
}

// snapshotBeyond gives a member a snapshot of the old history, beyond the recovery entry.
func (l *verdictLab) snapshotBeyond(t *testing.T, dir directory) {
	l.restoreOld(t, dir)
	log := openDir(t, dir.global())
	pieces, _, err := snapshotFence(t.Context(), log, log.LastIndex, snapshotPlace{term: 2}, t.TempDir())
	must(t, err)
	must(t, os.RemoveAll(dir.global()))
	must(t, writePieces(dir.global(), pieces))
}

// editRecord replaces text in the record of a member's database.
func editRecord(t *testing.T, dir directory, oldnew ...string) {
	file := filepath.Join(dir.database(), recordName)
	data, err := os.ReadFile(file)
	must(t, err)
	text := strings.NewReplacer(oldnew...).Replace(string(data))
	if text == string(data) {
		t.Fatalf("%s has none of %q", text, oldnew)
	}

	must(t, os.WriteFile(file, []byte(text), 0o600))
}
