#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# reliability.sh TABLE CLUSTER SAMPLES: docs/reliability.md on standard output, around the tables of faults, of one member's runs and of runs over the whole
# cluster, and the list of what was tried that `make campaign` counted.
set -euo pipefail
cat <<'T'
# Faults injected, and what became of them

LXD's own loader, measured with the same kinds of fault: wedged at 4 of 6 kill points, the database lost in a power cut,
another cluster's data accepted, a flipped bit destroys the database, a forgotten member wipes committed rows in 4 of 7 starts.

These are lxd-recover's figures. `make campaign` runs the faults and writes this page from what the run counted; nothing here
is written by hand.

T
cat "$1"
cat <<'T'

* **injected**: runs in which the fault happened: one run for each system call that touches the disk, one for each error at
  each of them (of an edit's errors every fourth), one for each moment of a power cut.
* **whole old, whole new**: what LXD would have found in `database/` then, every file complete.
* **second run succeeded**: the same command, run again without a fault, did its work and left nothing behind but the kept copy.
  Of the killed imports on which real LXDs were started, some are started as they are, without a second run.
* **wedged**: it did not. **lost**: neither database was whole, or the replaced one was gone.

## Runs over the whole cluster

Three members, one of which lacks rows that the others have committed; `lxd-recover cluster recover` meets a fault at one of its events.

T
cat "$2"
cat <<'T'

* **runs**: one for each event at which the fault came, on one of the members by turns.
* **old, new**: what all members had in the end: to the byte what each had before, or one and the same new database with all committed rows. **At once**: when
  the run, and all of its agents, had ended. Else some member was still part of the run, and one `resume` or `undo` got there.
* **lost rows**: of those that were committed. A run that ended in any other way would have failed the campaign.
T
if [[ -s $3 ]]; then
	cat <<'T'

What else was tried, and that all of it went well, was counted by the same run (`make test` takes a sample, with the same seeds):

T
	cat "$3"
fi
