// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

type sqlOptions struct {
	source  string
	reading string

	database string // one of several
	at       point
	file     string // that the SQLite file is kept in
	force    bool
	format   format
}

func newSQLCmd() *cobra.Command {
	opts := sqlOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-sql [SOURCE] QUERY…",
		Short: "Ask a global database with SQL, without LXD",
		Long: `Ask a global database with SQL, without LXD: snapshot and raft log are replayed into a scratch file, which is queried. Only
reading is possible, and nothing of SOURCE is changed, even while LXD is running. Entries that LXD may not have committed
yet are part of the answer.

SOURCE is LXD's directory, a database/ or global/ directory, a recovery tarball (of lxd-recover or LXD's own), one of LXD's db_backup
tarballs, a backup or an archive of global-db-backup; this machine's LXD unless given. The first argument is SOURCE if a file or
directory of that name exists, and a query otherwise; --source leaves no doubt.
` + applicationSources + `

Several queries, also in one argument with semicolons, are answered one after the other; - reads them from standard input.
These are queries, too, and go before a file of that name:
  .tables          tables and views
  .schema [TABLE]  how they were created
  .dump            the whole database as SQL, for sqlite3

In tables NULL is NULL, and a blob is x'00ff'. In JSON and YAML NULL is null, and a blob is text of hexadecimal digits; each
result is a list of objects, several are documents one after the other, and a column name that comes twice gets a number. In
CSV NULL is nothing, and an empty text "".

Exit status:
  0  done
  1  failed, or the query is no reading one
  2  wrong usage
  3  refused; the message names the flag that overrides
  4  SOURCE is damaged; the answer is from what is sound of it`,
		Example: `  lxd-recover global-db-sql "SELECT name, address FROM nodes"
  lxd-recover global-db-sql lxd_recovery_db.tar.gz .tables
  lxd-recover global-db-sql --at 4711 -f json "SELECT * FROM profiles"
  lxd-recover global-db-sql .dump | sqlite3 copy.db
  lxd-recover global-db-sql --output copy.db`,
		Args: usage(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return opts.run(cmd.Context(), args)
		},
	}
	cmd.Flags().StringVar(&opts.source, "source", "", "SOURCE; all arguments are queries then")
	opts.at.addFlag(cmd, "the database as it was after this `INDEX|TIME` of the raft log; global-db-log lists them")
	cmd.Flags().StringVar(&opts.file, "output", "", "keep the SQLite `FILE`; no query is needed then")
	cmd.Flags().BoolVar(&opts.force, "force", false, "replace FILE if it exists")
	addReadingFlag(cmd, &opts.reading)
	addDatabaseFlag(cmd, &opts.database)
	_ = cmd.MarkFlagFilename("source")
	_ = cmd.MarkFlagFilename("output")
	opts.format.addFlag(cmd, listFormats)
	return cmd
}

func (o *sqlOptions) run(ctx context.Context, args []string) error {
	source, queries, err := o.arguments(args)
	if err != nil {
		return err
	}

	statements, err := readStatements(ctx, queries)
	if err != nil {
		return err
	}

	if len(statements) == 0 && o.file == "" {
		return usageError{errors.New("there is no query: give one in SQL, .tables, .schema or .dump"), "lxd-recover global-db-sql"}
	}

	source, at, err := o.at.index(ctx, source, o.reading)
	if err != nil {
		return plainInterrupt(err)
	}

	db, err := recovery.OpenDatabase(ctx, recovery.DatabaseOptions{
		Source: source, At: at, Reading: o.reading, Database: o.database, Progress: newProgress(ctx, os.Stderr),
	})
	if err != nil {
		return plainInterrupt(err)
	}

	defer db.Close()

	if o.file != "" {
		file, err := filepath.Abs(o.file)
		if err != nil {
			return err
		}

		err = db.CopyTo(file, o.force)
		if err != nil {
			return err
		}
	}

	warnRunning(db.RunningDaemon)
	warnSignature(db.Signature)
	results := newResultWriter(stdoutFor(o.format.name), o.format.name)
	for _, statement := range statements {
		err = answer(ctx, db, statement, results)
		if err != nil {
			return plainInterrupt(err)
		}
	}

	if o.file != "" {
		fmt.Fprintf(stderr(), "Wrote %s: the database at index %d.\n", o.file, db.Index)
	}

	if db.Damage != nil {
		return db.Damage
	}

	return nil
}

// plainInterrupt gives an interruption the words of a command that changes nothing.
func plainInterrupt(err error) error {
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted")
	}

	return err
}

var (
	dotCommand = regexp.MustCompile(`^\.[a-z]+(\s|$)`)
	looksPath  = regexp.MustCompile(`^(\.{0,2}/|\.\.?$)\S*$|^\S+\.tar\.gz$`)
	looksName  = regexp.MustCompile(`^\w+$`)
)

// arguments tells SOURCE from the queries.
func (o *sqlOptions) arguments(args []string) (source string, queries []string, err error) {
	if o.source != "" || len(args) == 0 || args[0] == "-" || dotCommand.MatchString(args[0]) {
		return o.source, args, nil
	}

	_, err = os.Stat(args[0])
	switch {
	case err == nil:
		return args[0], args[1:], nil
	case looksPath.MatchString(args[0]):
		return "", nil, err
	}

	return "", args, nil
}

// readStatements splits queries into statements. `.schema` and a name may be two arguments.
func readStatements(ctx context.Context, queries []string) ([]string, error) {
	var all []string
	for i := 0; i < len(queries); i++ {
		text := queries[i]
		switch {
		case text == "-":
			data, err := readStdin(ctx, math.MaxInt64)
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}

			text = string(data)
		case text == ".schema" && i+1 < len(queries) && looksName.MatchString(queries[i+1]):
			i++
			text += " " + queries[i]
		}

		statements, err := globaldb.Statements(text)
		if err != nil {
			return nil, err
		}

		all = append(all, statements...)
	}

	return all, nil
}

// answer runs one statement or dot command.
func answer(ctx context.Context, db *recovery.Database, statement string, results *resultWriter) error {
	if !strings.HasPrefix(statement, ".") {
		err := db.Query(ctx, statement, results.receiver())
		endErr := results.end()
		if err != nil {
			return err
		}

		return endErr
	}

	words := strings.Fields(strings.TrimRight(statement, "; \t\r"))
	switch {
	case words[0] == ".dump" && len(words) == 1:
		return db.Dump(ctx, stdoutFor(formatDump))
	case words[0] == ".tables" && len(words) == 1:
		return answer(ctx, db, "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name", results)
	case words[0] == ".schema" && len(words) <= 2:
		return answerSchema(ctx, db, strings.Trim(strings.Join(words[1:], ""), `"'`), results)
	}

	return usageError{fmt.Errorf("unknown command %q: .tables, .schema [TABLE] and .dump are possible", statement), "lxd-recover global-db-sql"}
}

// answerSchema writes SQL for people, and a result for programs.
func answerSchema(ctx context.Context, db *recovery.Database, table string, results *resultWriter) error {
	objects, err := db.Schema(ctx, table)
	if err != nil {
		return err
	}

	to := results.receiver()
	people := results.format == formatTable || results.format == formatCompact
	if !people {
		err = to.Columns([]string{"type", "name", "table", "sql"})
		if err != nil {
			return err
		}
	}

	for _, o := range objects {
		switch {
		case o.SQL == "":
		case people:
			fmt.Fprintln(stdoutFor(formatTable), o.SQL+";")
		default:
			err = to.Row([]any{o.Type, o.Name, o.Table, o.SQL})
			if err != nil {
				return err
			}
		}
	}

	return results.end()
}
