# What other targets take. Sourced by deploy/setup.sh.
# shellcheck shell=bash

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

# --- Rebuilding on change ---

need_entr() {
    local brought=''
    if ! has entr; then
        apt entr || true
        has entr || fail "no entr (make dev waits for changes with it): run 'apt-get install entr' as root"
        brought=', brought by apt'
    fi
    say entr "$(command -v entr)$brought"
}
