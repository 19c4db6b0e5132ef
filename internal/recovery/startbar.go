// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// A member that has got its identity back, and no database yet, must not be started: with raft id 1 LXD would make a database of its own, and with any other
// the cluster's leader, if there is one, would make a voter of a member that has forgotten what it had confirmed and whom it had voted for (raft takes that
// for a member that never had). So its raft directory holds nothing but one file of a name at which every LXD since 4.0 refuses to start, before it opens
// raft: that of the database of older ones. Systemd and snapd need not heed anything, and as an import or a resync exchanges the whole database directory, the
// bar is gone in the moment in which there is a database.
//
// A metadata file with a term would keep LXD from making a database, and not from following a leader. Its term and vote would be invented, and be taken for
// this member's own by whatever reads them later.
const barName = "logs.db"

// barText begins the bar. What an LXD before 4.0 has left begins in another way.
const barText = `Written by lxd-recover. LXD must not be started here: this member has its identity back, and no database yet. LXD says
"Unsupported upgrade path" because of this file. lxd-recover global-db-status says how to go on. Do not remove it.
`

// writeBar makes a raft directory that has no database, and on which LXD does not start.
func writeBar(global string) error {
	err := os.Mkdir(global, 0o750) // as LXD makes it
	if err != nil {
		return err
	}

	return swapdir.WriteFile(filepath.Join(global, barName), []byte(product.Text(barText)))
}

// barred tells whether LXD is kept from being started on a raft directory.
func barred(global string) bool {
	path := filepath.Join(global, barName)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 2*int64(len(barText)) {
		return false
	}

	data, err := os.ReadFile(path)
	return err == nil && strings.HasPrefix(string(data), "Written by lxd-recover.")
}
