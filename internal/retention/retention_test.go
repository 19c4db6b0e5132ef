// SPDX-License-Identifier: AGPL-3.0-only

package retention

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func at(t testing.TB, text string) time.Time {
	t.Helper()
	parsed, err := time.Parse("2006-01-02 15:04:05 -0700", text)
	if err != nil {
		parsed, err = time.Parse(time.DateTime, text)
	}

	if err != nil {
		t.Fatal(err)
	}

	return parsed
}

func TestApply(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		now    string
		times  []string
		want   []string
	}{
		"nothing there": {Default, "2026-11-27 12:00:00", nil, nil},
		"the last two": {Policy{Last: 2}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 10:00:00", "2026-11-27 11:00:00", "2026-11-27 09:00:00"}, []string{"last", "last", ""}},
		"the newest of each hour, hours without one do not count": {Policy{Hourly: 2}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 10:59:59", "2026-11-27 10:00:00", "2026-11-26 03:20:00", "2026-11-26 03:10:00", "2026-11-01 00:00:00"},
			[]string{"hourly", "", "hourly", "", ""}},
		"one backup, for several reasons": {Policy{Last: 1, Hourly: 1, Daily: 2, Weekly: 1}, "2026-11-27 12:00:00",
			[]string{"2026-11-26 23:59:59", "2026-11-27 00:00:00"}, []string{"daily", "last hourly daily weekly"}},
		"days over a change of the year": {Policy{Daily: 2}, "2027-01-01 12:00:00",
			[]string{"2027-01-01 00:00:00", "2026-12-31 23:59:59", "2026-12-31 00:00:00", "2026-12-30 23:59:59"}, []string{"daily", "daily", "", ""}},
		"one week over a change of the year": {Policy{Weekly: 2}, "2027-01-04 12:00:00", // 2026-12-28 is a Monday, 2027-01-03 a Sunday
			[]string{"2027-01-03 23:59:59", "2027-01-01 00:00:00", "2026-12-28 00:00:00", "2026-12-27 23:59:59", "2026-12-20 23:59:59"},
			[]string{"weekly", "", "", "weekly", ""}},
		"the same day, week and hour of another year": {Policy{Hourly: 2, Daily: 2, Weekly: 2}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 10:00:00", "2025-11-27 10:00:00", "2024-11-27 10:00:00"}, []string{"hourly daily weekly", "hourly daily weekly", ""}},
		"the same second": {Policy{Last: 1, Hourly: 5}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 10:00:00", "2026-11-27 10:00:00"}, []string{"last hourly", ""}},
		"the same second, both among the last": {Policy{Last: 2}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 09:00:00", "2026-11-27 10:00:00", "2026-11-27 10:00:00"}, []string{"", "last", "last"}},
		"the hour that a clock in Berlin has twice": {Policy{Hourly: 3}, "2026-10-25 12:00:00",
			[]string{"2026-10-25 02:30:00 +0100", "2026-10-25 02:30:00 +0200", "2026-10-25 01:30:00 +0200", "2026-10-25 00:30:00 +0200"},
			[]string{"hourly", "hourly", "hourly", ""}},
		"a day is one of UTC": {Policy{Daily: 1}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 01:30:00 +0200", "2026-11-27 02:30:00 +0200"}, []string{"", "daily"}}, // the former is of the 26th
		"of the future": {Policy{Last: 1}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 12:00:01", "2038-01-19 03:14:08", "2026-11-27 12:00:00", "2026-11-27 11:00:00"}, []string{"future", "future", "last", ""}},
		"all of the future, as this clock is wrong": {Policy{Last: 1}, "1970-01-01 00:00:10",
			[]string{"2026-11-27 12:00:00", "2026-11-27 11:00:00"}, []string{"future", "future"}},
		"a clock that is far ahead": {Policy{Daily: 2}, "2099-01-01 00:00:00",
			[]string{"2026-11-27 12:00:00", "2026-11-26 11:00:00", "2026-11-25 11:00:00"}, []string{"daily", "daily", ""}},
		"no policy takes the newest": {Policy{}, "2026-11-27 12:00:00",
			[]string{"2026-11-27 10:00:00", "2026-11-27 11:00:00"}, []string{"", "newest"}},
	} {
		var times []time.Time
		for _, text := range c.times {
			times = append(times, at(t, text))
		}

		var got []string
		for _, reasons := range c.policy.Apply(at(t, c.now), times) {
			got = append(got, strings.Join(reasons, " "))
		}

		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Applied after each of a year's backups, the default keeps what it says, whatever was forgotten before: as when all were there.
func TestApplyEachHour(t *testing.T) {
	now := at(t, "2026-01-01 00:05:00")
	var all, kept []time.Time
	for range 24 * 365 {
		now = now.Add(time.Hour)
		all, kept = append(all, now), append(kept, now)
		reasons := Default.Apply(now, kept)
		var next []time.Time
		for i, time := range kept {
			if len(reasons[i]) > 0 {
				next = append(next, time)
			}
		}

		kept = next
	}

	var want []time.Time
	for i, reasons := range Default.Apply(now, all) {
		if len(reasons) > 0 {
			want = append(want, all[i])
		}
	}

	// 24 hours, the last 3 among them; 5 days and 3 weeks more: 2 of the 7 days are within these hours, and 1 of the 4 weeks is this one; one of the
	// weeks ends with one of the days.
	if !slices.Equal(kept, want) || len(kept) < 30 || len(kept) > 35 {
		t.Errorf("kept %d: %v, want %v", len(kept), kept, want)
	}
}

// The order in which backups are given is no matter, and the newest one is always kept.
func TestApplyAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	now := at(t, "2026-11-27 12:00:00")
	for range 200 {
		var times []time.Time
		for range 1 + random.IntN(30) {
			times = append(times, now.Add(-time.Duration(random.IntN(60*24*3600))*time.Second))
		}

		policy := Policy{random.IntN(3), random.IntN(5), random.IntN(5), random.IntN(3)}
		shuffled := slices.Clone(times)
		random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		one, other := byTime(times, policy.Apply(now, times)), byTime(shuffled, policy.Apply(now, shuffled))
		if one != other {
			t.Fatalf("%+v: %s, in another order %s", policy, one, other)
		}

		if newest := slices.MaxFunc(times, time.Time.Compare); !strings.Contains(one, newest.String()+": [") {
			t.Fatalf("%+v: the newest, %s, is not kept: %s", policy, newest, one)
		}
	}
}

func byTime(times []time.Time, reasons [][]string) string {
	var lines []string
	for i, t := range times {
		if len(reasons[i]) > 0 {
			lines = append(lines, fmt.Sprintf("%s: %v", t, reasons[i]))
		}
	}

	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestValidate(t *testing.T) {
	for _, p := range []Policy{{}, {Last: -1, Daily: 1}, {Weekly: -2}} {
		err := p.Validate()
		if err == nil {
			t.Errorf("%+v is taken", p)
		}
	}

	err := Default.Validate()
	if err != nil {
		t.Error(err)
	}
}
