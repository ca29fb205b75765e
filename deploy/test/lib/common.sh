# What the parts of the tests share; sourced by them, after `set -euo pipefail`. It goes to the top of the clone, makes a
# folder for the part, $WORK, and ends at exit, by their numbers, the processes that were noted by `note_child`.

cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
readonly ROOT=$PWD
readonly BROUGHT="$ROOT/.setup"
readonly INGESTD="${INGESTD_BIN:-$ROOT/${CARGO_TARGET_DIR:-target}/release/ingestd}"
WORK=$(mktemp -d)
readonly WORK
CHILDREN=()

step() { printf -- '--- %s\n' "$*"; }

fail() {
    printf 'FAILED: %s\n' "$*"
    exit 1
}

# cannot WHY: this machine cannot run the part.
cannot() {
    printf '%s\n' "$*"
    exit 77
}

not_run() { printf 'NOT RUN: %s\n' "$*"; }

has() { command -v "$1" >/dev/null 2>&1; }

note_child() { CHILDREN+=("$1"); }

# clean_up: parts that need more call it from a trap of their own.
clean_up() {
    local pid
    for pid in "${CHILDREN[@]}"; do
        kill "$pid" 2>/dev/null || continue
        within 40 gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$WORK"
}
trap clean_up EXIT

gone() { ! kill -0 "$1" 2>/dev/null; }

# within SECONDS COMMAND…: true as soon as the command is.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# answers URL [curl options…]: a 2xx.
answers() { curl --fail --silent --output /dev/null --max-time 3 "$@"; }

# status_of URL [curl options…]: the status, and 000 where nothing answers.
status_of() { curl --silent --output /dev/null --max-time 30 --write-out '%{http_code}' "$@" || true; }

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# a_batch ID: one batch of one event.
a_batch() {
    printf '{"batch_id":"%s","events":[{"event_id":"%s","service_name":"test","event_type":"deploy","payload":{}}]}' "$1" "$1"
}

# batch_is URL ID STATUS [curl options…]
batch_is() {
    local url=$1 id=$2 status=$3
    shift 3
    curl --silent --max-time 3 "$@" "$url/v1/batch/$id/status" | grep -q "\"status\":\"$status\""
}

# lossless REPORT: a report of `ingestd load --json` in which everything that was accepted is there once.
lossless() {
    python3 - "$1" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
requests, check = report["requests"], report["loss_check"]
print("load:", json.dumps(requests), json.dumps(check))
sys.exit(not (requests["accepted"] > 0 and check["lost"] == 0 and check["surplus"] == 0 and check["waiting"] == 0))
PYTHON
}

[[ -x $INGESTD ]] || fail "no $INGESTD: make build, or set INGESTD_BIN"
