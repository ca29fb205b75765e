#!/usr/bin/env bash
# Coverage-guided fuzzing of parsers, journal and server with libFuzzer, on the stable compiler.
#   fuzz/run.sh [SECONDS] [TARGET…]      60 seconds of each target by default
# Inputs that reach new code are kept in target/fuzz/<target>, and one that fails beside them; to see it again:
#   target/fuzz/<triple>/release/<target> FILE
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(scan timestamp block formats journal http)
out=${CARGO_TARGET_DIR:-target}/fuzz
# The server that `http` asks keeps its journal there.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
host=$(rustc -vV | sed -n 's/^host: //p')
# What libFuzzer wants of LLVM. `--target` keeps these flags away from build scripts.
coverage=(-Cpasses=sancov-module -Ccodegen-units=1 --cfg=fuzzing)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  coverage+=("-Cllvm-args=-sanitizer-coverage-$option")
done
RUSTFLAGS="${coverage[*]}" cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$out"
for target in "${targets[@]}"; do
  corpus=$out/$target
  mkdir -p "$corpus"
  [ ! -d "fuzz/seeds/$target" ] || cp -n "fuzz/seeds/$target"/* "$corpus"
  echo "fuzz: $target for $seconds s"
  if ! "$out/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -verbosity=0 -artifact_prefix="$corpus-failed-" "$corpus" >"$out/$target.log" 2>&1; then
    tail -40 "$out/$target.log" >&2
    exit 1
  fi
  sed -n 's/^stat::number_of_executed_units: */  inputs tried: /p' "$out/$target.log"
done
