#!/usr/bin/env bash
# What tables spread over a Citus cluster cost (SHARDING=citus) beside plain ones on its coordinator, with requests of 1000
# and of 10,000 events, interleaved, medians of ROUNDS; about seven minutes.
#   INGESTD_TEST_CITUS_URL=postgresql://postgres@127.0.0.1:5432/postgres perf/citus.sh
#   ROUNDS=3 SECONDS_EACH=8 CONNECTIONS=16
# The variable names the coordinator, by a superuser; the cluster runs already, all of its nodes on this machine, where
# their CPU is read. Two databases are made in it, and dropped. Figures go to perf/runs/<date>-<host>/citus.md. They show
# cost, not scaling: coordinator, workers, server and load share the machine. What is measured how: perf/harness/citus.rs.
set -euo pipefail
if [[ -z ${INGESTD_TEST_CITUS_URL:-} ]]; then
  echo "citus: INGESTD_TEST_CITUS_URL is not set: it names the coordinator of a Citus cluster on this machine" >&2
  exit 1
fi
exec "$(dirname "$0")/harness.sh" citus
