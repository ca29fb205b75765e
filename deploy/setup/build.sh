# What building takes. Sourced by deploy/setup.sh.
# shellcheck shell=bash

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
    local pinned brought=''
    pinned=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    # The directory where rustup puts cargo; a login shell would have it on its PATH.
    local home_bin="${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin"
    [[ ! -x $home_bin/cargo ]] || PATH="$home_bin:$PATH"
    # RUSTC may name another compiler, as it does to cargo.
    [[ -z ${RUSTC:-} ]] || rust_is_recent "$pinned" ||
        fail "no cargo, or RUSTC=$RUSTC is not Rust $pinned or newer: unset RUSTC or set it to one that is"
    # A cargo of rustup runs what rust-toolchain.toml names, and fails where that is not installed.
    if ! rust_is_recent "$pinned"; then
        has rustup || apt rustup || bring_rustup || true
        PATH="$home_bin:$PATH"
        hash -r
        if has rustup; then
            quietly rustup toolchain install "$pinned" --profile minimal --component clippy --component rustfmt || true
            brought=', brought by rustup'
        fi
        hash -r
        rust_is_recent "$pinned" || fail "no Rust $pinned: $(rust_advice "$pinned"), then run this again"
    fi
    say rust "$(cargo --version | cut -d' ' -f1-2)$brought"
}

# rust_advice PINNED: why the toolchain is still not there, as far as this script can find out.
rust_advice() {
    if [[ -n ${RUSTUP_TOOLCHAIN:-} ]]; then
        printf 'RUSTUP_TOOLCHAIN=%s selects another toolchain; unset it' "$RUSTUP_TOOLCHAIN"
    elif has rustup; then
        printf "'rustup toolchain install %s' failed (see .setup/setup.log)" "$1"
    else
        printf 'install rustup (https://rustup.rs)'
    fi
}

# bring_rustup: Rust's own installer, for distributions that do not package it; into the user's home, as it always does.
# It brings no toolchain: the pinned one is installed afterwards.
bring_rustup() {
    has curl || apt curl ca-certificates || return 1
    quietly curl --proto '=https' --tlsv1.2 --fail --silent --show-error --location --max-time 120 \
        --output "$BROUGHT/rustup-init.sh" https://sh.rustup.rs || return 1
    quietly sh "$BROUGHT/rustup-init.sh" -y --no-modify-path --profile minimal --default-toolchain none
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

# --- The newest Rust, to see what it warns of ---

need_newest_rust() {
    has rustup || fail "no rustup: the newest Rust cannot be installed beside the pinned one"
    quietly rustup toolchain install stable --profile minimal --component clippy ||
        fail "'rustup toolchain install stable --component clippy' failed (see .setup/setup.log)"
    say newest "$(rustc +stable --version)"
}
