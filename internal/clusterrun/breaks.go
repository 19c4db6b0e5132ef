// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"github.com/lxd-recover/lxd-recover/internal/recovery"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Break is what becomes of a run that is cut off: of the part of a member that has come to one of some phases.
type Break struct {
	Phases []recovery.Phase // what is noted on the member's disk
	Cut    Cut
	Alone  string // what happens by itself
	Resume Way
	Undo   Way
}

// Cut is who is cut off, in words.
type Cut string

// Who can be cut off. A giver is cut off if it is killed or loses power, and if all of its connections are lost. A member is if its agent is killed, it
// loses power, or the connection to it is lost.
const (
	CutGiver  Cut = "the giving machine"
	CutMember Cut = "the member"
)

// Way is what a command then does, in words.
type Way string

// What `resume` and `undo` do with a run that was cut off.
const (
	WayNothing       Way = "finds nothing to do"
	WayBack          Way = "takes everything back"
	WayOnOrBack      Way = "goes on if every member was armed, else takes everything back"
	WayOnIfMost      Way = "goes on, or takes everything back if a majority of the new voters cannot be had"
	WayAsOthers      Way = "does there what was done on the others"
	WayOn            Way = "goes on to the end"
	WayBackOrAnother Way = "takes everything back; is another run if LXD was started on the others"
	WayAnother       Way = "is another run, which gives all members the old database"
)

// Breaks is the table "When it breaks" of docs/cluster-recover.md. Tests hold the page against it, and a run that loses its giver.
func Breaks() []Break {
	early := []recovery.Phase{recovery.PhaseReached, recovery.PhaseGated, recovery.PhaseStopped, recovery.PhaseStaged}
	armed, exchanged, started := []recovery.Phase{recovery.PhaseArmed}, []recovery.Phase{recovery.PhaseExchanged}, []recovery.Phase{recovery.PhaseStarted}
	return []Break{
		{early, CutGiver, product.Text("each member takes its part back: LXD runs again where it ran"), WayNothing, WayNothing},
		{early, CutMember, product.Text("the giver takes everything back, there too if it can connect again; if not, LXD stays down there, from `gated` on, " +
			"until the machine is started anew"), WayBack, WayBack},
		{armed, CutGiver, product.Text("LXD stays down, on the old database"), WayOnOrBack, WayBack},
		{armed, CutMember, "the giver connects again; if it cannot, it goes on with the others, or takes everything back if they are no majority",
			WayAsOthers, WayBackOrAnother},
		{exchanged, CutGiver, product.Text("LXD stays down, on the new database"), WayOnIfMost, WayBack},
		{exchanged, CutMember, product.Text("LXD stays down there, on the new database; the giver starts the others"), WayAsOthers, WayBackOrAnother},
		{started, CutGiver, product.Text("LXD runs on the new database, and starts with the machine"), WayOn, WayAnother},
		{started, CutMember, product.Text("LXD runs on the new database, and starts with the machine"), WayOn, WayAnother},
	}
}
