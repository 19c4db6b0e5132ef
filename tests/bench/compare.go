// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"context"
	"fmt"
	"path/filepath"
)

// compare measures export and import against common tools and LXD's own, on one directory.
func (l *lab) compare(ctx context.Context, p *page, runs int, lxd string) (f figures, err error) {
	before, err := treeSize(global(l.Member(1)))
	if err != nil {
		return f, err
	}

	f.export, err = l.export(ctx, runs)
	if err != nil {
		return f, err
	}

	err = l.unpack(ctx)
	if err != nil {
		return f, err
	}

	packed, err := treeSize(l.packed())
	if err != nil {
		return f, err
	}

	p.text("## Recovering %s", mib(before))
	p.text("Members of a real cluster of %s, stopped. libdqlite has written %d transactions, rows of random text, into their global "+
		"database, until `database/global` had %s, a `db.bin` as LXD leaves it among them. What is needed of that, and what is exported, is %s: "+
		"the newest snapshot and the segments after it. The common tools are given these files only; LXD packs everything.",
		lxd, transactions, mib(before), mib(packed))

	f.noVerify, err = l.export(ctx, runs, "--no-verify")
	if err != nil {
		return f, err
	}

	rows := []exportRow{{"`lxd-recover cluster export-db`", f.export}, {"the same with `--no-verify`", f.noVerify}}
	common, err := l.packCommon(ctx, runs)
	if err != nil {
		return f, err
	}

	f.pigz = common[0].result
	rows = append(rows, common...)
	f.ours, err = l.importOurs(ctx, runs)
	if err != nil {
		return f, err
	}

	edit, err := l.editOurs(ctx)
	if err != nil {
		return f, err
	}

	f.lxdEdit, err = l.editLXD(ctx)
	if err != nil {
		return f, err
	}

	f.lxdImport, err = l.importLXD(ctx)
	if err != nil {
		return f, err
	}

	rows = append(rows, exportRow{lxd + ", `lxd cluster edit`", f.lxdEdit}, exportRow{"`lxd-recover cluster edit`, for comparison", result{measure: edit}})
	p.exports(rows)
	p.imports(lxd, f.ours, f.lxdImport)
	return f, nil
}

// commonTools pack the files $1 into $2, onto the disk. The first is the one that we are held against (figures.pigz).
var commonTools = []struct{ name, output, line string }{
	{"`tar \\| pigz -1`", "pigz.tar.gz", `tar -C "$1" -cf - . | pigz -1 > "$2" && sync "$2"`},
	{"`tar \\| gzip -1`", "gzip.tar.gz", `tar -C "$1" -cf - . | gzip -1 > "$2" && sync "$2"`},
	{"`cp -a`", "copied", `cp -a "$1" "$2" && sync "$2"/*`},
}

// packCommon measures the common tools.
func (l *lab) packCommon(ctx context.Context, runs int) (rows []exportRow, err error) {
	for _, tool := range commonTools {
		output := filepath.Join(l.dir, tool.output)
		r, err := l.shell(ctx, runs, output, tool.line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tool.name, err)
		}

		r.size, err = treeSize(output)
		if err != nil {
			return nil, err
		}

		rows = append(rows, exportRow{tool.name, r})
	}

	return rows, nil
}

type exportRow struct {
	what string
	result
}

// exports writes the table of all that makes a tarball.
func (p *page) exports(rows []exportRow) {
	first := rows[0].wall
	var lines [][]string
	for _, r := range rows {
		output := "none"
		if r.size > 0 {
			output = mib(r.size)
		}

		lines = append(lines, []string{r.what, seconds(r.wall), times(r.wall, first), seconds(r.cpu), mib(r.own), mib(r.peak), output})
	}

	p.table([]string{"", "wall", "of the first", "CPU", "memory", "with children", "output"}, lines)
	p.text("The verification loads what is exported with the real libdqlite, in a child process; libdqlite holds the whole database in memory, which " +
		"is the memory \"with children\". `--no-verify` leaves it out. LXD's `cluster edit` changes the member list and writes LXD's tarball and a backup.")
}

// imports writes the table of imports.
func (p *page) imports(lxd string, ours result, theirs result) {
	row := func(what string, r result) []string {
		return []string{what, seconds(r.wall), times(r.wall, ours.wall), seconds(r.cpu), mib(r.peak), fmt.Sprintf("%.3f s", r.down)}
	}
	p.table([]string{"", "wall", "of the first", "CPU", "memory", "LXD is down"}, [][]string{
		row("`lxd-recover global-db-import`", ours),
		row(lxd+", its own import at start", theirs),
	})
	p.text("\"LXD is down\" is what the import itself adds to LXD's own time to stop and to start: lxd-recover unpacks, checks and writes to disk " +
		"before it stops LXD, and only exchanges the directories when LXD is down; the longest of all runs counts. LXD's own import is a part of its start.")
}

// curve measures export and import against the size.
func (l *lab) curve(ctx context.Context, p *page, sizes []int64, f *figures) error {
	var exports, imports [][]string
	for _, size := range sizes {
		err := l.grow(ctx, size)
		if err != nil {
			return err
		}

		before, err := treeSize(global(l.Member(1)))
		if err != nil {
			return err
		}

		export, err := l.export(ctx, 1)
		if err != nil {
			return err
		}

		noVerify, err := l.export(ctx, 1, "--no-verify")
		if err != nil {
			return err
		}

		ours, err := l.importOurs(ctx, 1)
		if err != nil {
			return err
		}

		f.curve = append(f.curve, sized{before, export, noVerify, ours})
		exports = append(exports, []string{mib(before), seconds(export.wall), seconds(export.cpu), mib(export.own), mib(export.peak), seconds(noVerify.wall),
			mib(noVerify.peak), mib(export.size)})
		imports = append(imports, []string{mib(before), seconds(ours.wall), seconds(ours.cpu), mib(ours.peak), fmt.Sprintf("%.3f s", ours.down)})
	}

	p.text("## Time and memory against the size")
	p.text("The same members, with databases of other sizes; one run each.")
	p.table([]string{"export of", "wall", "CPU", "memory", "with children", "`--no-verify`", "its memory", "output"}, exports)
	p.table([]string{"import over", "wall", "CPU", "memory", "LXD is down"}, imports)
	return nil
}

// treeSize is the size of a file, or of the files in a directory.
func treeSize(path string) (int64, error) {
	files, err := filepath.Glob(filepath.Join(path, "*"))
	if err != nil {
		return 0, err
	}

	if len(files) == 0 {
		files = []string{path}
	}

	return sizeOf(files...)
}
