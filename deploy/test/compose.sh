#!/usr/bin/env bash
# Both Compose files for real: two nodes behind nginx, one of them killed under load; then production's passwords, keys,
# HTTPS and limits.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
source deploy/test/lib/docker.sh

# Grafana is not in Debian, so its image cannot be made here.
readonly SERVICES=(nginx prometheus)
COMPOSE=() FILES=()
trap 'take_down; stop_docker' EXIT

main() {
    find_compose
    chmod 711 "$WORK" # bind mounts need its folders to be entered
    copy_files
    files_are_valid
    HTTP_PORT=$(free_port) HTTPS_PORT=$(free_port) PROMETHEUS_PORT=$(free_port)
    export HTTP_PORT HTTPS_PORT PROMETHEUS_PORT INGESTD_CPUS=1 POSTGRES_CPUS=1
    readonly URL=http://localhost:$HTTP_PORT
    start_docker
    build_ingestd
    make_postgres_image
    make_image_of nginx nginx
    make_image_of redis redis
    make_image_of prometheus prom/prometheus
    cd "$WORK/compose"
    for_a_try
    for_production
    not_run "docker-compose.citus.yml beyond its validity: Citus is in no package of Debian, so its image cannot be made"
    not_run "grafana, whose image cannot be made of Debian packages (its configuration is another part's)"
}

find_compose() {
    if docker compose version >/dev/null 2>&1; then
        COMPOSE=(docker compose)
    elif has docker-compose; then
        COMPOSE=(docker-compose)
        not_run "Compose v2, which this machine lacks; it was docker-compose $(docker-compose version --short)"
    else
        cannot "no Compose: deploy/setup.sh deploy brings it"
    fi
}

# copy_files: so that secrets and what a part writes never land in the clone.
copy_files() {
    mkdir "$WORK/compose"
    cp -a docker-compose.yml docker-compose.prod.yml docker-compose.citus.yml deploy "$WORK/compose/"
}

files_are_valid() {
    step "the files are valid"
    "${COMPOSE[@]}" --file docker-compose.yml config --quiet
    "${COMPOSE[@]}" --file docker-compose.yml --file docker-compose.prod.yml config --quiet
    local over
    for over in '' docker-compose.prod.yml; do
        "${COMPOSE[@]}" --file docker-compose.yml ${over:+--file "$over"} --file docker-compose.citus.yml config >"$WORK/citus.yml"
        citus_fits_together "$WORK/citus.yml"
    done
}

# citus_fits_together RENDERED: who is to be a worker is a service, and every node of ingestd knows that there are some.
citus_fits_together() {
    local workers worker
    workers=$(sed -n 's/^ *WORKERS: //p' "$1")
    [[ -n $workers ]] || fail "no WORKERS in docker-compose.citus.yml"
    for worker in $(sed -n 's/^ *COORDINATOR: //p' "$1") $workers; do
        grep -q "^  $worker:\$" "$1" || fail "docker-compose.citus.yml has no service $worker"
    done
    [[ $(grep -c '^ *SHARDING: citus$' "$1") == $(grep -c '^  ingestd-[0-9]*:$' "$1") ]] || fail "a node without SHARDING=citus"
}

compose() { "${COMPOSE[@]}" --project-name ingestd-test "${FILES[@]}" "$@"; }

up() {
    # Of a run that was killed.
    compose down --volumes --timeout 30 >/dev/null 2>&1 || true
    compose up --detach --no-build "${SERVICES[@]}" >"$WORK/up.log" 2>&1 || { cat "$WORK/up.log"; fail "compose up"; }
}

for_a_try() {
    FILES=(--file docker-compose.yml)
    step "docker-compose.yml: up, then one curl"
    up
    within 60 answers "$URL/v1/health" || { compose logs --tail 5; fail "no health"; }
    curl --silent "$URL/v1/health" | grep -q '"status":"healthy"' || fail "not healthy: $(curl --silent "$URL/v1/health")"
    postgres_is_set_up
    prometheus_scrapes
    one_killed_under_load
    stops_cleanly
    take_down
}

postgres_is_set_up() {
    step "PostgreSQL has the small profile"
    local setting
    for setting in shared_buffers=256MB effective_cache_size=1GB maintenance_work_mem=128MB work_mem=32MB wal_buffers=16MB \
        checkpoint_completion_target=0.9 random_page_cost=1.1 effective_io_concurrency=200; do
        [[ $(sql "SHOW ${setting%=*}") == "${setting#*=}" ]] || fail "${setting%=*} is $(sql "SHOW ${setting%=*}")"
    done
}

sql() { compose exec -T postgres psql --host /var/run/postgresql --username ingestd --dbname ingestd --tuples-only --no-align --command "$1"; }

prometheus_scrapes() {
    step "Prometheus has both nodes"
    within 60 both_nodes_are_up || fail "Prometheus does not have both nodes"
}

both_nodes_are_up() {
    curl --silent --get --data-urlencode 'query=sum(up{job="ingestd"})' http://localhost:$PROMETHEUS_PORT/api/v1/query |
        grep -q '"2"\]'
}

one_killed_under_load() {
    step "one node killed under load"
    local load_pid
    "$INGESTD" load --url "$URL" --rate 10000 --batch 20 --duration 15s --json "$WORK/report.json" >"$WORK/load.log" 2>&1 &
    load_pid=$!
    note_child "$load_pid"
    sleep 4
    docker kill --signal KILL "$(compose ps -q ingestd-1)" >/dev/null
    sleep 6
    # What it had acknowledged is in its volume.
    docker start "$(compose ps -q ingestd-1)" >/dev/null
    # Its exit code counts answers of 502 as well: the report says how many there were.
    wait "$load_pid" || true
    lossless "$WORK/report.json" || { tail -n 12 "$WORK/load.log"; fail "events were lost or doubled"; }
    [[ $(sql 'SELECT count(*) - count(DISTINCT event_id) FROM events') == 0 ]] || fail "an event is there twice"
}

stops_cleanly() {
    step "a node stops with exit code 0"
    local container
    container=$(compose ps -q ingestd-2)
    compose stop ingestd-2 >/dev/null 2>&1
    [[ $(docker inspect --format '{{.State.ExitCode}}' "$container") == 0 ]] || fail "exit code is not 0"
}

for_production() {
    FILES=(--file docker-compose.yml --file docker-compose.prod.yml)
    step "docker-compose.prod.yml: passwords, keys and HTTPS of its own"
    has openssl || cannot "no openssl"
    make_secrets || fail "no secrets"
    up
    local https=https://localhost:$HTTPS_PORT trust=(--cacert secrets/tls/chain.pem)
    within 90 answers "${trust[@]}" "$https/v1/health" || { compose logs --tail 5; fail "no health by HTTPS"; }
    local key
    key="Authorization: Bearer $(cat secrets/first_key)"
    local batch=("${trust[@]}" --header 'Content-Type: application/json' --data "$(a_batch production)")
    [[ $(status_of "$https/v1/ingest/batch" "${batch[@]}") == 401 ]] || fail "a batch is taken without a key"
    [[ $(status_of "$https/v1/ingest/batch" "${batch[@]}" --header "$key") == 202 ]] || fail "a batch with a key is not taken"
    within 30 batch_is "$https" production completed "${trust[@]}" --header "$key" || fail "the batch did not land"
    [[ $(status_of "$URL/v1/health") == 403 ]] || fail "plain HTTP is served"
    nothing_else_is_published
    nothing_can_be_written
    within 60 both_nodes_are_up || fail "Prometheus' key does not work"
    take_down
}

# make_secrets: the script calls the program `docker`, so it gets the one that goes with this daemon.
make_secrets() {
    mkdir "$WORK/bin"
    printf '#!/bin/sh\nexec %s "$@"\n' "$([[ -x /usr/bin/docker ]] && echo /usr/bin/docker || type -P docker)" >"$WORK/bin/docker"
    chmod +x "$WORK/bin/docker"
    PATH="$WORK/bin:$PATH" deploy/compose/make-secrets.sh
}

nothing_else_is_published() {
    local service
    for service in postgres redis ingestd-1 ingestd-2; do
        [[ -z $(docker port "$(compose ps -q "$service")") ]] || fail "$service is published"
    done
}

nothing_can_be_written() {
    local service
    for service in "${SERVICES[@]}" postgres redis ingestd-1 ingestd-2; do
        [[ $(docker inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.Memory}}' \
            "$(compose ps -q "$service")") =~ ^true\ \[ALL\]\ [1-9] ]] || fail "$service has too many rights"
    done
}

take_down() { ((${#FILES[@]} == 0)) || compose down --volumes --timeout 30 >/dev/null 2>&1 || true; }

main
