// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// secretSteps are lxc commands that put secrets into the database, and an ACL with a rule.
const secretSteps = `
auth group create ops
auth group permission add ops server admin
auth identity create devlxd/robot --group ops
auth identity token issue devlxd/robot
auth identity create tls/alice
config set loki.auth.password hunter2loki
config set core.proxy_http http://me:hunter2proxy@proxy:3128
profile create box
profile set box cloud-init.user-data #cloud-config-hunter2cloud
profile set box environment.API_TOKEN=hunter2token
network acl create web
network acl rule add web ingress action=allow source=10.1.2.3 description=for-the-web`

// secretsLab is what the steps of TestSecrets share.
type secretsLab struct {
	m       *cluster.Member
	secrets []string
}

// A real LXD has signing keys, tokens and passwords in its database: no command but global-db-sql prints one, in no format. What a user
// did is told all the same, and once.
func TestSecrets(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{LXD: lxd6(t), Members: 1})
	m := c.Member(1)
	before := cutAt(t, m)
	for _, line := range strings.Split(strings.TrimSpace(secretSteps), "\n") {
		lxc(t, m, strings.Fields(line)...)
	}

	c.KillAll()
	global := globalOf(m)
	l := secretsLab{m: m, secrets: []string{"hunter2"}}
	l.secrets = append(l.secrets, sqlOnDisk(t, global, "SELECT value FROM secrets")...)
	l.secrets = append(l.secrets, sqlOnDisk(t, global, "SELECT substr(value, 1, 20) FROM secrets")...)
	l.secrets = append(l.secrets, sqlOnDisk(t, global, "SELECT metadata ->> 'secret' FROM identities WHERE name = 'alice'")...)
	if len(l.secrets) < 4 || len(l.secrets[len(l.secrets)-1]) < 20 {
		t.Fatalf("LXD made no secrets: %q", l.secrets)
	}

	l.log(t)
	l.giveUp(t, before)
}

// cutAt is the index of the last entry that a member has now.
func cutAt(t testing.TB, m *cluster.Member) uint64 {
	t.Helper()
	var last uint64
	besideFrozen(t, m, func() { last = entries(t, m.Dir(), "-n", "1")[0].Index })
	return last
}

// none wants no secret in what a command has printed.
func (l secretsLab) none(t testing.TB, what string, r result) {
	t.Helper()
	for _, secret := range l.secrets {
		if strings.Contains(r.stdout, secret) || strings.Contains(r.stderr, secret) {
			t.Errorf("%s: %q is printed", what, secret)
		}
	}
}

func (l secretsLab) log(t testing.TB) {
	t.Helper()
	for _, format := range []string{"table", "json", "yaml", "csv", "compact"} {
		r := mustRecover(t, l.m, "global-db-log", "--rows", "-f", format)
		l.none(t, format, r)
		if format == "json" {
			continue
		}

		if strings.Count(r.stdout, "(secret, sha256 ") < 5 {
			t.Errorf("%s has too few secrets: %s", format, r.stdout)
		}
	}

	for _, secret := range l.secrets {
		if found := entries(t, l.m.Dir(), "--find", secret); len(found) > 0 {
			t.Errorf("%q finds %+v", secret, found)
		}
	}

	csv := mustRecover(t, l.m, "global-db-log", "--rows", "-f", "csv").stdout
	for _, want := range []string{
		"insert secret bearer_signing_key of identity robot", "insert identity robot in auth group ops",
		"insert permission admin on the server of auth group ops",
		"insert config loki.auth.password=(secret, sha256 ", "http://me:(secret, sha256 ", `""source"":""10.1.2.3""`,
	} {
		if !strings.Contains(csv, want) {
			t.Errorf("the log does not say %s", want)
		}
	}

	found := entries(t, l.m.Dir(), "--find", "10.1.2.3")
	if len(found) != 1 || !slices.ContainsFunc(found[0].Rows, func(row globaldb.RowChange) bool { return row.Table == "networks_acls" }) {
		t.Errorf("the rule of the ACL: %+v", found)
	}
}

// giveUp exports without all that, and looks at what it and an import say.
func (l secretsLab) giveUp(t testing.TB, at uint64) {
	t.Helper()
	tarball := filepath.Join(t.TempDir(), "tarball")
	export := []string{"cluster", "export-db", "--unedited", "--no-verify", "--force", "--at", fmt.Sprint(at)}
	r := mustRecover(t, l.m, append(export, "--yes", tarball)...)
	l.none(t, "export", r)
	refused := recoverTool(t, l.m, append(export, tarball)...)
	refused.want(t, 3, "changes by users", "by LXD itself", "insert profile box", "--yes")
	l.none(t, "export that is refused", refused)

	dry := recoverTool(t, l.m, "global-db-import", "--dry-run", tarball)
	dry.want(t, 3, "changes by users", "--discard-local-entries")
	l.none(t, "import", dry)
	if n := strings.Count(dry.stdout+dry.stderr, "insert profile box"); n != 1 {
		t.Errorf("what is lost is listed %d times: %s%s", n, dry.stdout, dry.stderr)
	}

	inJSON := recoverTool(t, l.m, "global-db-import", "--dry-run", "-f", "json", tarball)
	l.none(t, "import, JSON", inJSON)
	report := decode[recovery.ImportReport](t, inJSON)
	tally := recovery.Count(report.Discarded)
	if tally.Users < 8 || tally.LXD == 0 || tally.Untold != 0 || tally.Users+tally.LXD != len(report.Discarded) {
		t.Errorf("%+v of %d", tally, len(report.Discarded))
	}

	if !strings.Contains(dry.stdout, fmt.Sprintf("and that will be lost: %s:\n", tally)) || strings.Contains(dry.stdout, "operation ") {
		t.Errorf("not led by users' changes: %s", dry.stdout)
	}
}
