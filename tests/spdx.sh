#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# spdx.sh: names each tracked source file that does not begin with its licence (a script has it after #!); fails if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
licence='SPDX-License-Identifier: AGPL-3.0-only'
missing=0
while IFS= read -r -d '' file; do
	line=
	IFS= read -r line < "$file" || true
	case $file in
	*.go | *.c | *.h | *.s) want="// $licence" ;;
	*.sh | *.yml | *.yaml | Makefile) want="# $licence" ;;
	*)
		[[ $line == '#!'* ]] || continue
		want="# $licence"
		;;
	esac
	if [[ $line == '#!'* ]]; then
		line=$(sed -n 2p "$file")
	fi
	if [[ $line != "$want" ]]; then
		echo "$file: its first line is not \"$want\""
		missing=1
	fi
done < <(git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [[ -f $f ]] && printf '%s\0' "$f"; done)
exit $missing
