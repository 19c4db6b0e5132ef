// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

func newLogCmd() *cobra.Command {
	output := format{}
	opts := recovery.HistoryOptions{}
	find := ""
	cmd := &cobra.Command{
		Use:   "global-db-log [SOURCE]",
		Short: "List what happened to a global database",
		Long: `List what happened to a global database: the entries of its raft log, the newest last. With --rows each transaction is shown
with the rows that it inserted, changed and deleted; with --find only those are listed that say a certain text there. Nothing is
changed, even while LXD is running. The newest entries of a member may be ones that LXD never committed.

Passwords, keys and tokens are shown as (secret, sha256 12ab…), the beginning of their SHA-256 sum, and are not found by --find.

The time is that of the file that holds an entry (raft keeps no other): the entry was written then or before. A tarball has
none. Indexes are those that "global-db-sql --at" and "cluster export-db --at" take.

SOURCE is LXD's directory, a database/ or global/ directory, a recovery tarball (of lxd-recover or LXD's own), or one of
LXD's db_backup tarballs; this machine's LXD unless given. A saved report of global-db-inspect has no log.
` + applicationSources + `

Exit status:
  0  done
  1  not readable
  2  wrong usage
  4  damaged; what is sound is listed`,
		Example: `  lxd-recover global-db-log --last 20
  lxd-recover global-db-log --find "delete instance web1"
  lxd-recover global-db-log --rows --from 4700 --to 4711
  lxd-recover global-db-log lxd_recovery_db.tar.gz -f json`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Source = optionalArg(args, "")
			return runLog(cmd.Context(), output, opts, find)
		},
	}
	cmd.Flags().BoolVar(&opts.Rows, "rows", false, "show which rows each transaction changed")
	cmd.Flags().Uint64Var(&opts.From, "from", 0, "the first `INDEX` to list")
	cmd.Flags().Uint64Var(&opts.To, "to", 0, "the last `INDEX` to list")
	cmd.Flags().Uint64VarP(&opts.Last, "last", "n", 0, "list the newest `N` entries only")
	cmd.Flags().StringVar(&find, "find", "", "list only entries with this `TEXT` in what they did, in upper or lower case; implies --rows")
	addReadingFlag(cmd, &opts.Reading)
	addDatabaseFlag(cmd, &opts.Database)
	output.addFlag(cmd, listFormats)
	return cmd
}

func runLog(ctx context.Context, output format, opts recovery.HistoryOptions, find string) error {
	if opts.To > 0 && opts.From > opts.To {
		return usageError{fmt.Errorf("--from %d is after --to %d, so that there is nothing to list", opts.From, opts.To), "lxd-recover global-db-log"}
	}

	opts.Progress = newProgress(ctx, os.Stderr)
	opts.Rows = opts.Rows || find != ""
	out := newHistoryWriter(output.name, find)
	history, err := recovery.ReadHistory(ctx, opts, out.entry)
	if err != nil {
		return plainInterrupt(err)
	}

	err = out.end()
	warnRunning(history.RunningDaemon)
	warnSignature(history.Signature)
	if out.unsearched > 0 {
		fmt.Fprintf(stderr(), "Warning: not found in, as what they did cannot be told: %d transactions\n", out.unsearched)
	}

	if err == nil && history.Damage != nil {
		return history.Damage
	}

	return err
}

// historyWriter writes entries as they come: with rows, a log is more than fits into memory.
type historyWriter struct {
	format     string
	find       string // lower case
	count      int
	unsearched int           // entries that could not be searched
	results    *resultWriter // of the formats that have columns
	to         globaldb.Receiver
}

func newHistoryWriter(format string, find string) *historyWriter {
	w := &historyWriter{format: format, find: strings.ToLower(find), results: newResultWriter(stdoutFor(format), format)}
	w.to = w.results.receiver()
	return w
}

func (w *historyWriter) entry(e recovery.HistoryEntry) error {
	if w.find != "" && !says(e, w.find) {
		if e.Pages > 0 && e.Unknown != "" {
			w.unsearched++
		}

		return nil
	}

	w.count++
	switch w.format {
	case formatJSON:
		data, err := json.MarshalIndent(e, "  ", "  ")
		if err != nil {
			return err
		}

		before := ",\n  "
		if w.count == 1 {
			before = "[\n  "
		}

		_, err = os.Stdout.WriteString(before + string(printable.JSON(data)))
		return err
	case formatYAML:
		data, err := encodeYAML([]recovery.HistoryEntry{e})
		if err != nil {
			return err
		}

		_, err = os.Stdout.Write(data)
		return err
	}

	if w.count == 1 {
		err := w.columns()
		if err != nil {
			return err
		}
	}

	written := ""
	if e.Written != nil {
		written = e.Written.Format(time.RFC3339)
	}

	row := []any{int64(e.Index), strconv.FormatUint(e.Term, 10), e.Kind, bytesText(e.Size), written, strings.Join(whatHappened(e), "\n")}
	if w.format == formatCSV {
		row[3] = e.Size
		row = append(row, e.File)
	}

	return w.to.Row(row)
}

// says tells whether an entry says a text in lower case, also where a long value is cut off.
func says(e recovery.HistoryEntry, text string) bool {
	return slices.ContainsFunc(whatHappened(e), func(line string) bool { return strings.Contains(strings.ToLower(line), text) }) ||
		slices.ContainsFunc(globaldb.Condense(e.Rows), func(row globaldb.RowChange) bool { return row.Says(text) })
}

func (w *historyWriter) columns() error {
	names := []string{"index", "term", "kind", "size", "written", "what"}
	if w.format == formatCSV {
		names = append(names, "file")
	}

	return w.to.Columns(names)
}

// end finishes the list, even an empty one.
func (w *historyWriter) end() error {
	text := ""
	switch {
	case w.format == formatJSON && w.count == 0, w.format == formatYAML && w.count == 0:
		text = "[]\n"
	case w.format == formatJSON:
		text = "\n]\n"
	case w.format == formatYAML:
	case w.count == 0:
		err := w.columns()
		if err != nil {
			return err
		}
	}

	if w.format == formatTable && isTerminal(os.Stdout) {
		fitLast(w.results.names, w.results.table, terminalWidth(os.Stdout))
	}

	err := w.results.end()
	if text != "" {
		_, err = os.Stdout.WriteString(text)
	}

	return err
}

// minLast is how wide the last column of a table is at least, however narrow the terminal.
const minLast = 60

// fitLast wraps the cells of the last column of a table so that it fits into a terminal.
func fitLast(names []string, rows [][]string, width int) {
	last := len(names) - 1
	for i, name := range names[:last] {
		widest := utf8.RuneCountInString(name)
		for _, row := range rows {
			widest = max(widest, utf8.RuneCountInString(row[i]))
		}

		width -= widest + len("|  ")
	}

	width = max(width-len("|  |"), minLast)
	for _, row := range rows {
		row[last] = strings.Join(wrap(strings.Split(row[last], "\n"), width), "\n")
	}
}

// wrap breaks lines that are wider than that between words; the rest of a line is indented.
func wrap(lines []string, width int) []string {
	var all []string
	for _, line := range lines {
		text := ""
		for _, word := range strings.Split(line, " ") {
			switch {
			case text == "":
				text = word
			case utf8.RuneCountInString(text)+1+utf8.RuneCountInString(word) <= width:
				text += " " + word
			default:
				all = append(all, text)
				text = "  " + word
			}
		}

		all = append(all, text)
	}

	return all
}

// whatHappened says in lines what an entry did, and on which of several databases.
func whatHappened(e recovery.HistoryEntry) []string {
	lines := changesOf(e)
	if e.Database != "" {
		lines = append([]string{"on " + e.Database + ":"}, lines...)
	}

	return lines
}

func changesOf(e recovery.HistoryEntry) []string {
	var lines []string
	switch {
	case e.Recovery && len(e.Members) > 0:
		lines = append(lines, "an edited member list")
	case e.Recovery:
		lines = append(lines, "a fence: the member list is as it was")
	}

	for _, m := range e.Members {
		name := m.Name
		if name == "" {
			name = fmt.Sprintf("member %d", m.ID)
		}

		switch {
		case m.OldAddress == "":
			lines = append(lines, fmt.Sprintf("%s added: %s, %s", name, m.NewAddress, m.NewRole))
		case m.NewAddress == "":
			lines = append(lines, fmt.Sprintf("%s removed: %s, %s", name, m.OldAddress, m.OldRole))
		default:
			lines = append(lines, fmt.Sprintf("%s: %s, %s", name, changeText(m.OldAddress, m.NewAddress), changeText(m.OldRole, m.NewRole)))
		}
	}

	for _, row := range globaldb.Condense(e.Rows) {
		lines = append(lines, row.String())
	}

	if e.Unknown != "" {
		lines = append(lines, "("+e.Unknown+")")
	}

	if len(lines) == 0 && e.Pages == 1 {
		return []string{"1 page"}
	}

	if len(lines) == 0 && e.Pages > 0 {
		return []string{fmt.Sprintf("%d pages", e.Pages)}
	}

	return lines
}
