// SPDX-License-Identifier: AGPL-3.0-only

package swapdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"
)

// PlanFile is the name of the written plan in the parent directory.
const PlanFile = "database.swap.yaml"

// planFormat is the version of the plan's file format.
const planFormat = 1

// maxPlanSize bounds what is read of a plan, in bytes.
const maxPlanSize = 64 << 10

// Plan is one replacement. All names are names inside the parent directory.
type Plan struct {
	Format  int       `yaml:"format"`
	Purpose string    `yaml:"purpose"` // what the replacement is for, in one word: import, rollback
	Created time.Time `yaml:"created"`

	Live   string `yaml:"live"`   // the directory to be replaced
	Staged string `yaml:"staged"` // the directory that takes its place
	Keep   string `yaml:"keep"`   // the name under which the replaced directory is kept

	LiveInode   uint64 `yaml:"live_inode"`   // inode number of the directory that Live named when the plan was made
	StagedInode uint64 `yaml:"staged_inode"` // the same for Staged
}

// validate refuses names that would lead out of the parent directory, and the same name twice.
func (p *Plan) validate() error {
	seen := map[string]bool{}
	for _, name := range []string{p.Live, p.Staged, p.Keep} {
		if name == "" || name == "." || name == ".." || filepath.Base(name) != name || seen[name] {
			return fmt.Errorf("bad directory name %q in the plan", name)
		}

		seen[name] = true
	}

	return nil
}

// ReadPlan returns the plan that an interrupted run left in the parent directory, or nil where there is none.
func ReadPlan(parent string) (*Plan, error) {
	path := filepath.Join(parent, PlanFile)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	defer f.Close()

	data, err := io.ReadAll(io.LimitReader(f, maxPlanSize))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}

	plan := &Plan{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err = dec.Decode(plan)
	if err != nil {
		return nil, fmt.Errorf("%s is not a plan of lxd-recover: %w", path, err)
	}

	if plan.Format != planFormat {
		return nil, fmt.Errorf("%s has format %d, this lxd-recover knows only %d: finish with the version that wrote it", path, plan.Format, planFormat)
	}

	err = plan.validate()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}

	return plan, nil
}

// write puts the plan into the parent directory: written aside, synced, renamed, directory synced.
func (p *Plan) write(parent string) error {
	data, err := yaml.Marshal(p)
	if err != nil {
		return err
	}

	return WriteFile(filepath.Join(parent, PlanFile), data)
}

// WriteFile replaces a small file all or nothing: its content is written to a temporary file beside it and synced, then
// renamed over it, then the directory is synced. The mode is 0600.
func WriteFile(path string, data []byte) error {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}

	closeErr := f.Close()
	if err == nil {
		err = closeErr
	}

	if err == nil {
		err = os.Rename(temp, path)
	}

	if err != nil {
		_ = os.Remove(temp)
		return err
	}

	return SyncDir(filepath.Dir(path))
}
