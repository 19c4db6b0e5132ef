// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// journalTime bounds how long the journal may take, journalSpan is how far back it is read, journalLines how much of it.
const (
	journalTime  = 30 * time.Second
	journalSpan  = "-6h"
	journalLines = "20000"
)

// journalUnits are what is read of the journal.
func journalUnits(p *product.Product) []string {
	return append(slices.Clone(p.Units), "lxd-recover-resume.service")
}

// maxSupportFile bounds one file that is packed, in bytes.
const maxSupportFile = 16 << 20

// Support writes what somebody who helps needs to know of this member, as a tar file: how it stands, what its database holds in numbers,
// reports of runs, and LXD's journal of the last hours. There are no keys in it, and none of what other commands conceal; the journal is
// LXD's own words. What cannot be had is a file with the reason.
func Support(ctx context.Context, lxdDir string, w io.Writer) error {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return err
	}

	s := &support{tar: tar.NewWriter(w), now: time.Now()}
	look, err := lookAt(ctx, dir.path, true, Progress{})
	s.addJSON("look.json", look, err)
	state, err := ReadMemberState(ctx, MemberStateOptions{LXDDir: dir.path})
	s.addJSON("state.json", state, err)
	kept, err := ListKept(ctx, dir.path, Progress{})
	s.addJSON("kept.json", kept, err)
	names, err := filepath.Glob(dir.join("database.*" + reportSuffix))
	if err != nil {
		return err
	}

	for _, path := range append(names, dir.join(reportName), dir.join(openRunName), dir.join(stoppedName), dir.join(highWaterName)) {
		data, err := newfile.Read(path)
		if !errors.Is(err, os.ErrNotExist) {
			s.add(filepath.Base(path), data, err)
		}
	}

	s.journal(ctx)
	return errors.Join(s.err, s.tar.Close(), ctx.Err())
}

// support packs files. err is the first error of the writer.
type support struct {
	tar *tar.Writer
	now time.Time
	err error
}

func (s *support) add(name string, data []byte, err error) {
	if err != nil {
		name, data = name+".error", []byte(err.Error()+"\n")
	}

	data = data[:min(len(data), maxSupportFile)]
	if s.err == nil {
		s.err = s.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: s.now, Format: tar.FormatPAX})
	}

	if s.err == nil {
		_, s.err = s.tar.Write(data)
	}
}

func (s *support) addJSON(name string, v any, err error) {
	var data []byte
	if err == nil {
		data, err = json.MarshalIndent(v, "", "  ")
	}

	s.add(name, data, err)
}

// journal adds LXD's journal of the last hours, if there is one.
func (s *support) journal(ctx context.Context) {
	program, err := exec.LookPath("journalctl")
	if err != nil {
		return
	}

	ctx, cancel := context.WithTimeout(ctx, journalTime)
	defer cancel()

	args := []string{"--no-pager", "--output=short-iso", "--since=" + journalSpan, "--lines=" + journalLines}
	for _, unit := range journalUnits(product.Current()) {
		args = append(args, "--unit="+unit)
	}

	var out, failed bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &failed, time.Second
	err = cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(failed.String()))
	}

	s.add("journal.txt", out.Bytes(), err)
}
