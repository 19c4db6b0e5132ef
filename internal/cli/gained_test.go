// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// What LXD wrote by itself is counted, what users did is shown, and so is what nobody can tell.
func TestPrintGained(t *testing.T) {
	row := func(table string) recovery.Discarded {
		return recovery.Discarded{Index: 128, Term: 2, Rows: []globaldb.RowChange{{Table: table, Key: "id=7", After: map[string]string{"name": "'x'"}}}}
	}
	server2 := member.Member{Name: "server2"}
	for want, r := range map[string]*recovery.ImportReport{
		"": {Member: server2},
		"\nTransactions that the tarball has and server2 lacks: 1 change by a user, 1 that cannot be told, 1 by LXD itself:\n" +
			"  index 128, term 2\n    insert identities id=7 name='x'\n  index 5, term 1 (not told)\n": {
			Member: server2, Gained: []recovery.Discarded{row("operations"), row("identities"), {Index: 5, Term: 1, Unknown: "not told"}}},
		"\nWhat the tarball has and server2 lacks cannot all be told: no database.\n": {Member: server2, GainedUntold: "no database"},
	} {
		var out strings.Builder
		printGained(&out, r, &toldOnce{})
		if out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
	}
}

func TestSignatureText(t *testing.T) {
	by := strings.Repeat("0123456789abcdef", 4)
	for want, s := range map[string]recovery.Signature{
		"": {},
		"valid, by the key of certificate 0123456789ab…":                      {State: recovery.SignatureValid, By: by},
		"NOT VALID: the key of certificate 0123456789ab… has not signed this": {State: recovery.SignatureInvalid, By: by},
		"none: anybody may have made or changed it":                           {State: recovery.SignatureNone},
		"not checked: certificate 0123456789ab…, which it names, is not here; `global-db-inspect --certificate FILE` checks it": {
			State: recovery.SignatureUnknown, By: by},
	} {
		if got := signatureText(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
