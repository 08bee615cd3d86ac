#!/usr/bin/env bash
# The traces of simulated seeds, one line each: the proof that a change of the code changes nothing
# that the code does.
#
#   scripts/traces.sh FILE         write the traces of $HOLDFAST into FILE
#   scripts/traces.sh FILE BASE    the same, then compare with the file BASE
#
# SEEDS (default 1000) says how many seeds, from 1 on. Each has 20 virtual seconds of faults.
set -euo pipefail

seeds=${SEEDS:-1000}
out=$1
base=${2:-}
raw=$(mktemp)
trap 'rm -f "$raw"' EXIT

# Seeds run at the same time and end in any order: the file is sorted.
"$HOLDFAST" sim --seed 1 --count "$seeds" --seconds 20 --threads "$(nproc)" >"$raw"
sed -n 's/^seed \([0-9]*\): \(.*\)$/\1 \2/p' "$raw" | sort -n >"$out"
found=$(wc -l <"$out")
if [ "$found" != "$seeds" ]; then
    echo "$found of $seeds seeds left a trace" >&2
    exit 1
fi
echo "$found traces in $out"
[ -n "$base" ] || exit 0

if ! diff <(head -n "$seeds" "$base") "$out" >"$raw"; then
    echo "$(grep -c '^>' "$raw") of $seeds traces differ from $base, the first of them:" >&2
    head -n 4 "$raw" >&2
    exit 1
fi
echo "all $seeds traces equal those in $base"
