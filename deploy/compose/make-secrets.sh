#!/usr/bin/env bash
# Fills ./secrets for docker-compose.prod.yml. What is there already stays as it is: delete a file to have it made anew.
#
#   deploy/compose/make-secrets.sh [HOST]     HOST (localhost) is who the certificate is for
#
# ./secrets itself can be entered by its owner only. The files in it can be read by all, because the containers' users are
# not of this machine, and Compose mounts files with the owners that they have.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly HOST=${1:-localhost}
readonly IMAGE=${INGESTD_IMAGE:-ingestd:0.1.0}

main() {
    command -v openssl >/dev/null || { echo "make-secrets: no openssl: install it, then run this again" >&2; exit 1; }
    umask 077
    mkdir -p secrets/keys secrets/tls
    chmod 755 secrets/keys secrets/tls

    # Letters and digits only: they stand in URLs. The password and the URL that holds it are made together.
    local password
    if [[ ! -e secrets/postgres_password || ! -e secrets/database_url ]]; then
        password=$(openssl rand -hex 24)
        keep postgres_password "$password"
        keep database_url "postgresql://ingestd:$password@postgres:5432/ingestd"
    fi
    if [[ ! -e secrets/redis_auth.conf || ! -e secrets/redis_url ]]; then
        password=$(openssl rand -hex 24)
        keep redis_auth.conf "requirepass $password"
        keep redis_url "redis://:$password@redis:6379/0"
    fi
    [[ -e secrets/grafana_password ]] || keep grafana_password "$(openssl rand -hex 24)"
    [[ -e secrets/prometheus_key ]] || keep prometheus_key "$(new_key prometheus metrics)"
    [[ -e secrets/first_key ]] || keep first_key "$(new_key first ingest,read)"
    [[ -e secrets/tls/key.pem && -e secrets/tls/chain.pem ]] || make_certificate
    echo "secrets: all there. secrets/first_key may send batches and read their status."
}

# keep NAME TEXT
keep() {
    printf '%s\n' "$2" >"secrets/$1"
    chmod 444 "secrets/$1"
    echo "secrets: made $1" >&2
}

# new_key NAME SCOPES: prints the key; the file of keys gets its hash.
new_key() {
    docker run --rm --user "$(id -u):$(id -g)" --network none --volume "$PWD/secrets/keys:/keys" \
        --env API_KEYS_FILE=/keys/api_keys.toml "$IMAGE" keys new --name "$1" --scope "$2" 2>/dev/null ||
        { echo "make-secrets: no key could be made: is the image $IMAGE built? (docker compose build)" >&2; return 1; }
    chmod 444 secrets/keys/api_keys.toml
}

# A certificate that its own key has signed, to begin with: clients must be told to trust it.
make_certificate() {
    local names="DNS:$HOST"
    [[ ! $HOST =~ ^[0-9.]+$|: ]] || names="IP:$HOST"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj "/CN=$HOST" \
        -addext "subjectAltName=$names" -keyout secrets/tls/key.pem -out secrets/tls/chain.pem 2>/dev/null
    chmod 444 secrets/tls/key.pem secrets/tls/chain.pem
    echo "secrets: made a self-signed certificate for $HOST, valid for 90 days: replace secrets/tls/{chain,key}.pem" >&2
}

main
