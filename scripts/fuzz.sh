#!/usr/bin/env bash
# Runs a coverage-guided fuzzer (libFuzzer, on the stable toolchain) over one of the readers.
#
#   scripts/fuzz.sh nbd|peer|disk|index|catalog [SECONDS]
#
# What it finds interesting is kept in the target directory and taken up by the next run. An input
# that breaks a reader is left in fuzz/ and named; put it into tests/corpus/TARGET once it is fixed.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

target=${1:?usage: scripts/fuzz.sh nbd|peer|disk|index|catalog [SECONDS]}
seconds=${2:-60}
build=${CARGO_TARGET_DIR:-$HOME/.cache/holdfast/target}/fuzz
corpus=$build/corpus/$target

# What cargo-fuzz passes, so that it needs no nightly and no other tool.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1 --cfg fuzzing"
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts are left alone.
RUSTFLAGS=$coverage cargo build --release --locked --target "$host" --target-dir "$build" \
    --bin "$target"
cargo build --release --locked --target-dir "$build/plain" --bin write_seeds
mkdir -p "$corpus"
"$build/plain/release/write_seeds" "$target" "$corpus"

folders=("$corpus")
if [ -d "../tests/corpus/$target" ]; then folders+=("../tests/corpus/$target"); fi
exec "$build/$host/release/$target" "${folders[@]}" \
    -max_total_time="$seconds" -max_len=65536 -timeout=10 -print_final_stats=1
