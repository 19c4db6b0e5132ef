#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# fuzz.sh FUZZTIME FLAG…: a short run of every fuzz target, one after the other, as the events of `go test -json` with these flags.
# The first failure ends it.
set -euo pipefail
fuzztime=$1
shift
grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' internal | sort | while IFS=: read -r file func; do
	target=${func#func } package=./${file%/*}
	go test -json "$@" -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" -fuzzminimizetime 10x "$package" < /dev/null
	printf '{"Action":"output","Package":"%s","Output":"sample: %s: -fuzztime %s\\n"}\n' "$(go list "$package")" "$target" "$fuzztime"
done
