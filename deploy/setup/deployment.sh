# What tries the deployment. Sourced by deploy/setup.sh.
# shellcheck shell=bash

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
