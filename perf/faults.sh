#!/usr/bin/env bash
# One fault stays alone: a healthy and an urgent stream beside each of some thirty faults of PostgreSQL, its tables and its
# users, each held against a control run without it; then everything acknowledged is counted. Over an hour.
#   perf/faults.sh
#   FAULT_SECONDS=60           how long each fault lasts, and its control run
#   FAULTS=share-lock,detached only these; a name that does not exist lists all
# The table goes to perf/runs/<date>-<host>/faults.md. What is measured how: perf/harness/faults/. One fault needs a small
# disk, which only root can mount; it is left out otherwise, and that is said.
exec "$(dirname "$0")/harness.sh" faults
