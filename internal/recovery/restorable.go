// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/nodedb"
)

// checkRestorable refuses a kept database on which LXD would not start as this member, as something of it is not there: it was kept by
// an import that repaired this. What is damaged, and can be read all the same, is a warning.
func (rb *rollback) checkRestorable(ctx context.Context, kept string) error {
	lacking, damage, err := rb.dir.lacks(ctx, kept)
	if err != nil {
		return err
	}

	if lacking != "" {
		return fmt.Errorf("the database in %s cannot be put back: %s; `lxd-recover global-db-kept list` has the others", kept, lacking)
	}

	if damage != nil {
		rb.report.warn(damage.Error())
	}

	return nil
}

// lacks says what of a database directory is not there, so that LXD does not start on it as this member; empty where all is. damage is
// what is wrong with its node database besides.
func (d directory) lacks(ctx context.Context, database string) (lacking string, damage error, err error) {
	err = checkGlobal(filepath.Join(database, globalName))
	var none *noGlobalError
	if errors.As(err, &none) || errors.Is(err, errEmptied) {
		return "its raft directory " + globalName + " is missing or empty", nil, nil
	}

	if err != nil {
		return "", nil, err
	}

	damage = nodedb.Check(ctx, database)
	if errors.Is(damage, nodedb.ErrMissing) {
		return "its node database " + nodedb.File + " is missing", nil, nil
	}

	if damage != nil && !isLost(damage) {
		return "", nil, damage
	}

	node, err := nodedb.Read(ctx, database)
	switch {
	case node != nil: // whose it is does not matter here
		return d.lacksMembers(ctx, database, node), damage, nil
	case damage != nil:
		return damage.Error(), nil, nil
	}

	return "", nil, err
}

// lacksMembers says why LXD does not start on a database as the member of a cluster that this one is: its node database lists no members.
// That of a standalone server lists none either: on a member, it is one of before it joined.
func (d directory) lacksMembers(ctx context.Context, database string, node *nodedb.Node) string {
	if !d.certified() || !listsNobody(node) {
		return ""
	}

	servers := serversIn(ctx, filepath.Join(database, globalName))
	_, why := standalone(d.path, node, servers)
	if aloneInLog(servers) && why != nil {
		return why.Error()
	}

	return "the table raft_nodes of its node database is empty"
}
