//! Promise: what `SHARDING=citus` rests on is what PostgreSQL does: the shard of a batch, Citus's hash of it, and rows as
//! text. No cluster is needed here; `citus.rs` has the rest.

mod support;

#[path = "support/awkward.rs"]
mod awkward;

use std::io::Write;

use ingestd::encode::text::{Lines, TEXT_COPY_COLUMNS};
use ingestd::encode::tuple::{RowContext, append_tuple, decode_tuple};
use ingestd::json::{ScanLimits, Scratch, scan_body};
use ingestd::pg::migrate::migrate;
use ingestd::sharding::{IngestShard, NodeGroup, ShardMap};
use ingestd::types::{Priority, UnixMicros};
use support::postgres::shared;
use support::server::Ingestd;

/// Microseconds from 1 BC to beyond the years of RFC 3339, with fractions.
const INSTANTS: [i64; 6] =
    [0, -1, 1_793_491_200_123_456, -62_135_596_800_000_001, 253_402_300_800_000_000, -62_150_000_000_000_000];

#[test]
fn the_shard_of_a_batch_is_the_one_that_the_migration_computes() {
    let database = shared().create_database();
    let mut client = database.connect();
    let sql = include_str!("../sql/citus/distribute.sql");
    let function = &sql[sql.find("CREATE OR REPLACE FUNCTION").expect("a function")..];
    client.batch_execute(&function[..=function.find(';').expect("its end")]).expect("made");
    for id in ["", "a", "my_batch_001", "0190d7a2-9c3e-7cc3-98c4-dc0c0c07398f", "a.b:c-d_e", "abc#conflict:0f"] {
        let row = client.query_one("SELECT ingestd_ingest_shard($1)", &[&id]).expect("a number");
        assert_eq!(IngestShard(row.get(0)), IngestShard::of(id), "{id}");
    }
}

#[test]
fn shards_are_found_by_postgresqls_own_hash() {
    let database = shared().create_database();
    let mut client = database.connect();
    let numbers = "SELECT n, hashint4(n) FROM (SELECT (random() * 4294967295 - 2147483648)::bigint::int AS n
                   FROM generate_series(1, 1000) UNION VALUES (0), (-1), (2147483647), (-2147483648)) AS numbers";
    for row in client.query(numbers, &[]).expect("hashes") {
        let (number, hash): (i32, i32) = (row.get(0), row.get(1));
        // A range that begins with the hash has it, one that begins after it has not.
        let of = |start: i32| {
            ShardMap::from_starts(vec![(i32::MIN, NodeGroup(1)), (start, NodeGroup(2))]).shard_of(IngestShard(number))
        };
        assert_eq!(of(hash.max(i32::MIN + 1)), 1, "{number}");
        assert!(hash == i32::MAX || of(hash + 1) == 0, "{number}");
    }
}

/// The tuple of an event that a client sends with these texts, the insides of JSON strings.
fn tuple_of(texts: [&str; 3], payload: &[u8], metadata: Option<&[u8]>, timestamp: UnixMicros) -> Vec<u8> {
    let [event_id, service_name, event_type] = texts;
    let head =
        format!(r#"[{{"event_id":"{event_id}","service_name":"{service_name}","event_type":"{event_type}","payload":"#);
    let metadata = metadata.map_or_else(Vec::new, |metadata| [br#","metadata":"#, metadata].concat());
    let body = [head.as_bytes(), payload, &metadata, b"}]"].concat();
    let limits = ScanLimits { events_max: 1, timestamp_min: UnixMicros(i64::MIN), timestamp_max: UnixMicros(i64::MAX) };
    let mut scratch = Scratch::new();
    scan_body(&body, &limits, &mut scratch).expect("a good body");
    let mut event = scratch.events()[0];
    event.timestamp = Some(timestamp);
    let mut tuple = Vec::new();
    append_tuple(
        &mut tuple,
        &body,
        &event,
        &RowContext::new("b:1", Priority::new(7).expect("valid"), UnixMicros(1_793_491_200_000_001)),
    );
    tuple
}

#[test]
fn a_row_as_text_is_stored_as_postgresqls_own_cast_has_it() {
    let database = shared().create_database();
    let mut client = database.connect();
    migrate(&mut client).expect("migrated");
    // A session with other habits: neither may matter.
    client
        .batch_execute(
            "SET timezone = 'Asia/Kolkata'; SET datestyle = 'SQL, DMY'; SET standard_conforming_strings = off",
        )
        .expect("set");
    client
        .batch_execute("CREATE TABLE texts (LIKE events); ALTER TABLE texts ADD COLUMN ingest_shard int")
        .expect("a table");
    let texts = [r"tab\tnewline\nreturn\rbackslash\\", r"\\N", "\u{20ac} \u{1F600} \\u0001\\u007f"];
    let documents: Vec<Vec<u8>> = awkward::documents().into_iter().filter(|one| one.2).map(|one| one.1).collect();
    let mut lines = Vec::new();
    for (number, document) in documents.iter().enumerate() {
        let timestamp = UnixMicros(INSTANTS[number % INSTANTS.len()]);
        let tuple = tuple_of(texts, document, (number % 2 == 0).then_some(document), timestamp);
        let shard = IngestShard(i32::try_from(number).expect("few") - 5);
        Lines::new(shard).append(&mut lines, &decode_tuple(&tuple).expect("a tuple").0);
    }
    let mut copy =
        client.copy_in(&format!("COPY texts ({TEXT_COPY_COLUMNS}) FROM STDIN (FORMAT text)")).expect("begun");
    copy.write_all(&lines).expect("sent");
    assert_eq!(copy.finish().expect("copied"), documents.len() as u64);
    for (number, document) in documents.iter().enumerate() {
        let instant = INSTANTS[number % INSTANTS.len()];
        let row = client.query_one(
            "SELECT payload::text = convert_from($2, 'UTF8')::jsonb::text,
                    metadata::text IS NOT DISTINCT FROM CASE WHEN $3 THEN payload::text END,
                    (extract(epoch FROM \"timestamp\") * 1000000)::bigint, event_id, service_name, event_type, batch_id, priority,
                    (extract(epoch FROM ingested_at) * 1000000)::bigint
             FROM texts WHERE ingest_shard = $1",
            &[&(i32::try_from(number).expect("few") - 5), document, &(number % 2 == 0)],
        );
        let row = row.expect("one row");
        assert!(row.get::<_, bool>(0) && row.get::<_, bool>(1), "{}", String::from_utf8_lossy(document));
        assert_eq!(row.get::<_, i64>(2), instant);
        let stored = [row.get::<_, String>(3), row.get(4), row.get(5), row.get(6)];
        let sent = ["tab\tnewline\nreturn\rbackslash\\", "\\N", "\u{20ac} \u{1F600} \u{1}\u{7f}", "b:1"];
        assert_eq!((stored, row.get::<_, i16>(7)), (sent.map(String::from), 7));
        assert_eq!(row.get::<_, i64>(8), 1_793_491_200_000_001);
    }
}

#[test]
fn a_plain_postgresql_is_refused_with_what_it_lacks() {
    let database = shared().create_database();
    let settings = [("DATABASE_URL", database.url.as_str()), ("SHARDING", "citus"), ("LISTEN_ADDR", "127.0.0.1:0")];
    for command in ["serve", "check-config"] {
        let refused = Ingestd::run_to_exit(&[command], &settings);
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains("CREATE EXTENSION citus"), "{}", refused.stderr);
    }
    let embedded = Ingestd::run_to_exit(&["check-config"], &[("SHARDING", "citus")]);
    assert_eq!(embedded.code, Some(2));
    assert!(embedded.stderr.contains("set DATABASE_URL"), "{}", embedded.stderr);
    let lax = [("DATABASE_URL", database.url.as_str()), ("SHARDING", "citus"), ("SYNCHRONOUS_COMMIT", "off")];
    let lax = Ingestd::run_to_exit(&["check-config"], &lax);
    assert!(lax.stderr.contains("SYNCHRONOUS_COMMIT=off: is not supported with SHARDING=citus"), "{}", lax.stderr);
}
