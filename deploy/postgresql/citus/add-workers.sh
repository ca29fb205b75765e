#!/bin/sh
# Makes the coordinator know itself and its workers, in database PGDATABASE. Those that it knows stay as they are, so it may
# run again, and does, for each new worker.
#
#   COORDINATOR=host WORKERS="host host …" PGUSER=… PGDATABASE=… PGPASSWORD_FILE=… add-workers.sh
#
# The names are those by which the nodes find each other: workers talk to the coordinator, too. A new worker has no shards
# until they are moved: SELECT citus_rebalance_start();
set -eu

readonly PORT=5432
readonly WAIT_SECONDS_MAX=180

ask() {
    psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --host="$1" --port=$PORT \
        --set=name="$2" --set=port=$PORT
}

# An image that makes its database answers by TCP only when that is done.
wait_for() {
    waited=0
    until pg_isready --quiet --host="$1" --port=$PORT --timeout=3; do
        waited=$((waited + 1))
        [ $waited -lt $WAIT_SECONDS_MAX ] || { echo "add-workers: $1 does not answer" >&2; exit 1; }
        sleep 1
    done
}

PGPASSWORD=$(cat "$PGPASSWORD_FILE")
export PGPASSWORD

wait_for "$COORDINATOR"
echo "SELECT citus_set_coordinator_host(:'name', :port)" | ask "$COORDINATOR" "$COORDINATOR" >/dev/null
for worker in $WORKERS; do
    wait_for "$worker"
    echo "SELECT citus_add_node(:'name', :port)" | ask "$COORDINATOR" "$worker" >/dev/null
done
echo "SELECT format('add-workers: %s:%s %s', nodename, nodeport,
                     CASE WHEN groupid = 0 THEN 'coordinator' WHEN isactive THEN 'worker' ELSE 'inactive' END)
      FROM pg_dist_node ORDER BY groupid" | ask "$COORDINATOR" ''
