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
