package cli

import (
	"fmt"
	"runtime"

	sqlite "github.com/mattn/go-sqlite3"
	"github.com/spf13/cobra"
)

func newVersionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of lxd-recover and of what is linked into it",
		Example: "  lxd-recover version",
		Args:    usage(cobra.NoArgs),
		Run: func(*cobra.Command, []string) {
			sqliteVersion, _, _ := sqlite.Version()
			fmt.Printf("lxd-recover %s\nSQLite %s\n%s %s/%s\n", Version, sqliteVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}
