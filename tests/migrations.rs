//! The schema is brought up to date exactly once, by however many nodes at once, and a newer one is refused.

mod support;

use std::process::Command;
use std::sync::Barrier;
use std::time::Instant;

use ingestd::config::DatabaseUrl;
use ingestd::limits::{CONNECT_WAIT_MAX, MIGRATE_LOCK_WAIT_MAX};
use ingestd::pg::connect::Connector;
use ingestd::pg::migrate::{ADVISORY_CLASS, ADVISORY_MIGRATE, MIGRATIONS, MigrateError, SCHEMA_VERSION, migrate};
use postgres::Client;
use support::contract::{accept, batch, send, wait_until_completed};
use support::postgres::{TestDatabase, TestPostgres, shared};
use support::server::Ingestd;
use support::wait_until;

fn connect(database: &TestDatabase) -> Client {
    let url = DatabaseUrl::parse(&database.url).expect("a valid URL");
    Connector::new(&url).expect("a connector").connect().expect("a connection")
}

fn recorded(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM ingestd_migrations", &[]).expect("the table is there").get(0)
}

#[test]
fn migrating_twice_applies_everything_once() {
    let database = shared().create_database();
    let mut client = connect(&database);
    let names: Vec<_> = MIGRATIONS.iter().map(|migration| migration.name).collect();
    assert_eq!(migrate(&mut client).expect("migrated").applied, names);
    assert_eq!(migrate(&mut client).expect("up to date").applied, Vec::<&str>::new());
    assert_eq!(recorded(&mut client), MIGRATIONS.len() as i64);
}

#[test]
fn ten_nodes_that_start_at_once_apply_each_migration_once() {
    let database = shared().create_database();
    let barrier = Barrier::new(10);
    let applied: usize = std::thread::scope(|scope| {
        let node = || {
            let mut client = connect(&database);
            barrier.wait();
            migrate(&mut client).expect("migrated").applied.len()
        };
        let nodes: Vec<_> = (0..10).map(|_| scope.spawn(node)).collect();
        nodes.into_iter().map(|node| node.join().expect("no panic")).sum()
    });
    assert_eq!(applied, MIGRATIONS.len());
    assert_eq!(recorded(&mut connect(&database)), MIGRATIONS.len() as i64);
}

#[test]
fn ten_servers_that_start_at_once_on_an_empty_database_are_soon_ready_and_made_everything_once() {
    let postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    // All of them stand before a PostgreSQL that does not answer, and go on together.
    let paused = postgres.pause();
    let (nodes, began) = std::thread::scope(|scope| {
        let start = |number: usize| {
            let small =
                [("WORKERS", "1"), ("DB_POOL_MIN_SIZE", "1"), ("DB_POOL_MAX_SIZE", "2"), ("JOURNAL_MAX_MB", "16")];
            let builder = Ingestd::builder().database(&database).env("NODE_ID", format!("node-{number}"));
            small.into_iter().fold(builder, |builder, (name, value)| builder.env(name, value)).start()
        };
        let nodes: Vec<_> = (0..10).map(|number| scope.spawn(move || start(number))).collect();
        wait_until("all of them are connected", CONNECT_WAIT_MAX, || connections_to(postgres.port()) >= 10);
        drop(paused);
        let began = Instant::now();
        let nodes: Vec<Ingestd> = nodes.into_iter().map(|node| node.join().expect("it started")).collect();
        (nodes, began)
    });
    // Each has met the others' locks; none has waited one out.
    assert!(began.elapsed() < MIGRATE_LOCK_WAIT_MAX, "{:?}", began.elapsed());
    let mut client = connect(&database);
    let migrated: usize = nodes.iter().map(applied_by).sum();
    assert_eq!((migrated, recorded(&mut client)), (MIGRATIONS.len(), MIGRATIONS.len() as i64));
    let made = nodes.iter().filter(|node| node.log().contains("partitions created")).count();
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass";
    assert_eq!((made, client.query_one(partitions, &[]).expect("counted").get(0)), (1, 5i64));
    for (number, node) in nodes.iter().enumerate() {
        assert!(!node.log().contains("is not accepting batches"), "{}", node.log());
        let reply = send(node, "ack=commit", batch(&format!("from-{number}"), 3).to_string().as_bytes());
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let rows: i64 = client.query_one("SELECT count(*) FROM events", &[]).expect("counted").get(0);
    assert_eq!(rows, 30);
}

/// Connections to `port` of 127.0.0.1 that the system has accepted.
fn connections_to(port: u16) -> usize {
    let (local, established) = (format!("0100007F:{port:04X}"), "01");
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns.filter(|columns| columns[1] == local && columns[3] == established).count()
}

/// How many migrations `node` says that it has applied.
fn applied_by(node: &Ingestd) -> usize {
    let log = node.log();
    let told = log.lines().find(|line| line.contains("schema migrated"));
    told.map_or(0, |line| {
        MIGRATIONS.iter().filter(|migration| line.contains(&format!("\"{}\"", migration.name))).count()
    })
}

#[test]
fn a_migration_that_another_node_does_not_finish_is_not_waited_for_without_end() {
    let database = shared().create_database();
    let mut other = connect(&database);
    let mut other = other.transaction().expect("begun");
    other.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&ADVISORY_CLASS, &ADVISORY_MIGRATE]).expect("locked");
    let began = Instant::now();
    let node = Ingestd::builder().database(&database).start();
    let waited = began.elapsed();
    assert!(waited >= MIGRATE_LOCK_WAIT_MAX && waited < 2 * MIGRATE_LOCK_WAIT_MAX, "{waited:?}");
    node.wait_for_log("for a lock held by another session while applying migrations", waited);
    // It serves from its journal, and lands when the schema is there.
    accept(&node, "", &batch("meanwhile", 3));
    other.rollback().expect("ended");
    wait_until_completed(&node, "meanwhile");
}

#[test]
fn repeatable_read_by_default_does_not_make_nodes_apply_twice() {
    let database = shared().create_database();
    let name = DatabaseUrl::parse(&database.url).expect("valid").driver_config().get_dbname().map(str::to_owned);
    let name = name.expect("the URL names the database");
    let set = format!("ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'");
    connect(&database).batch_execute(&set).expect("set");
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| migrate(&mut connect(&database)).expect("migrated"));
        }
    });
    assert_eq!(recorded(&mut connect(&database)), MIGRATIONS.len() as i64);
}

#[test]
fn a_newer_schema_is_refused() {
    let database = shared().create_database();
    let mut client = connect(&database);
    migrate(&mut client).expect("migrated");
    let newer = SCHEMA_VERSION + 4;
    client.execute("INSERT INTO ingestd_migrations (version, name) VALUES ($1, 'later')", &[&newer]).expect("inserted");
    let error = migrate(&mut client).expect_err("must be refused");
    assert!(matches!(error, MigrateError::Newer { found } if found == newer), "{error}");
    assert!(error.to_string().contains("install the newer ingestd"), "{error}");
}

#[test]
fn what_an_older_program_has_left_out_is_found_whatever_came_behind_it() {
    let database = shared().create_database();
    let mut client = connect(&database);
    migrate(&mut client).expect("migrated");
    let [.., before, last] = MIGRATIONS else { panic!("there are several") };
    assert!(last.is_online(), "nodes go on without it, and later ones do not wait for it");
    client.execute("DELETE FROM ingestd_migrations WHERE version = $1", &[&before.version]).expect("as if left out");
    assert_eq!(migrate(&mut client).expect("migrated").applied, [before.name]);
}

#[test]
fn an_up_to_date_schema_is_not_held_up_by_another_migration() {
    let database = shared().create_database();
    let mut other = connect(&database);
    migrate(&mut other).expect("migrated");
    let mut other = other.transaction().expect("begun");
    other.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&ADVISORY_CLASS, &ADVISORY_MIGRATE]).expect("locked");
    other.batch_execute("LOCK TABLE events, ingestd_migrations IN EXCLUSIVE MODE").expect("locked");
    assert!(migrate(&mut connect(&database)).expect("nothing to wait for").applied.is_empty());
}

#[test]
fn the_tables_are_the_contracts() {
    let database = shared().create_database();
    let mut client = connect(&database);
    migrate(&mut client).expect("migrated");
    let mut columns = |table: &str| -> String {
        let query = "SELECT string_agg(column_name || ' ' || data_type, ', ' ORDER BY ordinal_position)
                     FROM information_schema.columns WHERE table_name = $1";
        client.query_one(query, &[&table]).expect("described").get(0)
    };
    assert_eq!(
        columns("events"),
        "event_id text, service_name text, event_type text, payload jsonb, timestamp timestamp with time zone, \
         metadata jsonb, batch_id text, priority smallint, ingested_at timestamp with time zone"
    );
    assert!(columns("ingest_batches").starts_with("owner text, batch_id text, body_digest bytea"));
    assert!(columns("dead_letter_events").starts_with("id bigint, owner text, batch_id text"));
    let key = "SELECT string_agg(a.attname, ',' ORDER BY k.position)
               FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (number, position), pg_attribute a
               WHERE i.indisprimary AND i.indrelid = $1::text::regclass AND a.attrelid = i.indrelid AND a.attnum = k.number";
    for (table, columns) in
        [("events", "service_name,event_type,timestamp,event_id"), ("ingest_batches", "owner,batch_id")]
    {
        assert_eq!(client.query_one(key, &[&table]).expect("a key").get::<_, String>(0), columns);
    }
    let others = "SELECT count(*) FROM pg_index WHERE indrelid = 'events'::regclass AND NOT indisprimary";
    assert_eq!(client.query_one(others, &[]).expect("counted").get::<_, i64>(0), 0, "no second index");
}

#[test]
fn the_command_prints_what_was_done() {
    let database = shared().create_database();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
        let output = command.env_clear().arg("migrate").env("DATABASE_URL", &database.url).output().expect("started");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let names: Vec<_> = MIGRATIONS.iter().map(|migration| migration.name).collect();
    let first = run();
    let mut lines = first.lines();
    let applied = format!("applied {} (schema version {SCHEMA_VERSION})", names.join(", "));
    assert_eq!(lines.next(), Some(&*applied), "{first}");
    assert!(lines.next().is_some_and(|line| line.starts_with("events was locked for ")), "{first}");
    assert_eq!(lines.collect::<Vec<_>>(), ["index of events on \"timestamp\": brin"]);
    assert_eq!(run(), format!("schema is up to date (version {SCHEMA_VERSION})\n"));
}
