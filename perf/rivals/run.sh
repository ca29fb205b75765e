#!/usr/bin/env bash
# The HTTP layer in use beside may_minihttp: each reads a body of 100 kB and answers; interleaved, medians of ROUNDS.
#   perf/rivals/run.sh         needs wrk: deploy/setup.sh perf      ROUNDS=3 SECONDS_EACH=5 CONNECTIONS=16 WORKERS=1
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-5} connections=${CONNECTIONS:-16} workers=${WORKERS:-1}
export EVENTS=250
target=${CARGO_TARGET_DIR:-target}/rivals
command -v wrk >/dev/null || { echo "rivals: wrk is missing: run deploy/setup.sh perf" >&2; exit 1; }
cargo build --release --locked --quiet --manifest-path perf/rivals/Cargo.toml --target-dir "$target"
work=$(mktemp -d) pid=''
finish() {
  [ -z "$pid" ] || { kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; } || true
  rm -rf "$work"
}
trap finish EXIT
ticks=$(getconf CLK_TCK)
cpu_ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
port=$((20000 + RANDOM % 20000))
for round in $(seq "$rounds"); do
  for listener in hyper may; do
    port=$((port + 1))
    "$target/release/$listener-listener" "$port" "$workers" >"$work/log" &
    pid=$!
    for _ in $(seq 50); do grep -q listening "$work/log" && break; sleep 0.1; done
    before=$(cpu_ticks "$pid")
    load=$(wrk -t1 -c"$connections" -d"${seconds}s" -s perf/load.lua "http://127.0.0.1:$port/v1/ingest/batch" | tail -1)
    used=$(($(cpu_ticks "$pid") - before))
    kill "$pid" ; wait "$pid" 2>/dev/null || true ; pid=''
    requests=$(sed 's/.*"requests":\([0-9]*\).*/\1/' <<<"$load")
    cost=$(awk -v t="$used" -v hz="$ticks" -v n="$requests" 'BEGIN { printf "%.1f", t / hz * 1e6 / n }')
    echo "round $round: $listener $((requests / seconds)) requests/s, $cost us of CPU a request"
    echo "$cost" >>"$work/$listener"
  done
done
awk -v h="$(median <"$work/hyper")" -v m="$(median <"$work/may")" \
  'BEGIN { printf "median: hyper %.1f us, may_minihttp %.1f us a request of 100 kB: hyper does %.2f x as many with the same CPU\n", h, m, m / h }'
