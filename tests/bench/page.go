// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/olekukonko/tablewriter"
)

// page is docs/performance.md under way.
type page struct{ w io.Writer }

func (p *page) text(format string, args ...any) { fmt.Fprintf(p.w, format+"\n\n", args...) }

// table writes a table in Markdown; all columns but the first are numbers.
func (p *page) table(head []string, rows [][]string) {
	t := tablewriter.NewWriter(p.w)
	t.SetHeader(head)
	t.SetAutoFormatHeaders(false)
	t.SetAutoWrapText(false)
	t.SetBorders(tablewriter.Border{Left: true, Right: true})
	t.SetCenterSeparator("|")
	alignment := []int{tablewriter.ALIGN_LEFT}
	for range head[1:] {
		alignment = append(alignment, tablewriter.ALIGN_RIGHT)
	}

	t.SetColumnAlignment(alignment)
	t.AppendBulk(rows)
	t.Render()
	fmt.Fprintln(p.w)
}

// introduce says what was run, and on what.
func (p *page) introduce() error {
	version, err := exec.Command("bin/lxd-recover", "version").Output()
	if err != nil {
		return err
	}

	fmt.Fprint(p.w, "# How fast, and how much memory\n\n")
	p.text("Written by `make bench`, which measures everything below in one run; nothing here is written by hand.")
	p.text("%s, %d processors (%s), on %s. The files are in the page cache; what a command writes is on disk when it ends. "+
		"Of several runs the fastest counts, and the most memory that any took.",
		strings.SplitN(strings.TrimSpace(string(version)), "\n", 2)[0], runtime.NumCPU(), processor(), time.Now().UTC().Format(time.DateOnly))
	return nil
}

// processor is the name of the machine's processor.
func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}

	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}

	return "unknown"
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func mib(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// times says how many times as long something took.
func times(a time.Duration, b time.Duration) string {
	return fmt.Sprintf("%.2f", a.Seconds()/b.Seconds())
}
