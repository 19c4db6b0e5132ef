// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/godqlite"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// hostileApplication is the state directory of a microcluster application with hostile text wherever text can be: two databases with such names in its log, and
// members with such addresses.
func hostileApplication(t *testing.T) string {
	t.Helper()
	from := raftlogtest.Application(t, "k8s-dqlite/k1")
	log, err := raftlog.Open(t.Context(), os.DirFS(from), raftlog.Options{})
	must(t, err)
	state := t.TempDir()
	database := filepath.Join(state, godqlite.DatabaseDir)
	must(t, os.CopyFS(filepath.Join(state, godqlite.TrustDir), os.DirFS(raftlogtest.Application(t, "microcluster-v3/edited/m1/truststore"))))
	must(t, os.Mkdir(database, 0o700))
	for i := range log.Configuration {
		log.Configuration[i].Address += evil
	}

	segment := raftlog.AppendBatch(raftlog.SegmentHeader(), raftlog.Entry{
		Term: 1, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(log.Configuration),
	})
	last := uint64(1)
	for entry, err := range log.Entries(t.Context(), 1) {
		must(t, err)
		if entry.Type != raftlog.CommandEntry {
			continue
		}

		for _, name := range []string{"one" + evil, "two" + evil} {
			text := append([]byte(name), make([]byte, 8-len(name)%8)...)
			entry := entry
			entry.Data = slices.Concat(entry.Data[:8], text, entry.Data[16:])
			segment = raftlog.AppendBatch(segment, entry)
			last++
		}
	}

	for name, data := range map[string]string{
		raftlog.SegmentName(1, last): string(segment),
		"metadata1":                  string(raftlog.Metadata{Version: 1, Term: 1}.Encode()),
		godqlite.InfoFile:            fmt.Sprintf("{ID: %d, Address: %q, Role: 0}", log.Configuration[0].ID, evil),
		godqlite.ClusterFile:         fmt.Sprintf("%q", evil),
	} {
		must(t, os.WriteFile(filepath.Join(database, name), []byte(data), 0o600))
	}

	must(t, os.WriteFile(filepath.Join(state, godqlite.TrustDir, "m4.yaml"), fmt.Appendf(nil, "{name: %q, address: %q}", evil, evil), 0o600))
	must(t, os.WriteFile(filepath.Join(state, godqlite.DaemonFile), fmt.Appendf(nil, "{name: %q, address: %q}", evil, evil), 0o600))
	return state
}

// TestHostileApplication gives commands the hostile directory of another application than LXD.
func TestHostileApplication(t *testing.T) {
	t.Cleanup(func() { product.Use(product.LXD) })
	state := hostileApplication(t)
	l := hostileLab{lxd: t.TempDir(), scratch: t.TempDir()}
	commands := [][]string{
		{"global-db-sql", state, "SELECT 1"}, {"global-db-sql", "--database", evil, state, "SELECT 1"}, {"global-db-log", "--rows", state},
		{"cluster", "export-db", "--state-dir", state}, {"cluster", "export-db", "--state-dir", filepath.Join(state, evil)},
		{"cluster", "export-db", "--state-dir", state + evil, "--at", "3"},
	}
	for _, format := range reportFormats {
		commands = append(commands, []string{"global-db-inspect", "--verbose", "--format", format, state},
			[]string{"global-db-compare", "--format", format, state, filepath.Join(state, godqlite.DatabaseDir)})
	}

	for _, format := range []string{formatTable, formatCompact, formatJSON, formatYAML} {
		commands = append(commands, []string{"global-db-log", "--format", format, state})
	}

	for _, args := range commands {
		stdout, stderr := l.run(t, args...)
		for _, text := range []string{stdout, stderr} {
			if !printable.AllHarmless([]byte(text)) {
				t.Errorf("%q: a terminal would obey:\n%q", args, text)
			}
		}

		if !slices.ContainsFunc(shown, func(form string) bool { return strings.Contains(stdout+stderr, form) }) {
			t.Errorf("%q: nothing hostile was printed:\n%s%s", args, stdout, stderr)
		}
	}
}
