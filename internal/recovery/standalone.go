// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// A standalone server is an LXD that is no member of a cluster. Four places say so: the node database has no cluster address and no
// other member, there is no cluster certificate, the raft log has one server, with the id and the address that LXD then gives it, and
// the table nodes has one row, without an address. The first is what LXD goes by when it starts.

// noAddress is the address of a standalone server in the table nodes.
const noAddress = "0.0.0.0"

// errStandalone is how a command ends that is for members of a cluster only.
var errStandalone error = product.Error("this LXD is a standalone server, no member of a cluster: `lxd-recover global-db-repair` repairs its database")

// mismatch is what does not fit together of a database that looks like a standalone server's, and may be that of a member which has
// lost its node database.
type mismatch struct{ text, advice string }

func (m *mismatch) Error() string { return m.text + ": " + m.advice }

// standalone tells whether a database is that of a standalone server, and what does not fit together if it looks like one only. lxdDir
// is the directory of the LXD that it belongs to, empty where there is none; node is nil where no node database can be read; servers
// is the configuration of the raft log, empty where there is none that can be read.
func standalone(lxdDir string, node *nodedb.Node, servers raftlog.Configuration) (bool, *mismatch) {
	certified := lxdDir != "" && directory{lxdDir}.certified()
	const text = "the node database lists no members, as that of a standalone server, but "
	switch {
	case node == nil:
		return !certified && aloneInLog(servers), nil
	case !listsNobody(node):
		return false, nil
	case len(servers) > 0 && !aloneInLog(servers):
		return false, &mismatch{text + "the raft log is that of a member of a cluster, of " + addressesIn(servers),
			"put back a copy of this member's own local.db, or import a recovery tarball, with cluster.crt and cluster.key in place"}
	case certified:
		return false, &mismatch{text + directory{lxdDir}.join(clusterCertificateName) + " is there, as on a member of a cluster",
			"if this is a standalone server, move cluster.crt and cluster.key away; " +
				"if it is a member, put back a copy of its own local.db, or import a recovery tarball"}
	}

	// LXD lets a cluster address be set before there is a cluster, and goes on as a standalone server.
	return node.Standalone || aloneInLog(servers), nil
}

// listsNobody tells whether a node database is without a cluster: that of a standalone server, or of a member for which LXD has made a
// new one in the place of a lost one.
func listsNobody(node *nodedb.Node) bool { return node.Standalone || len(node.Members) == 0 }

// certified tells whether there is a cluster certificate, or what may be one.
func (d directory) certified() bool { return !gone(d.join(clusterCertificateName)) }

func addressesIn(servers raftlog.Configuration) string {
	addresses := make([]string, len(servers))
	for i, s := range servers {
		addresses[i] = s.Address
	}

	return strings.Join(addresses, ", ")
}

// aloneInLog tells whether a raft configuration is that of a standalone server.
func aloneInLog(servers raftlog.Configuration) bool {
	return len(servers) == 1 && servers[0].ID == nodedb.StandaloneID && servers[0].Address == nodedb.StandaloneAddress
}

// aloneInTable tells whether the table nodes is that of a standalone server.
func aloneInTable(nodes []globaldb.Node) bool {
	return len(nodes) == 1 && nodes[0].ID == nodedb.StandaloneID && nodes[0].Address == noAddress
}

// clusterOnly is the first step of a command that is for members of a cluster only. Anything else that may be wrong with the node
// database is left to those who need it.
func (d directory) clusterOnly(ctx context.Context) error {
	node, err := nodedb.Read(ctx, d.database())
	if err == nil && !node.Standalone {
		return nil
	}

	alone, why := standalone(d.path, node, serversIn(ctx, d.global()))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case alone:
		return errStandalone
	case why != nil:
		return why
	}

	return nil
}

// importable is clusterOnly for an import: a member of which only the cluster certificate says that it is one, as its node database lists
// no members, can be imported to.
func (d directory) importable(ctx context.Context) error {
	err := d.clusterOnly(ctx)
	var why *mismatch
	if errors.As(err, &why) && d.certified() {
		return nil
	}

	return err
}

// serversIn returns the configuration of a raft log as it is; what is wrong with the log is not asked for here.
func serversIn(ctx context.Context, global string) raftlog.Configuration {
	log, err := openLog(ctx, global, Progress{}, raftlog.Options{Later: true})
	if err != nil {
		return nil
	}

	return log.Configuration
}
