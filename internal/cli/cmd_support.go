// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
)

func newSupportCmd() *cobra.Command {
	o := &recoverOptions{}
	cmd := &cobra.Command{
		Use:   "support [FILE]",
		Short: "Pack what somebody who helps needs to know of all members",
		Long: `Pack what somebody who helps needs to know into FILE
(lxd-recover-support-TIME.tar.gz). Of each member that can be reached: how it
stands, where its log ends, reports of runs, LXD's journal of the last six
hours. Of this machine: logs and plans of runs that were given here. Names of
what is in the database are in it, keys and passwords are not. LXD's journal is
in LXD's own words. Nothing is changed.
` + plainStatuses,
		Example: `  lxd-recover support
  lxd-recover support --lost server2 support.tar.gz`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSupport(cmd.Context(), o, optionalArg(args, "lxd-recover-support-"+time.Now().UTC().Format("20060102T150405Z")+".tar.gz"))
		},
	}
	o.addReachFlags(cmd)
	cmd.Flags().StringSliceVar(&o.lost, "lost", nil, "`NAMES` of members that are not to be asked, with commas")
	return cmd
}

func runSupport(ctx context.Context, o *recoverOptions, file string) error {
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	session, err := clusterrun.ReachAll(ctx, opts)
	if err != nil {
		return err
	}

	err = writeSupport(ctx, session, file)
	err = errors.Join(err, session.Close())
	if err != nil {
		return err
	}

	fmt.Fprintf(os.Stdout, "All that is to be known is in %s. Look through it before you give it away.\n", file)
	return nil
}

func writeSupport(ctx context.Context, session *clusterrun.Session, file string) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(file)
		}
	}()

	zipped := gzip.NewWriter(f)
	packed := tar.NewWriter(zipped)
	err = session.Support(ctx, packed)
	if err == nil {
		err = addRuns(packed)
	}

	return errors.Join(err, packed.Close(), zipped.Close())
}

// addRuns adds the logs and plans of runs that were given on this machine.
func addRuns(w *tar.Writer) error {
	dir, err := stateDir()
	if err != nil {
		return nil // there is none
	}

	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}

	for _, path := range files {
		data, err := newfile.Read(path)
		if err != nil {
			continue
		}

		err = clusterrun.AddFile(w, "runs/"+filepath.Base(path), data)
		if err != nil {
			return err
		}
	}

	return nil
}
