// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// How an identity gets its place, so that a crash at any moment leaves what the next run finishes:
//
//  1. All is written to identity.restore and synced; then a note beside it, which says that it is complete.
//  2. What is in the way is moved aside, if there is anything.
//  3. Each file gets a second name at the top of LXD's directory: link(2) never replaces one. That it is ours is seen by its inode.
//  4. The directory database is renamed, last, with what keeps LXD from being started on it (startbar.go) in it: before, LXD does not start as this member.
//  5. identity.restore is removed, then the note.
const (
	identityStaging = "identity.restore"
	identityNote    = "identity.restore.yaml"
)

// placing is an identity that is put in place.
type placing struct{ dir directory }

// placingNote says what an interrupted run has begun.
type placingNote struct {
	Backup string         `yaml:"backup"` // SHA-256 of the file
	File   string         `yaml:"file"`   // its name then
	Report IdentityReport `yaml:"report"`
}

func (p placing) staged(name string) string { return p.dir.join(identityStaging, name) }

// interrupted tells what an interrupted run has begun, nil if there is none. What was not complete is removed.
func (p placing) interrupted(backup string) (*IdentityReport, error) {
	data, err := newfile.Read(p.dir.join(identityNote))
	if errors.Is(err, os.ErrNotExist) {
		return nil, p.discard()
	}

	var note placingNote
	if err == nil {
		err = yaml.Unmarshal(data, &note)
	}

	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.dir.join(identityNote), err)
	}

	if note.Backup != backup {
		return nil, &Refusal{Code: "other-identity-begun", Member: note.Report.Member.Name, Reason: fmt.Sprintf(
			"the identity of %s was begun to be put here, from another backup, and not finished: give that one again", note.Report.Member.Name)}
	}

	note.Report.Finished = true
	return &note.Report, nil
}

// existing are the names that would be overwritten. An empty database directory is nothing.
func (p placing) existing() []string {
	var there []string
	for _, f := range identityFiles {
		if !gone(p.dir.join(f.name)) {
			there = append(there, f.name)
		}
	}

	entries, err := os.ReadDir(p.dir.database())
	if err == nil && len(entries) == 0 || gone(p.dir.database()) {
		return there
	}

	return append(there, databaseName)
}

// write makes identity.restore.
func (p placing) write(files []sealed.File) error {
	for _, dir := range []string{p.staged(""), p.staged(databaseName)} {
		err := os.Mkdir(dir, 0o700)
		if err != nil {
			return err
		}
	}

	modes := map[string]os.FileMode{nodedb.File: 0o600}
	for _, f := range identityFiles {
		modes[f.name] = f.mode
	}

	for _, f := range files {
		path := p.staged(f.Name)
		if f.Name == nodedb.File {
			path = p.staged(filepath.Join(databaseName, f.Name))
		}

		err := newfile.Write(path, bytes.NewReader(f.Data))
		if err == nil {
			err = errors.Join(os.Chown(path, 0, 0), os.Chmod(path, modes[f.Name]))
		}

		if err != nil {
			return err
		}
	}

	return writeBar(p.staged(filepath.Join(databaseName, globalName)))
}

// complete notes that all of identity.restore is on disk. backup is the SHA-256 of the file.
func (p placing) complete(backup string, file string, report *IdentityReport) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}

	data, err := yaml.Marshal(placingNote{Backup: backup, File: file, Report: *report})
	if err == nil {
		err = swapdir.SyncTree(p.staged(""))
	}

	if err != nil {
		return err
	}

	return swapdir.WriteFile(p.dir.join(identityNote), data)
}

// place puts all in place; again, after a crash.
func (p placing) place(report *IdentityReport) error {
	if gone(p.staged(databaseName)) { // it was, and only identity.restore is left
		for _, name := range report.Files {
			if !exists(p.dir.join(name)) {
				return fmt.Errorf("%s says that %s was put in place, and it is gone: remove that file, and run this again", p.dir.join(identityNote), name)
			}
		}

		return nil
	}

	for _, step := range p.steps(report) {
		err := step()
		if err != nil {
			return err
		}
	}

	return nil
}

// steps are those of place, in their order. Each may be done again.
func (p placing) steps(report *IdentityReport) []func() error {
	steps := []func() error{func() error { return p.moveAside(report.Replaced) }}
	for _, name := range report.Files {
		if filepath.Dir(name) == "." {
			steps = append(steps, func() error { return p.link(name) })
		}
	}

	return append(steps, p.placeDatabase)
}

// link gives a staged file its name at the top of LXD's directory, too.
func (p placing) link(name string) error {
	err := os.Link(p.staged(name), p.dir.join(name))
	if err != nil && p.ours(name) {
		return nil
	}

	return err
}

// placeDatabase gives the database directory its place, when all else is on disk.
func (p placing) placeDatabase() error {
	err := errors.Join(swapdir.SyncDir(p.dir.path), removeEmpty(p.dir.database()))
	if err == nil {
		err = swapdir.RenameNew(p.staged(databaseName), p.dir.database())
	}

	if err != nil {
		return err
	}

	return swapdir.SyncDir(p.dir.path)
}

// others are those of the names that the staged identity has not put there. Once the database directory is in its place, all of them are its own.
func (p placing) others(names []string) []string {
	if gone(p.staged(databaseName)) {
		return nil
	}

	return slices.DeleteFunc(names, p.ours)
}

// ours tells whether a file at the top of LXD's directory is the staged one.
func (p placing) ours(name string) bool {
	one, err := os.Lstat(p.staged(name))
	if err != nil {
		return false
	}

	two, err := os.Lstat(p.dir.join(name))
	return err == nil && os.SameFile(one, two)
}

// moveAside moves what is in the way to a directory. An empty name: nothing was.
func (p placing) moveAside(to string) error {
	if to == "" {
		return nil
	}

	err := os.Mkdir(to, 0o700)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}

	for _, name := range p.existing() {
		if p.ours(name) {
			continue
		}

		err = swapdir.RenameNew(p.dir.join(name), filepath.Join(to, name))
		if err != nil {
			return err
		}
	}

	return errors.Join(swapdir.SyncDir(to), swapdir.SyncDir(p.dir.path))
}

// takeBack undoes what place has done before its error. If the directory database is in its place, nothing is left to be undone.
func (p placing) takeBack(report *IdentityReport) error {
	if gone(p.staged(databaseName)) {
		return nil
	}

	for _, name := range report.Files {
		if !p.ours(name) {
			continue
		}

		err := os.Remove(p.dir.join(name))
		if err != nil {
			return err
		}
	}

	entries, err := os.ReadDir(report.Replaced)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}

	for _, e := range entries {
		err = swapdir.RenameNew(filepath.Join(report.Replaced, e.Name()), p.dir.join(e.Name()))
		if err != nil {
			return err
		}
	}

	if report.Replaced != "" {
		err = os.Remove(report.Replaced)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}

	return p.discard()
}

// finish removes identity.restore, and then its note: nothing of it is forgotten while a second name of a private key is left.
func (p placing) finish() error {
	err := os.RemoveAll(p.staged(""))
	if err == nil {
		err = p.forget()
	}

	if err != nil {
		return fmt.Errorf("the identity is in place, and what was prepared for it cannot be removed: %w. The same command finishes that", err)
	}

	return nil
}

// discard removes the note, and then identity.restore: one that is not whole any more is not taken for one that was put in place.
func (p placing) discard() error {
	return errors.Join(p.forget(), os.RemoveAll(p.staged("")), swapdir.SyncDir(p.dir.path))
}

func (p placing) forget() error { return removeDurably(p.dir.join(identityNote)) }

// removeEmpty removes a directory if it is there and empty.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) { // the latter is seen by what follows
		return nil
	}

	return err
}
