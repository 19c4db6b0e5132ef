// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"fmt"
	"strings"
)

// figures are what the targets are about.
type figures struct {
	export, noVerify, pigz, lxdEdit result
	ours, lxdImport                 result // imports
	curve                           []sized
}

// sized is what was measured at one size.
type sized struct {
	size                   int64
	export, noVerify, ours result
}

// What was aimed at.
const (
	fasterThanLXD = 10
	memoryBound   = 64 << 20
)

// targets holds the figures against what was aimed at, whether it was reached or not.
func (p *page) targets(f figures) {
	met := func(is bool) string {
		if is {
			return "yes"
		}

		return "no"
	}
	var rows [][]string
	add := func(target string, is bool, format string, args ...any) {
		rows = append(rows, []string{target, fmt.Sprintf(format, args...), met(is)})
	}
	edit, load := f.lxdEdit.wall.Seconds()/f.export.wall.Seconds(), f.lxdImport.wall.Seconds()/f.ours.wall.Seconds()
	add("export 10 times as fast as LXD's `cluster edit`", edit >= fasterThanLXD, "%.1f times", edit)
	add("import 10 times as fast as LXD's", load >= fasterThanLXD, "%.1f times", load)
	pigz := f.export.wall.Seconds() / f.pigz.wall.Seconds()
	add("export no slower than `tar \\| pigz -1`", pigz <= 1, "%.2f of its time", pigz)
	pigz = f.noVerify.wall.Seconds() / f.pigz.wall.Seconds()
	add("the same, with `--no-verify`", pigz <= 1, "%.2f of its time", pigz)

	all := append([]sized{{0, f.export, f.noVerify, f.ours}}, f.curve...)
	var own, children, noVerify, imports int64
	var down []string
	slowest := 0.0
	for i, s := range all {
		own, children = max(own, s.export.own), max(children, s.export.peak)
		noVerify, imports = max(noVerify, s.noVerify.peak), max(imports, s.ours.peak)
		if i > 0 || len(all) == 1 {
			down = append(down, fmt.Sprintf("%.3f s", s.ours.down))
			slowest = max(slowest, s.ours.down)
		}
	}

	add("memory under 64 MiB at any size: import", imports < memoryBound, "%s", mib(imports))
	add("export, lxd-recover itself", max(own, noVerify) < memoryBound, "%s", mib(max(own, noVerify)))
	add("export, with libdqlite's child process", children < memoryBound, "%s", mib(children))
	add("LXD down for a time that does not grow with the database", slowest < 1, "%s", strings.Join(down, ", "))
	p.text("## Against what was aimed at")
	p.table([]string{"", "measured", "reached"}, rows)
}
