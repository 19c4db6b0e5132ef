// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/cli"
)

// TestGenerate writes everything twice, and wants the same both times: a page for each command with its help in it, and
// completions that their shell can read.
func TestGenerate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1764000000")
	dir, again := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, again} {
		err := os.Mkdir(filepath.Join(d, "man"), 0o755)
		if err != nil {
			t.Fatal(err)
		}

		err = os.WriteFile(filepath.Join(d, "man", "lxd-recover-gone.8"), nil, 0o644)
		if err != nil {
			t.Fatal(err)
		}

		err = generate(d)
		if err != nil {
			t.Fatal(err)
		}
	}

	out, err := exec.Command("diff", "-r", dir, again).CombinedOutput()
	if err != nil {
		t.Errorf("not the same twice: %v\n%s", err, out)
	}

	pages := 0
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}

		pages++
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".8"
		page, err := os.ReadFile(filepath.Join(dir, "man", name))
		if err != nil {
			t.Error(err)
		}

		if !strings.Contains(string(page), cmd.Short) || !strings.Contains(string(page), "Nov 2025") {
			t.Errorf("%s: no %q, or another date:\n%s", name, cmd.Short, page)
		}

		if strings.Contains(cmd.Long, "Exit status:") && !strings.Contains(string(page), ".SH EXIT STATUS") {
			t.Errorf("%s: the exit statuses are no section", name)
		}

		for _, old := range []string{"global-db-backups", "no-proof"} {
			if strings.Contains(string(page), old) {
				t.Errorf("%s shows the old name %s", name, old)
			}
		}

		for _, c := range cmd.Commands() {
			visit(c)
		}
	}

	visit(cli.Commands())
	all, err := filepath.Glob(filepath.Join(dir, "man", "*"))
	if err != nil || len(all) != pages {
		t.Errorf("pages %v, want %d, %v", all, pages, err)
	}

	out, err = exec.Command("bash", "-n", filepath.Join(dir, "completions", "lxd-recover.bash")).CombinedOutput()
	if err != nil {
		t.Errorf("bash: %v: %s", err, out)
	}

	for _, name := range []string{"_lxd-recover", "lxd-recover.fish"} {
		info, err := os.Stat(filepath.Join(dir, "completions", name))
		if err != nil || info.Size() == 0 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestGenerateWantsDate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "")
	err := generate(t.TempDir())
	if err == nil {
		t.Error("pages with the time of the build")
	}
}
