#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# reliability.sh RESULTS VERSION GROUP…: keeps what a campaign has counted of these groups of tests in tests/counted, with the version that it was counted
# with, and writes docs/reliability.md from all that is kept there: a campaign of all groups takes hours, and may be run in parts.
set -euo pipefail
cd "$(dirname "$0")/.."
results=$1 version=$2
shift 2

for group; do
	new=$results/counted/$group
	mkdir -p "$new"
	go run ./tests/table -campaign "$results" "$group" > "$new/samples.md"
	[[ ! -e $results/$group.md ]] || mv "$results/$group.md" "$new/table.md"
	echo "$version, on $(date -u +%F)" > "$new/version"
done
for group; do
	rm -rf "tests/counted/$group"
	mv "$results/counted/$group" "tests/counted/$group"
done

# counted GROUP: with which version.
counted() { echo "Counted with $(< "tests/counted/$1/version")."; }

# table GROUP: what is before a table, and the table.
table() {
	counted "$1"
	echo
	cat "tests/counted/$1/table.md"
}

# page writes all of it.
page() {
	cat <<'T'
# Faults injected, and what became of them

LXD's own loader, measured with the same kinds of fault: wedged at 4 of 6 kill points, the database lost in a power cut,
another cluster's data accepted, a flipped bit destroys the database, a forgotten member wipes committed rows in 4 of 7 starts.

These are lxd-recover's figures. `make campaign` runs the faults and writes this page from what was counted; nothing here
is written by hand. Each part says which version it was counted with.

## One member

T
	table faults
	cat <<'T'

* **injected**: runs in which the fault happened: one run for each system call that touches the disk, one for each error at
  each of them (of an edit's errors every fourth), one for each moment of a power cut.
* **whole old, whole new**: what LXD would have found in `database/` then, every file complete.
* **second run succeeded**: the same command, run again without a fault, did its work and left nothing behind but the kept copy.
  Of the killed imports on which real LXDs were started, some are started as they are, without a second run.
* **wedged**: it did not. **lost**: neither database was whole, or the replaced one was gone.
T
	if [[ -d tests/counted/cluster ]]; then
		cat <<'T'

## Runs over the whole cluster

Three members, one of which lacks rows that the others have committed; `lxd-recover cluster recover` meets a fault at one of its events.

T
		table cluster
		cat <<'T'

* **runs**: one for each event at which the fault came, on one of the members by turns.
* **old, new**: what all members had in the end: to the byte what each had before, or one and the same new database with all committed rows. **At once**: when
  the run, and all of its agents, had ended. Else some member was still part of the run, and one `resume` or `undo` got there.
* **lost rows**: of those that were committed. A run that ended in any other way would have failed the campaign.
T
	fi
	cat <<'T'

## What else was tried

All of it went well. `make test` takes a sample, with the same seeds.
T
	for dir in tests/counted/*; do
		group=${dir##*/}
		[[ -s $dir/samples.md ]] || continue
		echo
		counted "$group"
		echo
		cat "$dir/samples.md"
	done
}
page > "$results/reliability.md"
mv "$results/reliability.md" docs/reliability.md
