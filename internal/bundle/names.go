// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import "regexp"

// Bounds on what a tarball may announce.
const (
	maxFiles     = 100_000         // the log keeps some 10,000 entries at most; one file an entry would be the extreme
	maxFileSize  = 1 << 40         // bytes; a snapshot can be as large as the database
	maxSmallFile = 1 << 20         // bytes of recovery.yaml and raft_nodes.yaml
	maxIdentity  = 32 << 20        // bytes of identity.age
	maxSignature = 4 << 10         // bytes of recovery.sig; an RSA key of 16384 bits makes 2048
	maxPadding   = 1 << 20         // zero bytes after the tar's end mark
	probeReserve = int64(64 << 20) // bytes of disk left free beside the announced size
)

// Names of a raft directory's files that travel in a tarball (docs/raft-directory.md, Files and names), in the strict form in
// which libdqlite writes them. It reads looser ones too, and misreads them: those are refused.
var raftFile = regexp.MustCompile(`^(metadata[12]|[0-9]{16}-[0-9]{16}|open-[1-9][0-9]{0,15}|snapshot-[0-9]{1,16}-[0-9]{1,16}-[0-9]{1,16}(\.meta)?)$`)

// leftOut are names that LXD's own tarball carries and a raft directory does not need: a dump that may be stale, and the
// lock file.
var leftOut = map[string]bool{"db.bin": true, "db.bin-wal": true, "dqlite-lock": true}

// Names that only microcluster's own recovery tarball has, which its loader unpacks into the directory with raft's files.
const (
	microclusterMembers = "cluster.yaml"
	microclusterLock    = "dqlite-lock"
)

// IsRaftFile tells whether a name is one that libdqlite itself writes and reads back.
func IsRaftFile(name string) bool { return raftFile.MatchString(name) }

// allowed tells whether a file of that name may be in a tarball and is unpacked.
func allowed(name string) bool {
	return name == ManifestName || name == SignatureName || name == raftNodesName || name == IdentityName || IsRaftFile(name)
}
