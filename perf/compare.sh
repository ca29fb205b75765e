#!/usr/bin/env bash
# The server against the limit that PostgreSQL sets, interleaved, medians of ROUNDS.
#   perf/compare.sh            needs: make build, wrk; SECONDS_EACH=8 ROUNDS=3 CONNECTIONS=16 EVENTS=1000
# A round: the server (ack=journal) fed by wrk for SECONDS_EACH, measured until everything is committed, then raw
# binary COPY of as many pre-encoded rows over two connections. Same PostgreSQL, same schema, tables emptied
# before each. CPU is the server's own from /proc (all threads; PostgreSQL is another process).
# A raw COPY of WARM_ROWS comes first and does not count: a new PostgreSQL has no WAL files to recycle, and writes each
# one twice, once with zeros. Whoever came first would pay for that, and did: 0.58 in the first round, 0.83 in the third.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-8} rounds=${ROUNDS:-3} connections=${CONNECTIONS:-16} ack=${ACK:-journal} warm=${WARM_ROWS:-4000000}
export EVENTS=${EVENTS:-1000}
target=${CARGO_TARGET_DIR:-target}
command -v wrk >/dev/null || { echo "compare: wrk is missing: run deploy/setup.sh perf, or apt-get install wrk" >&2; exit 1; }
cargo build --release --locked --quiet --bin ingestd --example bench
bench=$target/release/examples/bench ingestd=$target/release/ingestd
work=$(mktemp -d) ; chmod 755 "$work"
started=()
finish() {
  for pid in "${started[@]:-}"; do [ -n "$pid" ] && kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  exec 9>&- || true
  [ -n "${postgres_pid:-}" ] && wait "$postgres_pid" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

mkfifo "$work/hold"
"$bench" postgres "$work/postgres" <"$work/hold" >"$work/url" 2>"$work/postgres.log" &
postgres_pid=$!
exec 9>"$work/hold"
for _ in $(seq 300); do [ -s "$work/url" ] && break; sleep 0.1; done
url=$(head -1 "$work/url")
[ -n "$url" ] || { cat "$work/postgres.log" >&2; exit 1; }
export DATABASE_URL=$url
sql() { "$psql" -qAtX "$url" -c "$1"; }
psql=$(ls .setup/postgresql/*/pginstall/bin/psql 2>/dev/null || command -v psql)
"$ingestd" migrate >/dev/null
"$ingestd" partitions create --month "$(date -u +%Y-%m)" >/dev/null
"$ingestd" partitions create --month "$(date -u -d '20 days ago' +%Y-%m)" >/dev/null
ticks=$(getconf CLK_TCK)
cpu_ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
empty() { sql "TRUNCATE events, ingest_batches, dead_letter_events" ; sql "CHECKPOINT"; }

raw_copy() { "$bench" raw-copy "$url" 2 "$1" 5000 | sed 's/.*rows_per_second":\([0-9]*\).*/\1/'; }

echo "warm-up: raw COPY $(raw_copy "$warm") rows/s"
: >"$work/raw" ; : >"$work/committed" ; : >"$work/cpu" ; : >"$work/ratio" ; : >"$work/during"
for round in $(seq "$rounds"); do
  empty
  LISTEN_ADDR=127.0.0.1:0 JOURNAL_DIR=$work/journal ACK=$ack "$ingestd" serve >"$work/server.log" 2>&1 &
  server=$! ; started=("$server")
  for _ in $(seq 100); do grep -q 'listening on http://' "$work/server.log" && break; sleep 0.1; done
  base=$(grep -o 'http://[0-9.:]*' "$work/server.log" | tail -1)
  cpu_before=$(cpu_ticks "$server") ; begun=$(date +%s.%N)
  load=$(wrk -t1 -c"$connections" -d"${seconds}s" --timeout 30s -s perf/load.lua "$base/v1/ingest/batch" | tail -1)
  metric() { curl -s "$base/v1/metrics" | awk -v name="ingestd_$1" '$1 == name { print $2 }'; }
  during=$(metric events_committed_total) ; wrk_ended=$(date +%s.%N)
  drained() {
    curl -s "$base/v1/metrics" | awk '$1 == "ingestd_events_accepted_total" { a = $2 }
      $1 == "ingestd_events_committed_total" { c = $2 } END { exit !(a == c) }'
  }
  # Rarely: on two cores a loop of curl and awk would cost PostgreSQL a tenth of its rate.
  until drained; do sleep 0.5; done
  ended=$(date +%s.%N) ; cpu_after=$(cpu_ticks "$server")
  committed=$(sql "SELECT count(*) FROM events")
  accepted=$(metric events_accepted_total)
  [ "$committed" = "$accepted" ] || { echo "compare: accepted $accepted but $committed rows" >&2; exit 1; }
  kill -TERM "$server" ; wait "$server" ; started=()
  rm -rf "$work/journal"
  empty
  raw=$(raw_copy "$committed")
  rate=$(awk -v n="$committed" -v a="$begun" -v b="$ended" 'BEGIN { printf "%.0f", n / (b - a) }')
  rate_during=$(awk -v n="$during" -v a="$begun" -v b="$wrk_ended" 'BEGIN { printf "%.0f", n / (b - a) }')
  cpu=$(awk -v t=$((cpu_after - cpu_before)) -v hz="$ticks" -v n="$committed" 'BEGIN { printf "%.3f", t / hz * 1e6 / n }')
  ratio=$(awk -v a="$rate" -v b="$raw" 'BEGIN { printf "%.3f", a / b }')
  echo "round $round: raw COPY $raw rows/s | committed $rate rows/s ($rate_during while the load ran), ratio $ratio | server CPU $cpu us/event | $load"
  echo "$raw" >>"$work/raw" ; echo "$rate" >>"$work/committed" ; echo "$cpu" >>"$work/cpu" ; echo "$ratio" >>"$work/ratio" ; echo "$rate_during" >>"$work/during"
done
echo "median of $rounds: raw COPY $(median <"$work/raw") rows/s, committed $(median <"$work/committed") rows/s ($(median <"$work/during") while the load ran), ratio $(median <"$work/ratio"), server CPU $(median <"$work/cpu") us/event (ack=$ack, $connections connections, $EVENTS events a batch)"
echo "machine: $(nproc) cores, $(awk -F: '/model name/ { gsub(/^ */, "", $2); print $2; exit }' /proc/cpuinfo), Linux $(uname -r), PostgreSQL $(sql 'SHOW server_version'), commit $(git rev-parse --short HEAD 2>/dev/null || echo none)"
