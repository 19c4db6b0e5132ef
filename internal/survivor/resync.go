// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Source is a log that a member may take: another member's, read at any moment, whether that one runs or not, and whether it leads or not; or a
// backup. What it holds counts, and not where it is from.
type Source struct {
	*Log

	// Nonce is the first index at which the source's database has the nonce, 0 where it has none. Where the snapshot has it, that is the
	// snapshot's index.
	Nonce uint64

	// Proven is a position of the log that was committed by the leader that wrote it, as whoever has read the source has seen and signed: the entry that
	// proves it need not be in the log. Zero if only the log tells.
	Proven Position

	// Damaged says that after the last entry there is damage, and not only what a daemon is writing.
	Damaged bool
}

// Own is the member that is to take another log, as it was found when its LXD had stopped for good: nothing has its database open, and
// nothing starts it.
type Own struct {
	ID      uint64 // raft id
	Address string // by which the others know it; empty where that is not known
	Cluster string // certificate; empty where that is not known

	// Metadata has the member's term and vote; nil where they are lost, or were replaced by older ones.
	Metadata *raftlog.Metadata

	// Log is what is sound of its own log; nil if it is gone. It is only looked at for signs of another history.
	Log *Log

	// GivenUp says that the user gives up what the own log has, even where it is of another history than the source's.
	GivenUp bool
}

// Taken is what a member that resyncs gets: the source's log, unchanged, up to a position, and this term and vote. LXD is to be started on
// nothing else. The reasons are in [Resync].
type Taken struct {
	Last      Position // of the source's log, the last one to take
	Committed Position // the proof: committed by its leader after the member had stopped

	Term uint64 // for the metadata
	Vote uint64 // raft id, 0 for nobody
	Kept bool   // the member's own term and vote

	Role raftlog.Role // that the log gives it
}

// ResyncCode says why a log cannot be taken. Programs may rely on it.
type ResyncCode string

// The codes.
const (
	OtherCluster   ResyncCode = "other-cluster"        // the certificates differ
	SourceDamaged  ResyncCode = "source-damaged"       // it lacks entries, or ends before the nonce for damage
	NoNonce        ResyncCode = "no-nonce"             // the source does not have it: older than the member's stop, or not yet there
	NonceNotProven ResyncCode = "nonce-not-committed"  // it has it, and does not prove yet that it was committed
	NotAMember     ResyncCode = "not-a-member"         // the source's last configuration lacks the member
	OtherAddress   ResyncCode = "other-address"        // it has the member's id with another address
	OwnTermAbove   ResyncCode = "own-term-above"       // the member's log ends in a term that the source's has not reached
	TwoHistories   ResyncCode = "two-histories"        // both logs have committed entries, or entries of one term, that differ
	NoID           ResyncCode = "member-without-id"    // a mistake of the caller: raft has no member 0
	NoTerm         ResyncCode = "source-without-terms" // raft has no term 0
)

// ResyncRefusal says why a log cannot be taken.
type ResyncRefusal struct {
	Code   ResyncCode
	Reason string // for people, a sentence or two without a full stop at the end
}

func (r *ResyncRefusal) Error() string { return r.Reason }

func refuse(code ResyncCode, format string, a ...any) (Taken, error) {
	return Taken{}, &ResyncRefusal{Code: code, Reason: fmt.Sprintf(format, a...)}
}

// Resync decides whether a member of a working cluster can take its log from a source, and which metadata go with it. The nonce is a value that
// nobody could know before the member had stopped, and that was then written through the leader.
//
// Why a log is safe to take, and unsafe without (docs/why-resync-is-safe.md has the argument in full):
//
//   - A member that acknowledged an entry may be what the commit of that entry rests on. With a shorter log it may then elect a leader that
//     lacks it. So there must be an entry that was appended after the member had stopped, and committed by the leader that wrote it: a
//     majority without the member has it then, and all before it, and elects nobody who lacks it. The nonce was appended after the stop, so the same
//     is true of each entry after it. That one was committed by its own leader is known from two transactions of one term, the second
//     after it ([Log.ProvenInTerm]); what a client was told is not needed.
//   - A member that voted, and has forgotten it, may vote again in the same term, for another one. A first vote from before the stop went to
//     somebody whose log lacks the nonce. If the new log holds that proven entry, whose term the new metadata have at least, there cannot be a second
//     leader of that term, whatever the vote says. Own metadata are kept nevertheless where they are readable.
//   - The log must be the beginning of a real one: snapshot and terms unchanged, without gap, fence, or entry of our own. Raft takes two
//     entries of one index and term for equal, and never looks inside.
//
// The error is a [*ResyncRefusal].
func Resync(source Source, own Own) (Taken, error) {
	if own.ID == 0 {
		return refuse(NoID, "the member's raft id is not known")
	}

	log, _ := source.withoutRecovery()
	taken := Taken{Last: log.Last()}
	without := source.Nonce == 0 || source.Nonce > taken.Last.Index
	switch {
	case own.Cluster != "" && source.Cluster != "" && own.Cluster != source.Cluster:
		return refuse(OtherCluster, "the source is of another cluster: its certificate is not this member's")
	case len(log.Entries) == 0 && log.Snapshot.Index == 0:
		return refuse(SourceDamaged, "the source holds no entry that can be read")
	case len(log.Entries) > 0 && log.First > log.Snapshot.Index+1:
		return refuse(SourceDamaged, "the source lacks entries: it begins with entry %d, and its snapshot ends with entry %d", log.First, log.Snapshot.Index)
	case taken.Last.Term == 0:
		return refuse(NoTerm, "the source ends with an entry of term 0, which raft does not have")
	case without && source.Damaged:
		return refuse(SourceDamaged, "what can be read of the source ends with entry %d, before the mark that was written after this member had stopped",
			taken.Last.Index)
	case without:
		return refuse(NoNonce, "the source ends with entry %d and lacks the mark that was written after this member had stopped", taken.Last.Index)
	}

	taken.Committed = log.position(log.confirmed())
	if source.Proven.Index > taken.Committed.Index && log.position(source.Proven.Index) == source.Proven {
		taken.Committed = source.Proven
	}

	if taken.Committed.Index < source.Nonce {
		return refuse(NonceNotProven, "the source has the mark, in entry %d, and does not prove yet that it was committed", source.Nonce)
	}

	err := taken.readConfiguration(&log, own)
	if err == nil && !own.GivenUp {
		err = taken.compareOwn(&log, own)
	}

	if err != nil {
		return Taken{}, err
	}

	term := source.Term
	if len(log.Entries) < len(source.Entries) { // that of a recovery which is not taken
		term = 0
	}

	taken.setMetadata(term, own)
	return taken, nil
}

// readConfiguration looks the member up in the last configuration, which is the one in force for it, committed or not.
func (t *Taken) readConfiguration(log *Log, own Own) error {
	c := log.inForce(t.Last.Index)
	i := slices.IndexFunc(c, func(s raftlog.Server) bool { return s.ID == own.ID })
	if i < 0 {
		_, err := refuse(NotAMember, "the source's last list of members lacks this one, which has raft id %d: it was removed from the cluster", own.ID)
		return err
	}

	if own.Address != "" && c[i].Address != own.Address {
		_, err := refuse(OtherAddress, "the cluster knows this member, raft id %d, at %s, and its own database says %s", own.ID, c[i].Address, own.Address)
		return err
	}

	t.Role = c[i].Role
	return nil
}

// compareOwn looks for signs that the member's own log is of another history. In one history, the proven entry's majority has a voter of
// every leader that the member followed before it had stopped: so none of their terms is above that entry's.
func (t *Taken) compareOwn(log *Log, own Own) error {
	if own.Log == nil {
		return nil
	}

	mine, _ := own.Log.withoutRecovery()
	s := compare(log, &mine)
	switch {
	case own.Log.Last().Term > t.Committed.Term:
		_, err := refuse(OwnTermAbove, "this member's own log ends in term %d, and what the cluster has committed since is of term %d: "+
			"they are not of one history", own.Log.Last().Term, t.Committed.Term)
		return err
	case s.branch > 0 && s.sameTerm:
		_, err := refuse(TwoHistories, "this member's own log and the source have different entries at index %d, of the same term: "+
			"they are not of one history", s.branch)
		return err
	case s.branch > 0 && s.upTo < min(mine.certain, t.Committed.Index):
		_, err := refuse(TwoHistories, "this member's own log proves that entry %d was committed, and the source has another one there: "+
			"they are not of one history", max(s.branch, s.upTo+1))
		return err
	}

	return nil
}

// setMetadata keeps the member's own term and vote, raised to the log's last term where they are lower. Lost ones become the highest term that
// the source tells of, with the vote of that term spent on the member itself: then it votes for nobody in it. So do those of a history that
// was given up, which would only force an election.
func (t *Taken) setMetadata(sourceTerm uint64, own Own) {
	switch {
	case own.Metadata == nil || own.Metadata.Term == 0 || own.GivenUp && own.Metadata.Term > max(t.Last.Term, sourceTerm):
		t.Term, t.Vote = max(t.Last.Term, sourceTerm), own.ID
	case own.Metadata.Term < t.Last.Term:
		t.Term = t.Last.Term
	default:
		t.Term, t.Vote, t.Kept = own.Metadata.Term, own.Metadata.Vote, true
	}
}
