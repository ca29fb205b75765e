#!/usr/bin/env bash
# Where a loaded server spends its time: flame graphs of its HTTP, journal and flusher threads, and CPU counters.
#   perf/profile.sh            needs: perf, curl; SECONDS_PROFILED=10 RATE=100000 BATCH=1000
#                            EVENT_BYTES=400 FREQUENCY=4999
# Builds, starts `ingestd serve` with a PostgreSQL of its own in a temporary folder, feeds it with `ingestd load`, waits
# until events are committed, then records for SECONDS_PROFILED. Everything is on 127.0.0.1 and ends with the script.
# Results: perf/runs/<date>-<host>/profile/{http,journal,flush,other}.svg, stacks.folded, stat.txt, run.txt.
# Without hardware counters, as in many virtual machines, samples come from the kernel's clock, which is deaf while
# interrupts are off: what happened then is booked on who lets them in again (finish_task_switch, _raw_spin_unlock_irq*).
# Stacks are unwound by DWARF: the release build, which is what is measured, has no frame pointers.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SECONDS_PROFILED:-10} rate=${RATE:-100000} batch=${BATCH:-1000} bytes=${EVENT_BYTES:-400}
frequency=${FREQUENCY:-4999} target=${CARGO_TARGET_DIR:-target}
fail() { echo "profile: $1" >&2; exit 1; }

command -v perf >/dev/null || fail "perf is missing: apt-get install linux-perf (Debian) or linux-tools-generic (Ubuntu), dnf install perf (Fedora)"
command -v curl >/dev/null || fail "curl is missing: apt-get install curl"
perf record -q -o /dev/null -e cpu-clock true >/dev/null 2>&1 ||
  fail "perf may not record here: as root, sysctl kernel.perf_event_paranoid=1 (a container also needs CAP_PERFMON)"
# Bytes of stack that a sample copies: with the usual 8192 the outermost frames of a worker are missing.
graph=dwarf,32768
cargo build --release --locked --quiet --bin ingestd --example flamegraph
ingestd=$target/release/ingestd flamegraph=$target/release/examples/flamegraph

out=perf/runs/$(date -u +%Y-%m-%d)-$(uname -n)/profile
mkdir -p "$out"
rm -f "$out"/*.svg "$out"/stacks.folded "$out"/stat.txt "$out"/run.txt
work=$(mktemp -d) ; chmod 755 "$work"
server='' load='' stat=''
finish() {
  for pid in $stat $load $server; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

unset DATABASE_URL REDIS_URL
LISTEN_ADDR=127.0.0.1:0 DATA_DIR=$work/data JOURNAL_DIR=$work/journal "$ingestd" serve --embedded >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 600); do
  grep -q 'listening on http://' "$work/server.log" && break
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
base=$(grep -o 'http://[0-9.:]*' "$work/server.log" | tail -1) || { cat "$work/server.log" >&2; fail "the server did not start"; }
metric() { curl -s "$base/v1/metrics" | awk -v name="ingestd_$1" '$1 == name { print $2 }'; }

# Longer than needed: it is ended once the samples are there.
"$ingestd" load --url "$base" --rate "$rate" --batch "$batch" --event-bytes "$bytes" --check none \
  --duration $((seconds + 60))s >"$work/load.log" 2>&1 &
load=$!
for _ in $(seq 300); do
  [ "$(metric events_committed_total)" -ge $((rate / 2)) ] 2>/dev/null && break
  kill -0 "$load" 2>/dev/null || break
  sleep 0.1
done
kill -0 "$load" 2>/dev/null || { cat "$work/load.log" >&2; fail "the load ended before the profile began"; }

# A virtual machine often has no hardware counters; then time is sampled by the kernel's clock instead.
event=cycles unit=cycles counters=cycles,instructions,branches,branch-misses,cache-references,cache-misses
if ! perf stat -e cycles -o "$work/probe" true || grep -qE '<not (supported|counted)>' "$work/probe"; then
  echo "profile: this machine gives perf no hardware counters: samples by cpu-clock, and no cycles, instructions or misses"
  event=cpu-clock unit=ns counters=''
fi
committed=$(metric events_committed_total) begun=$(date +%s.%N)
perf stat -p "$server" -o "$out/stat.txt" \
  -e "task-clock,context-switches,cpu-migrations,page-faults${counters:+,$counters}" -- sleep "$seconds" &
stat=$!
perf record -q -p "$server" -e "$event" -F "$frequency" --call-graph "$graph" -o "$work/perf.data" -- sleep "$seconds" \
  >"$work/record.log" 2>&1 || { cat "$work/record.log" >&2; fail "perf record failed"; }
wait "$stat" || fail "perf stat failed: $(cat "$out/stat.txt")"
stat=''
committed=$(awk -v n="$(($(metric events_committed_total) - committed))" -v a="$begun" -v b="$(date +%s.%N)" 'BEGIN { printf "%.0f", n / (b - a) }')
kill "$load" 2>/dev/null || true

commit=$(git rev-parse --short HEAD 2>/dev/null || echo none)
subtitle="$event at $frequency Hz for $seconds s, $committed events/s committed, commit $commit"
{
  echo "perf/profile.sh: $subtitle"
  echo "load: rate $rate, $batch events of $bytes bytes a batch"
  echo "machine: $(nproc) cores, $(awk -F: '/model name/ { gsub(/^ */, "", $2); print $2; exit }' /proc/cpuinfo), Linux $(uname -r)"
  # Inlined functions would each take a run of addr2line.
  perf script --no-inline -i "$work/perf.data" 2>"$work/script.log" | "$flamegraph" "$out" "$subtitle" "$unit"
} | tee "$out/run.txt"
cat "$out/stat.txt"
[ -n "$counters" ] || echo "profile: stat.txt has no hardware counters, because this machine has none for perf"
echo "profile: $out"
