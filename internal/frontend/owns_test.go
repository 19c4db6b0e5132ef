// SPDX-License-Identifier: AGPL-3.0-only

package frontend

import (
	"strings"
	"testing"
)

func TestOwns(t *testing.T) {
	ours := []string{
		"cluster export-db",
		"cluster export-db -",
		"cluster export-db --force /root/file.tar.gz",
		"cluster edit",
		"cluster edit --help",
		"--help cluster edit",
		"cluster -h edit",
		"cluster recover-from-quorum-loss -q",
		"global-db-import lxd_recovery_db.tar.gz",
		"global-db-rollback",
		"global-db-status",
		"global-db-inspect",
		"global-db-compare a b",
		"global-db-sql .schema",
		"global-db-log",
		"global-db-kept",
		"global-db-kept list",
		"global-db-kept remove --yes database.before-import-20261122T213000Z",
		"global-db-backups", // its old name
		"global-db-backups list",
		"global-db-of-a-later-version",

		// LXD's global flags, before, between and after.
		"--debug cluster edit",
		"-d cluster edit",
		"-dv cluster -v edit -d",
		"--debug=true cluster edit",
		"-d=true cluster edit",
		"--verbose --syslog cluster edit",
		"--logfile /tmp/log cluster edit",
		"--logfile=/tmp/log cluster --trace dqlite edit",
		"--logfile cluster cluster edit",
		"--group lxd cluster edit",
		"--version cluster edit",
		"cluster --logfile edit edit",
		"--debug global-db-status",
		"-d --trace x global-db-import --yes f",

		// Flags of other versions: with a value or without.
		"--new cluster edit",
		"--new value cluster edit",
		"--new=value cluster edit",
		"-x cluster edit",
		"-x value cluster -y value edit",

		// LXD overlooks these on its way to the command.
		"EMPTY cluster edit",
		"cluster EMPTY edit",
		"- cluster edit",
	}

	for _, line := range ours {
		if !Owns(split(line)) {
			t.Errorf("lxd %s is handed over", line)
		}
	}
}

// What LXD has to find, or to complain about.
func TestOwnsNot(t *testing.T) {
	theirs := []string{
		"", // the daemon
		"EMPTY",
		"--help",
		"-h",
		"--version",
		"--debug",
		"--logfile",
		"--logfile cluster",
		"--logfile cluster edit",
		"--logfile global-db-status",
		"--trace=global-db-status",
		"--group lxd",
		"cluster",
		"cluster --help",
		"cluster show",
		"cluster list-database",
		"cluster remove-raft-node 10.0.0.1:8443",
		"cluster show edit",
		"cluster ed",
		"cluster edits",
		"cluster export",
		"cluster --debug",
		"cluster --logfile edit",
		"cluster -- edit",
		"-- cluster edit",
		"help cluster edit",
		"edit",
		"init cluster edit",
		"export-db",
		"global-db",
		"sql global .dump",
		"waitready --timeout 5",
		"__complete cluster edit",
		"frontend install",
		"resume",
		"hook remove",
		"version",
		"forkexec c1 /var/lib/lxd/containers edit",
		"--new cluster",
		"--new show cluster",
	}

	for _, line := range theirs {
		if Owns(split(line)) {
			t.Errorf("lxd %s is not handed over", line)
		}
	}
}

// split splits a line at its spaces; EMPTY is an empty argument.
func split(line string) []string {
	args := strings.Fields(line)
	for i, arg := range args {
		if arg == "EMPTY" {
			args[i] = ""
		}
	}

	return args
}
