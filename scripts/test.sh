#!/usr/bin/env bash
# Runs every test, simulated clusters and the demo, and ends with the totals alone on a line.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
status=0

cargo test --release --locked --no-fail-fast 2>&1 | tee "$log"
[ "${PIPESTATUS[0]}" = 0 ] || status=1

# cargo prints one line per test program: "test result: ok. 12 passed; 0 failed; ..."
sum() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++)
    if ($i == word ";") total += $(i - 1) } END { print total + 0 }' "$log"; }
passed=$(sum passed)
failed=$(sum failed)
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
    failed=1 # something did not build, or a test program died
fi

# Simulated clusters from seeds that nobody has run before: every commit has its own, so that what
# fails here fails in the next run, too. Each plan counts as one test.
seed=$((16#$(git rev-parse --short=8 HEAD 2>/dev/null || date +%s)))
simulate() {
    if "$HOLDFAST" sim --seed "$seed" "$@" --threads "$(nproc)" --shrink >"$log" 2>&1; then
        passed=$((passed + 1))
        tail -n 2 "$log"
    else
        failed=$((failed + 1))
        status=1
        tail -n 60 "$log"
    fi
}
simulate --count 1200 --seconds 20
simulate --plan load --count 24 --seconds 10

# The demo counts as one test.
if make --no-print-directory demo DEMO=check; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    status=1
fi

echo
echo "$passed passed, $failed failed"
exit "$status"
