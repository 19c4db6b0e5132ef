// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// MakeOptions say what the tarball of a run over the whole cluster holds.
type MakeOptions struct {
	Members member.List `json:"members"` // the new list
	Lost    []string    `json:"lost"`    // names of the members that are lost

	// Reports are those of global-db-inspect on all members, as JSON: the fence goes above all that they have.
	Reports []json.RawMessage `json:"reports"`

	// Source is the name of a kept database that is exported in place of the live one: the run takes the cluster back to it.
	Source string `json:"source,omitempty"`

	AddressAbsent bool `json:"address_absent,omitempty"` // this machine gets its new address later
}

// MakeReport says what was made.
type MakeReport struct {
	Edit   *EditReport   `json:"edit"` // null with Source
	Export *ExportReport `json:"export"`
	Digest string        `json:"digest"` // SHA-256 of the file, in hexadecimal
	Size   int64         `json:"size"`   // bytes

	Rows globaldb.Fingerprint `json:"rows"` // of the database in it
}

// MakeTarball makes the tarball of the run on this member: a copy of its database is edited and exported. The database itself stays as it is. This member
// then has the run's tarball, which others get by ReceiveTarball.
func (p *Part) MakeTarball(ctx context.Context, opts MakeOptions) (*MakeReport, error) {
	err := p.in(PhaseStopped)
	if err != nil {
		return nil, err
	}

	reports, remove, err := writeReports(opts.Reports)
	if err != nil {
		return nil, err
	}

	defer remove()

	made := &MakeReport{}
	from := p.dir
	if opts.Source == "" {
		from, err = p.copyHere(ctx)
		if err != nil {
			return nil, err
		}

		defer func() { _ = os.RemoveAll(p.dir.join(runCopyName)) }()

		made.Edit, err = p.editCopy(ctx, from, opts)
		if err != nil {
			return nil, err
		}
	}

	export := ExportOptions{
		LXDDir: from.path, Output: p.TarballPath(), Force: true, Version: p.opts.Version, Survivors: reports,
		Source: opts.Source, Confirm: func(*ExportReport) error { return nil }, Progress: p.opts.Progress, part: p,
	}
	made.Export, err = Export(ctx, export)
	if err != nil {
		return nil, err
	}

	err = p.dir.noteTerms(ctx, made.Export.Raft.Term) // the copy's own note goes away with it
	if err != nil {
		return nil, err
	}

	made.Digest, err = newfile.Digest(p.TarballPath())
	if err != nil {
		return nil, err
	}

	made.Rows, made.Size, p.run.Digest = made.Export.rows, made.Export.Size, made.Digest
	return made, p.note()
}

// writeReports puts the members' reports into files.
func writeReports(reports []json.RawMessage) (files []string, remove func(), err error) {
	dir, remove, err := scratch.Dir("reports")
	if err != nil {
		return nil, nil, err
	}

	for i, data := range reports {
		file := filepath.Join(dir, fmt.Sprintf("%d.json", i))
		err = os.WriteFile(file, data, 0o600)
		if err != nil {
			remove()
			return nil, nil, err
		}

		files = append(files, file)
	}

	return files, remove, nil
}

// copyHere makes an LXD directory with a copy of the database, and with all that an edit and an export need besides.
func (p *Part) copyHere(ctx context.Context) (directory, error) {
	c := directory{p.dir.join(runCopyName)}
	err := os.RemoveAll(c.path)
	if err == nil {
		err = os.Mkdir(c.path, 0o700)
	}

	if err == nil {
		err = copyTree(ctx, p.dir.database(), c.database())
	}

	for _, name := range []string{"cluster.crt", "cluster.key", "cluster.ca", "server.crt", "server.key", "server.ca", highWaterName} {
		if err != nil || !exists(p.dir.join(name)) {
			continue
		}

		err = newfile.CopyContext(ctx, p.dir.join(name), c.join(name))
	}

	if err != nil {
		_ = os.RemoveAll(c.path)
	}

	return c, err
}

// editCopy gives the copy the new member list.
func (p *Part) editCopy(ctx context.Context, c directory, opts MakeOptions) (*EditReport, error) {
	r, err := Edit(ctx, EditOptions{
		LXDDir: c.path, Version: p.opts.Version, BesideCluster: true,
		Lost: opts.Lost, AnyRole: true, AddressAbsent: opts.AddressAbsent, Timeout: p.opts.Timeout, Progress: p.opts.Progress,
		Ask: func(_ context.Context, _ member.List, _ bundle.Position, check func(member.List) error) (member.List, error) {
			return opts.Members, check(opts.Members)
		},
	})
	if err != nil {
		return nil, err
	}

	if !r.Done && !r.NothingToDo {
		return nil, errors.New("the copy of the database was not edited")
	}

	return r, nil
}
