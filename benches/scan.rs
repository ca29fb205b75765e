//! Scan, and scan with encoding, of a batch of 1000 events of about 400 bytes, beside simd-json's tape and
//! serde_json's RawValue on the same bytes. `cargo bench --bench scan`; read the ratios, not the figures.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ingestd::encode::tuple::{RowContext, append_tuple};
use ingestd::json::{ScanLimits, Scratch, scan_body};
use ingestd::types::{Priority, UnixMicros};
use serde::Deserialize;
use serde_json::value::RawValue;

const EVENTS: usize = 1000;
const LIMITS: ScanLimits =
    ScanLimits { events_max: EVENTS, timestamp_min: UnixMicros(i64::MIN), timestamp_max: UnixMicros(i64::MAX) };

/// What a careful serde_json user would write: members as text, nothing else looked at.
#[derive(Deserialize)]
struct RawBatch<'a> {
    #[serde(borrow)]
    events: Vec<RawEvent<'a>>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "the fields are what is measured")]
struct RawEvent<'a> {
    event_id: &'a str,
    service_name: &'a str,
    event_type: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
    timestamp: &'a str,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

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

fn batch(name: &str, separator: &str) -> Vec<u8> {
    let events: Vec<_> = (0..EVENTS).map(|number| event(number, name)).collect();
    format!(r#"{{"batch_id":"bench","priority":5,"events":[{}]}}"#, events.join(separator)).into_bytes()
}

fn scan(criterion: &mut Criterion) {
    for (kind, body) in [("ascii", batch("Jane Doe", ",")), ("utf8", batch("Žofie Müllerová", ",\n  "))] {
        let mut group = criterion.benchmark_group(format!("scan/{kind}/{}B", body.len() / EVENTS));
        group.throughput(Throughput::Elements(EVENTS as u64));
        let mut scratch = Scratch::new();
        group.bench_function("scan", |bencher| {
            bencher.iter(|| scan_body(black_box(&body), &LIMITS, &mut scratch).expect("a good body"));
        });
        let row = RowContext::new("bench", Priority::default(), UnixMicros(0));
        let mut out = Vec::with_capacity(row.tuple_bytes_max(body.len(), EVENTS));
        group.bench_function("scan+encode", |bencher| {
            bencher.iter(|| {
                scan_body(black_box(&body), &LIMITS, &mut scratch).expect("a good body");
                out.clear();
                scratch.events().iter().for_each(|spans| append_tuple(&mut out, &body, spans, &row));
                black_box(out.len())
            });
        });
        let mut buffers = simd_json::Buffers::new(body.len());
        let mut copy = body.clone();
        group.bench_function("simd-json tape", |bencher| {
            bencher.iter(|| {
                // It unescapes in place, so it needs a copy; the copy is a small part of its time.
                copy.copy_from_slice(black_box(&body));
                let tape = simd_json::to_tape_with_buffers(&mut copy, &mut buffers).expect("a good body");
                black_box(tape.0.len())
            });
        });
        group.bench_function("serde_json RawValue", |bencher| {
            bencher.iter(|| {
                let batch: RawBatch<'_> = serde_json::from_slice(black_box(&body)).expect("a good body");
                black_box(batch.events.len())
            });
        });
        group.finish();
    }
}

criterion_group!(benches, scan);
criterion_main!(benches);
