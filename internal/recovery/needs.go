// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// bindable asks the kernel for an address. Tests answer in its place.
var bindable = preflight.Bindable

// needs are what package preflight decides on: the facts about a global database that LXD is to start on, and about this machine. The
// functions that fill it in leave out what cannot be found out. What LXD needs is never a reason for them to fail.
type needs struct {
	dir      directory
	facts    preflight.Facts
	until    time.Time          // of the newest heartbeat in the global database; zero where it is not known
	mentions []globaldb.Mention // settings in the global database that name an address which a member has, or has had
}

// needsOf begins with what a global database says. members are those of the raft log that LXD will start with, if they are known by
// now; self is the id of this one, 0 where it is not known. A directory without a path is that of no LXD.
func (d directory) needsOf(ctx context.Context, db *globaldb.DB, members member.List, self uint64) (*needs, error) {
	n := &needs{dir: d, facts: preflight.Facts{Now: time.Now(), Self: self, Members: members}}
	if d.path != "" {
		n.facts.Installed, n.facts.Free = preflight.Installed(ctx, d.path), d.free()
	}

	if db == nil {
		n.certificates(ctx, nil)
		return n, ctx.Err()
	}

	nodes, err := db.Nodes(ctx)
	if err != nil || nodes == nil {
		return n, err
	}

	versions, err := db.Versions(ctx)
	if err != nil {
		return nil, err
	}

	n.facts.Nodes, n.facts.InForce = []preflight.Node{}, map[uint64]string{}
	var hosts []string
	for _, row := range nodes {
		v := versions[row.ID]
		n.facts.Nodes = append(n.facts.Nodes,
			preflight.Node{ID: row.ID, Name: row.Name, Address: row.Address, Schema: v.Schema, APIExtensions: v.APIExtensions})
		n.facts.InForce[row.ID] = row.Address
		hosts = append(hosts, member.Host(row.Address), row.Address)
		if row.ID == self {
			n.facts.LastRan = v.Schema
		}
	}

	n.facts.Schema, err = db.SchemaVersion(ctx)
	if err != nil {
		return nil, err
	}

	n.mentions, err = db.Mentions(ctx, hosts)
	if err != nil {
		return nil, err
	}

	n.until, err = db.LastHeartbeat(ctx)
	if err != nil {
		return nil, err
	}

	n.certificates(ctx, db)
	return n, ctx.Err()
}

// free is the room on the disk of the database.
func (d directory) free() *uint64 {
	var stat unix.Statfs_t
	err := unix.Statfs(d.database(), &stat)
	if err != nil {
		return nil
	}

	free := stat.Bavail * uint64(stat.Bsize)
	return &free
}

// certificates are those that members show each other: the two in LXD's directory, and those that the global database has of the others.
func (n *needs) certificates(ctx context.Context, db *globaldb.DB) {
	add := func(data []byte, what string, owner string) *preflight.Certificate {
		c, err := preflight.ParseCertificate(data, what, owner)
		if err != nil {
			return nil // who needs it says so
		}

		n.facts.Certificates = append(n.facts.Certificates, c)
		return &n.facts.Certificates[len(n.facts.Certificates)-1]
	}

	data, err := os.ReadFile(n.dir.join(clusterCertificateName))
	if err == nil && n.dir.path != "" {
		add(data, "the cluster certificate, "+n.dir.join(clusterCertificateName)+",", "")
	}

	self, _ := n.facts.Members.ByID(n.facts.Self)
	known := map[string]string{}
	var all []globaldb.Certificate
	if db != nil {
		all, _ = db.Certificates(ctx)
	}

	for _, c := range all {
		known[c.Name] = c.Fingerprint
	}

	own := ""
	data, err = os.ReadFile(n.dir.join("server.crt"))
	if err == nil && n.dir.path != "" {
		own = sumOf(data)
		c := add(data, "the certificate of this member, "+n.dir.join("server.crt")+",", self.Name)
		if c != nil && self.Name != "" {
			c.Unknown = known[self.Name] != "" && known[self.Name] != own
		}
	}

	for _, c := range all {
		isMember := slices.ContainsFunc(n.facts.Members, func(m member.Member) bool { return m.Name == c.Name })
		if isMember && c.Fingerprint != own && (c.Name != self.Name || own == "") {
			add([]byte(c.PEM), "the certificate of "+c.Name+" in the global database", c.Name)
		}
	}
}

// sumOf is the SHA-256 of a certificate in PEM, empty where it is none.
func sumOf(data []byte) string {
	block, _ := pem.Decode(data)
	if block == nil {
		return ""
	}

	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

// withAddresses finds out which addresses LXD will listen on here, once the update is made of the node database, and which settings
// still name an address that a member has had. A zero update stands for none.
func (n *needs) withAddresses(ctx context.Context, update nodedb.Update) {
	before, _ := nodedb.ConfigAtStart(ctx, n.dir.database())
	after := maps.Clone(before)
	if after == nil {
		after = map[string]string{}
	}

	for key, value := range map[string]string{preflight.KeyCluster: update.ClusterAddress, preflight.KeyCore: update.CoreAddress} {
		if value != "" {
			after[key] = value
		}
	}

	inForce, known := n.facts.InForce[n.facts.Self]
	old := member.Host(inForce)
	moved := known && member.CanonicalHost(member.Host(after[preflight.KeyCluster])) != member.CanonicalHost(old)
	n.facts.OwnAddresses, n.facts.Left = nil, nil
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if !preflight.Listening(key) || after[key] == "" {
			continue
		}

		a := preflight.OwnAddress{Key: key, Address: after[key], New: moved && (key == preflight.KeyCluster || member.Host(after[key]) == old)}
		a.Here, a.Why = bindable(ctx, after[key])
		n.facts.OwnAddresses = append(n.facts.OwnAddresses, a)
	}

	n.left(after)
}

// left finds the settings that still name an address of a member that has another one now.
func (n *needs) left(settings map[string]string) {
	for _, m := range n.facts.Members {
		old := n.facts.InForce[m.ID]
		if old == "" || old == m.Address {
			continue
		}

		search := old // only the port is another one
		if member.Host(old) != member.Host(m.Address) {
			search = member.Host(old)
		}

		for _, key := range slices.Sorted(maps.Keys(settings)) {
			if key == preflight.KeyCluster || n.absent(key) || !member.Mentions(settings[key], search) {
				continue
			}

			n.facts.Left = append(n.facts.Left,
				preflight.Left{Where: "setting " + key + " of this member", Address: search, Member: m.Name, New: m.Address, Key: key})
		}

		for _, mention := range n.mentions {
			if mention.Host == search {
				n.facts.Left = append(n.facts.Left, preflight.Left{Where: mention.Words, Address: search, Member: m.Name, New: m.Address})
			}
		}
	}
}

// absent tells whether a setting is an address that this machine does not have: that is said for itself.
func (n *needs) absent(key string) bool {
	return slices.ContainsFunc(n.facts.OwnAddresses, func(a preflight.OwnAddress) bool { return a.Key == key && a.Here == preflight.Absent })
}

// lastRan finds out from a member's own log which LXD ran last on it. What the log does not tell stays as it is.
func (n *needs) lastRan(ctx context.Context, log *raftlog.Log) {
	db, err := globaldb.Open(ctx, log, log.SoundIndex)
	if err != nil {
		return
	}

	defer db.Close()

	versions, err := db.Versions(ctx)
	if err == nil && versions[n.facts.Self].Schema > 0 {
		n.facts.LastRan = versions[n.facts.Self].Schema
	}
}

// olderSchema tells whether LXD has had, or makes, a newer schema here than the database's.
func (n *needs) olderSchema() bool {
	return n.facts.Schema < max(n.facts.LastRan, n.facts.Installed.Schema)
}

// withPatches finds out which of LXD's own patches are marked as applied here, and are not in the database, which is of an earlier time.
func (n *needs) withPatches(ctx context.Context) {
	if n.until.IsZero() {
		return
	}

	n.facts.Patches, _ = nodedb.PatchesSince(ctx, n.dir.database(), n.until)
}

// needFlags are the findings that refuse a run, with the flags that let it go on; an empty one stands for none.
var needFlags = map[string]string{
	preflight.CodeAddressAbsent:   "--address-absent",
	preflight.CodeAddressUnusable: "",
	preflight.CodeSchemaNewer:     "--newer-schema",
}

// refuseNeeds is the refusal that findings come to; nil for none. accepted are the flags that were given.
func refuseNeeds(found []preflight.Finding, accepted map[string]bool) error {
	for _, f := range found {
		flag, ok := needFlags[f.Code]
		if f.Fatal && ok && (flag == "" || !accepted[flag]) {
			return &Refusal{Code: f.Code, Member: f.Member, Reason: trimStop(f.String()), Flag: flag}
		}
	}

	return nil
}

// trimStop takes the full stop off a sentence that goes on.
func trimStop(text string) string {
	if len(text) > 0 && text[len(text)-1] == '.' {
		return text[:len(text)-1]
	}

	return text
}

// texts are findings for people.
func texts(found []preflight.Finding) []string {
	all := make([]string, len(found))
	for i, f := range found {
		all[i] = f.String()
	}

	return all
}

// aboutMembers are the findings that edit, export and import say in words of their own, with what is done about them.
var aboutMembers = map[string]bool{preflight.NoVoter: true, preflight.NoRow: true, preflight.VersionBehind: true, preflight.VersionAhead: true}

// warningsOf are findings for people, but for those that are said already.
func warningsOf(found []preflight.Finding) []string {
	return texts(slices.DeleteFunc(slices.Clone(found), func(f preflight.Finding) bool { return aboutMembers[f.Code] }))
}
