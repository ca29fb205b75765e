#!/usr/bin/env bash
# Runs every part of the tests of deployment, the programs deploy/test/*.sh, one after the other; `make test-deploy` calls it.
#
#   deploy/test/run.sh [PART…]      such as: deploy/test/run.sh nginx compose
#
# A part ends with 0 when it passed, with 77 when this machine cannot run it (its last line says why), with anything else
# when it failed. A line `NOT RUN: …` of a part that passed names something that it had to leave out. The summary repeats
# both, so that nothing is missing unnoticed. Each part's output stays in target/test-deploy/.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly PART_SECONDS_MAX=1200
readonly LOGS="${CARGO_TARGET_DIR:-target}/test-deploy"

main() {
    local parts=("$@") part log started code failed=0
    ((${#parts[@]})) || for part in deploy/test/*.sh; do
        part=$(basename "$part" .sh)
        [[ $part == run || ! -x deploy/test/$part.sh ]] || parts+=("$part")
    done
    mkdir -p "$LOGS"
    local left_out=()
    for part in "${parts[@]}"; do
        log="$LOGS/$part.log" started=$SECONDS code=0
        timeout --kill-after=60 "$PART_SECONDS_MAX" "deploy/test/$part.sh" >"$log" 2>&1 </dev/null || code=$?
        case $code in
        0) tell passed "$part" "$((SECONDS - started)) s" ;;
        77)
            tell 'not run' "$part" "$(tail -n 1 "$log")"
            left_out+=("$part: $(tail -n 1 "$log")")
            ;;
        *)
            failed=$((failed + 1))
            tell FAILED "$part" "$((SECONDS - started)) s, exit code $code; $log ends with:"
            tail -n 25 "$log" | sed 's/^/    /'
            ;;
        esac
        mapfile -t -O "${#left_out[@]}" left_out < <(sed -n "s/^NOT RUN: /$part: /p" "$log")
    done
    echo
    echo "${#parts[@]} parts, $failed failed"
    if ((${#left_out[@]})); then
        echo 'Not run on this machine:'
        printf '  %s\n' "${left_out[@]}"
    fi
    ((failed == 0))
}

tell() { printf '%-8s %-12s %s\n' "$@"; }

main "$@"
