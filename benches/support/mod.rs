//! Input that the benches share: a request body of [`EVENTS`] events of about 400 bytes, its spans, and the block that
//! a worker makes of it. The same bytes on every run.
// Each bench is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::sync::Arc;

use criterion::Throughput;
use ingestd::encode::block::{BLOCK_HEADER_BYTES_MAX, Block, BlockBuilder, BlockHeader};
use ingestd::encode::pool::BlockPool;
use ingestd::encode::tuple::{RowContext, append_tuple};
use ingestd::json::{ScanLimits, Scratch, scan_body};
use ingestd::types::{BatchKey, BodyDigest, Priority, UnixMicros};

/// Events of a batch.
pub const EVENTS: usize = 1000;
/// Limits that every event of [`batch`] keeps.
pub const LIMITS: ScanLimits =
    ScanLimits { events_max: EVENTS, timestamp_min: UnixMicros(i64::MIN), timestamp_max: UnixMicros(i64::MAX) };
/// 2026-11-01T00:00:00Z.
const RECEIVED_AT: UnixMicros = UnixMicros(1_793_491_200_000_000);

fn event(number: usize, name: &str) -> String {
    format!(
        concat!(
            r#"{{"event_id":"evt_{number:08}","service_name":"user-service","event_type":"user_login","#,
            r#""payload":{{"user_id":"user_{number}","name":"{name}","amount":{number}.25,"currency":"EUR","#,
            r#""items":[{{"sku":"A-{number}","count":2}},{{"sku":"B-{number}","count":1}}],"ok":true}},"#,
            r#""timestamp":"2026-11-01T00:00:00.{number:06}Z","#,
            r#""metadata":{{"ip":"192.0.2.1","user_agent":"Mozilla/5.0 (X11; Linux x86_64)","trace":"{number:032x}"}}}}"#
        ),
        number = number,
        name = name
    )
}

/// A body of [`EVENTS`] events, `name` in each payload and `separator` between two.
pub fn batch(name: &str, separator: &str) -> Vec<u8> {
    let events: Vec<_> = (0..EVENTS).map(|number| event(number, name)).collect();
    format!(r#"{{"batch_id":"bench","priority":5,"events":[{}]}}"#, events.join(separator)).into_bytes()
}

/// The bodies that are measured: what most clients send, and text outside ASCII with white space.
pub fn bodies() -> [(&'static str, Vec<u8>); 2] {
    [("ascii", batch("Jane Doe", ",")), ("utf8", batch("Žofie Müllerová", ",\n  "))]
}

/// A batch of `body`, in events and in bytes.
pub fn batch_throughput(body: &[u8]) -> Throughput {
    Throughput::ElementsAndBytes { elements: EVENTS as u64, bytes: body.len() as u64 }
}

/// Finds the spans of `body`, all of whose events are good.
pub fn scan(body: &[u8], scratch: &mut Scratch) {
    scan_body(body, &LIMITS, scratch).expect("a good body");
    assert_eq!((scratch.events().len(), scratch.rejects().len()), (EVENTS, 0));
}

/// The header of a batch with `digest`, as if its client chose the id.
pub fn block_header(digest: BodyDigest) -> BlockHeader {
    BlockHeader {
        key: BatchKey { owner: Arc::from(""), id: Box::from("bench") },
        priority: Priority::default(),
        events: EVENTS as u32,
        received_at: RECEIVED_AT,
        digest,
    }
}

/// What `http::ingest` does once the spans are found: a buffer of the pool, a tuple an event, the checksum.
pub fn build_block(pool: &BlockPool, body: &[u8], scratch: &Scratch, header: &BlockHeader) -> Block {
    let events = scratch.events();
    let row = RowContext::new(&header.key.id, header.priority, header.received_at);
    let bytes = BLOCK_HEADER_BYTES_MAX + row.tuple_bytes_max(body.len(), events.len());
    let mut builder = BlockBuilder::new(pool.take(bytes), header);
    for event in events {
        append_tuple(builder.tuples(), body, event, &row);
    }
    builder.finish(header.events)
}

/// The block of a batch, about 350 kB.
pub fn block() -> Block {
    let (body, mut scratch) = (batch("Jane Doe", ","), Scratch::new());
    scan(&body, &mut scratch);
    build_block(&BlockPool::default(), &body, &scratch, &block_header(BodyDigest::of(&body)))
}
