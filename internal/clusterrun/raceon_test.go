// SPDX-License-Identifier: AGPL-3.0-only

//go:build race

package clusterrun_test

// raceFactor is how much more memory the race detector makes a program take, by its own documentation five to ten times.
const raceFactor = 8
