// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// result is how a call of the program ended.
type result struct {
	status         int
	stdout, stderr string
}

// run calls the program in this process, with files in place of standard output and standard error.
func run(t *testing.T, argv ...string) result {
	t.Helper()
	stdout, stderr := os.Stdout, os.Stderr
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()

	dir := t.TempDir()
	texts := [2]string{}
	files := [2]*os.File{}
	for i := range files {
		file, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}

		defer file.Close()

		files[i] = file
	}

	os.Stdout, os.Stderr = files[0], files[1]
	status := Main(argv)
	for i, file := range files {
		text, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}

		texts[i] = string(text)
	}

	return result{status, texts[0], texts[1]}
}

func TestExitStatus(t *testing.T) {
	for want, errs := range map[int][]error{
		exitFailed:  {errors.New("x"), context.Canceled},
		exitUsage:   {usageError{errors.New("x"), "lxd-recover"}},
		exitRefused: {&recovery.Refusal{Reason: "x", Flag: "--yes"}, errNoRecommendation},
		exitDamaged: {&recovery.DamageError{What: "x"}, bundle.ErrDamaged, errUnhealthy, errDamageInTheWay},
	} {
		for _, err := range errs {
			for _, err := range []error{err, fmt.Errorf("doing: %w", err), errors.Join(nil, err)} {
				if got := exitStatus(err); got != want {
					t.Errorf("%v: %d, want %d", err, got, want)
				}
			}
		}
	}
}

func TestMessage(t *testing.T) {
	for want, err := range map[string]error{
		"read x": errors.New("read x"),
		"interrupted, the old database is in place: read x: context canceled": fmt.Errorf("read x: %w", context.Canceled),
		"interrupted":                           plainInterrupt(fmt.Errorf("read x: %w", context.Canceled)),
		"no x":                                  plainInterrupt(errors.New("no x")),
		"no x; see `lxd-recover resume --help`": usageError{errors.New("no x"), "lxd-recover resume"},
	} {
		if got := message(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestFormat asks for formats that a command does not know: that is found before anything is done.
func TestFormat(t *testing.T) {
	for line, want := range map[string]string{
		"version --format xml":      "unknown format \"xml\": table, json, yaml are possible; see `lxd-recover version --help`",
		"version -f csv":            "unknown format \"csv\": table, json, yaml are possible; see `lxd-recover version --help`",
		"global-db-kept list -f ''": "unknown format \"''\": table, compact, csv, json, yaml are possible; see `lxd-recover global-db-kept list --help`",
		"cluster export-db --at -1": "invalid argument \"-1\" for \"--at\" flag: it is neither an index of the raft log, from 1 on, " +
			"nor a time such as 2026-11-27T08:30, which is UTC; see `lxd-recover cluster export-db --help`",
		"cluster export-db --at 0": "invalid argument \"0\" for \"--at\" flag: it is neither an index of the raft log, from 1 on, " +
			"nor a time such as 2026-11-27T08:30, which is UTC; see `lxd-recover cluster export-db --help`",
		"cluster export-db -f json -":   "--format needs standard output, which the tarball goes to; see `lxd-recover cluster export-db --help`",
		"global-db-log --from 9 --to 8": "--from 9 is after --to 8, so that there is nothing to list; see `lxd-recover global-db-log --help`",
		"backup enable srv":             "DIR must be an absolute path, and \"srv\" is none; see `lxd-recover backup enable --help`",
		"backup enable /srv --every monthly": "invalid argument \"monthly\" for \"--every\" flag: hourly, daily, weekly are possible" +
			"; see `lxd-recover backup enable --help`",
		"backup enable /srv --keep-last -1": "--keep-last is -1, and must not be below 0; see `lxd-recover backup enable --help`",
		"backup enable /srv --keep-last 0 --keep-hourly 0 --keep-daily 0 --keep-weekly 0": "nothing says which backups to keep: " +
			"give --keep-last, --keep-hourly, --keep-daily or --keep-weekly; see `lxd-recover backup enable --help`",
		"backup forget /srv": "nothing says which backups to keep: give --keep-last, --keep-hourly, --keep-daily or --keep-weekly" +
			"; see `lxd-recover backup forget --help`",
		"nothing":                        "unknown command \"nothing\" for \"lxd-recover\"; see `lxd-recover --help`",
		"global-db-rollback a b -f yaml": "unexpected argument \"b\"; see `lxd-recover global-db-rollback --help`",
	} {
		got := run(t, append([]string{"lxd-recover"}, strings.Fields(line)...)...)
		if got.status != exitUsage || got.stderr != "Error: "+want+"\n" || got.stdout != "" {
			t.Errorf("%s: %+v, want %q", line, got, want)
		}
	}
}

// TestFullOutput wants a report that could not be written to be an error, in every format.
func TestFullOutput(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}

	defer full.Close()

	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()

	os.Stdout = full
	for _, name := range reportFormats {
		err := printReport(format{name: name}, newVersions(), printVersions)
		if err == nil {
			t.Errorf("%s: nothing was written, and that is no error", name)
		}
	}
}

// TestOldNames types commands and flags as they were called once. They work as under their new names, and no help shows them.
func TestOldNames(t *testing.T) {
	older, newer := keptDatabases(t)
	for _, program := range []string{"lxd-recover", "lxd"} {
		for _, args := range [][]string{{"list"}, {"list", "--format", "csv"}, {"ls", "-f", "json"}, {"remove", "no-such-name"}} {
			old := run(t, append([]string{program, "global-db-backups"}, args...)...)
			now := run(t, append([]string{program, "global-db-kept"}, args...)...)
			if old != now || !strings.Contains(old.stdout, newer) == (args[0] != "remove") {
				t.Errorf("%s %v: %+v, under its new name %+v", program, args, old, now)
			}
		}
	}

	removed := run(t, "lxd-recover", "global-db-backups", "rm", "--yes", older)
	if removed.status != exitDone || removed.stdout != older+" is deleted.\n1 kept database left, which takes 0 B.\n" {
		t.Errorf("%+v", removed)
	}

	cmd, _, err := newRootCmd().Find([]string{"cluster", "export-db"})
	if err == nil {
		err = cmd.ParseFlags([]string{"--no-proof"})
	}

	skipped, flagErr := cmd.Flags().GetBool("no-verify")
	if err != nil || flagErr != nil || !skipped {
		t.Errorf("--no-proof: %v, %v, %v", skipped, err, flagErr)
	}

	for _, cmd := range visible(newRootCmd()) {
		help := cmd.Long + cmd.UsageString()
		if strings.Contains(help, "global-db-backups") || strings.Contains(help, "no-proof") {
			t.Errorf("the help of %s shows an old name:\n%s", cmd.CommandPath(), help)
		}
	}
}
