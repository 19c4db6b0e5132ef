// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// stoppedName is the file in LXD's directory that says what a run has stopped and held. It is written before LXD is stopped
// and removed when all is as it was before, so one that is found while nobody works on the directory is the trace of a run
// that was killed.
const stoppedName = "database.stopped.yaml"

// stoppedFormat is the version of its format.
const stoppedFormat = 1

// Stopped is what a run has stopped and held, in database.stopped.yaml.
type Stopped struct {
	Format  int               `json:"-" yaml:"format"`
	Purpose string            `json:"purpose" yaml:"purpose"` // import, rollback, edit, repair
	Since   time.Time         `json:"since" yaml:"since"`
	Before  daemon.PriorState `json:"before" yaml:"before"`
}

// String says what an interrupted run has left to be done.
func (s *Stopped) String() string {
	text := product.Sprintf("the %s of %s had stopped LXD", s.Purpose, s.Since.Format(time.RFC3339))
	if s.Before.Held {
		text += " and held refreshes of the snap " + s.Before.Name
	}

	return text + " when it was interrupted"
}

// readStopped returns what an earlier run has stopped, nil where none has.
func (d directory) readStopped() (*Stopped, error) {
	path := d.join(stoppedName)
	data, err := newfile.Read(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	s := &Stopped{}
	err = yaml.Unmarshal(data, s)
	if err == nil && s.Format != stoppedFormat {
		err = fmt.Errorf("its format is %d, and only %d is known", s.Format, stoppedFormat)
	}

	if err != nil {
		return nil, product.Errorf("%s cannot be used: %w; start LXD by hand and remove the file", path, err)
	}

	return s, nil
}

func (d directory) writeStopped(s Stopped) error {
	s.Format = stoppedFormat
	return d.writeNote(stoppedName, s)
}

// writeNote writes a file of YAML into LXD's directory, all or nothing.
func (d directory) writeNote(name string, v any) error {
	data, err := yaml.Marshal(v)
	if err != nil {
		return err
	}

	return swapdir.WriteFile(d.join(name), data)
}

func (d directory) removeStopped() error {
	err := os.Remove(d.join(stoppedName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}

	return err
}
