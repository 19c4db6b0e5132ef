// SPDX-License-Identifier: AGPL-3.0-only

//go:build !race

package clusterrun_test

// raceFactor is how much more memory the race detector makes a program take: without it none.
const raceFactor = 1
