package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// ExportOptions say what to export and where to.
type ExportOptions struct {
	LXDDir   string
	Output   string    // a file; empty with Stdout
	Stdout   io.Writer // in place of a file
	Version  string    // of lxd-recover, for the manifest
	Force    bool      // replace an existing file
	Unedited bool      // go on although `lxd cluster edit` was not run

	// At leaves out the entries behind this index; 0: none. Those that change rows must be confirmed.
	At      uint64
	Confirm func(*ExportReport) error

	// AcceptDamage goes on with what is sound of a damaged database.
	AcceptDamage bool

	// NoProof skips the proof that libdqlite gets the same rows out of what is exported.
	NoVerify bool

	// Survivors are JSON reports of global-db-inspect from other members: the fence goes above their terms, too.
	Survivors []string

	Progress Progress
}

// ExportReport is what an export did.
type ExportReport struct {
	File     string            `json:"file" yaml:"file"`
	Size     int64             `json:"size" yaml:"size"` // of the tarball, bytes
	Files    int               `json:"files" yaml:"files"`
	Source   member.Member     `json:"source" yaml:"source"`
	Cluster  string            `json:"cluster_certificate" yaml:"cluster_certificate"`
	Last     bundle.Position   `json:"last" yaml:"last"`     // last entry of the member's log
	Before   bundle.Position   `json:"before" yaml:"before"` // last entry that was taken from it
	Raft     bundle.Position   `json:"raft" yaml:"raft"`     // last entry of the tarball: the fenced recovery entry
	Edited   bool              `json:"edited" yaml:"edited"`
	Members  member.List       `json:"members" yaml:"members"`
	Database *globaldb.Summary `json:"database" yaml:"database"`

	GivenUp  []Discarded `json:"given_up" yaml:"given_up"` // transactions that were left out because of ExportOptions.At
	Warnings []string    `json:"warnings" yaml:"warnings"`
}

// Export writes the recovery tarball of this member. It changes nothing in LXD's directory.
func Export(ctx context.Context, opts ExportOptions) (*ExportReport, error) {
	dir, err := openDirectory(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	if opts.Stdout == nil && !opts.Force {
		_, err = os.Lstat(opts.Output)
		if err == nil {
			return nil, existing(opts.Output)
		}
	}

	unlock, err := dir.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}

	defer unlock()

	status, err := daemon.Inspect(ctx, dir.path)
	if err != nil {
		return nil, err
	}

	if status.Running() {
		return nil, fmt.Errorf("LXD is %s: its database changes while it is read. Stop LXD on all members first", status)
	}

	unlockDqlite, err := lockDqlite(dir.global())
	if err != nil {
		return nil, err
	}

	defer unlockDqlite()

	check := newExportCheck(ctx, dir.global(), opts)
	defer check.end()

	manifest, log, err := examine(ctx, dir, check, opts)
	if err != nil {
		return nil, check.orDamage(err)
	}

	last := manifest.Raft.Before
	report := &ExportReport{
		File: opts.Output, Cluster: manifest.Cluster.Certificate, Last: bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, Before: last, Edited: log.Edited,
		Members: manifest.Members, GivenUp: []Discarded{}, Warnings: []string{},
	}
	report.Source, _ = manifest.Members.ByID(manifest.Source.ID)
	term, ahead, err := exportTerm(log, last.Index, opts.Survivors)
	if err != nil {
		return nil, err
	}

	report.Warnings = append(report.Warnings, ahead...)
	pieces, fence, err := fenced(ctx, log, last.Index, os.DirFS(dir.global()), term)
	if err != nil {
		return nil, err
	}

	report.Raft, manifest.Raft.After = fence, fence
	var served *serving
	if !opts.NoVerify {
		served = serve(ctx, pieces, fence)
		defer served.end()
	}

	log, err = check.rest()
	if err != nil {
		return nil, err
	}

	takeSum(pieces, log.Snapshot())
	if opts.At > 0 {
		err = report.agree(ctx, log, opts)
		if err != nil {
			return nil, err
		}
	}

	if served != nil {
		opts.Progress.step("Opening a scratch copy with libdqlite")
	}

	proof := startVerification(ctx, log, last.Index, "the global database in "+dir.global(), served)
	err = report.write(opts, pieces, manifest, proof)
	proofErr := proof.end()
	if proofErr != nil {
		return nil, proofErr
	}

	report.Database = proof.summary
	return report, err
}

// write packs the tarball while the proof goes on. Nothing gets the tarball's name, or goes to standard output, before that
// has succeeded.
func (r *ExportReport) write(opts ExportOptions, pieces []bundle.Piece, manifest *bundle.Manifest, proof *verification) error {
	pack := func(w io.Writer) error {
		counted := &countingWriter{w: w}
		done := opts.Progress.start("Writing "+r.name(), bundle.Size(pieces))
		defer done()

		err := bundle.Write(proof.ctx, counted, pieces, manifest, opts.Progress.add)
		r.Size, r.Files = counted.n, len(manifest.Files)
		return err
	}

	if opts.Stdout == nil {
		return writeOutput(opts.Output, opts.Force, pack, proof.wait)
	}

	err := proof.wait()
	if err != nil {
		return err
	}

	return pack(opts.Stdout)
}

func (r *ExportReport) name() string {
	if r.File == "" {
		return "standard output"
	}

	return r.File
}

func existing(path string) error {
	return &Refusal{Reason: fmt.Sprintf("%s exists already", path), Flag: "--force"}
}

// examine checks that this member's database may be exported, as far as an outline of its log tells, and describes it.
func examine(ctx context.Context, dir directory, check *exportCheck, opts ExportOptions) (*bundle.Manifest, *raftlog.Log, error) {
	certificate, err := dir.clusterCertificate()
	if err != nil {
		return nil, nil, err
	}

	node, err := nodedb.Read(ctx, dir.database())
	if err != nil {
		return nil, nil, err
	}

	log, err := check.outline()
	if err != nil {
		return nil, nil, err
	}

	if !log.Edited && !opts.Unedited {
		return nil, nil, &Refusal{
			Reason: fmt.Sprintf("the member list was not edited on %s since LXD last ran there: the tarball would carry the old one. Run `lxd cluster edit` here first", node.Self.Name),
			Flag:   "--unedited",
		}
	}

	members := node.Members
	if !log.Edited {
		// The table raft_nodes is a copy that lags behind until the next heartbeat; the log decides.
		members = namedServers(log.Configuration, node.Members)
	}

	err = members.Validate()
	if err != nil {
		return nil, nil, fmt.Errorf("the member list of %s cannot work: %w: run `lxd cluster edit` again", node.Self.Name, err)
	}

	if !members.SameServers(log.Configuration) {
		return nil, nil, fmt.Errorf("the member lists in %s and in the raft log differ: an edit was cut short. Run `lxd cluster edit` again",
			filepath.Join(dir.database(), nodedb.File))
	}

	last, err := lastPosition(ctx, log, opts.At) // After is set when the fence is known
	if err != nil {
		return nil, nil, err
	}

	manifest := &bundle.Manifest{
		Version: opts.Version,
		Created: time.Now().UTC().Truncate(time.Second),
		Source:  bundle.Source{ID: node.Self.ID, Name: node.Self.Name, Address: node.Self.Address},
		Cluster: bundle.Cluster{Certificate: certificate},
		Raft:    bundle.Raft{Before: last},
		Members: members,
	}

	if last.Index < log.LastIndex {
		manifest.Raft.Last = bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	}

	snapshot, err := globaldb.Base(ctx, log, last.Index)
	if err != nil {
		return nil, nil, err
	}

	if snapshot != nil {
		manifest.Raft.Snapshot = bundle.Position{Index: snapshot.Index, Term: snapshot.Term}
	}

	return manifest, log, nil
}

// soundPosition is the last entry that is exported: that of the log, unless it is damaged.
func soundPosition(ctx context.Context, log *raftlog.Log) (bundle.Position, error) {
	if log.SoundIndex == 0 {
		return bundle.Position{}, errors.New("nothing in the global database of this member is sound: export from another one")
	}

	if log.SoundIndex == log.LastIndex {
		return bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, nil
	}

	return positionAt(ctx, log, log.SoundIndex)
}

// exportTerm is the fence's term: above every term that this member and the survivors' reports know of. It warns of survivors
// whose snapshot holds more than the export's last entry: raft never takes a snapshot back, so such a member has to be imported
// to. Left out, it stays behind for ever, a voter that is online and has other rows (measured with LXD 5.0.2).
func exportTerm(log *raftlog.Log, last uint64, survivors []string) (term uint64, ahead []string, err error) {
	highest := log.MaxTerm
	for _, file := range survivors {
		report, err := readReport(file)
		if err != nil {
			return 0, nil, err
		}

		highest = max(highest, report.Raft.MaxTerm, report.Raft.MetadataTerm)
		if report.Raft.SnapshotIndex >= last {
			ahead = append(ahead, fmt.Sprintf("%s: that member's snapshot reaches index %d, and what is exported ends at %d: it must be imported to, raft alone cannot bring it to this database", file, report.Raft.SnapshotIndex, last))
		}
	}

	if highest > maxTerm {
		return 0, nil, fmt.Errorf("a raft term of %d is beyond anything that raft counts to: the metadata of this member, or a --survivor report, is damaged", highest)
	}

	return fenceTerm(highest, time.Now()), ahead, nil
}

func sound(ctx context.Context, db *globaldb.DB, what string) (*globaldb.Summary, error) {
	summary, err := db.Summary(ctx)
	return summary, soundSummary(summary, err, what)
}

// soundSummary is the error that a summary, or the error in its place, comes to.
func soundSummary(summary *globaldb.Summary, err error, what string) error {
	if err != nil {
		return replayError(what, err)
	}

	if summary.Integrity != "ok" {
		return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1, Text: "SQLite: " + summary.Integrity}}}
	}

	return nil
}

// replayError tells damage from what the machine is to blame for.
func replayError(what string, err error) error {
	if machineFault(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}

	return &DamageError{What: what, Problems: []raftlog.Problem{{Severity: raftlog.Error, Offset: -1, Text: err.Error()}}}
}

// writeOutput creates a file all or nothing: nobody ever sees half a tarball under its name. approve is asked when all is
// written, before the file gets its name; it may be nil.
func writeOutput(path string, force bool, write func(io.Writer) error, approve func() error) error {
	parent := filepath.Dir(path)
	f, err := os.CreateTemp(parent, ".lxd-recover-*.tmp")
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}

	defer os.Remove(f.Name()) // gone already when all went well

	err = write(f)
	if err == nil {
		err = f.Sync()
	}

	closeErr := f.Close()
	if err == nil {
		err = closeErr
	}

	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}

	if approve != nil {
		err = approve()
		if err != nil {
			return err
		}
	}

	flags := uint(unix.RENAME_NOREPLACE)
	if force {
		flags = 0
	}

	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, flags)
	if errors.Is(err, unix.EINVAL) && !force {
		// A file system without RENAME_NOREPLACE (NFS, some FUSE): a link refuses an existing name as well.
		err = os.Link(f.Name(), path)
	}

	if errors.Is(err, unix.EEXIST) {
		return existing(path)
	}

	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}

	return swapdir.SyncDir(parent)
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
