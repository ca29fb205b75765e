#!/usr/bin/env bash
# The image: hadolint, a real build, and that it runs as it says: as nobody in particular, with nothing to write but its
# volume, healthy when it is, stopped by SIGTERM with everything acknowledged kept.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
source deploy/test/lib/docker.sh

NETWORK='' CONTAINERS=()
trap 'remove_containers; stop_docker' EXIT

main() {
    lint
    start_docker
    build_ingestd
    make_postgres_image
    remove_leftovers
    says_what_it_is
    says_what_is_missing
    runs_and_stops
    keeps_what_it_acknowledged
}

lint() {
    step "hadolint"
    local hadolint="$BROUGHT/deploy/hadolint/bin/hadolint"
    if has "$hadolint" || hadolint=$(type -P hadolint); then
        "$hadolint" Dockerfile
    else
        not_run "hadolint, which is not here: deploy/setup.sh deploy brings it"
    fi
}

says_what_it_is() {
    step "what the image says of itself"
    local version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    [[ $(inspect '{{.Config.User}}') == 65532:65532 ]] || fail "runs as $(inspect '{{.Config.User}}')"
    [[ $(inspect '{{.Config.StopSignal}}') == SIGTERM ]] || fail "stops by $(inspect '{{.Config.StopSignal}}')"
    [[ $(inspect '{{index .Config.Labels "org.opencontainers.image.version"}}') == "$version" ]] ||
        fail "its label does not say the version of Cargo.toml, $version"
    [[ $(docker run --rm --network none "$IMAGE" --version) == "ingestd $version" ]] || fail "another version inside"
    # Symbols would be more than half of it.
    local binary_bytes
    binary_bytes=$(docker run --rm --network none --entrypoint stat "$IMAGE" --format %s /usr/local/bin/ingestd)
    ((binary_bytes < 20 * 1024 * 1024)) || fail "the program has $binary_bytes bytes: is it stripped?"
    echo "image: $(($(inspect '{{.Size}}') / 1000000)) MB, of which the program $((binary_bytes / 1000000))"
}

inspect() { docker image inspect --format "$1" "$IMAGE"; }

says_what_is_missing() {
    step "what it says without keys and without a database"
    local code=0
    docker run --rm --network none "$IMAGE" >"$WORK/said" 2>&1 || code=$?
    ((code == 2)) && grep -q 'set API_KEYS_FILE .* or AUTH=off' "$WORK/said" || fail "without keys: $code, $(cat "$WORK/said")"
    code=0
    docker run --rm --network none --env AUTH=off "$IMAGE" >"$WORK/said" 2>&1 || code=$?
    ((code == 1)) && grep -q 'DATABASE_URL' "$WORK/said" || fail "without a database: $code, $(cat "$WORK/said")"
}

runs_and_stops() {
    step "it runs with nothing to write but its volume, and SIGTERM ends it"
    NETWORK=ingestd-test
    docker network create "$NETWORK" >/dev/null
    echo ingestd >"$WORK/password" && chmod 444 "$WORK/password" && chmod 711 "$WORK"
    run ingestd-test-postgres --env POSTGRES_USER=ingestd --env POSTGRES_DB=ingestd \
        --env POSTGRES_PASSWORD_FILE=/password --volume "$WORK/password:/password:ro" \
        "$(image_of docker-compose.yml postgres)"
    run ingestd-test-node --read-only --cap-drop ALL --security-opt no-new-privileges --env AUTH=off \
        --env DATABASE_URL=postgresql://ingestd:ingestd@ingestd-test-postgres/ingestd \
        --volume ingestd-test-journal:/var/lib/ingestd --publish 127.0.0.1::8000 "$IMAGE"
    within 60 health_is healthy || fail "not healthy: $(docker logs ingestd-test-node 2>&1 | tail -n 5)"
    within 60 batch_lands before-stop ||
        fail "a batch does not land: $(docker logs ingestd-test-node 2>&1 | tail -n 5)"
    stop_cleanly
}

# batch_lands ID: sends it until it is completed; the same id is the same batch.
batch_lands() {
    local url
    url="http://$(docker port ingestd-test-node 8000)"
    answers --header 'Content-Type: application/json' --data "$(a_batch "$1")" "$url/v1/ingest/batch" &&
        batch_is "$url" "$1" completed
}

health_is() { [[ $(docker inspect --format '{{.State.Health.Status}}' ingestd-test-node) == "$1" ]]; }

stop_cleanly() {
    local started=$SECONDS
    docker stop --time 30 ingestd-test-node >/dev/null
    local code
    code=$(docker inspect --format '{{.State.ExitCode}}' ingestd-test-node)
    ((code == 0)) || fail "exit code $code after SIGTERM: $(docker logs ingestd-test-node 2>&1 | tail -n 5)"
    echo "stopped in $((SECONDS - started)) s with exit code 0"
}

keeps_what_it_acknowledged() {
    step "a batch acknowledged without PostgreSQL survives SIGTERM and SIGKILL in the volume"
    local url
    docker start ingestd-test-node >/dev/null
    within 60 health_is healthy || fail "not healthy after a new start"
    docker stop --time 30 ingestd-test-postgres >/dev/null
    url="http://$(docker port ingestd-test-node 8000)"
    answers --header 'Content-Type: application/json' --data "$(a_batch away)" "$url/v1/ingest/batch" ||
        fail "no batch is taken without PostgreSQL"
    stop_cleanly
    docker start ingestd-test-node >/dev/null
    within 60 health_is healthy || fail "not healthy without PostgreSQL: its journal has room"
    docker kill --signal KILL ingestd-test-node >/dev/null
    docker start ingestd-test-postgres ingestd-test-node >/dev/null
    url="http://$(docker port ingestd-test-node 8000)"
    within 60 batch_is "$url" away completed || fail "the batch did not land"
}

# run NAME options… IMAGE
run() {
    local name=$1
    shift
    CONTAINERS+=("$name")
    docker run --detach --name "$name" --network "$NETWORK" "$@" >/dev/null
}

remove_containers() {
    ((${#CONTAINERS[@]} == 0)) || docker rm --force --volumes "${CONTAINERS[@]}" >/dev/null 2>&1 || true
    docker volume rm --force ingestd-test-journal >/dev/null 2>&1 || true
    [[ -z $NETWORK ]] || docker network rm "$NETWORK" >/dev/null 2>&1 || true
}

# remove_leftovers: of a run that was killed.
remove_leftovers() {
    CONTAINERS=(ingestd-test-postgres ingestd-test-node) NETWORK=ingestd-test
    remove_containers
    CONTAINERS=() NETWORK=''
}

main
