#!/usr/bin/env bash
# What settings of PostgreSQL do for rows a second: the shipped profiles, and single settings beside the small one,
# interleaved, medians of ROUNDS; about ten minutes.
#   perf/postgres.sh
#   ROUNDS=3 SECONDS_EACH=15 CONNECTIONS=16 EVENTS=1000 WARM_ROWS=1000000
# Figures go to perf/runs/<date>-<host>/profiles.md. What is measured how: perf/harness/profiles.rs.
export SECONDS_EACH=${SECONDS_EACH:-15} WARM_ROWS=${WARM_ROWS:-1000000}
exec "$(dirname "$0")/harness.sh" profiles
