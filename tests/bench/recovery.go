// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/machines"
)

// benchRecovery measures export and import against LXD's own and against common tools, and then against the size.
func benchRecovery(ctx context.Context, p *page, opts options, tool string, dir string) error {
	lxd, err := cluster.LXD6()
	if err != nil {
		return err
	}

	l, err := newLab(ctx, lxd, tool, dir)
	if err != nil {
		return err
	}

	defer l.Close()
	err = l.grow(ctx, opts.size)
	if err != nil {
		return err
	}

	f, err := l.compare(ctx, p, opts.runs, lxd.Name)
	if err != nil {
		return err
	}

	if len(opts.sizes) > 0 {
		err := l.curve(ctx, p, opts.sizes, &f)
		if err != nil {
			return err
		}
	}

	p.targets(f)
	return nil
}

// result is a measure and what came out.
type result struct {
	measure
	size int64   // of the output, bytes
	down float64 // seconds
}

// export measures our export.
func (l *lab) export(ctx context.Context, runs int, flags ...string) (result, error) {
	args := append([]string{"cluster", "export-db", l.tarball()}, flags...)
	return l.into(l.tarball(), runs, func() (*exec.Cmd, error) {
		err := os.RemoveAll(l.tarball())
		return l.Member(1).Command(ctx, l.tool, args...), errors.Join(err, flush(ctx))
	})
}

func (l *lab) tarball() string { return filepath.Join(l.dir, "ours.tar.gz") }

// into measures a command that writes a file.
func (l *lab) into(file string, runs int, prepare func() (*exec.Cmd, error)) (result, error) {
	m, err := best(runs, prepare)
	if err != nil {
		return result{}, err
	}

	size, err := sizeOf(file)
	return result{measure: m, size: size}, err
}

// importOurs measures our import; the longest time for which LXD has to be down counts.
func (l *lab) importOurs(ctx context.Context, runs int) (result, error) {
	var r result
	var out bytes.Buffer
	m := l.Member(2)
	took := func() error {
		if out.Len() == 0 {
			return nil
		}

		var report struct {
			Down float64 `json:"down_seconds"`
			Done bool    `json:"done"`
		}
		err := json.Unmarshal(out.Bytes(), &report)
		if err == nil && !report.Done {
			err = fmt.Errorf("the import did nothing: %s", &out)
		}

		r.down = max(r.down, report.Down)
		out.Reset()
		return err
	}
	var err error
	r.measure, err = best(runs, func() (*exec.Cmd, error) {
		if err := took(); err != nil {
			return nil, err
		}

		err := putBack(m)
		if err != nil {
			return nil, err
		}

		cmd := m.Command(ctx, l.tool, "global-db-import", "--yes", "--format", "json", l.tarball())
		cmd.Stdout = &out
		return cmd, flush(ctx)
	})
	if err == nil {
		err = took()
	}

	if err != nil {
		return r, err
	}

	return r, putBack(m)
}

// edit is the member list as it is to become: every member's port changes.
func (l *lab) edit(ctx context.Context) (string, error) {
	list, err := l.Member(1).ShowYAML(ctx)
	return strings.ReplaceAll(string(list), ":8443", ":9393"), err
}

// editOurs measures our `cluster edit`.
func (l *lab) editOurs(ctx context.Context) (measure, error) {
	list, err := l.edit(ctx)
	if err != nil {
		return measure{}, err
	}

	cmd := l.Member(1).Command(ctx, l.tool, "cluster", "edit")
	cmd.Stdin = strings.NewReader(list)
	m, err := once(cmd)
	if err != nil {
		return m, err
	}

	return m, putBack(l.Member(1))
}

// editLXD measures LXD's `cluster edit`, which writes its tarball too, and takes that away from where the member would load it.
func (l *lab) editLXD(ctx context.Context) (result, error) {
	list, err := l.edit(ctx)
	if err != nil {
		return result{}, err
	}

	m := l.Member(1)
	r, err := l.into(m.LoadedTarball(), 1, func() (*exec.Cmd, error) {
		cmd := m.Command(ctx, "lxd", "cluster", "edit")
		cmd.Stdin = strings.NewReader(list)
		return cmd, flush(ctx)
	})
	if err != nil {
		return r, err
	}

	return r, os.Rename(m.LoadedTarball(), l.lxdTarball())
}

func (l *lab) lxdTarball() string { return filepath.Join(l.dir, "lxd.tar.gz") }

// importLXD measures how long LXD takes to load its own tarball when it starts: until it removes it, the last thing it does. A
// daemon goes on, so it is looked at from outside, and killed.
func (l *lab) importLXD(ctx context.Context) (result, error) {
	m := l.Member(2)
	err := os.Rename(l.lxdTarball(), m.LoadedTarball())
	if err == nil {
		err = flush(ctx)
	}

	if err != nil {
		return result{}, err
	}

	began := time.Now()
	err = m.Spawn()
	if err != nil {
		return result{}, err
	}

	defer m.Kill()
	for {
		_, err := os.Lstat(m.LoadedTarball())
		wall := time.Since(began)
		switch {
		case os.IsNotExist(err):
			peak := machines.PeakOf(fmt.Sprintf("/proc/%d", m.Pid()))
			cpu, err := processorTime(m.Pid())
			return result{measure: measure{wall: wall, cpu: cpu, own: peak, peak: peak}, down: wall.Seconds()}, err
		case err != nil:
			return result{}, err
		case !m.Running():
			return result{}, fmt.Errorf("LXD ended: %s", m.LogTail(5))
		case wall > 30*time.Minute:
			return result{}, fmt.Errorf("LXD does not load its tarball: %s", m.LogTail(5))
		}

		time.Sleep(5 * time.Millisecond)
	}
}

// shell measures a command line that writes a file. The files it reads are those that our export packs.
func (l *lab) shell(ctx context.Context, runs int, output string, line string) (result, error) {
	return l.into(output, runs, func() (*exec.Cmd, error) {
		err := os.RemoveAll(output)
		if err != nil {
			return nil, err
		}

		cmd := exec.CommandContext(ctx, "sh", "-c", line, "sh", l.packed(), output)
		return cmd, flush(ctx)
	})
}

// packed holds the files that our export packs.
func (l *lab) packed() string { return filepath.Join(l.dir, "packed") }

// unpack fills it.
func (l *lab) unpack(ctx context.Context) error {
	err := os.Mkdir(l.packed(), 0o700)
	if err != nil {
		return err
	}

	out, err := exec.CommandContext(ctx, "tar", "-xzf", l.tarball(), "-C", l.packed()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack %s: %w: %s", l.tarball(), err, out)
	}

	return nil
}
