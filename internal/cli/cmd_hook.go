// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/frontend"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// What can be asked for with `snap set lxd-recover`.
const (
	keyImport        = "import"                // a tarball
	keyRollback      = "rollback"              // true, latest, or the name of a kept database
	keyDiscardLocal  = "discard-local-entries" // the flags of the same names
	keyBesideCluster = "beside-cluster"
	keyNoStart       = "no-start"
	keyUnsigned      = "unsigned"
	keyCertificate   = "certificate" // a file
	keyAddressAbsent = "address-absent"
	keyNewerSchema   = "newer-schema"
	keyDropPatch     = "drop-patch"
	keyUnknown       = "unknown-members"

	keyStatus = "status" // what came of it, in one line
	keyReport = "report" // the same as the command's --format json
)

// requestKeys are those that are unset once the request is carried out.
var requestKeys = []string{
	keyImport, keyRollback, keyDiscardLocal, keyBesideCluster, keyNoStart, keyUnsigned, keyCertificate,
	keyAddressAbsent, keyNewerSchema, keyDropPatch, keyUnknown,
}

// answerKeys are those that the hook sets.
var answerKeys = []string{keyStatus, keyReport}

// newHookCmd is what the hooks of the snap call.
func newHookCmd() *cobra.Command {
	hooks := map[string]func(context.Context) error{
		"configure":    hookConfigure,
		"pre-refresh":  hookPreRefresh,
		"post-refresh": hookPostRefresh,
		"install":      hookInstall,
		"remove":       hookRemove,
		"boot":         hookBoot,
	}
	return &cobra.Command{
		Use:   "hook NAME",
		Short: "Do what a hook of the lxd-recover snap does, or what is to be done when the machine starts",
		Long: `Do what a hook of the lxd-recover snap does, or what is to be done when the machine starts; snapd and systemd call this, and nobody
else needs to.

  configure     carry out "snap set lxd-recover import=FILE" or "rollback=true" (or =NAME), with discard-local-entries=true,
                beside-cluster=true, unsigned=true, certificate=FILE, no-start=true, address-absent=true, newer-schema=true,
                drop-patch=true and unknown-members=true as the flags of these names; "snap get lxd-recover status" tells what
                came of it
  pre-refresh   refuse a refresh while an import, a rollback, an edit or a repair is under way
  post-refresh  finish what an interrupted run left, as "lxd-recover resume"
  install       note what is missing on this machine, in "snap get lxd-recover status"
  remove        take the "lxd" front-end away; kept databases stay
  boot          before LXD starts, finish what a run left that was cut off, as "lxd-recover resume", without waiting for LXD
` + exitStatuses,
		Example:   "  lxd-recover hook pre-refresh",
		ValidArgs: slices.Sorted(maps.Keys(hooks)),
		Args:      usage(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		RunE:      func(cmd *cobra.Command, args []string) error { return hooks[args[0]](cmd.Context()) },
	}
}

// hookConfigure carries out a request of `snap set`. If it fails, snapd shows the error and forgets the request.
func hookConfigure(ctx context.Context) error {
	config, err := newSnapConfig()
	if err != nil {
		return err
	}

	values, err := config.get()
	if err != nil {
		return err
	}

	began := time.Now().UTC().Format(time.RFC3339)
	request, err := parseRequest(values)
	if err != nil {
		return config.failed(began, err)
	}

	if request == nil {
		return nil
	}

	status, report, err := request.run(ctx)
	if err != nil {
		return config.failed(began, err)
	}

	err = config.unset(requestKeys...)
	if err != nil {
		return err
	}

	err = config.set(keyReport, report)
	if err != nil {
		return err
	}

	return config.set(keyStatus, began+": "+status)
}

// failed has the status say what a request has failed with, and returns that. snapd forgets what a failing hook has set, so that is done
// past it; if it cannot be done, the error is all that tells.
func (c *snapConfig) failed(began string, err error) error {
	outside, unset := c.outsideHook()
	if unset == nil {
		word := "failed"
		if exitStatus(err) == exitRefused {
			word = "refused"
		}

		unset = outside.set(keyStatus, fmt.Sprintf("%s: %s: %s", began, word, strings.Join(strings.Fields(message(err)), " ")))
	}

	if unset != nil {
		fmt.Fprintf(stderr(), "Warning: `snap get lxd-recover %s` does not say so: %v\n", keyStatus, unset)
	}

	return err
}

// request is what `snap set` asked for.
type request struct {
	tarball  string
	rollback bool
	kept     string // its name; empty: the newest

	discardLocal, besideCluster, noStart, unsigned, addressAbsent, newerSchema, dropPatch, unknownMembers bool

	certificate string // a file; empty: none
}

// parseRequest returns nil if nothing is asked for, as when the snap is installed. A key that there is not is an error: it may be one that
// was meant to be another.
func parseRequest(values map[string]any) (*request, error) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(requestKeys, key) && !slices.Contains(answerKeys, key) {
			return nil, fmt.Errorf("there is no key %q: %s are possible; `snap unset lxd-recover %s` takes it away if it was set before",
				key, strings.Join(requestKeys, ", "), key)
		}
	}

	r := &request{}
	flags := map[string]*bool{
		keyDiscardLocal: &r.discardLocal, keyBesideCluster: &r.besideCluster, keyNoStart: &r.noStart, keyUnsigned: &r.unsigned,
		keyAddressAbsent: &r.addressAbsent, keyNewerSchema: &r.newerSchema, keyDropPatch: &r.dropPatch, keyUnknown: &r.unknownMembers,
	}
	for key, flag := range flags {
		switch value := values[key].(type) {
		case nil:
		case bool:
			*flag = value
		default:
			return nil, fmt.Errorf("%s=%v: true or false is possible", key, value)
		}
	}

	for key, file := range map[string]*string{keyImport: &r.tarball, keyCertificate: &r.certificate} {
		switch value := values[key].(type) {
		case nil:
		case string:
			*file = value
		default:
			return nil, fmt.Errorf("%s=%v is not the name of a file", key, value)
		}
	}

	switch value := values[keyRollback].(type) {
	case nil:
	case bool:
		r.rollback = value
	case string:
		r.rollback, r.kept = value != "", value
		if value == "latest" {
			r.kept = ""
		}

	default:
		return nil, fmt.Errorf("%s=%v: true, latest or the name of a kept database is possible", keyRollback, value)
	}

	switch {
	case r.tarball != "" && r.rollback:
		return nil, errors.New("import and rollback cannot be asked for at once")
	case r.tarball != "" && !filepath.IsAbs(r.tarball):
		return nil, fmt.Errorf("%s=%s: the whole path of the tarball is needed, beginning with /", keyImport, r.tarball)
	case r.certificate != "" && !filepath.IsAbs(r.certificate):
		return nil, fmt.Errorf("%s=%s: the whole path of the certificate is needed, beginning with /", keyCertificate, r.certificate)
	case r.tarball == "" && !r.rollback:
		return nil, nil
	}

	return r, nil
}

// run carries the request out and returns what came of it, in one line and in full.
func (r *request) run(ctx context.Context) (string, any, error) {
	if r.rollback {
		return r.runRollback(ctx)
	}

	report, err := recovery.Import(ctx, recovery.ImportOptions{
		Tarball: r.tarball, Version: Version, DiscardLocal: r.discardLocal, BesideCluster: r.besideCluster, NoStart: r.noStart,
		Unsigned: r.unsigned, Certificate: r.certificate, AddressAbsent: r.addressAbsent, NewerSchema: r.newerSchema,
		DropPatch: r.dropPatch, UnknownMembers: r.unknownMembers, Timeout: defaultTimeout, Progress: newProgress(ctx, os.Stderr),
	})
	if err != nil {
		return "", nil, err
	}

	done := fmt.Sprintf("imported %s (%s, %d rows); the database as it was before is kept in %s", r.tarball, report.Raft, report.Database.Rows, report.Kept)
	if len(report.Discarded) > 0 {
		done += "; given up: " + recovery.Count(report.Discarded).String()
	}

	if report.NothingToDo {
		done = fmt.Sprintf("%s has exactly the database of %s already, nothing was changed", report.Member.Name, r.tarball)
	}

	return statusText(done, doneDaemonText(report.NothingToDo, report.Started, report.Ready), report.Warnings), report, nil
}

func (r *request) runRollback(ctx context.Context) (string, any, error) {
	report, err := recovery.Rollback(ctx, recovery.RollbackOptions{
		Version: Version, Kept: r.kept, DiscardLocal: r.discardLocal, BesideCluster: r.besideCluster, NoStart: r.noStart,
		Timeout: defaultTimeout, Progress: newProgress(ctx, os.Stderr),
	})
	if err != nil {
		return "", nil, err
	}

	done := fmt.Sprintf("the database of %s is back in place; the one as it was before is kept in %s", report.Restored.Name, report.Kept)
	if len(report.Discarded) > 0 {
		done += "; given up: " + recovery.Count(report.Discarded).String()
	}

	if report.NothingToDo {
		done = "the last change was a rollback already, nothing was changed"
	}

	return statusText(done, doneDaemonText(report.NothingToDo, report.Started, report.Ready), report.Warnings), report, nil
}

// doneDaemonText says what a request did about LXD; nothing if it had nothing to do, unless it has started what an earlier run had left down.
func doneDaemonText(nothingToDo, started, ready bool) string {
	if nothingToDo && !started && !ready {
		return ""
	}

	return daemonText(started, ready)
}

// statusText is what came of a request, in one line.
func statusText(done string, daemon string, warnings []string) string {
	text := done
	if daemon != "" {
		text += "; " + daemon
	}

	for _, w := range warnings {
		text += "; warning: " + w
	}

	return printable.Line(text) // snapd shows it as it is
}

// hookPreRefresh keeps snapd from exchanging this program for another while it is at work.
func hookPreRefresh(context.Context) error {
	dir, err := recovery.FindLXD()
	if err != nil {
		return nil // no LXD, nothing under way
	}

	return recovery.Idle(dir)
}

// hookPostRefresh resumes. An error makes snapd go back to the revision that was there before.
func hookPostRefresh(ctx context.Context) error {
	dir, err := recovery.FindLXD()
	if err != nil {
		return nil
	}

	_, err = recovery.Resume(ctx, recovery.ResumeOptions{LXDDir: dir, Timeout: defaultTimeout, Progress: newProgress(ctx, os.Stderr)})
	return err
}

// hookBoot finishes what was cut off. In the snap an error is only told: snapd starts this when it installs the snap, too, and the snap is
// what it takes to finish it by hand.
func hookBoot(ctx context.Context) error {
	opts := recovery.ResumeOptions{Timeout: defaultTimeout, Progress: newProgress(ctx, os.Stderr)}
	err := recovery.ResumeAtBoot(ctx, opts, func(dir string, r *recovery.ResumeReport) {
		fmt.Fprintln(os.Stderr, dir+":")
		printResumed(os.Stderr, r)
	})
	if err != nil && os.Getenv("SNAP") != "" {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		return nil
	}

	return err
}

// hookInstall says what is missing; it is installed all the same.
func hookInstall(context.Context) error {
	config, err := newSnapConfig()
	if err != nil {
		return err
	}

	dir, err := recovery.FindLXD()
	status := product.Text("ready: LXD's directory is ") + dir
	if err != nil {
		status = product.Text("waiting for LXD: ") + err.Error() + product.Text(", or install LXD (`snap install lxd`)")
	}

	fmt.Fprintln(stderr(), status)
	return config.set(keyStatus, status)
}

// hookRemove leaves nothing of the snap in the way of LXD's own commands.
func hookRemove(context.Context) error {
	return frontend.RemoveOwn(frontend.DefaultDir)
}
