// SPDX-License-Identifier: AGPL-3.0-only

// Package survivor tells which of several members' raft logs to recover from. It works on plain values, so that raft's rules
// can be tested against simulated clusters; it reads no files and knows nothing of LXD but the entry that `lxd cluster edit`
// leaves.
//
// # What is known
//
// A [Log] is what was found of one member: snapshot, the entries after it, the member's current term. Nothing on disk says
// which entries were committed. What raft guarantees:
//
//   - Two logs with an entry of the same index and term are the same up to it (log matching).
//   - An entry is committed once its leader, still in the entry's own term, has it on a majority of the voters of the
//     configuration that the leader has in force: the last one in its log, committed or not. Everything before it is
//     committed with it. Stand-bys and spares have no vote. (libraft up to 0.16, which LXD 5.0.2 uses in Debian 12, also counts
//     entries of earlier terms, and writes no barrier when a term begins. What it has told a client can be undone by raft itself
//     there, with no tool involved: raft, figure 8.)
//   - Voters elect only who has a log at least as good as their own: by last term, then by last index (raft, 5.4.1). So every
//     later leader has every committed entry.
//   - A leader changes at most one voter at a time, and only when the last change is committed. Majorities of two
//     configurations that follow each other overlap.
//   - A snapshot holds nothing but committed entries.
//   - dqlite runs one writing transaction at a time, and its leader begins the next one only when the last is applied. So of two
//     transactions of one term in one log the first was committed, and all before it. A leader counts the entries of its own term as raft
//     does, so this holds for libraft before 0.17, too. It is the only proof of a commit on a single disk besides a snapshot, and needs an
//     LXD's log, which has one database.
//
// # What follows
//
// Recovery entries at the end (of term 1 by `lxd cluster edit`, of a high term when fenced) are no part of this history and
// are left out first, however many edits there were; one inside the log, with a leader's entries after it, is. A fenced one
// is told from a leader's change by its term: it is the first entry of that term.
//
// The best log is the one with the highest last term, then the highest last index. It holds every committed entry that any
// of the logs holds: the holder's last term is not above the best one's, and the leader of that term had the entry.
//
// A committed entry that none of the logs holds needs a majority of voters that were not seen. So the best log is the one to
// recover from if a majority of the voters of the configuration in force at its end was seen. If a seen voter lacks the entry
// of that configuration, then it may never have been committed, and a majority of the one before must have been seen, too; if no
// seen voter has it, then it was not, and half of its own voters are enough. Otherwise nobody can know: the unseen ones may
// have elected a leader of their own, who made one of the others a stand-by where they were just half, and committed something
// (the test does just that). Then nothing is recommended.
//
// dqlite lets a leader change the configuration before it has committed an entry of its own term, which raft's author found to
// be unsafe later. Where nobody can know is told by dqlite's rule; that the best log holds all that is committed, by raft's. LXD
// keeps to raft's: its leader reads the database before it changes roles, and that writes a barrier.
//
// A log whose end is in doubt, for damage or because a daemon was writing it, vouches for its sound entries, but does not
// count as seen: what it held after them is not known. The same goes for a copy of an earlier time, a backup for one, but for one
// thing: it is whole as it is, and can be the best log. Where a majority was seen and yet a snapshot, or the first of two transactions of one
// term, of any log lies beyond the best one, what was seen was not the members' last state: the logs contradict each other.
//
// An entry of the best log is committed for certain if it is in a snapshot, at or before the first of two transactions of one term, of
// whichever of the logs; or at or below an entry k of term w that a majority of the voters holds whose current term is w or w+1.
// Holding alone is not enough: an entry of an older term can lie on a majority, put there by a later leader, and still be replaced by
// one elected in between (raft, figure 8). With current terms that low there was nobody in between. The other way to know is to have
// seen all voters, and that no voter without the entry could gather a majority of votes from these logs. In all cases what is claimed
// is: no leader can lack it. Whether a client was told that its change succeeded is in no log.
//
// An entry that fewer than half of the voters can hold, the unseen ones counted as if they did, was never committed, whatever the
// changes of configuration. All other entries may or may not have been.
//
// Logs that have different entries under one index and term, that miss what they outrank and a snapshot or two transactions prove to be
// committed, or whose cluster certificates differ, are not logs of one raft history, or no longer: nothing is recommended.
//
// # After a recovery
//
// A recovery makes one member's log the cluster's, by fiat. What it gives up no log can tell; from there on raft's rules hold among the
// logs that have its entry. Members that lack it can be started on their old data, and then both sides commit. So where one of two logs
// that have parted has a recovery's entry, and entries after it, nothing is recommended; and where a majority of the voters of before was
// not seen, they may have gone on without it. That the recovered side has gone on is known from its entries alone: a recovery entry at the
// end of a log is left out, unless another log goes on after it.
//
// A recovery's entry inside a log is told from a leader's change by its term, which is lower than the one before or the first of its kind,
// or by what it changes: a leader changes one thing at a time, and never nothing or an address ([raftlog.Configuration.LeadsTo]). In a log that has
// had one term only, one that makes one change is not told.
//
// Incus's recovery (cowsql) writes an entry with the term of the one before it, so what it changes is all that tells it. With one role that is
// another one nothing in the log does: then what was in force before it may be in force still, and is looked at as well.
//
// A log whose entries are those of another one from some place on, but at lower indexes, lacks a segment. It is sound up to there.
//
// # One member of a working cluster
//
// [Resync] decides whether such a member can take another log, while the others go on: [Log.Proven] and [Log.ProvenInTerm] are what a single disk proves.
// The argument is in docs/why-resync-is-safe.md.
package survivor
