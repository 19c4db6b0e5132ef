// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// CompareRows are the rows by which sources with one log differ from the preferred one: what choosing them instead would do.
type CompareRows struct {
	Sources []string             `json:"sources" yaml:"sources"`
	Rows    []globaldb.RowChange `json:"rows" yaml:"rows"`                     // from the preferred database to theirs
	More    []string             `json:"more,omitempty" yaml:"more,omitempty"` // tables that differ in more rows than are listed

	// Unknown says why the rows were not worked out; empty where they were.
	Unknown string `json:"unknown,omitempty" yaml:"unknown,omitempty"`

	// Has and Lacks are the transactions that they have and the preferred log lacks, and the other way round, as the sources' reports tell
	// them: without those of which LXD writes all the time. HasFrom and LacksFrom are the indexes from which on the reports tell all; 0
	// where that is all there is.
	//
	// Shared is the last index up to which they and the preferred log are the same; with Gap that says nothing, as entries are missing in theirs.
	Shared    uint64               `json:"shared_index" yaml:"shared_index"`
	Gap       bool                 `json:"gap,omitempty" yaml:"gap,omitempty"`
	Has       []InspectTransaction `json:"has" yaml:"has"`
	Lacks     []InspectTransaction `json:"lacks" yaml:"lacks"`
	HasFrom   uint64               `json:"has_from,omitempty" yaml:"has_from,omitempty"`
	LacksFrom uint64               `json:"lacks_from,omitempty" yaml:"lacks_from,omitempty"`
}

// lastTransactions are what a report tells of the last transactions of a log: all from an index on, 0 for a report that tells none.
type lastTransactions struct {
	list []InspectTransaction
	from uint64
}

// after are those after an index, and the index from which on they are all, 0 where they are from there.
func (l lastTransactions) after(index uint64) (list []InspectTransaction, from uint64) {
	list = []InspectTransaction{}
	for _, t := range l.list {
		if t.Index > index {
			list = append(list, t)
		}
	}

	if l.from > index+1 {
		from = l.from
	}

	return list, from
}

// transactions fills in what the reports tell of the transactions by which a source differs from the preferred one.
func (c *comparison) transactions(i int, rows *CompareRows) {
	best, shared := c.result.Best[0], c.result.Shared[i]
	rows.Shared, rows.Gap = shared, slices.ContainsFunc(c.result.Gaps, func(g survivor.Gap) bool { return g.Log == i })
	for _, j := range c.result.Best {
		if c.last[j].from > 0 {
			best = j
		}
	}

	if c.last[i].from == 0 || c.last[best].from == 0 {
		rows.Has, rows.Lacks = []InspectTransaction{}, []InspectTransaction{}
		return
	}

	rows.Has, rows.HasFrom = c.last[i].after(shared)
	if rows.Gap {
		rows.Has, rows.HasFrom = []InspectTransaction{}, 0 // they are those of the other one, under other indexes
	}

	rows.Lacks, rows.LacksFrom = c.last[best].after(shared)
}

// maxCompared bounds the databases that are compared row by row: each is replayed, and read whole.
const maxCompared = 10

// rows compares the databases, as far as they are at hand, with one of the preferred log.
func (c *comparison) rows(ctx context.Context) error {
	if c.result.Verdict == survivor.Different || c.result.Verdict == survivor.Nothing {
		return nil
	}

	var base *globaldb.DB
	unknown := "the preferred log's database is not at hand"
	for _, i := range c.result.Best {
		if c.report.Sources[i].report {
			continue
		}

		db, err := c.open(ctx, i)
		if ctx.Err() != nil {
			return ctx.Err()
		}

		if err != nil {
			unknown = fmt.Sprintf("the preferred log's database cannot be read: %v", err)
			continue
		}

		defer db.Close()

		base = db
		break
	}

	for n, group := range c.groups() {
		rows := CompareRows{Sources: c.labels(group), Rows: []globaldb.RowChange{}}
		c.transactions(group[0], &rows)
		var err error
		switch {
		case base == nil:
			rows.Unknown = unknown
		case n >= maxCompared:
			rows.Unknown = fmt.Sprintf("more than %d different databases", maxCompared)
		default:
			err = c.differences(ctx, base, group, &rows)
		}

		if err != nil {
			return err
		}

		c.report.Rows = append(c.report.Rows, rows)
	}

	return nil
}

// groups are the sources that do not have the preferred log, those with the same one together.
func (c *comparison) groups() [][]int {
	type place struct {
		end    survivor.Position
		branch uint64
	}
	best := map[int]bool{}
	for _, i := range c.result.Best {
		best[i] = true
	}

	branch := map[int]uint64{}
	for _, b := range c.result.Branches {
		for _, i := range b.Logs {
			branch[i] = b.Index
		}
	}

	index := map[place]int{}
	var groups [][]int
	for i := range c.logs {
		if best[i] || c.result.Ends[i].Index == 0 {
			continue
		}

		at := place{c.result.Ends[i], branch[i]}
		n, ok := index[at]
		if !ok {
			n = len(groups)
			index[at] = n
			groups = append(groups, nil)
		}

		groups[n] = append(groups[n], i)
	}

	return groups
}

// differences works the rows out from the first source of a group that lets it. That one cannot be read is no reason to say
// nothing about the others.
func (c *comparison) differences(ctx context.Context, base *globaldb.DB, group []int, rows *CompareRows) error {
	for _, i := range group {
		if c.report.Sources[i].report {
			rows.Unknown = "only a report was given"
			continue
		}

		err := c.difference(ctx, base, i, rows)
		if ctx.Err() != nil {
			return ctx.Err()
		}

		if err == nil {
			rows.Unknown = ""
			return nil
		}

		rows.Unknown = err.Error()
	}

	return nil
}

func (c *comparison) difference(ctx context.Context, base *globaldb.DB, i int, rows *CompareRows) error {
	db, err := c.open(ctx, i)
	if err != nil {
		return err
	}

	defer db.Close()

	changes, more, err := globaldb.Diff(ctx, base.File, db.File)
	if err != nil {
		return err
	}

	rows.Rows, rows.More = append(rows.Rows, changes...), more
	return nil
}

// open replays a source again, up to its last sound entry.
func (c *comparison) open(ctx context.Context, i int) (*globaldb.DB, error) {
	src, err := openSource(ctx, c.report.Sources[i].Source, c.opts.Progress)
	if err != nil {
		return nil, err
	}

	defer src.Close()

	err = src.choose(c.opts.Database)
	if err != nil {
		return nil, err
	}

	l := src.log(c.opts.Progress)
	log, letGo, err := openLive(ctx, l.global, l.live, l.progress, l.opts)
	defer letGo()

	if err != nil {
		return nil, err
	}

	return globaldb.Open(ctx, log, max(log.SoundIndex, 1))
}
