// SPDX-License-Identifier: AGPL-3.0-only

// Package preflight knows what LXD needs to start, and to work as a member of its cluster: addresses that this machine has, certificates
// that are in date, a schema that the installed LXD knows, a row in the table nodes for each raft member, and so on.
//
// Check looks at plain data, Facts, and reads nothing itself. What a caller cannot find out it leaves empty, and then nothing is said of it.
// The small functions that find such data out on this machine (Interfaces, for instance) are beside the checks that need it.
package preflight

import (
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Finding is one thing that keeps LXD from starting or working, or may do so.
type Finding struct {
	Code   string `json:"code" yaml:"code"`     // a few words in lower case with hyphens, for programs
	Member string `json:"member" yaml:"member"` // name of the member that it is about; empty if it is about none in particular
	Text   string `json:"text" yaml:"text"`     // what is found, and what LXD makes of it; without a full stop
	Advice string `json:"advice" yaml:"advice"` // what to do; a whole sentence, or empty
	Fatal  bool   `json:"fatal" yaml:"fatal"`   // LXD does not start or work with it, for certain; else it may be so
}

// String is the finding for people.
func (f Finding) String() string {
	if f.Advice == "" {
		return f.Text
	}

	return f.Text + ". " + f.Advice
}

// Node is a row of the table nodes.
type Node struct {
	ID            uint64
	Name          string
	Address       string
	Schema        int // of the global database, of the LXD that the member last ran
	APIExtensions int // how many the LXD knew that the member last ran
}

// Facts are what is known of the database that LXD is to start on, and of this machine.
type Facts struct {
	// Now is what the dates of certificates are compared with.
	Now time.Time

	// Self is the id of this member; 0 where it is not known, or where the database is not to start on this machine.
	Self uint64

	// Members are the members in the newest configuration of the raft log.
	Members member.List

	// Nodes is the table nodes as it will be when pending patches have run; nil where it cannot be read.
	Nodes []Node

	// InForce are the addresses that the members have had so far, by their ids; nil where they are not known.
	InForce map[uint64]string

	// OwnAddresses are those that LXD is to listen on here.
	OwnAddresses []OwnAddress

	// Silent are new addresses of other members at which no machine answers, Left are other settings that have an old address.
	Silent []Silent
	Left   []Left

	// Certificates are those that the members show each other.
	Certificates []Certificate

	// Schema is the version of the global database's schema; 0 where it is not known.
	Schema int

	// Installed is the LXD that is to start on this machine, LastRan the schema that the LXD had which ran last on this member; 0 where it
	// is not known.
	Installed LXD
	LastRan   int

	// Patches are the names of LXD's own patches that are marked as applied on this member and are newer than the global database.
	Patches []string

	// Free is the room on the disk of the database, in bytes; nil where it is not known.
	Free *uint64
}

// name is that of this member, empty where it is not known.
func (facts Facts) name() string {
	self, _ := facts.Members.ByID(facts.Self)
	return self.Name
}

// Alone tells whether no other member needs to be reached.
func (facts Facts) Alone() bool { return len(facts.Members) < 2 }

// checks are all that is looked at, in the order in which people are told.
var checks = []func(Facts) []Finding{
	checkVoters,
	checkRows,
	checkVersions,
	checkMemberAddresses,
	checkOwnAddresses,
	checkSchema,
	checkCertificates,
	checkRoom,
	checkGoingBack,
	checkLeft,
}

// Check returns what is found in the facts. It is not nil.
func Check(facts Facts) []Finding {
	found := []Finding{}
	for _, check := range checks {
		found = append(found, check(facts)...)
	}

	return found
}

// littleRoom is what LXD needs at the least: raft allocates its segments, of 8 MiB, some ahead.
const littleRoom = 64 << 20

// checkRoom looks for a disk that is full, or nearly.
func checkRoom(facts Facts) []Finding {
	if facts.Free == nil || *facts.Free >= littleRoom {
		return nil
	}

	return []Finding{{Code: "disk-full", Member: facts.name(),
		Text:   product.Sprintf("the disk of the database has %d MiB left: LXD's database allocates some files of 8 MiB when it starts", *facts.Free>>20),
		Advice: product.Text("Make room before LXD is started.")}}
}
