#!/usr/bin/env bash
# The server against the limit that PostgreSQL sets, interleaved, medians of ROUNDS; about six minutes.
#   perf/compare.sh
#   ROUNDS=3 SECONDS_EACH=8 CONNECTIONS=16 EVENTS=1000 RAW_CONNECTIONS=2 RAW_ROWS=20000 WARM_ROWS=4000000
#   BASELINE=DIR   measures another server of the same API, too: DIR/run.sh serves on PORT with DATABASE_URL, REDIS_URL, ACK
# Raw figures, table and plots go to perf/runs/<date>-<host>/. What is measured how: perf/harness/.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/setup.sh perf
cargo build --release --locked --bin ingestd --example harness
target=${CARGO_TARGET_DIR:-target}
export INGESTD=$target/release/ingestd
export RUN_FOLDER=${RUN_FOLDER:-perf/runs/$(date -u +%Y-%m-%d)-$(uname -n)}
"$target/release/examples/harness" compare
echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo none)"
