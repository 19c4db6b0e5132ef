// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// tellsCommits is the database whose transactions tell what was committed. A leader begins no transaction on a database before the last one on the same
// database is committed: of several databases, one counts.
func tellsCommits(src *Source, names []string) string {
	switch {
	case src.database != "":
		return src.database
	case src.app != nil && len(names) > 0:
		return names[0]
	}

	return globaldb.Name
}

// several fills in the databases of a log, the one that was chosen among them.
func (r *InspectReport) several(ctx context.Context, src *Source, log *raftlog.Log, names []string) error {
	for _, name := range names {
		if r.Data != nil && (name == src.database || len(names) == 1) {
			r.Databases = append(r.Databases, InspectDatabase{Name: name, Data: r.Data})
			continue
		}

		summary, err := summaryOf(ctx, globaldb.OnDatabase(log, name))
		if err != nil {
			err = r.damaged(err)
		}

		if err != nil {
			return err
		}

		if summary != nil && summary.Integrity != "ok" {
			r.problem("SQLite finds the database "+name+" damaged: "+summary.Integrity, "starts, and serves the damaged database")
		}

		r.Databases = append(r.Databases, InspectDatabase{Name: name, Data: summary})
	}

	return nil
}

func summaryOf(ctx context.Context, log *raftlog.Log) (*globaldb.Summary, error) {
	db, err := globaldb.Open(ctx, log, log.SoundIndex)
	if err != nil {
		return nil, err
	}

	defer db.Close()

	return db.Summary(ctx)
}

// noTransaction is what a log without a single transaction is.
func (s *Source) noTransaction(servers raftlog.Configuration) raftlog.Problem {
	if !s.isApplication() {
		return noTransaction(servers)
	}

	return raftlog.Problem{Severity: raftlog.Warning, Offset: -1,
		Text:      "no transaction is in the log: this member is a spare, or joined a moment ago, or the application has not written anything yet",
		Libdqlite: "starts with an empty database", Advice: "recover from another member, if there is one with a database"}
}
