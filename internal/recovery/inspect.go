// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// InspectReport is what one global database holds and how sound it is. As JSON it can be carried to another machine and
// compared with others there.
type InspectReport struct {
	Format int       `json:"format" yaml:"format"` // of the report: 2; 0 is the first, see savedreport.go
	Source string    `json:"source" yaml:"source"`
	Kind   string    `json:"kind" yaml:"kind"`
	Time   time.Time `json:"time" yaml:"time"` // when it was read, or, a tarball of ours, exported; UTC

	// Copy is true for what need not be a member's last state: a copy of an earlier time, or an export from which newer entries were left out.
	Copy bool `json:"copy" yaml:"copy"`

	Signature `yaml:",inline"` // of a recovery tarball

	// Databases are those of the log of another application, of which Data is the one that was chosen, or the only one; nil for LXD.
	Databases []InspectDatabase `json:"databases,omitempty" yaml:"databases,omitempty"`

	// Fenced tells of a recovery tarball for microcluster's own loader whether it ends in a fence; null for other sources.
	Fenced *bool `json:"fenced,omitempty" yaml:"fenced,omitempty"`

	// Identity is the name of the member whose certificates, keys and node database a backup has, encrypted; empty if it has none.
	Identity string `json:"identity,omitempty" yaml:"identity,omitempty"`

	// Cluster is the SHA-256 of the cluster certificate, empty if the source does not tell; Member is whose database it is, null then.
	// A standalone server is its own only member, and has no name.
	Cluster    string            `json:"cluster_certificate,omitempty" yaml:"cluster_certificate,omitempty"`
	Member     *InspectMember    `json:"member" yaml:"member"`
	Standalone bool              `json:"standalone" yaml:"standalone"`               // of an LXD that is no member of a cluster
	Product    string            `json:"product,omitempty" yaml:"product,omitempty"` // what it is a database of, such as Incus; empty for LXD
	Raft       InspectRaft       `json:"raft" yaml:"raft"`
	Members    member.List       `json:"members" yaml:"members"` // of the configuration in force; names where they are known
	Data       *globaldb.Summary `json:"database" yaml:"database"`

	Healthy   bool      `json:"healthy" yaml:"healthy"` // libdqlite would have all that the disk holds, and SQLite finds it sound
	Libdqlite Libdqlite `json:"libdqlite" yaml:"libdqlite"`

	// Readings are the logs that the files can be read as, where there are several; the rest of the report is about what they have in
	// common then. LeftOut is what is in the files, or was, and not in the log.
	Readings []InspectReading  `json:"readings" yaml:"readings"`
	LeftOut  []raftlog.LeftOut `json:"left_out" yaml:"left_out"`

	Problems []raftlog.Problem `json:"problems" yaml:"problems"`

	// Machine is the one that an LXD's directory was read on, null for other sources. Findings are what LXD needs to start on the database,
	// and lacks, or may lack; they are among the problems, too.
	Machine  *InspectMachine     `json:"machine" yaml:"machine"`
	Findings []preflight.Finding `json:"findings" yaml:"findings"`

	// RunningDaemon is the daemon that runs on the database, empty if none does: what was read may never have been on disk together.
	// Its key is the one of the first reports.
	RunningDaemon string `json:"torn,omitempty" yaml:"torn,omitempty"`

	Entries []InspectEntry `json:"entries" yaml:"entries"` // those after the snapshot

	// LastEntries are the last transactions after the snapshot that changed more than what LXD writes all the time, in words. From
	// LastEntriesFrom on all of them are told; reports of before have none, and 0 there.
	LastEntries     []InspectTransaction `json:"last_entries" yaml:"last_entries"`
	LastEntriesFrom uint64               `json:"last_entries_from" yaml:"last_entries_from"`
}

// InspectMember is the member that a database belongs to.
type InspectMember struct {
	ID      uint64 `json:"id" yaml:"id"`
	Name    string `json:"name" yaml:"name"`
	Address string `json:"address" yaml:"address"`
}

// InspectDatabase is one of the databases in a log.
type InspectDatabase struct {
	Name string            `json:"name" yaml:"name"`
	Data *globaldb.Summary `json:"database" yaml:"database"` // null where it cannot be replayed
}

// InspectMachine is a machine with an LXD.
type InspectMachine struct {
	HostName string        `json:"host_name" yaml:"host_name"`
	BootID   string        `json:"boot_id" yaml:"boot_id"` // of the kernel: another one after each boot, the same in all containers
	LXD      preflight.LXD `json:"lxd" yaml:"lxd"`         // that is installed
}

// InspectRaft is where a log stands. Indexes and terms are 0 where there is none.
type InspectRaft struct {
	FirstIndex         uint64 `json:"first_index" yaml:"first_index"`
	LastIndex          uint64 `json:"last_index" yaml:"last_index"`
	LastTerm           uint64 `json:"last_term" yaml:"last_term"`
	SoundIndex         uint64 `json:"sound_index" yaml:"sound_index"`     // last entry that the disk holds by the reading taken, 0 if no database can be told
	MaxTerm            uint64 `json:"max_term" yaml:"max_term"`           // anywhere: metadata, snapshots, segments
	MetadataTerm       uint64 `json:"metadata_term" yaml:"metadata_term"` // the member's current term
	SnapshotIndex      uint64 `json:"snapshot_index" yaml:"snapshot_index"`
	SnapshotTerm       uint64 `json:"snapshot_term" yaml:"snapshot_term"`
	ConfigurationIndex uint64 `json:"configuration_index" yaml:"configuration_index"`
	Edited             bool   `json:"edited" yaml:"edited"` // the last entry is a recovery configuration
	Whole              bool   `json:"whole" yaml:"whole"`   // the end of the log is beyond doubt: no damage, no daemon, nothing set aside by libdqlite

	Recovery raftlog.RecoveryEntry `json:"recovery,omitempty" yaml:"recovery,omitempty"` // what the last entry did where Edited

	SnapshotMembers member.List `json:"snapshot_members,omitempty" yaml:"snapshot_members,omitempty"` // of the snapshot's configuration, without names
}

// Libdqlite is what libdqlite would do with the directory.
type Libdqlite struct {
	Load    raftlog.Outcome `json:"load" yaml:"load"`             // when `lxd cluster edit` opens it
	Start   raftlog.Outcome `json:"start" yaml:"start"`           // when LXD starts on it
	Actions []string        `json:"actions" yaml:"actions"`       // to the files, in order
	Last    uint64          `json:"last_index" yaml:"last_index"` // last entry that it would have, 0 if it refuses or crashes
	Dropped uint64          `json:"dropped" yaml:"dropped"`       // entries in the files that it would not have, or take for others
}

// InspectEntry is one entry of the log, small enough to carry around.
type InspectEntry struct {
	Index    uint64 `json:"index" yaml:"index"`
	Term     uint64 `json:"term" yaml:"term"`
	Type     string `json:"type" yaml:"type"`         // command, barrier or change
	Checksum string `json:"checksum" yaml:"checksum"` // first 16 bytes of the SHA-256 of the decoded payload, hexadecimal

	// Transaction is true of a command that is a whole transaction of the database. Reports of earlier versions do not tell.
	Transaction bool `json:"transaction,omitempty" yaml:"transaction,omitempty"`

	Members member.List `json:"members,omitempty" yaml:"members,omitempty"` // of a change, without names
}

// InspectOptions say what to inspect.
type InspectOptions struct {
	Source      string
	Certificate string // a file: the signature of a tarball is checked with it, too, not only with this machine's
	Database    string // one of several
	Progress    Progress
}

// Inspect reads a source and reports. It changes nothing. The error is for what cannot be read; damage is in the report.
func Inspect(ctx context.Context, source string, progress Progress) (*InspectReport, error) {
	return InspectWith(ctx, InspectOptions{Source: source, Progress: progress})
}

// InspectWith is Inspect with options.
func InspectWith(ctx context.Context, opts InspectOptions) (*InspectReport, error) {
	var r *InspectReport
	err := readSourceDatabase(ctx, opts.Source, opts.Database, opts.Progress, func(src *Source, log *raftlog.Log) error {
		signature, err := src.signature(opts.Certificate)
		if err != nil {
			return err
		}

		read := replay(ctx, log)
		defer read.close()

		r, err = inspect(ctx, src, read, true)
		if err == nil {
			r.Signature = signature
		}

		return err
	})

	return r, err
}

// inspect makes the report of a log that was read. Whether its last transactions are told decides over most of the time that it takes.
func inspect(ctx context.Context, src *Source, read *readOnce, tell bool) (*InspectReport, error) {
	log := read.log
	r := &InspectReport{
		Format: inspectFormat, Source: src.Path, Kind: src.Kind, Time: time.Now().UTC().Truncate(time.Second),
		Copy: src.Kind == kindKept || isKind(src.Kind, kindBackup) || src.Kind == kindOwn || src.Kind == kindArchive ||
			src.Kind == kindMicroclusterBackup,
		RunningDaemon: src.daemon, Healthy: log.Healthy(), Problems: append([]raftlog.Problem{}, log.Problems...),
		Libdqlite: libdqliteOf(log),
		Readings:  readingsOf(log), LeftOut: append([]raftlog.LeftOut{}, log.LeftOut...),
		Raft: raftOf(log), Product: nameOfProduct(src.product),
		Entries: []InspectEntry{}, Findings: []preflight.Finding{},
	}
	r.Raft.Whole = r.Raft.Whole && src.daemon == ""
	names, err := src.databases(ctx, log)
	if err != nil {
		return nil, err
	}

	last, err := r.entries(ctx, log, tellsCommits(src, names))
	if err != nil {
		return nil, err
	}

	found, err := r.database(ctx, src, read, names)
	if err != nil {
		return nil, err
	}

	r.LastEntries, r.LastEntriesFrom = []InspectTransaction{}, r.Raft.LastIndex+1
	if tell {
		err = r.lastEntries(ctx, log, last)
		if err != nil {
			return nil, err
		}
	}

	if src.isApplication() {
		return r, r.memberOf(ctx, src, log, read.db)
	}

	err = r.member(ctx, src, log, found)
	r.machine(ctx, src, found)
	r.needs(src, found)
	return r, err
}

// raftOf is where a log stands. That no daemon runs on it is not known here.
func raftOf(log *raftlog.Log) InspectRaft {
	r := InspectRaft{
		FirstIndex: log.FirstIndex, LastIndex: log.LastIndex, LastTerm: log.LastTerm, SoundIndex: log.SoundIndex, MaxTerm: log.MaxTerm,
		MetadataTerm: log.Term, ConfigurationIndex: log.ConfigurationIndex, Edited: log.Edited, Recovery: log.Recovery(),
		Whole: log.Healthy() && !log.Changed && !log.EndGone && !setAside(log),
	}
	if s := log.Snapshot(); s != nil {
		r.SnapshotIndex, r.SnapshotTerm = s.Index, s.Term
		r.SnapshotMembers = namedServers(s.Configuration, nil)
	}

	return r
}

// entries sums the entries after the snapshot, and returns which of them are sound transactions. Those on the database of this name tell what is
// committed.
func (r *InspectReport) entries(ctx context.Context, log *raftlog.Log, database string) (transactions []InspectTransaction, err error) {
	for entry, err := range log.Entries(ctx, max(log.FirstIndex, r.Raft.SnapshotIndex+1)) {
		if err != nil {
			return nil, err
		}

		if changesRows(entry) && entry.Index <= log.SoundIndex {
			transactions = append(transactions, InspectTransaction{Index: entry.Index, Term: entry.Term})
		}

		e := InspectEntry{Index: entry.Index, Term: entry.Term, Type: entry.Type.String(), Checksum: checksum(entry),
			Transaction: isTransactionOn(entry, database)}
		if entry.Type == raftlog.ChangeEntry {
			servers, err := raftlog.ParseConfiguration(entry.Data)
			if err == nil {
				e.Members = namedServers(servers, nil)
			}
		}

		r.Entries = append(r.Entries, e)
	}

	return transactions, nil
}

// setAside tells whether libdqlite has once moved segments away that it could not read: the member has forgotten entries that
// it may have vouched for.
func setAside(log *raftlog.Log) bool {
	return slices.ContainsFunc(log.Files, func(f raftlog.File) bool { return f.Kind == raftlog.CorruptFile })
}

// inDatabase is what the global database says about members.
type inDatabase struct {
	members member.List // ids and names
	needs   *needs      // of LXD on the database
	rows    []preflight.Node
	self    member.Member // the one whose certificate is in the source's LXD directory; zero where none is
}

// database replays the log and looks into the result. A log that cannot be replayed is a problem, not an error.
func (r *InspectReport) database(ctx context.Context, src *Source, read *readOnce, names []string) (found inDatabase, err error) {
	log, db, err := read.log, read.db, read.dbErr
	if log.SoundIndex == 0 && log.LastIndex > 0 {
		r.problem("nothing in the log is sound", "see the other problems")
		return found, nil
	}

	if errors.Is(err, globaldb.ErrNoDatabase) && r.Healthy {
		r.Problems = append(r.Problems, src.noTransaction(log.Configuration))
		return found, nil
	}

	if errors.Is(err, globaldb.ErrSeveralDatabases) {
		return found, r.several(ctx, src, log, names)
	}

	if err != nil {
		return found, r.damaged(err)
	}

	r.Data, err = db.Summary(ctx)
	if err != nil {
		return found, r.damaged(err)
	}

	if r.Data.Integrity != "ok" {
		r.problem("SQLite finds the database damaged: "+r.Data.Integrity, "starts, and serves the damaged database")
	}

	if src.isApplication() {
		return found, r.several(ctx, src, log, names)
	}

	nodes, err := db.Nodes(ctx)
	if err != nil {
		return found, r.damaged(err)
	}

	for _, n := range nodes {
		found.members = append(found.members, member.Member{ID: n.ID, Name: n.Name})
	}

	found.needs, err = directory{path: src.lxdDir()}.needsOf(ctx, db, namedServers(log.Configuration, found.members), 0)
	if err != nil {
		return found, r.damaged(err)
	}

	found.rows, err = nodeRows(ctx, db)
	if err != nil {
		return found, r.damaged(err)
	}

	own, err := directory{path: filepath.Dir(src.nodes)}.serverCertificate()
	if err != nil || src.nodes == "" {
		return found, nil // a copied database/ alone: the node database tells, too
	}

	found.self, _, err = withCertificate(ctx, db, found.members, own)
	if err != nil {
		return found, r.damaged(err)
	}

	return found, nil
}

// noTransaction is what a log without a single transaction is, to a server with that configuration.
func noTransaction(servers raftlog.Configuration) raftlog.Problem {
	if aloneInLog(servers) {
		return raftlog.Problem{Severity: raftlog.Warning, Offset: -1,
			Text:      product.Text("no transaction is in the log: LXD has not written anything to its database yet"),
			Libdqlite: "starts with an empty database", Advice: product.Text("nothing, if LXD was installed a moment ago")}
	}

	return raftlog.Problem{Severity: raftlog.Warning, Offset: -1,
		Text:      "no transaction is in the log: this member is a spare, or joined a moment ago",
		Libdqlite: "starts with an empty database and waits for the leader's", Advice: "recover from another member"}
}

// damaged notes an error that the database is to blame for, and returns one that it is not.
func (r *InspectReport) damaged(err error) error {
	var damage *DamageError
	if !errors.As(replayError("", err), &damage) {
		return err
	}

	r.problem(damage.Problems[0].Text, "see the other problems")
	return nil
}

func (r *InspectReport) problem(text string, libdqlite string) {
	r.Healthy = false
	r.Problems = append(r.Problems, raftlog.Problem{Severity: raftlog.Error, Offset: -1, Text: text, Libdqlite: libdqlite,
		Advice: "recover from another member, if there is one whose database is sound"})
}

// member finds out whose database it is, and the members' names: from the node database, the manifest, or the table nodes,
// in that order. Where the node database does not tell, for damage or because a loader of LXD's was killed half-way through it,
// the member's own certificate does.
func (r *InspectReport) member(ctx context.Context, src *Source, log *raftlog.Log, found inDatabase) error {
	known := found.members
	if src.bundle != nil {
		known = src.bundle.Members
		if m := src.bundle.Manifest; m != nil {
			r.Cluster = m.Cluster.Certificate
			r.Member = &InspectMember{ID: m.Source.ID, Name: m.Source.Name, Address: m.Source.Address}
			r.Time, r.Copy = m.Created, m.Raft.Last.Index > 0 || m.IsBackup()
			if m.HasIdentity() {
				r.Identity = m.Source.Name
			}
		}
	}

	r.Members = namedServers(log.Configuration, known)
	if src.nodes == "" {
		r.alone("", nil, log)
		return nil
	}

	lxdDir := filepath.Dir(src.nodes)
	node, err := nodedb.Read(ctx, src.nodes)
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, nodedb.ErrUnknownMember), errors.Is(err, nodedb.ErrMissing):
	case err != nil:
		r.Problems = append(r.Problems, raftlog.Problem{Severity: raftlog.Warning, File: nodedb.File, Offset: -1, Text: err.Error(),
			Libdqlite: product.Text("does not know it: it is LXD's own node database, without which LXD does not start"),
			Advice:    "recover from this global database all the same, if it is the one to recover from"})
	}

	if r.alone(lxdDir, node, log) {
		return nil
	}

	if (err != nil || node.Standalone) && found.self.ID != 0 {
		self, _ := r.Members.ByID(found.self.ID)
		r.Member = &InspectMember{ID: found.self.ID, Name: found.self.Name, Address: self.Address}
	}

	if err == nil && !node.Standalone {
		self, ok := r.Members.ByID(node.Self.ID)
		if !ok || self.Name == "" {
			self = node.Self
		}

		r.Member = &InspectMember{ID: node.Self.ID, Name: self.Name, Address: node.Self.Address}
	}

	certificate, err := fingerprint(filepath.Join(lxdDir, clusterCertificateName))
	if err == nil {
		r.Cluster = certificate
	}

	return nil
}

// alone tells whether the database is that of a standalone server, and says so in the report. What looks like one and cannot be one
// is a problem.
func (r *InspectReport) alone(lxdDir string, node *nodedb.Node, log *raftlog.Log) bool {
	var why *mismatch
	r.Standalone, why = standalone(lxdDir, node, log.Configuration)
	if why != nil {
		r.Problems = append(r.Problems, raftlog.Problem{Severity: raftlog.Warning, File: nodedb.File, Offset: -1, Text: why.text,
			Libdqlite: product.Text("does not know it: it is LXD's own node database, on which LXD starts as a standalone server"), Advice: why.advice})
	}

	if r.Standalone {
		r.Member = &InspectMember{ID: nodedb.StandaloneID, Address: nodedb.StandaloneAddress}
	}

	return r.Standalone
}
