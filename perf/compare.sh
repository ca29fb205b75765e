#!/usr/bin/env bash
# The server against the limit that PostgreSQL sets, interleaved, medians of ROUNDS; about seven minutes.
#   perf/compare.sh
#   ROUNDS=3 SECONDS_EACH=8 CONNECTIONS=16 EVENTS=1000 RAW_CONNECTIONS=2 RAW_ROWS=20000 WARM_ROWS=4000000
#   BASELINE=DIR   measures another server of the same API, too: DIR/run.sh serves on PORT with DATABASE_URL, REDIS_URL, ACK
# Raw figures, table and plots go to perf/runs/<date>-<host>/. What is measured how: perf/harness/.
exec "$(dirname "$0")/harness.sh" compare
