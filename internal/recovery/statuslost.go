// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// nodeForStatus reads the node database, as far as it is there and whole.
func (d directory) nodeForStatus(ctx context.Context, live bool) (*nodedb.Node, error) {
	_, lost, err := d.readNode(ctx, live)
	if err != nil {
		return nil, err
	}

	if lost != nil {
		return nil, lost
	}

	return nodedb.Read(ctx, d.database())
}

// nodeProblem says what is wrong with a node database, and what to do about it.
func (r *StatusReport) nodeProblem(d directory, node *nodedb.Node, err error) {
	clustered := r.Cluster != ""
	switch {
	case isLost(err) && clustered:
		r.problem("%v: LXD does not start as this member. `lxd-recover global-db-import --node-db FILE` of a recovery tarball makes a new one; "+
			"FILE is a copy of `database/local.db` of any other member of this cluster", err)
	case isLost(err):
		r.problem("%v", err)
	case clustered && errors.Is(err, nodedb.ErrNotClustered) && len(node.Members) == 0:
		r.problem("the table raft_nodes of the node database %s is empty, and %s says that this is a member of a cluster: LXD does not start as that member. "+
			"`lxd-recover global-db-import` of a recovery tarball fills it", d.local(), d.join("cluster.crt"))
	default:
		r.problem("node database: %v", err)
	}
}

// recognise finds out by the certificate which member this is, where the node database does not tell. That it cannot be told is no
// error here.
func (r *StatusReport) recognise(ctx context.Context, d directory, log *raftlog.Log, nodes []globaldb.Node) {
	own, err := d.serverCertificate()
	if r.Member != nil || r.Cluster == "" || len(nodes) == 0 || err != nil {
		return
	}

	db, err := globaldb.Open(ctx, log, 0)
	if err != nil {
		return
	}

	defer db.Close()

	var names member.List
	for _, n := range nodes {
		names = append(names, member.Member{ID: n.ID, Name: n.Name, Address: n.Address})
	}

	members := namedServers(log.Configuration, names)
	found, ok, err := withCertificate(ctx, db, names, own)
	if err != nil || !ok {
		return
	}

	inLog, ok := members.ByID(found.ID)
	if ok {
		found = inLog
	}

	r.Member = &found
}
