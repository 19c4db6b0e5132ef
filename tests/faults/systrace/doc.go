// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

// Package systrace runs a program under ptrace and steps in at its system calls: kills it there, makes a call fail, or does
// something else first. It is what lets the fault tests say "at every call that touches the disk" and mean it.
//
// strace's fault injection counts the calls of each thread apart, and the Go runtime moves goroutines between threads as it
// likes; here all threads of the program are one sequence. And strace injects into the calls one lists; here every call is
// classified, and one that is in no list ends the run with an error, as does a write outside the directories that the
// caller named. A new way of writing to disk cannot slip past the tests.
//
// Linux on amd64 only: a call's arguments are read portably, but making it fail means setting registers.
package systrace
