// SPDX-License-Identifier: AGPL-3.0-only

// Package bundle writes, reads and checks the recovery tarball: the raft directory of one member, ready to replace that of
// every other survivor.
//
// The tarball is a gzip'd tar that LXD itself (5.21.3 and later, 6.2 and later) can load. Ours carries a manifest,
// recovery.yaml, as its first file: it names the cluster, the members, the raft position, and every other file with its
// size and SHA-256. The second file, recovery.sig, is the signature of the manifest by the cluster's private key. LXD's own
// tarball has neither, and is read as well; who reads it decides whether that is good enough (ExtractOptions.Judge).
//
// Reading trusts nothing: Extract creates regular files with names that a raft directory can hold, inside the directory it
// is given and nowhere else, and never more bytes than were announced.
package bundle

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Names of the tarball's own entries.
const (
	ManifestName  = "recovery.yaml"
	SignatureName = "recovery.sig"
	raftNodesName = "raft_nodes.yaml"

	// IdentityName is what a backup has, encrypted, of the source that no other member can give back.
	IdentityName = "identity.age"
)

// Versions of the manifest: 2 has the run, and is signed; 1 is what there was before, and what is written without a key.
const (
	manifestFormat = 2
	unsignedFormat = 1
)

// ErrDamaged is wrapped by every error that means: this is not a whole recovery tarball.
var ErrDamaged = errors.New("not a whole recovery tarball")

// Manifest is the content of recovery.yaml.
type Manifest struct {
	Format  int    `yaml:"format"`
	Version string `yaml:"version"` // of the lxd-recover that wrote it

	// Kind is empty for a recovery tarball, which is fenced and may start a cluster, and KindBackup for one of a working cluster.
	Kind string `yaml:"kind,omitempty"`

	Created time.Time `yaml:"created"` // UTC

	// Run is the id of the run that this tarball belongs to, see NewRun: all databases that are imported from it have it. It is empty in
	// format 1.
	Run string `yaml:"run,omitempty"`

	Source  Source      `yaml:"source"`
	Cluster Cluster     `yaml:"cluster"`
	Raft    Raft        `yaml:"raft"`
	Members member.List `yaml:"members"` // as `lxd cluster edit` took them
	Patch   Patch       `yaml:"patch,omitempty"`
	Backup  *Backup     `yaml:"backup,omitempty"` // of a backup only
	Files   []File      `yaml:"files"`            // every file but recovery.yaml and recovery.sig, in the tarball's order
}

// Source is the member whose database was exported.
type Source struct {
	ID      uint64 `yaml:"id"`
	Name    string `yaml:"name"`
	Address string `yaml:"address"`
}

// KindBackup is the kind of a tarball with a member's log up to a committed transaction: nothing in it is made by us, and no fence.
const KindBackup = "backup"

// Proofs of a backup: what shows that its last transaction was made after the backup began, so that all that was confirmed before is in it.
const (
	ProofHeartbeat = "heartbeat"  // the database has a heartbeat that is later than the beginning and than any that this member had then
	ProofNonce     = "nonce"      // it has a key that was written through the leader after the beginning
	ProofSoleVoter = "sole-voter" // the member is the only voter: what its disk holds is committed, and nothing else is
)

// Backup is what a backup proves.
type Backup struct {
	Began time.Time `yaml:"began"` // UTC, by the member's clock
	Proof string    `yaml:"proof"` // see ProofHeartbeat and the others
	Nonce string    `yaml:"nonce,omitempty"`

	// Next is the transaction after the last one of the tarball, in the same term. A leader begins no transaction before the last one is committed, so it
	// proves that one, and all before it. Zero with a sole voter.
	Next Position `yaml:"next,omitempty"`
}

// IsBackup tells whether a tarball is a backup, and no recovery tarball.
func (m *Manifest) IsBackup() bool { return m.Kind == KindBackup }

// HasIdentity tells whether there is, encrypted, what makes a new machine the source again: its certificates, keys and node database.
func (m *Manifest) HasIdentity() bool {
	return slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == IdentityName })
}

// Patch is what was pending in patch.global.sql on the source: SQL that LXD runs when it starts there.
type Patch struct {
	Own      string `yaml:"own,omitempty"`      // SHA-256, lower-case hexadecimal, of the SQL that somebody has written to it; empty where there is none
	Versions string `yaml:"versions,omitempty"` // statements for the rows of lost members, for which LXD would wait on any member
}

// Cluster identifies the cluster.
type Cluster struct {
	Certificate string `yaml:"certificate"`       // SHA-256 of the cluster certificate (DER), lower-case hexadecimal
	Product     string `yaml:"product,omitempty"` // what it is a cluster of, such as Incus; empty for LXD
}

// Raft is where the log stands.
type Raft struct {
	Before   Position `yaml:"before"`             // last entry that was taken from the member's directory
	After    Position `yaml:"after"`              // last entry in the tarball; differs from Before once it is fenced
	Snapshot Position `yaml:"snapshot,omitempty"` // newest snapshot; zero where there is none
	Last     Position `yaml:"last,omitempty"`     // last entry of the member's log, where newer ones than Before were left out
}

// Position is a place in a raft log.
type Position struct {
	Index uint64 `json:"index" yaml:"index"`
	Term  uint64 `json:"term" yaml:"term"`
}

// String is the position as tables show it.
func (p Position) String() string { return fmt.Sprintf("index %d, term %d", p.Index, p.Term) }

// File is one file of the tarball.
type File struct {
	Name   string `yaml:"name"`
	Size   int64  `yaml:"size"`   // bytes
	SHA256 string `yaml:"sha256"` // lower-case hexadecimal
}

// Size is the sum of the sizes of all files, in bytes.
func (m *Manifest) Size() int64 {
	var n int64
	for _, f := range m.Files {
		n += f.Size
	}

	return n
}

// signed tells whether a manifest of this format comes with a signature.
func (m *Manifest) signed() bool { return m.Format > unsignedFormat }

var runID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// IsRun tells whether an id can be one that NewRun has made.
func IsRun(id string) bool { return runID.MatchString(id) }

// NewRun returns the id of a run: 16 random bytes as lower-case hexadecimal.
func NewRun() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
}

// Encode returns the manifest as YAML.
func (m *Manifest) Encode() ([]byte, error) { return yaml.Marshal(m) }

// parseManifest reads a manifest and checks all that can be checked without the files it names.
func parseManifest(data []byte) (*Manifest, error) {
	var version struct {
		Format int `yaml:"format"`
	}

	err := yaml.Unmarshal(data, &version)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, ManifestName, err)
	}

	if version.Format < 1 || version.Format > manifestFormat {
		return nil, fmt.Errorf("%w: %s has format %d, this lxd-recover reads formats up to %d: use the version that wrote it",
			ErrDamaged, ManifestName, version.Format, manifestFormat)
	}

	m := &Manifest{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err = dec.Decode(m)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, ManifestName, err)
	}

	err = m.validate()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, ManifestName, err)
	}

	return m, nil
}

func (m *Manifest) validate() error {
	err := m.Members.Validate()
	if err != nil {
		return err
	}

	if m.Format > unsignedFormat && !runID.MatchString(m.Run) {
		return errors.New("no id of the run")
	}

	switch {
	case m.Kind != "" && m.Kind != KindBackup:
		return fmt.Errorf("kind %q is none that this lxd-recover knows: use the version that wrote it", m.Kind)
	case m.IsBackup() != (m.Backup != nil):
		return errors.New("the kind does not fit what the manifest says")
	}

	err = m.validateTexts()
	if err != nil {
		return err
	}

	if len(m.Files) > maxFiles {
		return fmt.Errorf("%d files, more than a raft directory can hold", len(m.Files))
	}

	seen := map[string]bool{}
	for _, f := range m.Files {
		switch {
		case !allowed(f.Name) || f.Name == ManifestName || f.Name == SignatureName:
			return fmt.Errorf("file name %q does not belong into a recovery tarball", f.Name)
		case f.Name == IdentityName && !m.IsBackup():
			return fmt.Errorf("file %s belongs into a backup, and this is none", f.Name)
		case seen[f.Name]:
			return fmt.Errorf("file %s is listed twice", f.Name)
		case f.Size < 0 || f.Size > maxFileSize:
			return fmt.Errorf("file %s: impossible size %d", f.Name, f.Size)
		case !digest.MatchString(f.SHA256):
			return fmt.Errorf("file %s: no sha256", f.Name)
		}

		seen[f.Name] = true
	}

	return nil
}

// raftNode is a row of raft_nodes.yaml, in the shape that LXD's loader reads: capitals and numeric roles are LXD's.
type raftNode struct {
	Info struct {
		ID      uint64 `yaml:"ID"`
		Address string `yaml:"Address"`
		Role    int    `yaml:"Role"` // 0 voter, 1 stand-by, 2 spare
	} `yaml:"nodeinfo"`
	Name string `yaml:"name"`
}

// encodeRaftNodes returns the member list as raft_nodes.yaml.
func encodeRaftNodes(members member.List) ([]byte, error) {
	nodes := make([]raftNode, len(members))
	for i, m := range members {
		nodes[i].Info.ID = m.ID
		nodes[i].Info.Address = m.Address
		nodes[i].Info.Role = m.Role.API()
		nodes[i].Name = m.Name
	}

	return yaml.Marshal(nodes)
}

func parseRaftNodes(data []byte) (member.List, error) {
	var nodes []raftNode
	err := yaml.Unmarshal(data, &nodes)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, raftNodesName, err)
	}

	members := make(member.List, len(nodes))
	for i, n := range nodes {
		role, err := raftlog.RoleFromAPI(n.Info.Role)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, raftNodesName, err)
		}

		members[i] = member.Member{ID: n.Info.ID, Name: n.Name, Address: n.Info.Address, Role: role}
	}

	err = members.Validate()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, raftNodesName, err)
	}

	return members, nil
}
