#!/usr/bin/env bash
# What the scripts of perf/ have in common: brings what is missing, builds, and runs perf/harness/.
#   perf/harness.sh compare|targets|profiles|cluster|faults|citus
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=perf
[[ $1 != cluster ]] || purpose=cluster
# No load by wrk.
[[ $1 != faults ]] || purpose=run
deploy/setup.sh "$purpose"
cargo build --release --locked --bin ingestd --example harness
target=${CARGO_TARGET_DIR:-target}
export INGESTD=$target/release/ingestd
export RUN_FOLDER=${RUN_FOLDER:-perf/runs/$(date -u +%Y-%m-%d)-$(uname -n)}
"$target/release/examples/harness" "$1"
echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo none)"
