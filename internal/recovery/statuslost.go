// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
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

// nodeProblem says what is wrong with a node database that cannot be read, or does not tell whose it is, and what to do about it.
func (r *StatusReport) nodeProblem(d directory, err error) {
	switch {
	case isLost(err) && d.certified():
		r.problem(product.Text("%v: LXD does not start as this member. `lxd-recover global-db-import --node-db FILE` of a recovery tarball makes a new one; "+
			"FILE is a copy of `database/local.db` of any other member of this cluster"), err)
	case isLost(err) && r.Standalone:
		r.problem("%s", standaloneNodeText(err))
	case r.Standalone && errors.Is(err, nodedb.ErrUnknownMember): // it has been given a cluster address, and no cluster yet
	default:
		r.problem("%v", err)
	}
}

// standaloneNodeText says what to do about a standalone server's node database that is lost.
func standaloneNodeText(lost error) string {
	return lost.Error() + product.Text(": put back a copy of it. Where there is none, LXD makes a new one, without this server's settings")
}

// emptyProblem says that a node database lists no members although this is not a standalone server, for which why is the reason.
func (r *StatusReport) emptyProblem(d directory, servers raftlog.Configuration, why *mismatch) {
	if !d.certified() || aloneInLog(servers) {
		r.problem("%v", why)
		return
	}

	r.problem(product.Text("the table raft_nodes of the node database %s is empty, and %s says that this is a member of a cluster: LXD does not start as "+
		"that member. `lxd-recover global-db-import` of a recovery tarball fills it"), d.local(), d.join(clusterCertificateName))
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
