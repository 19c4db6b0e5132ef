// SPDX-License-Identifier: AGPL-3.0-only

// Package swapdir replaces one directory by another beside it, all or nothing, and keeps the replaced one.
//
// The invariant: at every instant, also after a kill or a power cut, the live name holds one whole directory, the old or
// the new one, and the other one is still there under some name. Nothing is ever deleted here.
//
// A replacement is data before it is done: Run writes a Plan (which directory goes where, both recognised by their inode
// numbers) to the file PlanFile in the parent directory and syncs it; then one renameat2(RENAME_EXCHANGE) swaps the two
// names, a plain rename gives the replaced directory the name under which it is kept, and the plan is removed. Each step
// is synced before the next. Where a run was cut short, Finish compares the inode numbers with the plan and either
// completes the run (the exchange had happened) or withdraws the plan (it had not). Running it again does no harm.
//
//	               live         staged        keep         plan
//	before         old          new           -            -
//	planned        old          new           -            yes    Finish: withdraws the plan
//	exchanged      new          old           -            yes    Finish: renames staged to keep, removes the plan
//	kept           new          -             old          yes    Finish: removes the plan
//	done           new          -             old          -
package swapdir
