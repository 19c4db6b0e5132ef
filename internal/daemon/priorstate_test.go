// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestJoin(t *testing.T) {
	own := PriorState{Kind: kindSnapd, Name: "lxd", Up: []string{"lxd.daemon"}, Held: true, HeldUntil: "2026-11-26T10:00:00Z"}
	for _, test := range []struct {
		name    string
		own     PriorState
		earlier *PriorState
		want    PriorState
	}{
		{"nothing earlier", own, nil, own},
		{"of another kind", own, &PriorState{Kind: kindSystemd, Name: "lxd", Up: []string{"other"}, Daemon: true}, own},
		{"of another name", own, &PriorState{Kind: kindSnapd, Name: "lxd_two", Up: []string{"other"}, Daemon: true}, own},
		{
			"units in the order of the earlier one, each once",
			PriorState{Kind: kindSystemd, Name: "lxd.service", Up: []string{"b", "c"}},
			&PriorState{Kind: kindSystemd, Name: "lxd.service", Up: []string{"a", "b"}},
			PriorState{Kind: kindSystemd, Name: "lxd.service", Up: []string{"a", "b", "c"}},
		},
		{
			"the daemon was up in the earlier one",
			PriorState{Kind: kindSystemd, Name: "lxd.service"},
			&PriorState{Kind: kindSystemd, Name: "lxd.service", Daemon: true},
			PriorState{Kind: kindSystemd, Name: "lxd.service", Daemon: true},
		},
		{
			"the daemon is up now",
			PriorState{Kind: kindSystemd, Name: "lxd.service", Daemon: true},
			&PriorState{Kind: kindSystemd, Name: "lxd.service"},
			PriorState{Kind: kindSystemd, Name: "lxd.service", Daemon: true},
		},
		{
			"the administrator's hold is the one before ours",
			own, // what it takes for the administrator's hold is the earlier run's
			&PriorState{Kind: kindSnapd, Name: "lxd", Held: true},
			PriorState{Kind: kindSnapd, Name: "lxd", Up: []string{"lxd.daemon"}, Held: true},
		},
		{
			"what a gate noted",
			PriorState{Kind: kindSnapd, Name: "lxd", Gated: []string{"a", "b"}},
			&PriorState{Kind: kindSnapd, Name: "lxd", Gated: []string{"b"}, Enabled: []string{"lxd.daemon"}, Companions: []string{"c"}},
			PriorState{Kind: kindSnapd, Name: "lxd", Gated: []string{"b", "a"}, Enabled: []string{"lxd.daemon"}, Companions: []string{"c"}},
		},
		{
			"the earlier one held nothing",
			own,
			&PriorState{Kind: kindSnapd, Name: "lxd", HeldUntil: "2027-01-01T00:00:00Z"},
			own,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.own
			var untouched PriorState
			if test.earlier != nil {
				untouched = *test.earlier
			}

			got.Join(test.earlier)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}

			if test.earlier != nil && !reflect.DeepEqual(*test.earlier, untouched) {
				t.Errorf("the earlier one became %+v", *test.earlier)
			}
		})
	}
}

// What Join makes must not share memory with what was read from the file.
func TestJoinCopies(t *testing.T) {
	earlier := &PriorState{Up: append(make([]string, 0, 4), "a")}
	own := &PriorState{Up: []string{"b"}}
	own.Join(earlier)
	if full := earlier.Up[:cap(earlier.Up)]; full[1] != "" {
		t.Errorf("the earlier one's memory became %q", full)
	}
}

// TestWantDaemon has LXD itself started, once, and after what would start it on demand.
func TestWantDaemon(t *testing.T) {
	for _, test := range []struct {
		prior PriorState
		want  []string
	}{
		{PriorState{Kind: kindSystemd, Name: "lxd.service"}, []string{"lxd.service"}},
		{PriorState{Kind: kindSystemd, Name: "lxd.service", Up: []string{"lxd.socket"}}, []string{"lxd.socket", "lxd.service"}},
		{PriorState{Kind: kindSystemd, Name: "lxd.service", Up: []string{"lxd.socket", "lxd.service"}}, []string{"lxd.socket", "lxd.service"}},
		{PriorState{Kind: kindSnapd, Name: "lxd"}, []string{"lxd.daemon"}},
		{PriorState{Kind: kindSnapd, Name: "lxd", Up: []string{"lxd.user-daemon", "lxd.daemon"}}, []string{"lxd.user-daemon", "lxd.daemon"}},
	} {
		test.prior.WantDaemon()
		if !test.prior.Daemon || !slices.Equal(test.prior.Up, test.want) {
			t.Errorf("%+v, want %q", test.prior, test.want)
		}
	}
}

func TestPriorActivity(t *testing.T) {
	for _, test := range []struct {
		prior PriorState
		want  Activity
	}{
		{PriorState{}, Down},
		{PriorState{Up: []string{"lxd.socket"}}, OnDemand},
		{PriorState{Daemon: true, Up: []string{"lxd.service"}}, Up},
		{PriorState{Daemon: true}, Up},
	} {
		if got := test.prior.activity(); got != test.want {
			t.Errorf("%+v: %d, want %d", test.prior, got, test.want)
		}
	}
}

// The names are those in files that an earlier version wrote.
func TestPriorStateKeys(t *testing.T) {
	full := PriorState{
		Kind: "k", Name: "n", Up: []string{"u"}, Daemon: true, Held: true, HeldUntil: "h",
		Gated: []string{"g"}, Enabled: []string{"e"}, Companions: []string{"c"},
	}
	asJSON, err := json.Marshal(full)
	want := `{"kind":"k","name":"n","up":["u"],"daemon":true,"held":true,"held_until":"h",` +
		`"gated":["g"],"enabled":["e"],"companions":["c"]}`
	if err != nil || string(asJSON) != want {
		t.Errorf("JSON %s, want %s: %v", asJSON, want, err)
	}

	asYAML, err := yaml.Marshal(full)
	want = "kind: k\nname: \"n\"\nup:\n    - u\ndaemon: true\nheld: true\nheld_until: h\n" +
		"gated:\n    - g\nenabled:\n    - e\ncompanions:\n    - c\n"
	if err != nil || string(asYAML) != want {
		t.Errorf("YAML %s, want %s: %v", asYAML, want, err)
	}
}

func TestServiceOfUnknownKind(t *testing.T) {
	_, err := (&PriorState{Kind: "upstart"}).Service(t.Context())
	if err == nil || !strings.Contains(err.Error(), `"upstart"`) {
		t.Errorf("error %v", err)
	}
}
