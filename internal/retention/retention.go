// SPDX-License-Identifier: AGPL-3.0-only

// Package retention says which of several backups to keep. It knows nothing but their times.
package retention

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Policy says how many backups to keep. What is kept for one reason or another is kept; a reason that is 0 keeps none.
//
// An hour without a backup does not count: Hourly keeps the newest backup in each of the last so many hours that have one, whenever they were. So a machine
// that was off for a month, or whose clock is ahead, loses nothing by that alone. Hours, days and weeks are those of UTC, weeks begin on Monday.
type Policy struct {
	Last   int `json:"last" yaml:"last"`
	Hourly int `json:"hourly" yaml:"hourly"`
	Daily  int `json:"daily" yaml:"daily"`
	Weekly int `json:"weekly" yaml:"weekly"`
}

// Default is what a careful administrator keeps of a backup that is taken every hour.
var Default = Policy{Last: 3, Hourly: 24, Daily: 7, Weekly: 4}

// Reasons why a backup is kept.
const (
	Last   = "last"
	Hourly = "hourly"
	Daily  = "daily"
	Weekly = "weekly"
	Newest = "newest" // no policy takes the newest one
	Future = "future" // its time has not come yet: a clock was wrong, so the time tells nothing
)

// Validate refuses negative numbers, and a policy that keeps nothing.
func (p Policy) Validate() error {
	for _, r := range p.rules() {
		if r.count < 0 {
			return fmt.Errorf("keep-%s is %d, and must not be below 0", r.reason, r.count)
		}
	}

	if p == (Policy{}) {
		return errors.New("it keeps nothing")
	}

	return nil
}

// rule keeps the newest backup in each of so many stretches of time.
type rule struct {
	reason string
	count  int
	bucket func(time.Time) string // names the stretch; nil where each backup is one of its own
}

func (p Policy) rules() []rule {
	return []rule{
		{Last, p.Last, nil},
		{Hourly, p.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15") }},
		{Daily, p.Daily, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{Weekly, p.Weekly, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d week %d", year, week)
		}},
	}
}

// Apply returns for each of the times, in their order, the reasons why the backup of that time is kept; none for one to be forgotten. Of backups of the same
// time the first one given counts as the newest. Those of after now are kept, and take nobody's place.
func (p Policy) Apply(now time.Time, times []time.Time) [][]string {
	reasons := make([][]string, len(times))
	var order []int
	for i, t := range times {
		if t.After(now) {
			reasons[i] = []string{Future}
		} else {
			order = append(order, i)
		}
	}

	slices.SortStableFunc(order, func(a, b int) int { return times[b].Compare(times[a]) })
	for _, r := range p.rules() {
		last, left := "", r.count
		for _, i := range order {
			if left == 0 {
				break
			}

			bucket := ""
			if r.bucket != nil {
				bucket = r.bucket(times[i].UTC())
			}

			if bucket == last && bucket != "" {
				continue
			}

			last, left = bucket, left-1
			reasons[i] = append(reasons[i], r.reason)
		}
	}

	if len(order) > 0 && len(reasons[order[0]]) == 0 {
		reasons[order[0]] = []string{Newest}
	}

	return reasons
}
