// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Writer keeps adding rows to the global database in the background, so that a kill at any moment finds it at work. A row
// is a profile: a user sees it in `lxc profile list`, and LXD confirms it when a majority of the voters has it on disk.
type Writer struct {
	cluster *Cluster
	stop    func()
	done    chan struct{}

	mu         sync.Mutex
	confirmed  []string
	unanswered []string
}

// StartWriter begins to create the profiles PREFIX-000001, PREFIX-000002, … through this member, one after the other. It
// ends with Stop or with the daemon; as long as the daemon only lacks a leader it goes on trying.
func (m *Member) StartWriter(prefix string) *Writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Writer{cluster: m.cluster, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for n := 1; ctx.Err() == nil && m.Running(); n++ {
			name := fmt.Sprintf("%s-%06d", prefix, n)
			err := m.CreateProfile(ctx, name)
			w.record(name, err)
			if err != nil {
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}()
	return w
}

func (w *Writer) record(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.confirmed = append(w.confirmed, name)
	} else {
		w.unanswered = append(w.unanswered, name)
	}
}

// Stop ends the writer, with the row that is under way unanswered, and returns when it has ended.
func (w *Writer) Stop() {
	w.stop()
	<-w.done
}

// Confirmed are the profiles that LXD has reported as created so far.
func (w *Writer) Confirmed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.confirmed)
}

// Unanswered are the profiles that were asked for and not confirmed: each of them may exist or not.
func (w *Writer) Unanswered() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.unanswered)
}

// WaitConfirmed waits until at least n rows are confirmed.
func (w *Writer) WaitConfirmed(ctx context.Context, n int) error {
	return w.cluster.wait(ctx, time.Millisecond, fmt.Sprintf("%d confirmed rows", n), func(context.Context) (bool, error) {
		have := len(w.Confirmed())
		return have >= n, fmt.Errorf("%d confirmed", have)
	})
}

// CreateProfile creates an empty profile: one row that a user can see.
func (m *Member) CreateProfile(ctx context.Context, name string) error {
	_, err := m.Query(ctx, http.MethodPost, "/1.0/profiles", map[string]string{"name": name})
	return err
}

// Profiles returns the names of all profiles in the order of their creation.
func (m *Member) Profiles(ctx context.Context) ([]string, error) {
	rows, err := m.SQL(ctx, "SELECT name FROM profiles ORDER BY id")
	var names []string
	for _, row := range rows {
		names = append(names, row[0])
	}

	return names, err
}

// growLog makes n transactions, and so at least n entries of the raft log, that leave the same rows as before but for the
// default profile's description.
func (m *Member) growLog(ctx context.Context, n int) error {
	for i := range n {
		_, err := m.SQL(ctx, fmt.Sprintf("UPDATE profiles SET description = 'change %d' WHERE name = 'default'", i))
		if err != nil {
			return err
		}
	}

	return nil
}

// MakeSnapshot grows the log until each of the given members, or of all, has taken a raft snapshot that it had not before;
// dqlite takes one every 1024 entries. Spares get no log and take no snapshots: name the others.
func (c *Cluster) MakeSnapshot(ctx context.Context, members ...*Member) error {
	members = c.orAll(members)
	writer, err := c.anyRunning()
	if err != nil {
		return err
	}

	before := map[*Member][]string{}
	for _, m := range members {
		before[m], err = m.Snapshots()
		if err != nil {
			return err
		}
	}

	begin := time.Now()
	err = c.wait(ctx, time.Millisecond, "raft snapshots", func(ctx context.Context) (bool, error) {
		for _, m := range members {
			now, err := m.Snapshots()
			if err != nil {
				return false, err
			}

			isNew := func(name string) bool { return !slices.Contains(before[m], name) }
			if !slices.ContainsFunc(now, isNew) {
				return false, errors.Join(fmt.Errorf("%s has none", m.Name), writer.growLog(ctx, 128))
			}
		}

		return true, nil
	})
	if err == nil {
		c.logf("snapshots taken after %s", time.Since(begin).Round(10*time.Millisecond))
	}

	return err
}

// Snapshots returns the names of the raft snapshots in the member's database/global.
func (m *Member) Snapshots() ([]string, error) {
	metas, err := filepath.Glob(filepath.Join(m.dir, "database", "global", "snapshot-*.meta"))
	for i, meta := range metas {
		metas[i] = strings.TrimSuffix(filepath.Base(meta), ".meta")
	}

	return metas, err
}
