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
everywhere, and bring the files, of a few kB each, to one place. Rows can only be compared where the databases are at hand.

A member is recommended only if it is certain that it holds every change that the cluster has ever confirmed. That takes the
sound logs of more than half of the voters, each as it was when LXD last ran there: not an old report, not a backup. A
recovery entry that "lxd cluster edit" has added since does not count; stand-bys and spares have no vote. What the newest
log holds beyond what was confirmed is kept, too.

Exit status:
  0  a member is recommended
  1  failed
  2  wrong usage
  3  no member is recommended: too few voters' logs, or logs that do not belong together
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
		if s.Raft.Edited {
			edited = fmt.Sprintf("yes: index %d", s.Raft.LastIndex)
		}

		rows = append(rows, []string{s.Label, s.Kind, cmp.Or(s.Role, "?"), last, snapshotText(s.Raft), edited, sourceHealthText(s)})
	}

	writeTable(w, []string{"member", "source", "role", "last entry", "snapshot", "edited since", "health"}, rows)
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

	if r.Recommendation == nil {
		fmt.Fprintf(w, "\nNo member is recommended: %s.\n", r.Refusal.Reason)
		return
	}

	fmt.Fprintf(w, "\nRecover from %s: %s.\n", r.Recommendation.Label, r.Recommendation.Reason)
	if len(r.Recommendation.Same) > 0 {
		fmt.Fprintf(w, "The same log has, and can be recovered from as well: %s.\n", strings.Join(r.Recommendation.Same, ", "))
	}
}

// sourceHealthText says how far a source can be trusted.
func sourceHealthText(s recovery.CompareSource) string {
	switch {
	case s.RunningDaemon != "":
		return "LXD RUNS: may not belong together"
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
		fmt.Fprintf(w, "\nA source counts as its member's last state: LXD must not have run there since. Not read just now: %s.\n", strings.Join(old, ", "))
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
		fmt.Fprintf(w, "\nAll members of a cluster need the same version of LXD, and these are not of one: %s.\n", strings.Join(all, "; "))
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
		fmt.Fprintf(w, "  (rows not worked out: %s)\n", d.Unknown)
		return
	}

	if len(d.Rows) == 0 {
		fmt.Fprintln(w, "  change no row")
	}

	shown, housekeeping := 0, 0
	for _, row := range d.Rows {
		switch {
		case row.Housekeeping():
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

	if housekeeping > 0 {
		fmt.Fprintf(w, "  (and %d rows that LXD writes by itself: operations, warnings, heartbeats)\n", housekeeping)
	}
}
