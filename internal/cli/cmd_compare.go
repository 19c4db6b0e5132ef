// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// How a comparison ends that recommends nothing: the report has the reason.
var (
	errNoRecommendation = errors.New("no member is recommended: see above")
	errDamageInTheWay   = errors.New("no member is recommended, for damage: see above")
)

// maxShownRows bounds the rows of one difference in a table; --format json has more.
const maxShownRows = 40

func newCompareCmd() *cobra.Command {
	output := format{}
	opts := recovery.CompareOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-compare SOURCE SOURCE...",
		Short: "Compare several members' databases and tell which one to recover from",
		Long: `Compare several members' databases and tell which one to recover from: where each raft log stands, up to where they are the
same, which one raft itself would prefer, what was committed for certain and what may not have been, and by which rows they differ.
Nothing is changed.

SOURCE is LXD's directory, a database/ directory, a recovery tarball (of lxd-recover or LXD's own), one of LXD's db_backup
tarballs, or a saved report: run "lxd-recover global-db-inspect --format json" on every surviving member, with LXD stopped
everywhere, and bring the files, of a few hundred kB each, to one place. All rows can only be compared where the databases are at
hand; reports tell the last transactions.
` + applicationSources + `

It is certain that a member holds every change that the cluster has ever confirmed if the sound logs of more than half of the voters
were given, each as it was when LXD last ran there: not an old report, not a backup. With fewer, the member is recommended that has
all that any of them has, and what cannot be known is said ("certain" is false in JSON). A recovery entry that
"lxd-recover cluster edit" has added since does not count; stand-bys and spares have no vote. What the newest log holds beyond what
was confirmed is kept, too. Of several members with the same log one is picked: a healthy one, a voter, this machine's, the one with
the most recent term, the one with the lowest id.

Exit status:
  0  a member is recommended, for certain or not
  1  failed
  2  wrong usage
  3  no member is recommended: LXD runs on some of them, only copies have the newest log, or the logs do not belong together
  4  no member is recommended: the logs or the database in question are damaged`,
		Example: `  lxd-recover global-db-compare server1.json server2.json server3.json
  lxd-recover global-db-compare /var/snap/lxd/common/lxd server2.tar.gz server3.json
  lxd-recover global-db-compare --export-survivors survivors /mnt/server1/lxd /mnt/server2/lxd /mnt/server3/lxd`,
		Args: usage(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Sources = args
			return runCompare(cmd.Context(), output, opts)
		},
	}
	cmd.Flags().StringVar(&opts.Survivors, "export-survivors", "", "write every source's report into `DIR`, for \"cluster export-db --survivor\"")
	_ = cmd.MarkFlagDirname("export-survivors")
	addDatabaseFlag(cmd, &opts.Database)
	output.addFlag(cmd, reportFormats)
	return cmd
}

func runCompare(ctx context.Context, output format, opts recovery.CompareOptions) error {
	opts.Progress = newProgress(ctx, os.Stderr)
	report, err := recovery.Compare(ctx, opts)
	if err != nil {
		return err
	}

	err = printReport(output, report, printCompare)
	switch {
	case err != nil || report.Refusal == nil:
		return err
	case report.Refusal.Verdict == survivor.Damaged || report.Refusal.Verdict == survivor.Nothing:
		return errDamageInTheWay
	}

	return errNoRecommendation
}

func printCompare(w io.Writer, r *recovery.CompareReport) {
	var rows [][]string
	for _, s := range r.Sources {
		last := fmt.Sprintf("index %d, term %d", s.End.Index, s.End.Term)
		edited := "no"
		switch {
		case s.Raft.Recovery == raftlog.FenceRecovery && s.Raft.LastTerm > 1: // LXD's own edit has no higher one, and fences nothing
			edited = fmt.Sprintf("fenced only: index %d", s.Raft.LastIndex)
		case s.Raft.Edited:
			edited = fmt.Sprintf("yes: index %d", s.Raft.LastIndex)
		}

		label := s.Label
		if r.Recommendation != nil && r.Recommendation.Source == s.Source {
			label += " *"
		}

		rows = append(rows, []string{label, s.Kind, cmp.Or(s.Role, "?"), last, snapshotText(s.Raft), edited, sourceHealthText(s)})
	}

	printConclusion(w, r)
	writeTable(w, []string{"member", "source", "role", "last entry", "snapshot", "edited since", "health"}, rows)
	if r.Recommendation != nil {
		fmt.Fprintln(w, "* recover from this one")
	}

	printSignatures(w, r)
	printTimes(w, r)
	printLXDs(w, r.Sources)
	if r.Refusal == nil || r.Refusal.Verdict != survivor.Different && r.Refusal.Verdict != survivor.Nothing {
		printLogs(w, r)
	}

	for _, d := range r.Rows {
		printDifference(w, d, r.Recommendation)
	}

	for _, file := range r.Survivors {
		fmt.Fprintf(w, "\nWrote %s.", file)
	}

	if len(r.Survivors) > 0 {
		fmt.Fprintln(w)
	}
}

// printConclusion says what decides: the member to recover from, then what is in doubt, if anything is.
func printConclusion(w io.Writer, r *recovery.CompareReport) {
	if r.Recommendation == nil {
		fmt.Fprintf(w, "No member is recommended: %s.\n\n", r.Refusal.Reason)
		return
	}

	fmt.Fprintf(w, "Recover from %s: %s.\n", r.Recommendation.Label, r.Recommendation.Reason)
	if r.Doubt != nil {
		fmt.Fprintf(w, "It is not certain that nothing is missing there: %s.\n", r.Doubt.Reason)
	}

	if len(r.Recommendation.Same) > 0 {
		fmt.Fprintf(w, "The same log has, and can be recovered from as well: %s.", strings.Join(r.Recommendation.Same, ", "))
		if r.Recommendation.Chosen != "" {
			fmt.Fprintf(w, " %s is taken as %s.", r.Recommendation.Label, r.Recommendation.Chosen)
		}

		fmt.Fprintln(w)
	}

	fmt.Fprintln(w)
}

// printTransactions says by which transactions two logs differ, as reports tell them: all from an index on.
func printTransactions(w io.Writer, verb string, list []recovery.InspectTransaction, from uint64) {
	if from > 0 {
		fmt.Fprintf(w, "  %s what the entries before index %d did\n", verb, from)
	}

	shown := 0
	for _, t := range list {
		for _, change := range t.Changes {
			shown++
			if shown <= maxShownRows {
				fmt.Fprintf(w, "  %s (index %d): %s\n", verb, t.Index, change)
			}
		}
	}

	if shown > maxShownRows {
		fmt.Fprintf(w, "  %s %d more changes: see --format json\n", verb, shown-maxShownRows)
	}
}

// sourceHealthText says how far a source can be trusted.
func sourceHealthText(s recovery.CompareSource) string {
	switch {
	case s.Gap:
		return "entries are MISSING"
	case s.RunningDaemon != "":
		return product.Text("LXD RUNS: may not belong together")
	case s.Healthy && !s.Raft.Whole:
		return "CUT by libdqlite once"
	case s.Healthy && s.Copy:
		return "a copy: the log may have gone on"
	}

	return healthText(s.Healthy, s.Raft)
}

// printTimes says of which time the sources are that were not read just now.
func printTimes(w io.Writer, r *recovery.CompareReport) {
	var old []string
	for _, s := range r.Sources {
		if age := time.Since(s.Time); age > time.Minute && !s.Time.IsZero() {
			old = append(old, fmt.Sprintf("%s of %s", s.Label, s.Time.Local().Format(time.DateTime)))
		}
	}

	if len(old) > 0 {
		product.Fprintf(w, "\nA source counts as its member's last state: LXD must not have run there since. Taken earlier: %s.\n", strings.Join(old, ", "))
	}
}

// printLXDs says which LXD each source is of, where they differ, as far as that is known.
func printLXDs(w io.Writer, sources []recovery.CompareSource) {
	var all []string
	different := false
	for i, s := range sources {
		text := s.Label + " has"
		if s.Machine != nil && s.Machine.LXD.Program != "" {
			text += " " + s.Machine.LXD.String() + " and"
		}

		if s.Schema > 0 {
			all = append(all, fmt.Sprintf("%s a database with schema %d", text, s.Schema))
		}

		for _, other := range sources[:i] {
			different = different || differ(s, other)
		}
	}

	if different {
		product.Fprintf(w, "\nAll members of a cluster need the same version of LXD, and these are not of one: %s.\n", strings.Join(all, "; "))
	}
}

// differ tells whether two sources are of different LXDs for certain.
func differ(a recovery.CompareSource, b recovery.CompareSource) bool {
	if a.Schema > 0 && b.Schema > 0 && a.Schema != b.Schema {
		return true
	}

	return a.Machine != nil && b.Machine != nil && a.Machine.LXD.Version != "" && b.Machine.LXD.Version != "" &&
		a.Machine.LXD.Version != b.Machine.LXD.Version
}

// printLogs says where the logs agree and part.
func printLogs(w io.Writer, r *recovery.CompareReport) {
	if len(r.Preferred) == 0 {
		return
	}

	fmt.Fprintf(w, "\nAll logs are the same up to index %d. Raft itself would prefer %s.\n", r.Common, strings.Join(r.Preferred, ", "))
	if !slices.Contains(r.Preferred, r.Longest[0]) {
		fmt.Fprintf(w, "%s has more that is sound, and where that log ended is not known.\n", strings.Join(r.Longest, ", "))
	}

	for _, g := range r.Gaps {
		fmt.Fprintf(w, "Entries are missing in %s, index %d to %d: what comes after them there are later entries of %s.\n", g.Source, g.First, g.Last, g.From)
	}

	for _, b := range r.Branches {
		where := "at"
		if b.OrBefore {
			where = "at or before"
		}

		fmt.Fprintf(w, "%s left it %s index %d: term %d there, the preferred log has term %d.\n",
			strings.Join(b.Sources, ", "), where, b.Index, b.Term, b.PreferredTerm)
	}

	if r.Refusal == nil || r.Committed > 0 {
		fmt.Fprintf(w, "Committed for certain: up to index %d.\n", r.Committed)
	}

	for _, u := range r.Uncertain {
		indexes := fmt.Sprintf("Index %d", u.First.Index)
		if u.Last != u.First {
			indexes = fmt.Sprintf("Indexes %d to %d", u.First.Index, u.Last.Index)
		}

		verdict := "may never have been committed"
		if u.Never {
			verdict = "never committed"
		}

		fmt.Fprintf(w, "%s on %s, %d of %d voters: %s.\n", indexes, strings.Join(u.Sources, ", "), u.Holding, u.Voters, verdict)
	}
}

// printDifference says what choosing other sources would do to the rows.
func printDifference(w io.Writer, d recovery.CompareRows, recommended *recovery.Recommendation) {
	than := "the log that raft prefers"
	if recommended != nil {
		than = recommended.Label
	}

	fmt.Fprintf(w, "\nChoosing %s instead of %s would:\n", strings.Join(d.Sources, " or "), than)
	if d.Unknown != "" {
		printTransactions(w, "lose", d.Lacks, d.LacksFrom)
		printTransactions(w, "bring", d.Has, d.HasFrom)
		fmt.Fprintf(w, "  (not all rows were compared: %s)\n", d.Unknown)
		return
	}

	rows := globaldb.Condense(d.Rows)
	switch {
	case len(d.Rows) == 0:
		fmt.Fprintln(w, "  change no row")
	case len(rows) == 0:
		fmt.Fprintln(w, "  change nothing but ids of rows")
	}

	shown, housekeeping := 0, 0
	for _, row := range rows {
		switch {
		case row.EitherWayByLXD():
			housekeeping++
			continue
		case shown < maxShownRows:
			fmt.Fprintf(w, "  %s\n", row)
		}

		shown++
	}

	if shown > maxShownRows {
		fmt.Fprintf(w, "  and change %d more rows: see --format json\n", shown-maxShownRows)
	}

	if len(d.More) > 0 {
		fmt.Fprintf(w, "  and change more than the first %d rows of: %s\n", globaldb.MaxDiff, strings.Join(d.More, ", "))
	}

	if housekeeping > 0 && shown == 0 {
		product.Fprintf(w, "  change nothing but %d rows that LXD writes by itself: operations, warnings, heartbeats\n", housekeeping)
		return
	}

	if housekeeping > 0 {
		product.Fprintf(w, "  (and %d rows that LXD writes by itself: operations, warnings, heartbeats)\n", housekeeping)
	}
}
