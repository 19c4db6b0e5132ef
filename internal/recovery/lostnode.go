// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// NewNodeDatabase is the node database that takes the place of a lost one.
type NewNodeDatabase struct {
	Lost    string        `json:"lost" yaml:"lost"`       // what is wrong with this member's own
	From    string        `json:"from" yaml:"from"`       // file of another member's, whose schema the new one has
	Member  member.Member `json:"member" yaml:"member"`   // which that is
	Schema  int           `json:"schema" yaml:"schema"`   // version
	Patches int           `json:"patches" yaml:"patches"` // of LXD that count as applied; 0: LXD applies all of its own when it starts
}

// lostNode is a node database that is lost, and what a new one is made from.
type lostNode struct {
	why      error // nodedb.ErrMissing or nodedb.ErrDamaged
	template *nodedb.Template
}

// isLost tells whether an error says that a member has lost its node database.
func isLost(err error) bool {
	return errors.Is(err, nodedb.ErrMissing) || errors.Is(err, nodedb.ErrDamaged)
}

// readNode reads the node database of a cluster member as it is now. Where it is lost, lost says so and node is empty.
//
// That no row of it is this member's own is no error here: LXD's own loader leaves it so when it is killed half way, and so does a
// heartbeat from a member that was not edited. An LXD that was started without node database leaves one without any row. Self is empty
// then, and a global database tells which member this is, by its certificate.
func (d directory) readNode(ctx context.Context, live bool) (node *nodedb.Node, lost error, err error) {
	err = whileLive(ctx, live, func(bool) (bool, error) {
		lost = nodedb.Check(ctx, d.database())
		return lost == nil, nil
	})
	if err != nil {
		return nil, nil, err
	}

	if isLost(lost) {
		return &nodedb.Node{}, lost, nil
	}

	if lost != nil {
		return nil, nil, lost
	}

	node, err = nodedb.Read(ctx, d.database())
	if errors.Is(err, nodedb.ErrUnknownMember) {
		err = nil
	}

	if err == nil && node.Standalone { // which it is not, see importable: so it is not what LXD would take it for, either
		node.Self, node.Members = member.Member{}, nil
	}

	return node, nil, err
}

// newLostNode reads the node database of another member that takes the place of a lost one. Without a file it refuses.
func newLostNode(ctx context.Context, why error, file string) (*lostNode, error) {
	if file == "" {
		return nil, &Refusal{Code: "node-database-lost", Reason: why.Error(), Flag: "--node-db",
			Use: "--node-db FILE makes a new one: FILE is a copy of `database/local.db` of any other member of this cluster"}
	}

	template, err := nodedb.ReadTemplate(ctx, file)
	if errors.Is(err, nodedb.ErrNoTemplate) {
		err = fmt.Errorf("%w; give that of another member of this cluster, `database/local.db` there", err)
	}

	return &lostNode{why, template}, err
}

// belongs makes sure that the other member's node database is one of this cluster's, as far as the global database can tell, and
// decides whether its patches are taken. It returns what is to be said about it.
//
// LXD applies a patch once on every member, and notes it in the node database. A new database without these notes has it apply all of
// its patches again; one with too many has it leave out a patch that this member needs. So they are taken from a member that has run
// the same LXD. What this member last ran is told by its row in the table nodes, schema and number of API extensions, which is what LXD
// itself compares to tell whether all members run the same version; the schema of the node database tells less, it has changed once
// in years. A point release that brings a patch, and neither a schema nor an extension, is not told from the one before: LXD keeps
// members of a cluster from running different versions for long, and there is nothing else that a member without node database
// could be asked.
func (l *lostNode) belongs(ctx context.Context, db *globaldb.DB, members member.List, self member.Member) ([]string, error) {
	t := l.template
	for _, m := range t.Members {
		known, ok := members.ByID(m.ID)
		if ok && m.Name != "" && known.Name != m.Name {
			return nil, otherClusters(t, "its member %d is named %s, and here %s", m.ID, m.Name, known.Name)
		}
	}

	whose, ok := members.ByID(t.Self.ID)
	if !ok {
		return nil, otherClusters(t, "its member %d (%s) is none of this cluster's", t.Self.ID, t.Self.Name)
	}

	certificate, err := db.MemberCertificate(ctx, whose.Name)
	if err != nil {
		return nil, err
	}

	theirs := t.Certificates[whose.Name]
	if certificate != "" && theirs != "" && certificate != theirs {
		return nil, otherClusters(t, "its certificate of %s is %.12s…, and here %.12s…", whose.Name, theirs, certificate)
	}

	versions, err := db.Versions(ctx)
	if err != nil {
		return nil, err
	}

	var warnings []string
	t.Self = whose
	if whose.ID == self.ID {
		warnings = append(warnings, fmt.Sprintf("%s is an earlier one of this very member: with it in the place of the lost one, and without --node-db, "+
			"its settings would stay", t.File))
	}

	if versions[whose.ID] != versions[self.ID] {
		l.template = t.WithoutPatches()
		warnings = append(warnings, product.Sprintf("%s has not run the same LXD as this member (%s; here %s): "+
			"which patches are applied is not taken from it, and LXD applies all of its own again when it starts",
			whose.Name, versions[whose.ID], versions[self.ID]))
	}

	return warnings, nil
}

func otherClusters(t *nodedb.Template, format string, args ...any) error {
	return fmt.Errorf("%s is the node database of another cluster: "+format, append([]any{t.File}, args...)...)
}

// settingsLost says which settings a member loses with its node database, or has lost.
func (d directory) settingsLost(ctx context.Context) string {
	text := product.Text("the new node database has none of this member's own settings but the two addresses: " +
		"set what else there was, such as core.metrics_address or storage.images_volume, again when LXD is up")
	settings := slices.DeleteFunc(nodedb.Settings(ctx, d.database()), func(s string) bool {
		return strings.HasPrefix(s, "cluster.https_address=") || strings.HasPrefix(s, "core.https_address=")
	})
	for i, setting := range settings {
		key, value, _ := strings.Cut(setting, "=")
		settings[i] = key + "=" + globaldb.ShownSetting(key, value)
	}

	if len(settings) > 0 {
		text += "; the damaged one says " + strings.Join(settings, ", ")
	}

	return text
}

// report is what is said of the new node database.
func (l *lostNode) report() *NewNodeDatabase {
	return &NewNodeDatabase{Lost: l.why.Error(), From: l.template.File, Member: l.template.Self, Schema: l.template.Schema, Patches: len(l.template.Patches)}
}

// memberCertificates are the certificates of all members, for a node database that does not have them.
func memberCertificates(ctx context.Context, db *globaldb.DB) ([]nodedb.Certificate, error) {
	found, err := db.Certificates(ctx)
	if err != nil {
		return nil, err
	}

	var all []nodedb.Certificate
	for _, c := range found {
		all = append(all, nodedb.Certificate(c))
	}

	return all, nil
}
