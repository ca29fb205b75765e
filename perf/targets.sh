#!/usr/bin/env bash
# What the server is held to beside throughput: idle CPU, latencies, isolation of priorities, small requests, flat cost,
# bursts; each beside what it is measured against in the same run. About five minutes.
#   perf/targets.sh
#   RAW_CONNECTIONS=2 RAW_ROWS=20000 WARM_ROWS=4000000
# What is measured how: perf/harness/targets.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/setup.sh perf
cargo build --release --locked --bin ingestd --example harness
target=${CARGO_TARGET_DIR:-target}
export INGESTD=$target/release/ingestd
export RUN_FOLDER=${RUN_FOLDER:-perf/runs/$(date -u +%Y-%m-%d)-$(uname -n)}
"$target/release/examples/harness" targets | tee "$RUN_FOLDER/targets.md"
echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo none)"
