// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/survivor"
)

// decide recommends a source, for certain or not, or says why not.
func (c *comparison) decide() {
	r, verdict := c.report, c.result.Verdict
	switch verdict {
	case survivor.Known, survivor.TooFew, survivor.LeftOut, survivor.Damaged:
	default:
		r.Refusal = &CompareRefusal{Verdict: verdict, Reason: c.refusal()}
		return
	}

	// All of these have the same log.
	best := slices.MinFunc(c.result.Best, c.prefer)
	s := r.Sources[best]
	running := c.running()
	switch {
	case verdict != survivor.Known && len(running) > 0:
		r.Refusal = &CompareRefusal{Verdict: survivor.Running, Reason: product.Sprintf("LXD runs on %s, and where a log ends that is being written is not "+
			"known. Stop LXD on every member, and compare again", strings.Join(running, ", "))}
		return
	case verdict != survivor.Known && (c.doubtful() || s.Copy):
		r.Refusal = &CompareRefusal{Verdict: verdict, Reason: c.doubt() + c.newest()}
		return
	case !s.Healthy:
		r.Refusal = &CompareRefusal{Verdict: survivor.Damaged, Reason: fmt.Sprintf("%s has the log to recover from, and its database is damaged: %s",
			s.Label, strings.Join(s.Problems, "; "))}
		return
	}

	same := []string{}
	for _, i := range c.result.Best {
		if i != best {
			same = append(same, r.Sources[i].Label)
		}
	}

	r.Recommendation = &Recommendation{Label: s.Label, Source: s.Source, Same: same, Chosen: c.chosen(best)}
	if verdict == survivor.Known {
		r.Certain, r.Recommendation.Reason = true, c.certainly(s)
		return
	}

	r.Recommendation.Reason, r.Doubt = c.all(s), &CompareRefusal{Verdict: verdict, Reason: c.doubt()}
}

// preference is a reason to take one of several sources with the same log.
type preference struct {
	why   string // said of the one that is taken
	order func(a, b int) int
}

// preferences are these reasons, the first one first.
func (c *comparison) preferences() []preference {
	is := func(good func(s CompareSource) bool) func(a, b int) int {
		rank := func(i int) int {
			if good(c.report.Sources[i]) {
				return 0
			}

			return 1
		}
		return func(a, b int) int { return rank(a) - rank(b) }
	}
	term := func(i int) uint64 { return c.report.Sources[i].Raft.MetadataTerm }
	return []preference{
		{"its database is healthy", is(func(s CompareSource) bool { return s.Healthy })},
		{"it is a voter", is(func(s CompareSource) bool { return s.Role == raftlog.Voter.String() })},
		{"it is no copy of an earlier time", is(func(s CompareSource) bool { return !s.Copy })},
		{"it is this machine's", is(func(s CompareSource) bool { return s.here })},
		{"its current raft term is the most recent", func(a, b int) int { return cmp.Compare(term(b), term(a)) }},
		{"its database is at hand", is(func(s CompareSource) bool { return !s.report })},
		{product.Text("it is LXD's directory"), is(func(s CompareSource) bool { return isKind(s.Kind, kindLXD) })},
		{"its id is the lowest", func(a, b int) int { return cmp.Compare(c.id(a), c.id(b)) }},
	}
}

// id is the raft id of a source's member, one above all where that is not known.
func (c *comparison) id(i int) uint64 {
	if c.logs[i].Member == 0 {
		return math.MaxUint64
	}

	return c.logs[i].Member
}

// prefer orders sources with the same log: the one to recover from comes first.
func (c *comparison) prefer(a, b int) int {
	for _, p := range c.preferences() {
		order := p.order(a, b)
		if order != 0 {
			return order
		}
	}

	return cmp.Compare(a, b)
}

// chosen says why a source was taken of those with the same log: the first reason that tells it from another one. It is empty where there
// is no other.
func (c *comparison) chosen(best int) string {
	for _, p := range c.preferences() {
		if slices.ContainsFunc(c.result.Best, func(i int) bool { return p.order(best, i) < 0 }) {
			return p.why
		}
	}

	return ""
}

// isHere tells whether a source is this machine's LXD.
func isHere(source string) bool {
	lxd, err := FindLXD()
	if err != nil {
		return false
	}

	path, err := filepath.Abs(source)
	return err == nil && (path == lxd || path == filepath.Join(lxd, databaseName))
}

// running are the sources on which a daemon runs.
func (c *comparison) running() []string {
	var list []string
	for _, s := range c.report.Sources {
		if s.RunningDaemon != "" {
			list = append(list, s.Label)
		}
	}

	return list
}

// certainly is why a source is recommended that holds all.
func (c *comparison) certainly(s CompareSource) string {
	more := "no other has more"
	if c.doubtful() {
		more = "what " + strings.Join(c.report.Longest, ", ") + " may have beyond that was never confirmed"
	}

	text := fmt.Sprintf("its log ends at index %d, term %d, and %s; "+
		"the logs of %d of the %d voters were seen, so it holds every change that the cluster has ever confirmed",
		s.End.Index, s.End.Term, more, len(c.result.Seen), len(c.report.Voters))
	return text + roleText(s)
}

// roleText says that the role does not matter.
func roleText(s CompareSource) string {
	if s.Role != "" && s.Role != raftlog.Voter.String() {
		return fmt.Sprintf("; it is a %s, which does not matter for a recovery", s.Role)
	}

	return ""
}

// all is why a source is recommended where it cannot be known that it holds all.
func (c *comparison) all(s CompareSource) string {
	text := fmt.Sprintf("it has all that any survivor has, up to index %d, term %d", s.End.Index, s.End.Term)
	if len(c.report.Branches) > 0 {
		var others []string
		for _, b := range c.report.Branches {
			others = append(others, b.Sources...)
		}

		text += fmt.Sprintf(", and what %s may have instead was never confirmed", strings.Join(others, ", "))
	}

	return text + roleText(s)
}

// doubt is why it cannot be known whether the preferred log holds all.
func (c *comparison) doubt() string {
	r := c.report
	var absent, unsure []string
	for _, id := range c.result.Missing {
		given := slices.ContainsFunc(c.logs, func(l *survivor.Log) bool { return l.Member == id && !l.Copy })
		if given {
			unsure = append(unsure, c.name(id))
		} else {
			absent = append(absent, c.name(id))
		}
	}

	var why []string
	if len(absent) > 0 {
		why = append(why, "not seen: "+strings.Join(absent, ", "))
	}

	if len(unsure) > 0 {
		why = append(why, "not known where it ended, for damage, missing files, or what libdqlite once cut off: "+strings.Join(unsure, ", "))
	}

	text := fmt.Sprintf("the logs of %d of the %d voters were seen whole, more than half are needed, and what only the others hold cannot be known (%s)",
		len(c.result.Seen), len(r.Voters), strings.Join(why, "; "))
	switch {
	case c.result.Verdict == survivor.LeftOut:
		text = product.Sprintf("%s were not seen whole, and what they have written since the recovery at index %d, if LXD was started there, cannot be known",
			strings.Join(slices.Concat(absent, unsure), ", "), c.result.Recovered)
	case 2*len(c.result.Seen) > len(r.Voters):
		text = "the members' roles were changing, and more than half of the voters before that change are needed, too"
	}

	if slices.ContainsFunc(r.Sources, func(s CompareSource) bool { return s.Member == nil }) {
		text += product.Text(". A source that does not tell whose it is counts for none: give LXD's directory or database/, not global/")
	}

	if slices.ContainsFunc(r.Sources, func(s CompareSource) bool { return s.Copy }) {
		text += product.Text(". One of LXD's backups, a kept database, or an export that leaves entries out does not tell where its member's log ended")
	}

	return text
}

// refusal is why nothing can be recommended.
func (c *comparison) refusal() string {
	between := func(i int) string { return c.report.Sources[c.result.Between[i]].Label }
	switch c.result.Verdict {
	case survivor.Different:
		return fmt.Sprintf("%s and %s are of different clusters", between(0), between(1))
	case survivor.Split:
		return fmt.Sprintf("%s was recovered at index %d and has gone on since, and %s, which lacks that recovery, may have gone on, too: each may hold "+
			"confirmed changes that the other lacks. Choose by the rows in which they differ", between(0), c.result.Recovered, between(1))
	case survivor.Nothing:
		return "no source holds a raft log that is sound"
	}

	apart := slices.ContainsFunc(c.result.Branches, func(b survivor.Branch) bool {
		return slices.Contains(b.Logs, c.result.Between[1]) && b.Term == b.BestTerm && !b.Hidden
	})
	if apart {
		return fmt.Sprintf("the logs of %s and %s contradict each other: "+
			"they were edited or started apart from each other, and raft cannot tell which is right", between(0), between(1))
	}

	snapshot := c.logs[c.result.Between[1]].Snapshot.Index
	return fmt.Sprintf("%s has a snapshot at index %d, which holds confirmed changes only, and %s lacks some of them and is preferred by raft: "+
		"one of the sources is not its member's last state, or files of it are missing", between(1), snapshot, between(0))
}

// doubtful tells whether a log whose end is in doubt holds more than the preferred one.
func (c *comparison) doubtful() bool {
	return len(c.result.Longest) > 0 && c.result.Ends[c.result.Longest[0]] != c.result.Ends[c.result.Best[0]]
}

// newest names what there is, for those who have no more.
func (c *comparison) newest() string {
	text := ". If no more can be had: the newest of these logs has " + strings.Join(c.report.Longest, ", ")
	if c.doubtful() {
		end := c.result.Ends[c.result.Longest[0]]
		text += fmt.Sprintf(", sound up to index %d, term %d", end.Index, end.Term)
	}

	return text + ", and what it may lack cannot be known"
}
