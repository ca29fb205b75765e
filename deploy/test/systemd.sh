#!/usr/bin/env bash
# deploy/systemd: the unit is verified and its exposure measured, `make install` and `make uninstall` are tried, and
# where systemd-nspawn works a systemd is booted in a container over a copy-on-write view of this machine's files. There
# the installed unit runs as it would on a server: hardening in force, load without loss, reload, watchdog, stop.
#
#   INGESTD_BIN=…    the server (default: target/release/ingestd)
#   INGESTD_PG_BIN=… folder of PostgreSQL's programs (default: what deploy/setup.sh brought, or the newest installed)
#
# Exit code: 0 passed; 77 something cannot run here, the last line says what and why; anything else failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly ROOT=$PWD
readonly SERVER=$(readlink -f "${INGESTD_BIN:-${CARGO_TARGET_DIR:-target}/release/ingestd}")
# Of 10; systemd calls up to 2 "OK". The unit is at 1.4: it needs the network, and to set limits and affinity.
readonly EXPOSURE_MAX=15 # in tenths, as systemd-analyze takes it
source deploy/test/postgres.sh

say() { printf 'systemd: %s\n' "$1"; }
cannot() { say "cannot run here: $1"; exit 77; }
fail() {
    say "FAILED: $1" >&2
    exit 1
}

main() {
    command -v systemd-analyze >/dev/null || cannot 'no systemd-analyze (apt-get install systemd)'
    [[ -x $SERVER ]] || cannot "no server at $SERVER: make build, or set INGESTD_BIN"
    WORK=$(mktemp -d)
    trap clean_up EXIT
    check_install
    check_unit
    check_fragments
    say 'install, uninstall, unit, sysusers, tmpfiles and sysctl are in order'
    check_notify
    may_boot
    boot
    check_service
    say passed
}

clean_up() {
    if [[ -n ${NSPAWN:-} ]]; then
        kill -TERM "$NSPAWN" 2>/dev/null || true
        wait "$NSPAWN" 2>/dev/null || true
    fi
    [[ ! -d $WORK/postgres/data ]] || pg_ctl stop -m immediate >/dev/null 2>&1 || true
    ! mountpoint -q "$WORK/layers/root" || umount "$WORK/layers/root"
    ! mountpoint -q "$WORK/layers" || umount "$WORK/layers"
    rm -rf "$WORK"
}

# until_true SECONDS COMMAND…: waits for it, no longer than that.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

# --- Without a running systemd ---

install_to() { make --no-print-directory "$@" BINARY="$SERVER" >"$WORK/make.log" 2>&1 || fail "make $*: $(tail -n 3 "$WORK/make.log")"; }

check_install() {
    local package=$WORK/package file
    install_to install DESTDIR="$package" PREFIX=/usr
    for file in usr/bin/ingestd usr/lib/systemd/system/ingestd.service usr/lib/sysusers.d/ingestd.conf \
        usr/lib/tmpfiles.d/ingestd.conf usr/lib/sysctl.d/99-ingestd.conf etc/ingestd/ingestd.env; do
        [[ -s $package/$file ]] || fail "make install: no $file"
    done
    # What the unit names is what was installed: the program, and the settings but for the URL that only its owner has.
    for file in $(grep -oE '^(ExecStart|EnvironmentFile)=[^ ]+' "$package/usr/lib/systemd/system/ingestd.service" | cut -d= -f2); do
        [[ -e $package$file ]] || fail "the unit names $file, which make install does not bring"
    done
    echo 'LISTEN_ADDR=127.0.0.1:1' >"$package/etc/ingestd/ingestd.env"
    install_to install DESTDIR="$package" PREFIX=/usr
    grep -q 'LISTEN_ADDR=127.0.0.1:1' "$package/etc/ingestd/ingestd.env" || fail 'make install overwrote settings'
    install_to uninstall DESTDIR="$package" PREFIX=/usr
    [[ $(find "$package" -type f) == "$package/etc/ingestd/ingestd.env" ]] || fail 'make uninstall: more or less is left than settings'
    rm -r "$package"
    install_to install DESTDIR="$package" PREFIX=/usr
    install_to uninstall DESTDIR="$package" PREFIX=/usr
    [[ -z $(find "$package" -type f) && ! -e $package/etc/ingestd ]] || fail "make uninstall left $(find "$package" -type f)"
}

check_unit() {
    # Where the paths that it names exist, as `verify` looks.
    local here=$WORK/here
    install_to install PREFIX="$here" SYSCONFDIR="$here/etc"
    local unit=$here/lib/systemd/system/ingestd.service
    systemd-analyze verify --man=no "$unit" >"$WORK/verify.log" 2>&1 || fail "systemd-analyze verify: $(cat "$WORK/verify.log")"
    # It says on its output what it does not know, and succeeds all the same.
    ! grep -F ingestd.service "$WORK/verify.log" || fail 'systemd-analyze verify has remarks'
    systemd-analyze security --offline=yes --no-pager --threshold=$EXPOSURE_MAX "$unit" >"$WORK/security.log" 2>&1 ||
        fail "more exposed than $EXPOSURE_MAX tenths: $(tail -n 1 "$WORK/security.log")"
    say "$(grep -oE 'Overall exposure level.*: [0-9.]+' "$WORK/security.log")"
}

check_fragments() {
    systemd-sysusers --dry-run "$PWD/deploy/systemd/ingestd.sysusers" >"$WORK/sysusers.log" 2>&1 ||
        fail "sysusers: $(cat "$WORK/sysusers.log")"
    local line key
    while read -r line; do
        [[ $line =~ ^[a-z0-9_.]+\ =\ [0-9]+$ ]] || fail "99-ingestd.conf: $line"
        key=${line%% *}
        [[ -e /proc/sys/${key//.//} ]] || say "note: this kernel, or this container, has no $key"
    done < <(grep -vE '^(#|$)' deploy/systemd/99-ingestd.conf)
}

check_notify() {
    command -v python3 >/dev/null || cannot 'the unit was checked, but not the protocol: no python3'
    mkdir "$WORK/notify"
    python3 deploy/test/notify.py "$SERVER" "$WORK/notify" || fail 'the server does not speak sd_notify as the unit expects'
    say 'the server tells ready, watchdog, reloading and stopping'
}

# --- With a systemd of its own ---

may_boot() {
    local left='the unit was checked, but not started'
    [[ $(id -u) == 0 ]] || cannot "$left: systemd-nspawn needs root"
    command -v systemd-nspawn >/dev/null || cannot "$left: no systemd-nspawn (apt-get install systemd-container)"
    find_postgres || cannot "$left: no PostgreSQL programs: deploy/setup.sh run brings them"
    postgres_runs_here || cannot "$left: nobody may not run $PG_BIN/initdb"
    local layers=$WORK/layers
    mkdir "$layers"
    mount -t tmpfs -o mode=755 tmpfs "$layers" 2>/dev/null || cannot "$left: no tmpfs can be mounted"
    mkdir "$layers"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$layers/root" 2>/dev/null ||
        cannot "$left: no overlay over / can be mounted"
}

# boot: sets LEADER to the container's systemd. It shares the network with this machine, and starts nothing of it.
boot() {
    local root=$WORK/layers/root register=(--register=no)
    pg_init || fail initdb
    DATABASE_PORT=$(free_port)
    pg_start "$DATABASE_PORT" || fail 'PostgreSQL does not start'
    HTTP_PORT=$(free_port)
    rm -rf "$root"/etc/systemd/system/*.wants "$root/etc/ingestd" "$root/var/lib/ingestd"
    make --no-print-directory install DESTDIR="$root" PREFIX=/usr BINARY="$SERVER" >"$WORK/make.log" 2>&1 || fail 'make install'
    sed -i "s/^LISTEN_ADDR=.*/LISTEN_ADDR=127.0.0.1:$HTTP_PORT/" "$root/etc/ingestd/ingestd.env"
    echo "postgresql://ingestd@127.0.0.1:$DATABASE_PORT/postgres" >"$root/etc/ingestd/database_url"
    mkdir -p "$root/etc/systemd/system/ingestd.service.d"
    printf '[Service]\nWatchdogSec=3s\nRestartSec=100ms\n' >"$root/etc/systemd/system/ingestd.service.d/test.conf"
    printf '[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n' >"$root/etc/systemd/system/only-this.target"
    [[ -d /run/systemd/system ]] || register+=(--keep-unit)
    systemd-nspawn --directory="$root" --machine="ingestd-test-$$" "${register[@]}" --console=pipe --link-journal=no \
        --boot -- --unit=only-this.target >"$WORK/nspawn.log" 2>&1 </dev/null &
    NSPAWN=$!
    until_true 20 leader || cannot "the unit was checked, but not started: systemd does not boot in a container: $(tail -n 1 "$WORK/nspawn.log")"
    until_true 30 inside systemctl is-active only-this.target ||
        cannot "the unit was checked, but not started: the container's systemd does not get ready: $(tail -n 1 "$WORK/nspawn.log")"
}

leader() {
    LEADER=$(pgrep -P "$NSPAWN" -x systemd | head -n 1)
    [[ -n $LEADER ]]
}

inside() { nsenter --target "$LEADER" --mount --uts --ipc --pid --cgroup -- "$@"; }
property() { inside systemctl show --property="$1" --value ingestd.service; }

service_fails() { fail "$1: $(inside systemctl status --no-pager --lines=15 ingestd.service 2>&1 || true)"; }

check_service() {
    inside systemd-sysusers && inside systemd-tmpfiles --create ingestd.conf || fail 'sysusers or tmpfiles'
    inside timeout 60 systemctl start ingestd.service || service_fails 'the service does not start'
    # Started means ready: Type=notify.
    [[ $(curl -sS --max-time 5 "http://127.0.0.1:$HTTP_PORT/readyz") == ready ]] || service_fails 'started, and not ready'
    check_confinement
    check_metrics
    "$SERVER" load --url "http://127.0.0.1:$HTTP_PORT" --rate 5000 --batch 100 --duration 3s >"$WORK/load.log" 2>&1 ||
        service_fails "load: $(tail -n 3 "$WORK/load.log")"
    grep -q ' 0 lost, 0 extra' "$WORK/load.log" || fail "load: $(tail -n 1 "$WORK/load.log")"
    inside timeout 30 systemctl reload ingestd.service || service_fails 'reload'
    check_watchdog
    inside timeout 60 systemctl stop ingestd.service || service_fails 'stop'
    [[ $(property Result) == success && $(property ExecMainStatus) == 0 ]] || service_fails 'it did not stop in order'
    check_cores
    say 'started, confined, loaded without loss, reloaded, killed by the watchdog and back, stopped; kept to a core'
}

check_confinement() {
    local status uid
    status=$(inside cat "/proc/$(property MainPID)/status")
    uid=$(inside id -u ingestd)
    grep -qE "^Uid:\s+$uid\s+$uid" <<<"$status" || fail 'it does not run as ingestd'
    grep -qE '^NoNewPrivs:\s+1' <<<"$status" || fail 'it may gain privileges'
    grep -qE '^Seccomp:\s+2' <<<"$status" || fail 'no filter of system calls'
    grep -qE '^CapBnd:\s+0+$' <<<"$status" || fail 'capabilities are left'
    [[ $(inside stat -c %U:%a /var/lib/ingestd) == ingestd:700 ]] || fail 'its state is not its own'
    [[ $(inside stat -c %U:%a /etc/ingestd/database_url) == root:600 ]] || fail 'the URL can be read'
    # What the filter must let through: workers pin themselves, each to a core.
    (($(nproc) == 1)) || grep -qE '^[0-9]+$' <<<"$(cores_of_threads)" || fail 'no worker is pinned to a core'
    ! grep -E ' (WARN|ERROR) ' <<<"$(inside journalctl --no-pager -q -u ingestd)" || fail 'it has warnings'
}

# The server leaves out what it cannot read of itself: an alert on that would never fire, and nobody would be told.
check_metrics() {
    local name
    for name in $(grep -ohE '\bprocess_[a-z_]+' deploy/prometheus/rules.yml deploy/grafana/dashboards/ingestd.json | sort -u); do
        told "$name [0-9.e+]+" || fail "confined, it cannot tell $name"
    done
    told 'ingestd_ready 1' || fail 'ready, and the metrics say otherwise'
    until_true 10 told 'ingestd_database_up 1' || fail 'confined, it does not reach PostgreSQL'
}

told() { curl -sS --max-time 5 "http://127.0.0.1:$HTTP_PORT/v1/metrics" | grep -xE "$1" >/dev/null; }

cores_of_threads() {
    inside sh -c 'for process in $(pgrep -u ingestd); do cat /proc/$process/task/*/status; done' |
        sed -nE 's/^Cpus_allowed_list:\s+//p'
}

# The example of a drop-in, for the first core: the server has a worker for each core that it may use.
check_cores() {
    local folder=$WORK/layers/root/etc/systemd/system/ingestd.service.d
    sed 's/^CPUAffinity=.*/CPUAffinity=0/' deploy/systemd/ingestd.service.d/cpus.conf.example >"$folder/cpus.conf"
    inside systemctl daemon-reload
    inside timeout 60 systemctl start ingestd.service || service_fails 'the service does not start on one core'
    until_true 5 has_one_worker || fail 'CPUAffinity=0, and not one worker'
    [[ $(cores_of_threads | sort -u) == 0 ]] || fail 'CPUAffinity=0, and threads elsewhere'
    inside timeout 60 systemctl stop ingestd.service || service_fails 'stop'
}

check_watchdog() {
    local before
    before=$(property MainPID)
    inside kill -STOP "$before"
    until_true 30 came_back "$before" || service_fails 'a server that stands still is not started again'
}

came_back() {
    local now
    now=$(property MainPID)
    [[ $now != 0 && $now != "$1" && $(property ActiveState) == active ]]
}

has_one_worker() { grep -q 'listening on.* workers=1 ' <<<"$(inside journalctl --no-pager -q -u ingestd)"; }

main "$@"
