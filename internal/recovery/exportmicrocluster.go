// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/godqlite"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// microcluster's own recovery leaves a tarball that its daemons load when they start, and whose last entry has term 1: a member that does not load it
// can outvote those that do. ExportMicrocluster writes the same tarball, fenced. Nothing else of a microcluster application is changed: its daemon.yaml and its
// trust store lie outside of its database directory, so that no exchange takes all of it at once.

// IsMicrocluster tells whether a directory is the state directory of a microcluster application.
func IsMicrocluster(dir string) bool {
	return dir != "" && godqlite.IsStateDir(dir) && !exists(filepath.Join(dir, databaseName, globalName))
}

// refuseApplication returns an error for a directory of another application than LXD, which nothing here changes.
func refuseApplication(dir string) error {
	switch {
	case IsMicrocluster(dir):
		return fmt.Errorf("%[1]s is the state directory of a microcluster application, which is only looked at: daemon.yaml and truststore/ lie outside its "+
			"database/, and no exchange takes all of them at once. After its own edit, `lxd-recover cluster export-db --state-dir %[1]s` makes "+
			"its recovery tarball safe, which its daemon loads", dir)
	case godqlite.IsApplication(dir) && !exists(filepath.Join(dir, databaseName)):
		return fmt.Errorf("%s is the directory of another application of go-dqlite, which is only looked at: with `lxd-recover global-db-inspect`, "+
			"-compare, -log and -sql", dir)
	}

	return nil
}

// MicroclusterTarball is where the daemon of a microcluster application looks for a recovery tarball.
func MicroclusterTarball(state string) string { return filepath.Join(state, godqlite.TarballFile) }

// ExportMicrocluster writes the recovery tarball of a microcluster application's member, on which its own edit was run: LXDDir is its state directory. The file
// that its own edit has left may be replaced without Force. It changes nothing in the state directory but that and the high-water file.
func ExportMicrocluster(ctx context.Context, opts ExportOptions) (*ExportReport, error) {
	state, err := filepath.Abs(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	ex := &microExporter{exporter{opts: opts, dir: directory{path: state}, flat: true}}
	unlock, err := ex.open(ctx)
	if err != nil {
		return nil, err
	}

	defer unlock()

	done, err := ex.prepare(ctx)
	if err != nil {
		return nil, err
	}

	defer done()

	err = ex.examine(ctx)
	if err == nil {
		err = ex.fence(ctx)
	}

	if err != nil {
		return nil, withoutFlags(ex.check.orDamage(err))
	}

	if !opts.NoVerify {
		ex.served = serve(ctx, ex.pieces, ex.report.Raft)
		defer ex.served.end()
	}

	err = ex.readRest()
	if err != nil {
		return nil, withoutFlags(err)
	}

	return ex.write(ctx)
}

// withoutFlags is the error of damage without the advice to accept it: microcluster's own edit would have cut it away.
func withoutFlags(err error) error {
	var damage *DamageError
	if errors.As(err, &damage) {
		damage.Advice = "Recover from another member, whose database is sound: `lxd-recover global-db-compare` tells which"
	}

	return err
}

// microExporter is an export for microcluster's own loader. It shares the reading, the fence and the proof with that of LXD's.
type microExporter struct{ exporter }

// open locks the state directory, and makes sure that nobody writes to the database. The returned function unlocks it.
func (ex *microExporter) open(ctx context.Context) (func(), error) {
	state := ex.dir.path
	switch {
	case !IsMicrocluster(state):
		return nil, fmt.Errorf("%s is not the state directory of a microcluster application: it has no %s", state,
			filepath.Join(godqlite.DatabaseDir, godqlite.InfoFile))
	case os.Geteuid() != 0:
		return nil, ErrNotRoot
	case exists(filepath.Join(state, godqlite.UnpackDir)):
		return nil, fmt.Errorf("%s is there: microcluster's own loader was cut off, and would unpack the tarball over what is there. Move it away first",
			filepath.Join(state, godqlite.UnpackDir))
	}

	unlock, err := ex.dir.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}

	err = microclusterStopped(ctx, state)
	if err != nil {
		unlock()
		return nil, err
	}

	unlockDqlite, err := lockDqlite(ex.global())
	if err != nil {
		unlock()
		return nil, err
	}

	return func() { unlockDqlite(); unlock() }, nil
}

// microclusterStopped returns an error while a daemon works in a state directory. The control socket of one that was killed stays, and answers nobody.
func microclusterStopped(ctx context.Context, state string) error {
	holders, err := daemon.Writers(filepath.Join(state, godqlite.DatabaseDir))
	if err != nil {
		return fmt.Errorf("look for processes that use the database: %w", err)
	}

	const advice = "its database changes while it is read. Stop it on all members first"
	socket := filepath.Join(state, godqlite.ControlSocket)
	switch {
	case len(holders) > 0:
		return fmt.Errorf("the daemon of %s is running, %s: %s", state, holders[0], advice)
	case daemon.Listening(ctx, socket):
		return fmt.Errorf("the daemon of %s is running, as %s answers: %s", state, socket, advice)
	}

	return nil
}

// examine checks that this member's database may be exported, as far as an outline of its log tells, and describes it.
func (ex *microExporter) examine(ctx context.Context) error {
	var err error
	ex.log, err = ex.check.outline()
	if err != nil {
		return err
	}

	self, members, err := ex.members(ctx)
	if err != nil {
		return err
	}

	last, err := soundPosition(ex.log)
	if err != nil {
		return err
	}

	ex.manifest = &bundle.Manifest{Created: time.Now().UTC().Truncate(time.Second)} // of which the fence notes its place
	ex.report = &ExportReport{
		File: ex.opts.Output, StateDir: ex.dir.path, Source: self, Last: last, Before: last, Edited: ex.log.Edited, Members: members,
		GivenUp: []Discarded{}, Untold: []string{}, Warnings: []string{}, Findings: []preflight.Finding{},
	}
	ex.report.Cluster, _ = ex.dir.clusterCertificate()
	return ex.place(ctx)
}

// members are this member, and the list that the tarball gets. microcluster's own edit must have made it, and have come to its end.
func (ex *microExporter) members(ctx context.Context) (self member.Member, members member.List, err error) {
	info, err := godqlite.ReadInfo(ex.global())
	if err != nil {
		return self, nil, fmt.Errorf("whose database it is cannot be told: %w", err)
	}

	app := &application{product: product.Microcluster, state: ex.dir.path}
	names, err := app.names(ctx, &Source{global: ex.global(), app: app}, ex.log, nil)
	if err != nil {
		return self, nil, err
	}

	members = namedServers(ex.log.Configuration, names)
	self, known := members.ByID(info.ID)
	if !ex.log.Edited && !ex.opts.Unedited {
		return self, nil, &Refusal{
			Code: "unedited",
			Reason: fmt.Sprintf("the member list was not edited on %s since the daemon last ran there: the tarball would carry the old one. "+
				"Run the application's own edit here first, such as `microcloud cluster recover`", cmp.Or(self.Name, info.Address)),
			Flag: "--unedited",
		}
	}

	listed, err := godqlite.ReadCluster(ex.global())
	switch {
	case ex.log.Edited && err != nil:
		return self, nil, err
	case !known || self.Address != info.Address || ex.log.Edited && !listed.SameServers(ex.log.Configuration):
		return self, nil, fmt.Errorf("%s and %s in %s do not agree with the raft log: an edit was cut short. Run the application's own edit again",
			godqlite.InfoFile, godqlite.ClusterFile, ex.global())
	}

	err = members.Validate()
	if err != nil {
		return self, nil, fmt.Errorf("the member list of %s cannot work: %w: run the application's own edit again", cmp.Or(self.Name, info.Address), err)
	}

	return self, members, nil
}

// place checks where the tarball goes. The daemon loads the one in the state directory, and no other: what its own edit has left there is replaced.
func (ex *microExporter) place(ctx context.Context) error {
	loaded := MicroclusterTarball(ex.dir.path)
	there := exists(loaded)
	isLoaded := ex.opts.Stdout == nil && sameFile(ex.opts.Output, loaded)
	if there && isLoaded && !ex.opts.Force {
		same, err := ex.sameLog(ctx, loaded)
		if err != nil {
			return err
		}

		if !same {
			return &Refusal{Code: "file-exists", Reason: fmt.Sprintf("%s exists already, and is not the one that the last edit here has made", loaded),
				Flag: "--force"}
		}

		ex.opts.Force = true
	}

	if !isLoaded {
		ex.report.Warnings = append(ex.report.Warnings, fmt.Sprintf("the daemon here loads %s only: copy the exported one there, too, "+
			"as the database of this member itself is not fenced", loaded))
	}

	return ex.dir.checkOutput(ex.opts.Output, ex.opts.Stdout, ex.opts.Force)
}

// sameFile tells whether two paths lead to one place, whether there is a file or not.
func sameFile(one string, two string) bool {
	return filepath.Join(realParent(one), filepath.Base(one)) == filepath.Join(realParent(two), filepath.Base(two))
}

// sameLog tells whether a tarball is one of this member's database as it is, but for a fence: the one of the last edit, or an earlier export.
func (ex *microExporter) sameLog(ctx context.Context, tarball string) (bool, error) {
	src, err := openSource(ctx, tarball, Progress{})
	if err != nil {
		return false, ctx.Err()
	}

	defer src.Close()

	log, err := openLog(ctx, src.global, Progress{}, raftlog.Options{})
	if err != nil || src.Kind != kindMicroclusterTarball || log.LastIndex != ex.log.LastIndex {
		return false, ctx.Err()
	}

	different, err := differentEntry(ctx, ex.log, log, log.LastIndex-1)
	return different == 0, err
}

// write packs the tarball while what is packed is verified, and returns the report. It gets its name only when that has succeeded.
func (ex *microExporter) write(ctx context.Context) (*ExportReport, error) {
	if ex.served != nil {
		ex.opts.Progress.step("Opening a scratch copy with libdqlite")
	}

	database := replayed{log: ex.log, upTo: ex.report.Before.Index, what: "the database in " + ex.global(), look: ex.look}
	verified := startVerification(ctx, database, ex.served)
	err := ex.pack(ctx, verified)
	verifyErr := verified.end()
	if verifyErr != nil {
		return nil, verifyErr
	}

	if err != nil {
		return nil, err
	}

	ex.report.Database, ex.report.rows = verified.summary, verified.rows
	return ex.report, nil
}

// look warns of members that the database does not know: their daemons could not start.
func (ex *microExporter) look(ctx context.Context, db *globaldb.DB) error {
	rows, err := db.MicroclusterMembers(ctx)
	if err != nil {
		return err
	}

	var unknown []string
	for _, m := range ex.report.Members {
		if !slices.ContainsFunc(rows, func(row globaldb.MicroclusterMember) bool { return row.Name == m.Name }) {
			unknown = append(unknown, m.Name)
		}
	}

	if len(unknown) > 0 {
		ex.report.Warnings = append(ex.report.Warnings, "the database has no row of these members, whose daemons will not start: "+strings.Join(unknown, ", "))
	}

	return nil
}

func (ex *microExporter) pack(ctx context.Context, verified *verification) error {
	pack := func(w io.Writer) error {
		counted := &countingWriter{w: w}
		done := ex.opts.Progress.start("Writing "+ex.report.name(), bundle.Size(ex.pieces))
		defer done()

		files, err := bundle.WriteMicrocluster(verified.ctx, counted, bundle.Microcluster{
			Members: ex.report.Members, Pieces: ex.pieces, Created: ex.manifest.Created, Progress: ex.opts.Progress.add,
		})
		ex.report.Size, ex.report.Files = counted.n, files
		return err
	}

	return writeTo(ex.opts.Output, ex.opts.Stdout, ex.opts.Force, pack, func() error { return ex.approve(ctx, verified) })
}
