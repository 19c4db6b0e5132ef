// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"io"
	"runtime"

	sqlite "github.com/mattn/go-sqlite3"
	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/engine"
)

// versions are those of lxd-recover and of what is linked into it: what a report of a bug should have.
type versions struct {
	Version  string `json:"version" yaml:"version"`
	Dqlite   string `json:"libdqlite" yaml:"libdqlite"`
	SQLite   string `json:"sqlite" yaml:"sqlite"`
	Go       string `json:"go" yaml:"go"`
	Platform string `json:"platform" yaml:"platform"`
}

func newVersionCmd() *cobra.Command {
	output := format{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of lxd-recover and of what is linked into it",
		Long: `Show the version of lxd-recover, and those of libdqlite, SQLite and Go, which are linked into it.
` + plainStatuses,
		Example: `  lxd-recover version
  lxd-recover version --format json`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return printReport(output, newVersions(), printVersions) },
	}
	output.addFlag(cmd, reportFormats)
	return cmd
}

func newVersions() versions {
	sqliteVersion, _, _ := sqlite.Version()
	return versions{
		Version: Version, Dqlite: engine.Version(), SQLite: sqliteVersion, Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}

func printVersions(w io.Writer, v versions) {
	fmt.Fprintf(w, "lxd-recover %s (%s)\nlibdqlite   %s\nSQLite      %s\nGo          %s\n", v.Version, v.Platform, v.Dqlite, v.SQLite, v.Go)
}
