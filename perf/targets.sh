#!/usr/bin/env bash
# What the server is held to beside throughput: idle CPU, latencies, isolation of priorities, small requests, flat cost,
# bursts; each beside what it is measured against in the same run. About eight minutes.
#   perf/targets.sh
#   RAW_CONNECTIONS=2 RAW_ROWS=20000 WARM_ROWS=4000000
# What is measured how: perf/harness/targets.rs.
exec "$(dirname "$0")/harness.sh" targets
