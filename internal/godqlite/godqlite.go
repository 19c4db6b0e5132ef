// SPDX-License-Identifier: AGPL-3.0-only

// Package godqlite reads what applications of go-dqlite keep beside raft's files, which LXD does not have there: info.yaml, which says who the member is,
// and cluster.yaml, a list of the members. It reads as well what microcluster adds, on which MicroCloud, MicroCeph and MicroOVN are built: a state
// directory with a trust store around the database directory, and a list of members in its recovery tarball. It only reads.
//
// Everything that it reads may have been written by somebody else: sizes are bounded, and names and addresses that cannot be shown are errors.
package godqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Names in the directory with raft's files.
const (
	InfoFile     = "info.yaml"     // this member
	ClusterFile  = "cluster.yaml"  // all members, as they were when they last told each other
	RecoveryFile = "recovery.yaml" // all members with their names: what microcluster's edit leaves, and its recovery tarball has
)

// Names in microcluster's state directory.
const (
	DatabaseDir    = "database"
	TrustDir       = "truststore"  // NAME.yaml for each member
	DaemonFile     = "daemon.yaml" // this member's name and address
	ControlSocket  = "control.socket"
	TarballFile    = "recovery_db.tar.gz" // which it loads when it starts
	UnpackDir      = "recovery_db"        // where it unpacks it
	GlobalPatch    = "patch.global.sql"   // which it runs when it starts
	maxFile        = 1 << 20              // bytes that are read of a file
	maxTrustMember = 10_000               // files that are read of a trust store
)

// Node is a member as go-dqlite writes it.
type Node struct {
	ID      uint64 `yaml:"ID"` // a random number of 64 bits
	Address string `yaml:"Address"`
	Role    int    `yaml:"Role"` // 0 voter, 1 stand-by, 2 spare
}

// Member is the node without its name, which go-dqlite does not know.
func (n Node) Member() (member.Member, error) {
	role, err := raftlog.RoleFromAPI(n.Role)
	m := member.Member{ID: n.ID, Address: n.Address, Role: role}
	if err == nil {
		err = m.Printable()
	}

	if err == nil && n.ID == 0 {
		err = errors.New("a member has no ID")
	}

	return m, err
}

// ReadInfo reads whose directory it is.
func ReadInfo(dir string) (member.Member, error) {
	var n Node
	path := filepath.Join(dir, InfoFile)
	err := readYAML(path, &n)
	if err != nil {
		return member.Member{}, err
	}

	m, err := n.Member()
	if err != nil {
		return member.Member{}, fmt.Errorf("%s: %w", path, err)
	}

	return m, nil
}

// ReadCluster reads the list of members.
func ReadCluster(dir string) (member.List, error) {
	path := filepath.Join(dir, ClusterFile)
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}

	list, err := ParseCluster(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}

	return list, nil
}

// ParseCluster reads the content of a cluster.yaml.
func ParseCluster(data []byte) (member.List, error) {
	var nodes []Node
	err := yaml.Unmarshal(data, &nodes)
	if err != nil {
		return nil, err
	}

	var list member.List
	for _, n := range nodes {
		m, err := n.Member()
		if err != nil {
			return nil, err
		}

		list = append(list, m)
	}

	return list, nil
}

// EncodeCluster writes a list of members as go-dqlite does.
func EncodeCluster(list member.List) ([]byte, error) {
	nodes := make([]Node, len(list))
	for i, m := range list {
		nodes[i] = Node{ID: m.ID, Address: m.Address, Role: m.Role.API()}
	}

	return yaml.Marshal(nodes)
}

// recovered is a member in microcluster's recovery.yaml.
type recovered struct {
	ID      uint64 `yaml:"id"`
	Address string `yaml:"address"`
	Role    string `yaml:"role"` // voter, stand-by or spare
	Name    string `yaml:"name"`
}

// ParseRecovery reads microcluster's recovery.yaml.
func ParseRecovery(data []byte) (member.List, error) {
	var all []recovered
	err := yaml.Unmarshal(data, &all)
	if err != nil {
		return nil, err
	}

	var list member.List
	for _, r := range all {
		m := member.Member{ID: r.ID, Name: r.Name, Address: r.Address}
		err = m.Role.UnmarshalText([]byte(r.Role))
		if err == nil {
			err = m.Printable()
		}

		if err != nil {
			return nil, err
		}

		list = append(list, m)
	}

	return list, nil
}

// ReadRecovery reads the recovery.yaml that microcluster's edit leaves beside raft's files.
func ReadRecovery(dir string) (member.List, error) {
	path := filepath.Join(dir, RecoveryFile)
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}

	list, err := ParseRecovery(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}

	return list, nil
}

// EncodeRecovery writes a list of members as microcluster's recovery tarball has it.
func EncodeRecovery(list member.List) ([]byte, error) {
	all := make([]recovered, len(list))
	for i, m := range list {
		all[i] = recovered{ID: m.ID, Address: m.Address, Role: m.Role.String(), Name: m.Name}
	}

	return yaml.Marshal(all)
}

// Trusted is a member in a trust store, or the one of a daemon.yaml.
type Trusted struct {
	Name    string `yaml:"name"`
	Address string `yaml:"address"`
}

// ReadTrustStore reads the names and addresses of the members that a state directory's trust store has.
func ReadTrustStore(state string) ([]Trusted, error) {
	dir := filepath.Join(state, TrustDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	var all []Trusted
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".yaml") {
			continue
		}

		if len(all) == maxTrustMember {
			return nil, fmt.Errorf("%s has more than %d files", dir, maxTrustMember)
		}

		t, err := readTrusted(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}

		all = append(all, t)
	}

	return all, nil
}

// ReadDaemon reads this member's name and address from a state directory's daemon.yaml.
func ReadDaemon(state string) (Trusted, error) { return readTrusted(filepath.Join(state, DaemonFile)) }

func readTrusted(path string) (Trusted, error) {
	var t Trusted
	err := readYAML(path, &t)
	if err == nil {
		err = member.Member{Name: t.Name, Address: t.Address}.Printable()
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
	}

	return t, err
}

// IsStateDir tells whether a directory is the state directory of a microcluster application, or what is left of one.
func IsStateDir(dir string) bool {
	database := filepath.Join(dir, DatabaseDir)
	if IsApplication(database) {
		return true
	}

	return has(filepath.Join(dir, DaemonFile)) && (has(filepath.Join(dir, TrustDir)) || has(filepath.Join(dir, UnpackDir)))
}

// IsApplication tells whether a directory is one in which go-dqlite keeps raft's files.
func IsApplication(dir string) bool {
	return slices.ContainsFunc([]string{InfoFile, ClusterFile}, func(name string) bool { return has(filepath.Join(dir, name)) })
}

func has(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func readYAML(path string, into any) error {
	data, err := readFile(path)
	if err != nil {
		return err
	}

	err = yaml.Unmarshal(data, into)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}

	return nil
}

func readFile(path string) ([]byte, error) {
	f, err := newfile.Open(path)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}

	return data, err
}
