// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// read reads one source. Only positions and checksums stay in memory.
func (c *comparison) read(ctx context.Context, source string) error {
	report, saved, err := reportOf(ctx, source, c.opts.Database, c.opts.Progress)
	if err != nil {
		return err
	}

	log, err := survivorLog(report)
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}

	if c.opts.Survivors != "" {
		err = c.export(report)
		if err != nil {
			return err
		}
	}

	s := CompareSource{Source: source, Kind: report.Kind, Time: report.Time, Copy: report.Copy, Signature: report.Signature,
		Product: report.Product, Member: report.Member, Raft: report.Raft,
		Healthy: report.Healthy, RunningDaemon: report.RunningDaemon, Problems: []string{}, Machine: report.Machine, report: saved,
		here: isKind(report.Kind, kindLXD) && !saved && isHere(source)}
	if report.Data != nil {
		s.Schema = report.Data.SchemaVersion
	}

	for _, p := range report.Problems {
		if p.Severity == raftlog.Error {
			s.Problems = append(s.Problems, p.String())
		}
	}

	for _, m := range report.Members {
		c.learn(m)
		if product.IsApplication(report.Product) {
			c.addresses[m.ID] = m.Address
		}
	}

	if report.Member != nil {
		c.learn(member.Member{ID: report.Member.ID, Name: report.Member.Name})
	}

	c.logs = append(c.logs, log)
	c.last = append(c.last, lastTransactions{report.LastEntries, report.LastEntriesFrom})
	c.report.Sources = append(c.report.Sources, s)
	return nil
}

// learn keeps a member's name.
func (c *comparison) learn(m member.Member) {
	_, ok := c.names.ByID(m.ID)
	if !ok && m.Name != "" {
		c.names = append(c.names, m)
	}
}

// survivorLog is the plain value that package survivor compares. Of a damaged log only what is sound counts.
func survivorLog(r *InspectReport) (*survivor.Log, error) {
	l := &survivor.Log{
		Cluster: r.Cluster, Term: r.Raft.MetadataTerm, Edited: r.Raft.Edited, Copy: r.Copy,
		InTerm: product.ByName(r.Product).Engine.RecoversInTerm(),
		Whole:  r.Raft.Whole && r.RunningDaemon == "" && r.Format == inspectFormat,
	}
	if r.Raft.SnapshotIndex <= r.Raft.SoundIndex {
		l.Snapshot = survivor.Position{Index: r.Raft.SnapshotIndex, Term: r.Raft.SnapshotTerm}
		l.SnapshotConfiguration = servers(r.Raft.SnapshotMembers)
	}

	if r.Member != nil {
		l.Member = r.Member.ID
	}

	types := map[string]raftlog.EntryType{}
	for _, t := range []raftlog.EntryType{raftlog.CommandEntry, raftlog.BarrierEntry, raftlog.ChangeEntry} {
		types[t.String()] = t
	}

	l.Entries = make([]survivor.Entry, 0, len(r.Entries))
	for i, e := range r.Entries {
		if e.Index > r.Raft.SoundIndex {
			l.Edited = false
			break
		}

		if i == 0 {
			l.First = e.Index
		}

		entry := survivor.Entry{Term: e.Term, Type: types[e.Type], Transaction: e.Transaction && e.Type == raftlog.CommandEntry.String()}
		n, err := hex.Decode(entry.Sum[:], []byte(e.Checksum[:min(len(e.Checksum), 2*len(entry.Sum))]))
		if err != nil || n != len(entry.Sum) || e.Index != l.First+uint64(i) || e.Index == 0 {
			return nil, fmt.Errorf("entry %d of the report is not one that global-db-inspect writes", i+1)
		}

		if e.Type == raftlog.ChangeEntry.String() {
			change := servers(e.Members)
			entry.Change = &change
		}

		l.Entries = append(l.Entries, entry)
	}

	if len(l.Entries) > 0 && l.First != r.Raft.SnapshotIndex+1 {
		return nil, fmt.Errorf("the report's entries begin at index %d, and not after the snapshot at index %d", l.First, l.Snapshot.Index)
	}

	return l, nil
}

func servers(list member.List) raftlog.Configuration {
	c := raftlog.Configuration{}
	for _, m := range list {
		c = append(c, raftlog.Server{ID: m.ID, Address: m.Address, Role: m.Role})
	}

	return c
}

// export writes a source's report, for `export-db --survivor`.
func (c *comparison) export(r *InspectReport) error {
	err := CheckOutput(filepath.Join(c.opts.Survivors, "x"))
	if err != nil {
		return err
	}

	err = os.MkdirAll(c.opts.Survivors, 0o700)
	if err != nil {
		return err
	}

	name := "source"
	if r.Member != nil && r.Member.Name != "" {
		name = strings.Map(func(r rune) rune {
			if r == '/' || r < ' ' {
				return '_'
			}

			return r
		}, r.Member.Name)
	}

	file := filepath.Join(c.opts.Survivors, name+".json")
	for i := 2; slices.Contains(c.report.Survivors, file); i++ {
		file = filepath.Join(c.opts.Survivors, fmt.Sprintf("%s-%d.json", name, i))
	}

	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already: name another directory", file)
	}

	if err != nil {
		return err
	}

	enc := json.NewEncoder(f)
	enc.SetIndent("", "  ")
	err = errors.Join(enc.Encode(r), f.Close())
	if err != nil {
		return err
	}

	c.report.Survivors = append(c.report.Survivors, file)
	return nil
}
