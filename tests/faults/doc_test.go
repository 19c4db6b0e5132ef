// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

// Package faults proves guarantee G2: an import, a rollback, an edit or a repair that is killed, meets a failing system call, or loses
// its power at any instant leaves the whole old or the whole new database, and running the command again succeeds.
//
// "Any instant" is meant literally. A clean run of bin/lxd-recover is traced (package systrace), which gives the list of all
// its system calls that touch the disk, about a thousand. Then the command is run again for every one of them, with the fault
// there, on a copy of a real member's LXD directory; each run is judged (judge_test.go), the command is run a second time
// without a fault, and judged again.
//
// For the old database whole means to the byte, with modes, owners and times; for the new one, what a clean run makes, to the
// byte; only the term of an edit's fence is the run's own, because it is a time (fence_test.go). That real LXDs start on an
// import's two databases is shown by TestStart, on an edit's and a repair's by package tests.
//
// An edit and a repair have libdqlite work on a copy in a child process. The tracer follows it: its calls are in the list with all
// others, a kill ends both processes, and an error there is one that the command has to make sense of. In the end a repair has
// libdqlite serve the database of a scratch copy: what that makes differs from run to run, and no fault is placed there.
//
// The restore of a member's identity on a new machine is killed, and loses its power, in the same way: TestIdentity, with judges of its own.
//
// All of it takes some fifteen minutes. `make test` takes a sample, and everything around the exchange, and prints its size.
// `make campaign` sets CAMPAIGN=1, which takes everything (of an edit's and a repair's errors every fourth, see thin), and
// FAULTS_REPORT to the name of a file, to which what was counted is written as a table.
//
// The package runs in a mount namespace of its own, so that whatever ends it, no mount and no loop device of it stays; and in
// a network namespace, so that nobody is asked for the members' addresses. What stays of a run that was killed is a directory,
// which the next one removes.
package faults
