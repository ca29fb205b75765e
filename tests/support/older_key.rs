//! Tables as an ingestd made them before the key of `events` was an event's identity.

use ingestd::pg::partitions::{Month, ensure};
use ingestd::sys::clock::wall_now;
use postgres::Client;

use super::postgres::{TestDatabase, shared};

/// The migrations of that time, as they were applied. They are never edited.
const MIGRATIONS: [(i32, &str, &str); 4] = [
    (1, "events", include_str!("../../sql/0001_events.sql")),
    (2, "ingest_batches", include_str!("../../sql/0002_ingest_batches.sql")),
    (3, "dead_letter_events", include_str!("../../sql/0003_dead_letter_events.sql")),
    (4, "partition_functions", include_str!("../../sql/0004_partition_functions.sql")),
];

/// Rows of [`fill`] that are more than any server indexes at its start.
pub const MANY: i64 = 60_000;

/// Makes the tables, and the partitions of the last month, this one and the next.
pub fn make_tables(client: &mut Client) {
    client
        .batch_execute(
            "CREATE TABLE ingestd_migrations (
                 version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .expect("a table");
    for (version, name, sql) in MIGRATIONS {
        client.batch_execute(sql).unwrap_or_else(|error| panic!("{name}: {error}"));
        let record = "INSERT INTO ingestd_migrations (version, name) VALUES ($1, $2)";
        client.execute(record, &[&version, &name]).expect("recorded");
    }
    let this = Month::of(wall_now());
    ensure(client, &[this.plus(-1), this, this.plus(1)]).expect("partitions");
}

/// A database with those tables, and with [`MANY`] rows.
pub fn older_database() -> (TestDatabase, Client) {
    let database = shared().create_database();
    let mut client = database.connect();
    make_tables(&mut client);
    fill(&mut client, MANY, 0.05);
    (database, client)
}

/// Stores `rows` events of batch `filler` about `days` ago, of 400 bytes each, as random ids and ordered times.
pub fn fill(client: &mut Client, rows: i64, days: f64) {
    let insert = r#"
        INSERT INTO events (event_id, service_name, event_type, payload, "timestamp", batch_id)
        SELECT md5(number::text), 'service-' || number % 8, 'type-' || number % 3, jsonb_build_object('filler', repeat('x', 300)),
               now() - make_interval(secs => $2::float8 * 86400) + make_interval(secs => number * 0.001), 'filler'
        FROM generate_series(1, $1::bigint) AS number"#;
    assert_eq!(client.execute(insert, &[&rows, &days]).expect("stored"), rows.unsigned_abs());
}

/// The columns of the primary key of `table`.
pub fn key_of(client: &mut Client, table: &str) -> String {
    let query = "SELECT coalesce(string_agg(a.attname, ',' ORDER BY k.position), '')
                 FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (number, position), pg_attribute a
                 WHERE i.indisprimary AND i.indisvalid AND i.indrelid = $1::text::regclass AND a.attrelid = i.indrelid
                   AND a.attnum = k.number";
    client.query_one(query, &[&table]).expect("asked").get(0)
}
