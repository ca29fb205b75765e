#!/usr/bin/env bash
# One, two and three nodes behind nginx on one PostgreSQL and one Redis, all on this machine: events a second, latencies and
# costs, interleaved, medians of ROUNDS; then nodes are added, killed, rolled and taken away under load, and every event is
# counted. Then perf/scale_model computes from it, and is held against it. About five minutes.
#   perf/cluster.sh
#   ROUNDS=3 SECONDS_EACH=8 CONNECTIONS=16 EVENTS=1000 ACK_RATE=30000 RAW_CONNECTIONS=2 RAW_ROWS=20000 WARM_ROWS=4000000
# Figures, tables and the drawing go to perf/runs/<date>-<cores>-cores/, which is committed. What is measured how:
# perf/harness/cluster/. Measure on a machine that has nothing else to do.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUN_FOLDER=${RUN_FOLDER:-perf/runs/$(date -u +%Y-%m-%d)-$(nproc)-cores}
perf/harness.sh cluster
exec perf/scale_model "$RUN_FOLDER"
