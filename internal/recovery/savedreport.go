// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
)

// inspectFormat is the format of the reports that are written. What an older one, without a format, calls sound or healthy is what
// libdqlite would load, and no proof that the disk holds no more.
const inspectFormat = 2

// maxReport bounds a saved report, in bytes: an entry takes some 120, a log keeps some 10,000 of them.
const maxReport = 64 << 20

// readReport reads a report that was saved as JSON.
func readReport(file string) (*InspectReport, error) {
	f, err := newfile.Open(file)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	r := &InspectReport{}
	err = json.NewDecoder(io.LimitReader(f, maxReport)).Decode(r)
	if err == nil && r.Kind == "" {
		err = errors.New("it does not say what was inspected")
	}

	if err == nil {
		err = r.printable()
	}

	if err == nil && r.Format > inspectFormat {
		return nil, fmt.Errorf("%s is a report of format %d, of a later lxd-recover: this one knows format %d", file, r.Format, inspectFormat)
	}

	if err != nil {
		return nil, fmt.Errorf("%s is not a report of `lxd-recover global-db-inspect --format json`: %w", file, err)
	}

	return r, nil
}

// reportOf inspects a source, one of its databases if that is chosen, or reads a saved report.
func reportOf(ctx context.Context, source string, database string, progress Progress) (r *InspectReport, saved bool, err error) {
	saved, err = isReport(source)
	if err != nil {
		return nil, false, err
	}

	if saved {
		r, err = readReport(source)
	} else {
		r, err = InspectWith(ctx, InspectOptions{Source: source, Database: database, Progress: progress})
	}

	return r, saved, err
}

// isReport tells a saved report from a tarball: JSON begins with a brace.
func isReport(name string) (bool, error) {
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return false, err
	}

	f, err := newfile.Open(name)
	if err != nil {
		return false, err
	}

	defer f.Close()

	head, _ := bufio.NewReaderSize(f, 16).Peek(1)
	return string(head) == "{", nil
}

// printable checks the names and addresses that a report has: messages repeat them.
func (r *InspectReport) printable() error {
	all := append(member.List{}, r.Members...)
	all = append(all, r.Raft.SnapshotMembers...)
	for _, e := range r.Entries {
		all = append(all, e.Members...)
	}

	if r.Member != nil {
		all = append(all, member.Member{Name: r.Member.Name, Address: r.Member.Address})
	}

	for _, m := range all {
		err := m.Printable()
		if err != nil {
			return err
		}
	}

	return nil
}
