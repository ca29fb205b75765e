//! Promise: PgBouncer in transaction mode between ingestd and PostgreSQL changes nothing that a client sees, and nothing is
//! left behind on the backends that it lends.

mod support;

use std::time::{Duration, Instant};

use ingestd::limits::{CONNECT_WAIT_MAX, SILENCE_MIN};
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use support::contract::{batch, send, status_of};
use support::load::{Load, LoadOptions, seed, wait_until_committed};
use support::pgbouncer::PgBouncer;
use support::postgres::{TestDatabase, TestPostgres, shared};
use support::server::{Finished, Ingestd, get, post_json};
use support::{WAIT_MAX, wait_until};

/// How PgBouncer treats the parameter that would tell sessions apart: refuses the session, or ignores the parameter.
const WAYS: [&[(&str, &str)]; 2] = [&[], &[("ignore_startup_parameters", "options")]];

fn event(id: &str, at: &str, amount: i64) -> Value {
    json!({"event_id": id, "service_name": "s", "event_type": "t", "payload": {"amount": amount}, "timestamp": at})
}

fn commit(server: &Ingestd, id: &str, events: &[Value]) -> [i64; 3] {
    let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), &json!({"batch_id": id, "events": events}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_i64().expect("a count"))
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT ({query})::bigint"), &[]).expect("a number").get(0)
}

fn run(arguments: &[&str], url: &str) -> Finished {
    let done = Ingestd::run_to_exit(arguments, &[("DATABASE_URL", url)]);
    assert_eq!(done.code, Some(0), "{arguments:?}: {done:?}");
    done
}

fn sessions(server: &Ingestd) -> Value {
    get(&server.url("/v1/health")).json()["checks"]["database"]["sessions"].clone()
}

/// Nothing of a session is left on any of the three backends, which are looked at all at once. Statements that PgBouncer
/// 1.21 or newer keeps for all (max_prepared_statements) are its own.
fn assert_backends_are_clean(bouncer: &PgBouncer, database: &TestDatabase) {
    let mut sessions: Vec<Client> = (0..3).map(|_| bouncer.connect(database)).collect();
    for session in &mut sessions {
        session.batch_execute("BEGIN").expect("begun, and kept");
        let left =
            "SELECT (SELECT string_agg(statement, '; ') FROM pg_prepared_statements WHERE name NOT LIKE 'PGBOUNCER%'),
                           (SELECT string_agg(relname, '; ') FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
                           (SELECT string_agg(objid::text, '; ') FROM pg_locks WHERE locktype = 'advisory')";
        let rows = session.simple_query(left).expect("asked");
        let row = rows.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.expect("a row");
        assert_eq!((row.get(0), row.get(1), row.get(2)), (None, None, None));
    }
}

#[test]
fn every_way_of_landing_works_in_transaction_mode_and_leaves_nothing_behind() {
    for settings in WAYS {
        let database = shared().create_database();
        let Some(bouncer) = PgBouncer::start(shared(), settings) else { return };
        let url = bouncer.url(&database);
        let server = Ingestd::builder().env("DATABASE_URL", &url).start();
        let mut client = database.connect();
        client
            .batch_execute("ALTER TABLE events ADD CONSTRAINT no_debts CHECK ((payload ->> 'amount')::int >= 0)")
            .expect("a constraint");
        let mut month = |ago: i32| -> String {
            let query =
                "SELECT to_char(now() AT TIME ZONE 'UTC' - make_interval(months => $1), 'YYYY-MM-\"10T00:00:00Z\"')";
            client.query_one(query, &[&ago]).expect("a time").get(0)
        };
        let (now, old) = (month(1), month(7));
        // More rounds than backends, so that each of them has been lent for each way.
        for round in 0..6 {
            let id = |name: &str| format!("{name}-{round}");
            assert_eq!(commit(&server, &id("plain"), &[event(&id("a"), &now, 1)]), [1, 0, 0]);
            let known = [event(&id("a"), &now, 1), event(&id("b"), &now, 1)];
            assert_eq!(commit(&server, &id("staged"), &known), [1, 1, 0]);
            let refused = [event(&id("c"), &now, -1), event(&id("d"), &now, 1)];
            assert_eq!(commit(&server, &id("quarantine"), &refused), [1, 0, 1]);
        }
        assert_eq!(commit(&server, "no-partition", &[event("old", &old, 1)]), [1, 0, 0]);
        assert_eq!(status_of(&server, "no-partition")["status"], "completed");
        assert_eq!(post_json(&server.url("/v1/ingest/batch"), &json!({"batch_id": "other"})).status, 422);

        assert_eq!(sessions(&server), "pooled");
        assert_eq!(server.log().matches("transaction pooling detected").count(), 1, "{}", server.log());

        // The commands go the same way.
        assert!(run(&["migrate"], &url).stdout.contains("up to date"));
        assert!(run(&["partitions", "list"], &url).stdout.contains("events_"));
        assert!(run(&["partitions", "cleanup", "--older-than", "5months"], &url).stdout.contains("events_"));
        assert_eq!(number(&mut client, "SELECT count(*) FROM events WHERE event_id = 'old'"), 0, "dropped");
        assert_eq!(run(&["dead-letter", "list"], &url).stdout.lines().count(), 6);
        assert_eq!(run(&["dead-letter", "export"], &url).stdout.lines().count(), 6);
        client.batch_execute("ALTER TABLE events DROP CONSTRAINT no_debts").expect("it is there");
        assert!(run(&["dead-letter", "replay"], &url).stdout.contains("replayed 6"));
        let checked = run(&["check-config", "--connect"], &url).stdout;
        assert!(checked.contains("transaction pooling detected") && checked.contains("up to date"), "{checked}");
        drop(server);
        assert_backends_are_clean(&bouncer, &database);
    }
}

#[test]
fn sessions_of_their_own_are_told_from_lent_ones() {
    let database = shared().create_database();
    let direct = Ingestd::builder().database(&database).start();
    assert_eq!(send(&direct, "ack=commit", batch("direct", 3).to_string().as_bytes()).status, 200);
    assert_eq!(sessions(&direct), "direct");
    assert!(!direct.log().contains("transaction pooling detected"), "{}", direct.log());
    // A proxy that hands on bytes is no pooler.
    let proxy = support::proxy::Proxy::start(shared().port());
    let proxied = Ingestd::builder().env("DATABASE_URL", database.url_through(proxy.port())).start();
    assert_eq!(send(&proxied, "ack=commit", batch("proxied", 3).to_string().as_bytes()).status, 200);
    assert_eq!(sessions(&proxied), "direct");
    // A pooler in session mode is treated as one that lends, which works as well.
    let Some(bouncer) = PgBouncer::start(shared(), &[("pool_mode", "session"), ("default_pool_size", "10")]) else {
        return;
    };
    let small = Ingestd::builder().env("DB_POOL_MIN_SIZE", 1).env("DB_POOL_MAX_SIZE", 4);
    let pooled = small.env("DATABASE_URL", bouncer.url(&database)).start();
    assert_eq!(send(&pooled, "ack=commit", batch("pooled", 3).to_string().as_bytes()).status, 200);
    assert_eq!(sessions(&pooled), "pooled");
}

#[test]
fn statement_mode_is_refused_with_advice() {
    let database = shared().create_database();
    let Some(bouncer) = PgBouncer::start(shared(), &[("pool_mode", "statement")]) else { return };
    let folder = support::folder();
    let journal = folder.path().join("journal");
    let url = bouncer.url(&database);
    let journal = journal.to_str().expect("a plain path");
    let settings = [("LISTEN_ADDR", "127.0.0.1:0"), ("JOURNAL_DIR", journal), ("DATABASE_URL", &*url)];
    for command in [&["serve"][..], &["migrate"], &["check-config", "--connect"]] {
        let refused = Ingestd::run_to_exit(command, &settings);
        assert_eq!(refused.code, Some(2), "{command:?}: {refused:?}");
        assert!(refused.stderr.contains("set pool_mode = transaction"), "{command:?}: {refused:?}");
    }
}

#[test]
fn two_nodes_share_three_backends_and_land_each_event_once() {
    let seed = seed("two_nodes_share_three_backends");
    let database = shared().create_database();
    let Some(bouncer) = PgBouncer::start(shared(), &[]) else { return };
    let start = |number: u64| {
        let node = Ingestd::builder().env("DATABASE_URL", bouncer.url(&database));
        node.env("NODE_ID", format!("node-{number}")).start()
    };
    let nodes = [start(1), start(2)];
    let options = |seed| LoadOptions { clients: 3, events: 40_000, seed, priority_max: 10, pause: Duration::ZERO };
    let loads = [Load::start(&nodes[0], options(seed)), Load::start(&nodes[1], options(seed + 1))];
    let [one, two] = loads.map(Load::finish);
    nodes.iter().for_each(|node| wait_until_committed(node, WAIT_MAX));
    let tally = one.with(two).assert_exactly_once(&mut database.connect());
    assert_eq!((tally.refused, tally.unknown), (0, 0), "{tally}");
    for node in &nodes {
        assert!(!node.log().contains("is not accepting batches"), "neither was in the other's way: {}", node.log());
    }
    drop(nodes);
    assert_backends_are_clean(&bouncer, &database);
}

#[test]
fn pgbouncer_killed_and_postgresql_crashed_under_load_cost_nothing() {
    for synchronous in ["on", "off"] {
        let seed = seed("pgbouncer_killed_under_load");
        let mut postgres = TestPostgres::start_private(&[]);
        let database = postgres.create_database();
        let Some(mut bouncer) = PgBouncer::start(&postgres, &[]) else { return };
        let node = Ingestd::builder().env("DATABASE_URL", bouncer.url(&database));
        let node = node.env("SYNCHRONOUS_COMMIT", synchronous).start();
        let pause = Duration::from_millis(2);
        let load = Load::start(&node, LoadOptions { clients: 3, events: 50_000, seed, priority_max: 10, pause });
        for round in 1..=4 {
            load.wait_for_acked(round * 8_000, WAIT_MAX);
            bouncer.kill9();
            wait_until("the node has noticed", WAIT_MAX, || {
                get(&node.url("/v1/health")).json()["checks"]["database"]["status"] == "failing"
            });
            if round == 3 {
                postgres.kill9();
                postgres.start();
            }
            bouncer.restart();
        }
        let outcome = load.finish();
        wait_until_committed(&node, WAIT_MAX);
        let tally = outcome.assert_exactly_once(&mut database.connect());
        assert_eq!((tally.refused, tally.unknown), (0, 0), "{tally}");
    }
}

#[test]
fn a_pool_that_others_hold_is_waited_for_and_they_are_left_alone() {
    let database = shared().create_database();
    let Some(bouncer) = PgBouncer::start(shared(), &[("default_pool_size", "1")]) else { return };
    let small = Ingestd::builder().env("DB_POOL_MIN_SIZE", 1).env("DB_POOL_MAX_SIZE", 2);
    let node = small.env("DATABASE_URL", bouncer.url(&database)).start();
    assert_eq!(send(&node, "ack=commit", batch("before", 3).to_string().as_bytes()).status, 200);
    // The one backend, which has just served the node, serves somebody who stands still for longer than any silence.
    let mut other = bouncer.connect(&database);
    other.batch_execute("BEGIN").expect("begun");
    other.simple_query("SELECT pg_backend_pid()").expect("it answers");
    assert_eq!(send(&node, "", batch("meanwhile", 3).to_string().as_bytes()).status, 202);
    let until = Instant::now() + CONNECT_WAIT_MAX + Duration::from_secs(4);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(500));
        assert_ne!(status_of(&node, "meanwhile")["status"], "completed", "there is no other backend");
    }
    other.batch_execute("COMMIT").expect("nobody has ended it");
    wait_until("the batch has landed", WAIT_MAX, || status_of(&node, "meanwhile")["status"] == "completed");
    assert!(!node.log().contains("closing a dead connection"), "{}", node.log());
}

#[test]
fn a_long_wait_of_one_backend_is_not_blamed_on_another_that_has_nothing_to_do() {
    let database = shared().create_database();
    // Each statement gets the next backend: what served a session last is not what serves it now.
    let Some(bouncer) = PgBouncer::start(shared(), &[("server_round_robin", "1")]) else { return };
    let url = bouncer.url(&database);
    run(&["migrate"], &url);
    let mut holder = database.connect();
    let month: String = holder
        .query_one("SELECT to_char(now() AT TIME ZONE 'UTC' - interval '9 months', 'YYYY-MM')", &[])
        .expect("a month")
        .get(0);
    run(&["partitions", "create", "--month", &month], &url);
    // Detaching the old partition waits for this.
    holder.batch_execute("BEGIN; SELECT count(*) FROM events").expect("a transaction that uses the table");
    let node = Ingestd::builder().env("DATABASE_URL", &url).env("PARTITION_RETENTION_MONTHS", 6).start();
    let mut client = database.connect();
    let detaching = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE events DETACH%' \
                     AND datname = current_database() AND wait_event_type = 'Lock'";
    wait_until("the node waits for it", WAIT_MAX, || number(&mut client, detaching) == 1);
    let until = Instant::now() + 3 * SILENCE_MIN;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(number(&mut client, detaching), 1, "it goes on waiting: {}", node.log());
    }
    holder.batch_execute("COMMIT").expect("ended");
    let partition = format!("SELECT count(*) FROM pg_class WHERE relname = 'events_{}'", month.replace('-', "_"));
    wait_until("the partition is gone", WAIT_MAX, || number(&mut client, &partition) == 0);
    assert!(!node.log().contains("closing a dead connection"), "{}", node.log());
}

#[test]
fn a_pool_that_postgresql_has_no_room_for_is_told_at_the_start_and_by_check_config() {
    let database = shared().create_database();
    let mut owner = database.connect();
    let role = format!("{}_few", database.name);
    let make = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'few' CONNECTION LIMIT 8;
         GRANT CREATE ON SCHEMA public TO {role}; GRANT CREATE ON DATABASE {} TO {role}",
        database.name
    );
    owner.batch_execute(&make).expect("a role");
    let url = format!("postgresql://{role}:few@127.0.0.1:{}/{}", shared().port(), database.name);
    Client::connect(&url, NoTls).expect("it may connect");
    let start = |pool: u32| {
        let node = Ingestd::builder().env("DATABASE_URL", &url).env("DB_POOL_MIN_SIZE", 1);
        node.env("DB_POOL_MAX_SIZE", pool).start()
    };
    let said = "may open 9 connections (DB_POOL_MAX_SIZE=8";
    for (pool, is_told) in [(8, true), (7, false)] {
        assert_eq!(start(pool).log().contains(said), is_told, "a pool of {pool}");
        let settings = [("DATABASE_URL", &*url), ("DB_POOL_MIN_SIZE", "1"), ("DB_POOL_MAX_SIZE", &*pool.to_string())];
        let checked = Ingestd::run_to_exit(&["check-config", "--connect"], &settings);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        assert_eq!(checked.stdout.contains(said), is_told, "{checked:?}");
        assert_eq!(
            checked.stdout.contains("room for 8 connections of this role: enough for 1 nodes"),
            !is_told,
            "{checked:?}"
        );
    }
    drop(owner);
    let mut admin = database.connect();
    admin.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).expect("ours");
}
