#!/usr/bin/env bash
# deploy/prometheus and deploy/grafana against real programs: promtool on configuration, rules and their tests; two nodes
# under load on a PostgreSQL of their own; a Prometheus that scrapes them with the shipped configuration, but for the job's
# name, which is the user's choice; PostgreSQL stopped until IngestdDatabaseAway fires and started until it ends; every
# query of rules and dashboard.
#
#   INGESTD_BIN=…    the server (default: target/release/ingestd)
#   INGESTD_PG_BIN=… folder of PostgreSQL's programs (default: what deploy/setup.sh brought, or the newest installed)
#   KEEP=folder      keep what was written there, Prometheus' data too
#
# Exit code: 0 passed, 77 cannot run here (the last line says why), anything else failed. Takes about two minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly ROOT=$PWD
readonly SERVER=$(readlink -f "${INGESTD_BIN:-${CARGO_TARGET_DIR:-target}/release/ingestd}")
source deploy/test/postgres.sh
readonly CHECK=(python3 "$ROOT/deploy/test/prometheus_check.py")
readonly JOB=ingestion-api

say() { printf 'prometheus: %s\n' "$1"; }
cannot() { say "cannot run here: $1"; exit 77; }
fail() {
    say "FAILED: $1" >&2
    tail -n 20 "$WORK"/*.log >&2 2>/dev/null || true
    exit 1
}

main() {
    local program
    for program in prometheus promtool python3 curl setpriv; do
        command -v "$program" >/dev/null || cannot "no $program (apt-get install prometheus python3 curl util-linux)"
    done
    [[ -x $SERVER ]] || cannot "no server at $SERVER: make build, or set INGESTD_BIN"
    find_postgres || cannot 'no PostgreSQL programs: deploy/setup.sh run brings them, or set INGESTD_PG_BIN'
    postgres_runs_here || cannot "PostgreSQL does not run as root, and nobody may not run $PG_BIN/initdb"
    WORK=${KEEP:-$(mktemp -d)}
    mkdir -p "$WORK"
    WORK=$(readlink -f "$WORK")
    CHILDREN=()
    trap clean_up EXIT
    check_files
    start_postgres
    start_node 1
    start_node 2
    check_exposition
    start_prometheus
    start_load
    "${CHECK[@]}" "$PROMETHEUS" healthy "$JOB" || fail 'with everything working something is wrong already'
    stop_postgres_until_it_is_told
    "${CHECK[@]}" "$PROMETHEUS" queries "$ROOT/deploy/grafana/dashboards/ingestd.json" "$JOB" || fail 'rules or dashboard'
    say passed
}

clean_up() {
    local child
    for child in "${CHILDREN[@]}"; do kill -TERM "$child" 2>/dev/null || true; done
    for child in "${CHILDREN[@]}"; do wait "$child" 2>/dev/null || true; done
    [[ ! -d $WORK/postgres/data ]] || pg_ctl stop -m immediate >/dev/null 2>&1 || true
    [[ -n ${KEEP:-} ]] || rm -rf "$WORK"
}

# until_true SECONDS COMMAND…: waits for it, no longer than that.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

check_files() {
    local folder=$ROOT/deploy/prometheus
    promtool check config "$folder/prometheus.yml" >"$WORK/check_config.log" 2>&1 || fail 'promtool check config'
    promtool check rules "$folder/rules.yml" >"$WORK/check_rules.log" 2>&1 || fail 'promtool check rules'
    promtool test rules "$folder"/rules_test*.yml >"$WORK/test_rules.log" 2>&1 || fail 'promtool test rules'
    "${CHECK[@]}" - dashboard "$ROOT/deploy/grafana/dashboards/ingestd.json" || fail 'the dashboard'
    "${CHECK[@]}" - runbook "$folder/rules.yml" "$folder/RUNBOOK.md" || fail 'the runbook'
    say 'configuration, rules, their tests, the dashboard and the runbook are in order'
}

# --- Nodes and load ---

start_postgres() {
    pg_init || fail initdb
    pg_start || fail 'PostgreSQL does not start'
    DATABASE_URL="postgresql://ingestd@${WORK//\//%2F}%2Fpostgres:5432/postgres"
}

# start_node N: sets NODES[N] to its host and port.
start_node() {
    local log=$WORK/node-$1.log
    mkdir "$WORK/node-$1"
    (
        cd "$WORK/node-$1"
        # A small journal, so that an outage of seconds makes it grow.
        DATABASE_URL=$DATABASE_URL LISTEN_ADDR=127.0.0.1:0 NODE_ID="node-$1" JOURNAL_MAX_MB=256 \
            exec "$SERVER" serve >"$log" 2>&1
    ) &
    CHILDREN+=($!)
    until_true 60 grep -q 'listening on' "$log" || fail "node $1 does not listen"
    NODES[$1]=$(sed -nE 's/.*listening on http:\/\/([0-9.:]+).*/\1/p' "$log" | head -n 1)
}

start_load() {
    local node
    for node in "${NODES[@]}"; do
        # Until PostgreSQL is stopped, while it is, and after: the load ends by itself at last.
        "$SERVER" load --url "http://$node" --rate 5000 --batch 100 --priority mixed --duration 90s --check none \
            >"$WORK/load-${node##*:}.log" 2>&1 &
        CHILDREN+=($!)
        bad_requests "$node" &
        CHILDREN+=($!)
    done
}

# bad_requests NODE: an event that validation rejects, and one that PostgreSQL has twice, every second for a while.
bad_requests() {
    local i event='{"event_id":"twice","service_name":"s","event_type":"t","payload":{},"timestamp":"'$(date -u +%FT%TZ)'"}'
    for i in {1..80}; do
        curl -s -o /dev/null "http://$1/v1/ingest/batch" -H 'Content-Type: application/json' -d '{"events":[{}]}' || true
        curl -s -o /dev/null "http://$1/v1/ingest/batch" -H 'Content-Type: application/json' \
            -d '{"events":['"$event"']}' || true
        sleep 1
    done
}

# promtool's linter wants the label "quantile" for summaries only. Ours are gauges beside a histogram, under names that
# docs/monitoring.md promises, and a family cannot be both: that one remark is passed over, and any other fails.
check_exposition() {
    local node remark='_quantile_seconds non-summary metrics should not have "quantile" label$' outcome
    for node in "${NODES[@]}"; do
        curl -sS --max-time 10 "http://$node/v1/metrics" >"$WORK/exposition.txt" || fail "$node tells no metrics"
        outcome=0
        promtool check metrics <"$WORK/exposition.txt" >"$WORK/check_metrics.log" 2>&1 || outcome=$?
        # 3: it parses, and there are remarks.
        [[ $outcome == [03] ]] && ! grep -vE "$remark" "$WORK/check_metrics.log" || fail 'promtool check metrics'
    done
    say "promtool parses $(grep -c '^# TYPE' "$WORK/exposition.txt") metric families and remarks only on the gauges' quantile"
}

# --- Prometheus ---

# The shipped files, with real addresses, another name of the job, and one second where they wait longer.
start_prometheus() {
    local port
    port=$(free_port)
    sed -E "s/ingestd-1:8000/${NODES[1]}/; s/ingestd-2:8000/${NODES[2]}/; s/localhost:9090/127.0.0.1:$port/
        s/job_name: ingestd/job_name: $JOB/
        s/(scrape_interval|scrape_timeout|evaluation_interval): .*/\1: 1s/" deploy/prometheus/prometheus.yml >"$WORK/prometheus.yml"
    sed -E 's/^( *for): .*/\1: 1s/' deploy/prometheus/rules.yml >"$WORK/rules.yml"
    prometheus --config.file="$WORK/prometheus.yml" --storage.tsdb.path="$WORK/tsdb" \
        --web.listen-address="127.0.0.1:$port" >"$WORK/prometheus.log" 2>&1 &
    CHILDREN+=($!)
    PROMETHEUS=http://127.0.0.1:$port
    until_true 30 curl -sSf "$PROMETHEUS/-/ready" || fail 'Prometheus is not ready'
}

stop_postgres_until_it_is_told() {
    pg_ctl stop -m fast >"$WORK/pg_ctl.log" 2>&1 || fail 'PostgreSQL does not stop'
    "${CHECK[@]}" "$PROMETHEUS" firing IngestdDatabaseAway "${NODES[@]}" || fail 'IngestdDatabaseAway does not fire'
    pg_start || fail 'PostgreSQL does not start again'
    "${CHECK[@]}" "$PROMETHEUS" resolved IngestdDatabaseAway || fail 'IngestdDatabaseAway does not end'
    say 'IngestdDatabaseAway fired for both nodes without PostgreSQL, and ended with it'
}

NODES=()
main "$@"
