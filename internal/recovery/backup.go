// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
)

// BackupOptions say what to back up and where to.
type BackupOptions struct {
	LXDDir  string
	Output  string    // a file; empty with Stdout
	Stdout  io.Writer // in place of a file
	Version string    // of lxd-recover, for the manifest
	Force   bool      // replace an existing file

	// Nonce is written through the leader as the value of a key, which is removed again, rather than wait for a heartbeat: it needs no clock to be right.
	// It is random, see bundle.NewRun; empty for a heartbeat.
	Nonce string

	// Trailing takes the entries along that the newest snapshot has made superfluous, as far as they are there: see trailing.
	Trailing bool

	// Wait bounds how long to wait for a transaction of the leader.
	Wait time.Duration

	// Identity is whom what no other member can give back is encrypted for: certificates, private keys, local.db. Nil leaves it out.
	Identity *sealed.Lock

	NoVerify bool // see ExportOptions
	Unsigned bool

	Progress Progress
}

// BackupReport is what a backup did.
type BackupReport struct {
	File     string            `json:"file" yaml:"file"`
	Size     int64             `json:"size" yaml:"size"` // of the tarball, bytes
	Files    int               `json:"files" yaml:"files"`
	Source   member.Member     `json:"source" yaml:"source"`
	Cluster  string            `json:"cluster_certificate" yaml:"cluster_certificate"`
	Members  member.List       `json:"members" yaml:"members"`
	Began    time.Time         `json:"began" yaml:"began"`       // all that was confirmed before is in the backup
	Raft     bundle.Position   `json:"raft" yaml:"raft"`         // last entry of the tarball
	Proof    string            `json:"proof" yaml:"proof"`       // see bundle.ProofHeartbeat and the others
	Next     bundle.Position   `json:"next" yaml:"next"`         // the transaction that proves it; zero with a sole voter
	Signed   bool              `json:"signed" yaml:"signed"`     // with the cluster's key
	Identity bool              `json:"identity" yaml:"identity"` // certificates, keys and local.db are in it, encrypted
	Waited   float64           `json:"waited" yaml:"waited"`     // seconds until the leader's transaction was on this disk
	Database *globaldb.Summary `json:"database" yaml:"database"`
	Warnings []string          `json:"warnings" yaml:"warnings"`
}

// Backup writes this member's database to a tarball while LXD works: its log up to a transaction that was made after the backup began, and that this disk
// proves to be committed. So all that anybody was told to be done before is in it. It changes nothing in LXD's directory, and wakes nothing; with Nonce a
// key of the server configuration comes and goes.
func Backup(ctx context.Context, opts BackupOptions) (*BackupReport, error) {
	b := &backup{opts: opts, nonce: opts.Nonce, report: &BackupReport{File: opts.Output, Warnings: []string{}}}
	err := b.open(ctx)
	if err != nil {
		return nil, err
	}

	b.report.Began = time.Now().UTC()
	view, err := b.awaitProof(ctx)
	if err != nil {
		return nil, err
	}

	defer view.held.Close()

	b.report.Waited = time.Since(b.report.Began).Seconds()
	err = b.describe(ctx, view)
	if err != nil {
		return nil, err
	}

	err = b.write(ctx, view)
	if err != nil {
		return nil, err
	}

	return b.report, nil
}

// backup is one under way.
type backup struct {
	opts   BackupOptions
	dir    directory
	node   *nodedb.Node
	key    crypto.Signer // nil if the tarball cannot be signed
	nonce  string        // to be written; empty without
	report *BackupReport

	identity []byte // encrypted; nil without
}

// view is the raft directory as it was in one moment, and its log.
type view struct {
	held *raftlog.Held
	log  *raftlog.Log
}

// open checks what can be known before anything is waited for.
func (b *backup) open(ctx context.Context) error {
	var err error
	b.dir, err = openDirectory(b.opts.LXDDir)
	if err == nil {
		err = b.dir.clusterOnly(ctx)
	}

	if err != nil {
		return err
	}

	err = b.dir.checkOutput(b.opts.Output, b.opts.Stdout, b.opts.Force)
	if err != nil {
		return err
	}

	unlock, err := b.dir.lock(unix.LOCK_SH) // no import, rollback or edit is under way
	if err != nil {
		return err
	}

	unlock() // and one that begins later takes the place of the whole directory, which is held by then
	b.report.Cluster, err = b.dir.clusterCertificate()
	if err != nil {
		return err
	}

	b.node, err = nodedb.Read(ctx, b.dir.database())
	if err != nil {
		return err
	}

	var warnings []string
	b.key, warnings, err = b.dir.keyUnless(b.opts.Unsigned)
	b.report.Signed = b.key != nil
	b.report.Warnings = append(b.report.Warnings, warnings...)
	if err != nil || b.opts.Identity == nil {
		return err
	}

	b.report.Identity = true
	b.identity, err = b.dir.sealIdentity(ctx, b.opts.Identity, true)
	return err
}

// describe fills in who is backed up.
func (b *backup) describe(ctx context.Context, v *view) error {
	if !v.held.Same(b.dir.global()) {
		return errors.New("the database was replaced while it was backed up: nothing was written, run the command again")
	}

	servers, err := configurationAt(ctx, v.log, b.report.Raft.Index)
	if err != nil {
		return err
	}

	b.report.Members = namedServers(servers, b.node.Members)
	b.report.Source, _ = b.report.Members.ByID(b.node.Self.ID)
	return nil
}

// write packs the tarball while what is packed is verified. Nothing gets the tarball's name, or goes to standard output, before that has succeeded.
func (b *backup) write(ctx context.Context, v *view) error {
	last := b.report.Raft
	log, err := distrust(ctx, v.held, v.log, raftlog.Options{Engine: v.log.Engine, Sums: true, AllSums: b.opts.Trailing, Live: true})
	if err != nil {
		return err
	}

	if log != v.log {
		return &DamageError{What: "the global database in " + b.dir.global(), Problems: log.Problems, Advice: "Run the command on another member."}
	}

	pieces, err := plain(ctx, v.log, last.Index, v.held)
	if err != nil {
		return err
	}

	if b.opts.Trailing {
		before, err := trailing(ctx, v.log, last.Index, v.held)
		if err != nil {
			return err
		}

		pieces = append(before, pieces...)
	}

	pieces = append(metadataPieces(v.log, last.Term), pieces...)
	packed := pieces
	if b.identity != nil {
		packed = append([]bundle.Piece{bundle.BytesPiece(bundle.IdentityName, b.identity)}, pieces...)
	}

	var served *serving
	if !b.opts.NoVerify {
		b.opts.Progress.step("Opening a scratch copy with libdqlite")
		served = serve(ctx, pieces, last)
		defer served.end()
	}

	database := replayed{log: v.log, upTo: last.Index, what: "the global database in " + b.dir.global()}
	verified := startVerification(ctx, database, served)
	err = b.pack(verified, packed)
	verifyErr := verified.end()
	b.report.Database = verified.summary
	if verifyErr != nil {
		return verifyErr
	}

	return err
}

// trailing are the segments before those that a backup up to an index has, without a gap, which its snapshot has made superfluous. A member that takes
// the log needs them if the same leader leads on: that one begins with the entry after the last one that it knows the member to have had, and goes one
// entry further back at each heartbeat as long as the member does not have it. Without them that took 8 minutes for a thousand entries.
func trailing(ctx context.Context, log *raftlog.Log, last uint64, fsys fs.FS) ([]bundle.Piece, error) {
	s, err := globaldb.Base(ctx, log, last) // a newer one may have been taken since
	if s == nil || err != nil {
		return nil, err
	}

	var found []bundle.Piece
	next := s.Index + 1
	for _, run := range slices.Backward(log.Runs()) {
		if run.Last > s.Index { // it is in the backup
			next = min(next, run.First)
			continue
		}

		if run.Size == 0 || run.Last+1 != next {
			break
		}

		found = append(found, bundle.FilePiece(fsys, run.File, raftlog.SegmentName(run.First, run.Last), run.Size, run.SHA256))
		next = run.First
	}

	slices.Reverse(found)
	return found, nil
}

// manifest describes the tarball.
func (b *backup) manifest() *bundle.Manifest {
	r := b.report
	return &bundle.Manifest{
		Version: b.opts.Version, Kind: bundle.KindBackup, Created: time.Now().UTC().Truncate(time.Second), Run: bundle.NewRun(),
		Source:  bundle.Source{ID: b.node.Self.ID, Name: b.node.Self.Name, Address: b.node.Self.Address},
		Cluster: bundle.Cluster{Certificate: r.Cluster, Product: b.dir.productName()}, Raft: bundle.Raft{Before: r.Raft, After: r.Raft}, Members: r.Members,
		Backup: &bundle.Backup{Began: r.Began.Truncate(time.Second), Proof: r.Proof, Nonce: b.nonce, Next: r.Next},
	}
}

func (b *backup) pack(verified *verification, pieces []bundle.Piece) error {
	name := cmp.Or(b.opts.Output, "standard output")
	pack := func(w io.Writer) error {
		counted := &countingWriter{w: w}
		done := b.opts.Progress.start("Writing "+name, bundle.Size(pieces))
		defer done()

		content := bundle.Content{Manifest: b.manifest(), Pieces: pieces, Key: b.key, Progress: b.opts.Progress.add}
		err := bundle.Write(verified.ctx, counted, content)
		b.report.Size, b.report.Files = counted.n, len(content.Manifest.Files)
		return err
	}

	return writeTo(b.opts.Output, b.opts.Stdout, b.opts.Force, pack, verified.wait)
}

// writeNonce has a key written through the leader, and removed again.
func (b *backup) writeNonce(ctx context.Context) error {
	b.opts.Progress.step("Writing a key through the leader")
	return daemon.WriteThroughLeader(ctx, b.dir.path, nonceKey, b.nonce)
}

// nonceKey is the key of the server configuration that a nonce is written to.
const nonceKey = "user.lxd-recover.nonce"
