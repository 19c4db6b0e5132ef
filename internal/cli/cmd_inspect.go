// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// standaloneText is what is said in a member's place of an LXD that is none.
const standaloneText = "standalone server"

// errUnhealthy ends a command whose report says that the database is damaged: the report itself is the message.
var errUnhealthy = errors.New("the database is damaged: see the problems above")

func newInspectCmd() *cobra.Command {
	output := format{}
	verbose, opts := false, recovery.InspectOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-inspect [SOURCE]",
		Short: "Check one global database and tell what is in it",
		Long: `Check one global database and tell what is in it: where its raft log stands, who its members are, how many rows it has,
every problem found, and what libdqlite would do about it. Nothing is changed, even while LXD is running. Problems are errors, which
make it damaged, warnings, and infos, which sound databases have as well; infos are shown with --verbose, and in JSON and YAML.

SOURCE is LXD's directory, a database/ or global/ directory, a recovery tarball (of lxd-recover or LXD's own), or one of
LXD's db_backup tarballs; this machine's LXD unless given. The JSON report can be carried to another machine and compared.
` + applicationSources + `

Exit status:
  0  healthy: libdqlite would have all that the disk holds
  1  not readable
  2  wrong usage
  4  damaged`,
		Example: `  lxd-recover global-db-inspect
  lxd-recover global-db-inspect --verbose lxd_recovery_db.tar.gz
  lxd-recover global-db-inspect --format json > server1.json`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeFiles(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Source = optionalArg(args, "")
			return runInspect(cmd.Context(), output, opts, verbose)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show infos, too")
	addCertificateFlag(cmd, &opts.Certificate)
	addDatabaseFlag(cmd, &opts.Database)
	output.addFlag(cmd, reportFormats)
	return cmd
}

func runInspect(ctx context.Context, output format, opts recovery.InspectOptions, verbose bool) error {
	opts.Progress = newProgress(ctx, os.Stderr)
	report, err := recovery.InspectWith(ctx, opts)
	if err != nil {
		return err
	}

	warnRunning(report.RunningDaemon)
	err = printReport(output, report, func(w io.Writer, r *recovery.InspectReport) { printInspect(w, r, verbose) })
	if err == nil && !report.Healthy {
		err = errUnhealthy
	}

	return err
}

// warnRunning tells of the daemon that runs on what was read.
func warnRunning(daemon string) {
	if daemon != "" {
		product.Fprintf(stderr(), "LXD runs on this database, %s: what was read may not belong together, and its newest entries may not be committed.\n",
			daemon)
	}
}

func printInspect(w io.Writer, r *recovery.InspectReport, verbose bool) {
	rows := [][]string{{"source", r.Source}, {"kind", r.Kind}}
	if text := signatureText(r.Signature); text != "" {
		rows = append(rows, []string{"signature", text})
	}

	switch {
	case r.Standalone:
		rows = append(rows, []string{"member", standaloneText})
	case r.Member != nil && r.Member.Name == "" && product.IsApplication(r.Product):
		rows = append(rows, []string{"member", fmt.Sprintf("%s (id %d)", r.Member.Address, r.Member.ID)})
	case r.Member != nil:
		rows = append(rows, []string{"member", fmt.Sprintf("%s (id %d, %s)", r.Member.Name, r.Member.ID, r.Member.Address)})
	}

	if r.Identity != "" {
		rows = append(rows, []string{"identity", fmt.Sprintf("of %s: certificates, private keys and local.db, encrypted", r.Identity)})
	}

	if r.Machine != nil && r.Machine.LXD.Program != "" {
		rows = append(rows, []string{"installed", r.Machine.LXD.String()})
	}

	last := fmt.Sprintf("index %d, term %d", r.Raft.LastIndex, r.Raft.LastTerm) + recoveryText(r.Raft.Recovery, r.Raft.LastTerm)

	rows = append(rows,
		[]string{"last raft entry", last},
		[]string{"first raft entry", fmt.Sprintf("index %d", r.Raft.FirstIndex)},
		[]string{"snapshot", snapshotText(r.Raft)},
		[]string{"terms", fmt.Sprintf("current %d, highest %d", r.Raft.MetadataTerm, r.Raft.MaxTerm)})
	if r.Fenced != nil {
		rows = append(rows, []string{"fence", fenceText(*r.Fenced, r.Raft)})
	}

	for _, db := range r.Databases {
		rows = append(rows, []string{"database", databaseText(db)})
	}

	if r.Data != nil && len(r.Databases) == 0 {
		data := fmt.Sprintf("schema %d, %s, integrity %s", r.Data.SchemaVersion, contentText(r.Data), r.Data.Integrity)
		rows = append(rows, []string{"database", data})
	}

	rows = append(rows, []string{"health", healthText(r.Healthy, r.Raft)}, []string{engineName(), libdqliteText(r.Libdqlite)})
	if !r.Healthy && libdqliteLogText(r.Libdqlite) != "" {
		rows = append(rows, []string{engineName() + "'s log", libdqliteLogText(r.Libdqlite)})
	}

	writeTable(w, nil, rows)

	if !r.Standalone {
		printMembers(w, r.Members)
	}

	printProblems(w, r.Problems, verbose)
	printReadings(w, r)
	for i, action := range r.Libdqlite.Actions {
		if i == 0 {
			fmt.Fprintf(w, "\nOn loading, %s would:\n", engineName())
		}

		fmt.Fprintln(w, "  "+action)
	}
}

// databaseText says what is in one of the databases of a log.
func databaseText(db recovery.InspectDatabase) string {
	if db.Data == nil {
		return db.Name + ": cannot be replayed"
	}

	return fmt.Sprintf("%s: %s, integrity %s", db.Name, contentText(db.Data), db.Data.Integrity)
}

// fenceText says whether a member that loads nothing could outvote those that load a recovery tarball of microcluster's.
func fenceText(fenced bool, raft recovery.InspectRaft) string {
	if fenced {
		return fmt.Sprintf("fenced at term %d: no other member's log can outvote it", raft.LastTerm)
	}

	return "NOT FENCED: a member that does not load it can outvote it, and undo what it lacks"
}

// recoveryText says what a recovery's entry at the end of a log did.
func recoveryText(entry raftlog.RecoveryEntry, term uint64) string {
	switch {
	case entry == raftlog.NoRecovery:
		return ""
	case entry == raftlog.MembersRecovery:
		return ", an edited member list"
	case entry == raftlog.FenceRecovery && term == 1: // LXD's own has no higher one
		return ", an edit that left the member list as it was"
	case entry == raftlog.FenceRecovery:
		return ", a fence: the member list is as it was"
	}

	return ", an edited member list or a fence"
}

// printReadings shows as what the files can be read, and what is left out of the log.
func printReadings(w io.Writer, r *recovery.InspectReport) {
	for i, reading := range r.Readings {
		if i == 0 {
			fmt.Fprintln(w, "\nThe files can be read as several logs. --reading DIGEST takes one:")
		}

		fmt.Fprintf(w, "  %s  up to index %d, term %d\n", reading.Digest, reading.Last, reading.LastTerm)
		for _, reason := range reading.For {
			fmt.Fprintf(w, "      for it: %s\n", reason)
		}

		for _, reason := range reading.Against {
			fmt.Fprintf(w, "      against it: %s\n", reason)
		}
	}

	for i, o := range r.LeftOut {
		if i == 0 {
			fmt.Fprintln(w, "\nNot in the log:")
		}

		fmt.Fprintf(w, "  %s\n", o)
	}
}

func printMembers(w io.Writer, members member.List) {
	var rows [][]string
	for _, m := range members {
		rows = append(rows, []string{fmt.Sprint(m.ID), m.Name, m.Address, m.Role.String()})
	}

	fmt.Fprintln(w)
	writeTable(w, []string{"id", "name", "address", "role"}, rows)
}

func snapshotText(raft recovery.InspectRaft) string {
	if raft.SnapshotIndex == 0 {
		return "none"
	}

	return fmt.Sprintf("index %d, term %d", raft.SnapshotIndex, raft.SnapshotTerm)
}

func healthText(healthy bool, raft recovery.InspectRaft) string {
	if healthy {
		return "healthy"
	}

	return fmt.Sprintf("DAMAGED, sound up to index %d", raft.SoundIndex)
}

// engineName is what people call the engine of the database.
func engineName() string { return product.Current().Engine.String() }

func libdqliteText(l recovery.Libdqlite) string {
	text := "load: " + l.Load.String()
	if l.Start != l.Load {
		text += ", start: " + l.Start.String()
	}

	return text
}

// libdqliteLogText is the log that libdqlite would have, empty where it is the one that the disk holds.
func libdqliteLogText(l recovery.Libdqlite) string {
	var parts []string
	if l.Last > 0 {
		parts = append(parts, fmt.Sprintf("up to index %d", l.Last))
	}

	if l.Dropped > 0 {
		parts = append(parts, fmt.Sprintf("%d entries lost", l.Dropped))
	}

	return strings.Join(parts, ", ")
}

// printProblems shows problems, the worst first. Those that are for information only, which sound directories have as well, are left
// out unless all are wanted.
func printProblems(w io.Writer, problems []raftlog.Problem, all bool) {
	problems = slices.Clone(problems)
	if !all {
		problems = slices.DeleteFunc(problems, func(p raftlog.Problem) bool { return p.Severity == raftlog.Info })
	}

	slices.SortStableFunc(problems, func(a, b raftlog.Problem) int { return int(b.Severity) - int(a.Severity) })
	for i, p := range problems {
		if i == 0 {
			fmt.Fprintln(w, "\nProblems:")
		}

		fmt.Fprintf(w, "  %s\n", p)
		if p.Libdqlite != "" {
			fmt.Fprintf(w, "      %s: %s\n", engineName(), p.Libdqlite)
		}

		if p.Advice != "" {
			fmt.Fprintf(w, "      you can:   %s\n", p.Advice)
		}
	}
}
