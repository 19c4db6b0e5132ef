// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/godqlite"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Kinds of sources of theirs.
const (
	kindMicrocluster         = "microcluster state directory"
	kindMicroclusterDatabase = "microcluster database directory"
	kindMicroclusterBackup   = "microcluster database backup"
	kindMicroclusterTarball  = "recovery tarball of microcluster"
	kindGoDqlite             = "go-dqlite directory"
	kindRaft                 = "raft directory"
)

// application is a go-dqlite application that a source is of: its database may have another name than LXD's, and there may be several.
type application struct {
	product   *product.Product // nil for a raft directory of which nobody tells
	state     string           // microcluster's state directory; empty where it is not at hand
	recovered member.List      // of a recovery tarball
}

// isApplication tells whether a source is known to be of another application than LXD.
func (s *Source) isApplication() bool { return s.app != nil && s.app.product != nil }

// openApplication finds out whether a directory is one of an application, or a raft directory of which nothing else is known.
func (s *Source) openApplication(abs string) bool {
	inDatabase := filepath.Join(abs, godqlite.DatabaseDir)
	inJuju := filepath.Join(abs, "dqlite")
	switch {
	case exists(filepath.Join(abs, globalName)):
		return false
	case godqlite.IsStateDir(abs):
		s.Kind, s.global, s.app = kindMicrocluster, inDatabase, &application{product: product.Microcluster, state: abs}
	case godqlite.IsApplication(abs) && filepath.Base(abs) == godqlite.DatabaseDir && godqlite.IsStateDir(filepath.Dir(abs)) && hasTrust(filepath.Dir(abs)):
		s.Kind, s.global, s.app = kindMicroclusterDatabase, abs, &application{product: product.Microcluster, state: filepath.Dir(abs)}
	case godqlite.IsApplication(abs):
		s.Kind, s.global, s.app = kindGoDqlite, abs, &application{product: product.GoDqlite}
	case godqlite.IsApplication(inJuju):
		s.Kind, s.global, s.app = kindGoDqlite, inJuju, &application{product: product.GoDqlite}
	default:
		return false
	}

	return true
}

// hasTrust tells whether there is a trust store in a directory, which only microcluster's state directory has.
func hasTrust(dir string) bool { return exists(filepath.Join(dir, godqlite.TrustDir)) }

// lacksDatabase says that raft's files are not where they should be.
func (a *application) lacksDatabase(s *Source) error {
	unpacked := filepath.Join(a.state, godqlite.UnpackDir)
	if a.state != "" && exists(unpacked) {
		return fmt.Errorf("%s holds no file of raft, and %s is there: microcluster's own loader was cut off. Its database is in %s, and in the newest %s",
			s.global, unpacked, unpacked, filepath.Join(a.state, "db_backup.*.tar.gz"))
	}

	return fmt.Errorf("%s holds no database: neither metadata nor segments are in %s", s.Path, s.global)
}

// choose takes one of several databases; an empty name is that of the only one.
func (s *Source) choose(database string) error {
	if database != "" && s.app == nil && database != globaldb.Name {
		return product.Errorf("%s has no database %q: LXD has one only, %s; --database is for directories of other applications", s.Path, database,
			globaldb.Name)
	}

	s.database = database
	return nil
}

// databaseName is the database that is to be replayed, see [raftlog.Log.Database].
func (s *Source) databaseName() string {
	if s.app == nil {
		return ""
	}

	return cmp.Or(s.database, globaldb.AnyDatabase)
}

// databases are the names of the databases in a source's log; nil for LXD's. One that was chosen and is not there is an error.
func (s *Source) databases(ctx context.Context, log *raftlog.Log) ([]string, error) {
	if s.app == nil {
		return nil, nil
	}

	names, err := globaldb.Databases(ctx, log)
	if err != nil {
		return nil, err
	}

	if s.database != "" && !slices.Contains(names, s.database) {
		return nil, fmt.Errorf("%s has no database %q: there is %s", s.Path, s.database, cmp.Or(quoted(names), "none yet"))
	}

	return names, nil
}

// oneDatabase returns an error where a source has several databases and none was chosen, or the one that was chosen is not there.
func (s *Source) oneDatabase(ctx context.Context, log *raftlog.Log) error {
	names, err := s.databases(ctx, log)
	if err == nil && len(names) > 1 && s.database == "" {
		err = fmt.Errorf("%s has several databases, %s: --database NAME chooses one", s.Path, quoted(names))
	}

	return err
}

func quoted(names []string) string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = fmt.Sprintf("%q", name)
	}

	return strings.Join(all, ", ")
}

// names are the names of the members, by the ids that raft knows them by. microcluster has them in recovery.yaml, with these ids, and with addresses in its
// trust store and in its database: so a member is found by any address that a configuration in the log gives it. Others have none. db is the
// replayed database, nil where it is not at hand.
func (a *application) names(ctx context.Context, s *Source, log *raftlog.Log, db *globaldb.DB) (member.List, error) {
	if a.product != product.Microcluster || a.recovered != nil {
		return a.recovered, nil
	}

	recovered, err := godqlite.ReadRecovery(s.global)
	if err == nil {
		return recovered, nil
	}

	named := map[string]string{} // by address
	if a.state != "" {
		trusted, err := godqlite.ReadTrustStore(a.state)
		if err == nil {
			for _, t := range trusted {
				named[t.Address] = t.Name
			}
		}
	}

	if db == nil && len(named) == 0 {
		db, err = globaldb.Open(ctx, log, log.SoundIndex)
		if err != nil {
			return nil, ctx.Err() // without names, then
		}

		defer db.Close()
	}

	if db != nil {
		rows, err := db.MicroclusterMembers(ctx)
		if err != nil {
			return nil, ctx.Err()
		}

		for _, row := range rows {
			named[row.Address] = cmp.Or(named[row.Address], row.Name)
		}
	}

	return namedByAddress(ctx, log, named)
}

// namedByAddress gives the servers of a log the names of their addresses, the newest ones first.
func namedByAddress(ctx context.Context, log *raftlog.Log, named map[string]string) (member.List, error) {
	var list member.List
	learn := func(servers raftlog.Configuration) {
		for _, s := range servers {
			_, known := list.ByID(s.ID)
			name := named[s.Address]
			if !known && name != "" && (member.Member{Name: name}).Printable() == nil {
				list = append(list, member.Member{ID: s.ID, Name: name, Address: s.Address, Role: s.Role})
			}
		}
	}
	learn(log.Configuration)
	if len(list) == len(log.Configuration) {
		return list, nil
	}

	var earlier []raftlog.Configuration
	if snapshot := log.Snapshot(); snapshot != nil {
		earlier = append(earlier, snapshot.Configuration)
	}

	for entry, err := range log.Entries(ctx, max(log.FirstIndex, 1)) {
		if err != nil {
			return nil, err
		}

		if entry.Type != raftlog.ChangeEntry {
			continue
		}

		servers, err := raftlog.ParseConfiguration(entry.Data)
		if err == nil {
			earlier = append(earlier, servers)
		}
	}

	for _, servers := range slices.Backward(earlier) {
		learn(servers)
	}

	return list, nil
}

// self is whose directory it is; the error is os.ErrNotExist for a tarball, which has no info.yaml.
func (a *application) self(s *Source) (member.Member, error) {
	if a.recovered != nil {
		return member.Member{}, os.ErrNotExist
	}

	return godqlite.ReadInfo(s.global)
}

// certificate is the fingerprint of the cluster's certificate, empty where it is not at hand.
func (a *application) certificate(s *Source) string {
	for _, dir := range []string{a.state, s.global} {
		if dir == "" {
			continue
		}

		print, err := fingerprint(filepath.Join(dir, clusterCertificateName))
		if err == nil {
			return print
		}
	}

	return ""
}

// memberOf finds out whose database it is, and the members' names; without a name there is the address.
func (r *InspectReport) memberOf(ctx context.Context, src *Source, log *raftlog.Log, db *globaldb.DB) error {
	names, err := src.app.names(ctx, src, log, db)
	if err != nil {
		return err
	}

	r.Members, r.Cluster = namedServers(log.Configuration, names), src.app.certificate(src)
	if src.app.recovered != nil {
		fenced := isFenced(log)
		r.Fenced = &fenced
	}

	for i, p := range r.Problems {
		if strings.Contains(p.Advice, "global-db-repair") { // which leaves the directories of others alone
			r.Problems[i].Advice = "recover from another member, if there is one whose database is sound, as the application's own manual says"
		}
	}

	self, err := src.app.self(src)
	switch {
	case err == nil:
		known, _ := names.ByID(self.ID)
		r.Member = &InspectMember{ID: self.ID, Name: known.Name, Address: self.Address}
	case src.app.recovered != nil:
	case errors.Is(err, os.ErrNotExist):
		r.warn(godqlite.InfoFile, "it is missing: whose directory this is cannot be told", "the application does not start without it: put it back from "+
			"a backup; it has this member's ID, Address and Role, as in "+godqlite.ClusterFile)
	default:
		r.warn(godqlite.InfoFile, err.Error(), "the application does not start on it: put it back from a backup; it has this member's ID, Address "+
			"and Role, as in "+godqlite.ClusterFile)
	}

	if src.app.state != "" && r.Member != nil {
		r.stateOf(src.app.state)
	}

	return nil
}

func (r *InspectReport) warn(file string, text string, advice string) {
	r.Problems = append(r.Problems, raftlog.Problem{Severity: raftlog.Warning, File: file, Offset: -1, Text: text,
		Libdqlite: "does not know it: it is the application that goes by this", Advice: advice})
}

// stateOf says what does not fit together in a microcluster application's state directory.
func (r *InspectReport) stateOf(state string) {
	daemon, err := godqlite.ReadDaemon(state)
	if err == nil && daemon.Address != r.Member.Address {
		r.warn(godqlite.InfoFile, fmt.Sprintf("it has the address %s, and %s has %s: a change of addresses was cut short", r.Member.Address,
			filepath.Join(state, godqlite.DaemonFile), daemon.Address), "the application does not start like this: give both the right address")
	}

	unpacked := filepath.Join(state, godqlite.UnpackDir)
	if exists(unpacked) {
		r.warn("", unpacked+" is there: microcluster's own loader was cut off, and unpacks the next tarball into it, over what is there",
			"move it away before another tarball is loaded")
	}

	tarball := filepath.Join(state, godqlite.TarballFile)
	if exists(tarball) {
		r.warn("", tarball+" is there: the daemon takes it in place of this database when it starts",
			"`lxd-recover global-db-inspect "+tarball+"` says what is in it; move it away if it is not wanted")
	}
}

// isFenced tells whether a log ends in a fence: a recovery entry, or a snapshot, with a term far above what was before, which is the current one, and no
// vote. Nothing else leaves such a log: edits of the applications themselves have entries of term 1.
func isFenced(log *raftlog.Log) bool {
	if log.LastTerm < termStep || log.Term < log.LastTerm || log.Vote != 0 {
		return false
	}

	if s := log.Snapshot(); s != nil && s.Index == log.LastIndex {
		return true
	}

	before := uint64(0)
	if log.LastIndex > 1 {
		before, _ = log.TermAt(log.LastIndex - 1)
	}

	return log.Edited && log.LastTerm-before >= termStep
}
