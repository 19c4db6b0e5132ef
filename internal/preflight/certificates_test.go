// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"slices"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

func day(text string) time.Time {
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		panic(err)
	}

	return t
}

// codes are the codes of findings, those that are fatal with a mark.
func codes(found []Finding) []string {
	all := []string{}
	for _, f := range found {
		code := f.Code
		if f.Fatal {
			code += "!"
		}

		all = append(all, code)
	}

	return all
}

func wantCodes(t *testing.T, name string, found []Finding, codesWanted ...string) {
	t.Helper()
	if !slices.Equal(codes(found), codesWanted) {
		t.Errorf("%s: %q, want %q: %v", name, codes(found), codesWanted, found)
	}
}

func TestCertificateDates(t *testing.T) {
	certificate := func(from string, to string) Certificate {
		return Certificate{What: "the cluster certificate", NotBefore: day(from), NotAfter: day(to)}
	}
	two := member.List{{ID: 1, Name: "n1", Role: raftlog.Voter}, {ID: 2, Name: "n2"}}
	for _, c := range []struct {
		name    string
		members member.List
		of      Certificate
		code    string
	}{
		{"in date", two, certificate("2026-01-01", "2036-01-01"), ""},
		{"expired", two, certificate("2025-01-01", "2025-04-01"), "certificate-expired!"},
		{"expired, one member", two[:1], certificate("2025-01-01", "2025-04-01"), "certificate-expired"},
		{"not yet valid", two, certificate("2027-01-01", "2028-04-01"), "certificate-not-yet-valid!"},
		{"29 days left", two, certificate("2026-01-01", "2026-12-25"), "certificate-expires-soon"},
		{"31 days left", two, certificate("2026-01-01", "2026-12-27"), ""},
	} {
		wanted := []string{}
		if c.code != "" {
			wanted = append(wanted, c.code)
		}

		found := Check(Facts{Now: day("2026-11-26"), Members: c.members, Certificates: []Certificate{c.of}})
		wantCodes(t, c.name, found, wanted...)
	}

	found := Check(Facts{Now: day("2026-11-26"), Members: two, Certificates: []Certificate{certificate("2025-01-01", "2025-04-01")}})
	const expired = "the cluster certificate expired on 2025-04-01: the members refuse each other's connections, and the cluster gets no leader"
	if found[0].Text != expired {
		t.Errorf("said is %q, not %q", found[0].Text, expired)
	}
}
