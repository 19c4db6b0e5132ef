// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// memberStateFormat is the version of what a MemberState holds.
const memberStateFormat = 1

// MemberState is what a member's directory says, after a recovery or at any time; LXD may run. It is plain data, which travels from the
// member to where all members are judged, see JudgeCluster. What could not be read is empty, and a problem says why.
type MemberState struct {
	Format    int       `json:"format" yaml:"format"`
	Time      time.Time `json:"time" yaml:"time"` // when the log was read, by this machine's clock, UTC
	Directory string    `json:"directory" yaml:"directory"`

	HostName string        `json:"host_name" yaml:"host_name"`
	BootID   string        `json:"boot_id" yaml:"boot_id"` // of the kernel: another one after each boot, the same in all containers
	LXD      preflight.LXD `json:"lxd" yaml:"lxd"`         // that is installed
	Daemon   string        `json:"daemon" yaml:"daemon"`   // in words
	Running  bool          `json:"running" yaml:"running"`

	Cluster    string         `json:"cluster_certificate" yaml:"cluster_certificate"` // its SHA-256; empty where there is none
	Member     *member.Member `json:"member" yaml:"member"`                           // null where it cannot be told
	Standalone bool           `json:"standalone" yaml:"standalone"`                   // of an LXD that is no member of a cluster

	Record *Record `json:"record" yaml:"record"` // of the import, edit or repair that the live database comes from; null where there is none

	Raft    StateRaft   `json:"raft" yaml:"raft"`
	Members member.List `json:"members" yaml:"members"` // of the raft configuration in force; names where they are known

	// RowsAtFence are the rows at the recovery entry, RowsAt those at the index that was asked for. Each is null where none was.
	RowsAtFence *StateRows `json:"rows_at_fence" yaml:"rows_at_fence"`
	RowsAt      *StateRows `json:"rows_at" yaml:"rows_at"`

	Addresses      []AddressRow `json:"addresses" yaml:"addresses"`
	ClusterAddress string       `json:"cluster_address" yaml:"cluster_address"` // this member's cluster.https_address

	Pending []string `json:"pending" yaml:"pending"`                       // what LXD or lxd-recover will do next time
	OpenRun string   `json:"open_run,omitempty" yaml:"open_run,omitempty"` // the file of a run over the whole cluster that is not at its end

	// Listed are the members as this member's own LXD lists them; null, with the reason, where it does not run or does not answer.
	Listed       []daemon.ListedMember `json:"listed" yaml:"listed"`
	ListedUntold string                `json:"listed_untold,omitempty" yaml:"listed_untold,omitempty"`

	Problems []string `json:"problems" yaml:"problems"`
}

// StateRaft is where a member's raft log stands. Indexes and terms are 0 where there is none.
type StateRaft struct {
	FirstIndex         uint64 `json:"first_index" yaml:"first_index"`
	LastIndex          uint64 `json:"last_index" yaml:"last_index"`
	LastTerm           uint64 `json:"last_term" yaml:"last_term"`
	MetadataTerm       uint64 `json:"metadata_term" yaml:"metadata_term"` // the member's current term
	SnapshotIndex      uint64 `json:"snapshot_index" yaml:"snapshot_index"`
	SnapshotTerm       uint64 `json:"snapshot_term" yaml:"snapshot_term"`
	ConfigurationIndex uint64 `json:"configuration_index" yaml:"configuration_index"`

	// Terms are the terms of the entries, in the order of their indexes. Two logs with the same term at an index are the same up to there,
	// unless one fence was started twice.
	Terms []TermRun `json:"terms" yaml:"terms"`

	// Written is when raft last wrote to the directory, by this machine's clock, UTC. LXD's leader writes every ten seconds or so, and so
	// does each voter and stand-by that follows it.
	Written time.Time `json:"written" yaml:"written"`
}

// TermRun are entries that follow each other and have the same term.
type TermRun struct {
	First uint64 `json:"first" yaml:"first"`
	Last  uint64 `json:"last" yaml:"last"`
	Term  uint64 `json:"term" yaml:"term"`
}

// StateRows is what the rows of the global database come to at an index of the raft log, by replay of this member's own log.
type StateRows struct {
	Position bundle.Position      `json:"position" yaml:"position"`
	Rows     globaldb.Fingerprint `json:"rows,omitempty" yaml:"rows,omitempty"`     // null where they cannot be told
	Untold   string               `json:"untold,omitempty" yaml:"untold,omitempty"` // why not

	// Entries is the SHA-256 of the entries after the recovery entry up to this index; empty where the log does not have all of them.
	Entries string `json:"entries,omitempty" yaml:"entries,omitempty"`
}

// MemberStateOptions say what to read.
type MemberStateOptions struct {
	LXDDir string

	// Fence is the recovery entry at which the rows are to be told; the zero value is that of the member's own record.
	Fence bundle.Position

	// At is an index at which the rows are to be told, too; 0 for none. See CompareAt.
	At uint64

	// Outline leaves out the rows, and the data of snapshots with them: it is enough for CompareAt, takes no longer for a large database than
	// for a small one, and is no state to judge by.
	Outline bool

	// Locked is true for a caller who keeps other runs away from the directory: that somebody is at work there is not pending then.
	Locked bool

	Progress Progress
}

// listTime bounds how long LXD is asked for its list of members. An LXD without a leader does not answer.
// Tests make it short.
var listTime = 10 * time.Second

// ReadMemberState reads what a member's directory says. It changes nothing, and starts nobody. The error is for what is no LXD's directory or
// cannot be read at all; damage is among the state's problems.
func ReadMemberState(ctx context.Context, opts MemberStateOptions) (*MemberState, error) {
	dir, err := openDirectory(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	s := &MemberState{Format: memberStateFormat, Directory: dir.path, LXD: preflight.Installed(ctx, dir.path), Members: member.List{}}
	s.HostName, s.BootID = machineNames()
	found := &StatusReport{Addresses: []AddressRow{}, Pending: []string{}, Problems: []string{}} // for what global-db-status finds out in the same way
	err = found.inspectDaemon(ctx, dir)
	if err != nil {
		return nil, err
	}

	s.Daemon, s.Running = found.Daemon, found.Running
	s.list(ctx, dir)                        // at once: an LXD that ends meanwhile is not to be started by the call
	s.Cluster, _ = dir.clusterCertificate() // where it is missing, StatusReport.member says so
	s.Record, err = readRecord(dir.database())
	if err != nil {
		found.problem("%s: %v", filepath.Join(dir.database(), recordName), err)
		s.Record = nil
	}

	if opts.Locked {
		err = found.pendingFiles(dir)
	} else {
		err = found.pending(dir)
	}

	if err != nil {
		return nil, err
	}

	if exists(dir.join(openRunName)) {
		s.OpenRun = dir.join(openRunName)
	}

	err = s.readDatabases(ctx, dir, opts, found)
	if err != nil {
		return nil, err
	}

	s.Member, s.Standalone = found.Member, found.Standalone
	s.Addresses, s.Pending, s.Problems = found.Addresses, found.Pending, found.Problems
	return s, ctx.Err()
}

// list asks the member's own LXD for its list of members, if it runs.
func (s *MemberState) list(ctx context.Context, dir directory) {
	if !s.Running {
		s.ListedUntold = product.Text("LXD does not run")
		return
	}

	limited, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()

	list, err := daemon.ListMembers(limited, dir.path)
	switch {
	case err == nil:
		s.Listed = list
	case limited.Err() != nil:
		s.ListedUntold = product.Sprintf("LXD did not answer within %s", listTime)
	default:
		s.ListedUntold = err.Error()
	}
}

// takeLog notes where a log stands.
func (s *MemberState) takeLog(log *raftlog.Log) {
	s.Time = time.Now().UTC()
	s.Raft = StateRaft{
		FirstIndex: log.FirstIndex, LastIndex: log.LastIndex, LastTerm: log.LastTerm, MetadataTerm: log.Term,
		ConfigurationIndex: log.ConfigurationIndex, Terms: termsOf(log),
	}
	snapshot := log.Snapshot()
	if snapshot != nil {
		s.Raft.SnapshotIndex, s.Raft.SnapshotTerm = snapshot.Index, snapshot.Term
	}

	for _, f := range log.Files {
		switch f.Kind {
		case raftlog.MetadataFile, raftlog.OpenSegmentFile, raftlog.ClosedSegmentFile, raftlog.SnapshotFile, raftlog.SnapshotMetaFile:
			if f.ModTime.After(s.Raft.Written) {
				s.Raft.Written = f.ModTime.UTC()
			}
		}
	}
}

// termsOf are the terms of a log's entries.
func termsOf(log *raftlog.Log) []TermRun {
	runs := []TermRun{}
	if log.FirstIndex == 0 {
		return runs
	}

	for index := log.FirstIndex; index <= log.LastIndex; index++ {
		term, known := log.TermAt(index)
		last := len(runs) - 1
		switch {
		case !known: // a hole
		case last >= 0 && runs[last].Term == term && runs[last].Last == index-1:
			runs[last].Last = index
		default:
			runs = append(runs, TermRun{First: index, Last: index, Term: term})
		}
	}

	return runs
}

// termAt is the term of the entry at an index, or of the snapshot there; known is false where the log does not tell.
func (s *MemberState) termAt(index uint64) (term uint64, known bool) {
	for _, r := range s.Raft.Terms {
		if r.First <= index && index <= r.Last {
			return r.Term, true
		}
	}

	return s.Raft.SnapshotTerm, index > 0 && index == s.Raft.SnapshotIndex
}

// Holding is whether a member's log has a certain entry.
type Holding string

// The answers of MemberState.Has.
const (
	Has          Holding = "yes"
	HasNot       Holding = "no"
	HasIsUnknown Holding = "unknown"
)

// Has tells whether the member's log has the recovery entry at a position. A snapshot beyond it hides it: its term tells then, unless
// another, later recovery was carried out on this member, which goesOnFrom has for a log.
func (s *MemberState) Has(fence bundle.Position) Holding {
	term, known := s.termAt(fence.Index)
	switch {
	case known && term == fence.Term:
		return Has
	case known || s.Raft.LastIndex < fence.Index:
		return HasNot
	case s.Raft.SnapshotIndex < fence.Index: // a hole
		return HasIsUnknown
	case s.Raft.SnapshotTerm < fence.Term:
		return HasNot
	case s.Record != nil && s.Record.Raft.Term > fence.Term:
		return HasIsUnknown
	}

	return Has
}

// name is what the member is called in messages.
func (s *MemberState) name() string {
	switch {
	case s.Member != nil && s.Member.Name != "":
		return s.Member.Name
	case s.Member != nil:
		return fmt.Sprintf("the member with the id %d", s.Member.ID)
	case s.HostName != "":
		return product.Sprintf("the LXD in %s on %s", s.Directory, s.HostName)
	}

	return product.Text("the LXD in ") + s.Directory
}
