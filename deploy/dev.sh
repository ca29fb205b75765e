#!/usr/bin/env bash
# Builds and serves, and does both again whenever a source changes. Arguments are the server's: deploy/dev.sh --ack commit
#
# The old server goes on while the new one is built, and if it cannot be built. It is ended by SIGTERM, so that it commits
# what is queued and stops its PostgreSQL; data stay in ./data. Ctrl-C does the same, and ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly BINARY="${CARGO_TARGET_DIR:-target}/debug/ingestd"
SERVER=''
BUILT_AT="$(mktemp)" # older than a source that has changed since the build began

main() {
    trap end EXIT
    trap 'exit 0' INT TERM
    while true; do
        touch "$BUILT_AT"
        if cargo build --locked; then
            stop
            start "$@"
        else
            echo 'dev: not built; the server that runs stays, until the next change' >&2
        fi
        until changed; do wait_for_change; done
    done
}

sources() { find Cargo.toml Cargo.lock src sql -type f; }

changed() { [[ -n $(find Cargo.toml Cargo.lock src sql -newer "$BUILT_AT" -print -quit) ]]; }

# entr in the background and `wait`: a signal is then acted on at once. It ends after the first change (-z), does nothing
# before (-p), and ends too when a file is new (-d).
wait_for_change() {
    sources | entr -dnpz true >/dev/null 2>&1 &
    WATCHER=$!
    wait "$WATCHER" || sleep 0.2
    WATCHER=''
}

# A process group of its own: Ctrl-C reaches this script alone, and the server gets one signal. A second one would end it at
# once.
start() {
    set -m
    "$BINARY" serve "$@" </dev/null &
    SERVER=$!
    set +m
}

stop() {
    [[ -n $SERVER ]] || return 0
    kill -TERM "$SERVER" 2>/dev/null || true
    wait "$SERVER" 2>/dev/null || true
    SERVER=''
}

end() {
    rm -f "$BUILT_AT"
    [[ -z $WATCHER ]] || kill "$WATCHER" 2>/dev/null || true
    stop
}

main "$@"
