//! Scan, and scan with encoding, of a batch of 1000 events of about 400 bytes, beside simd-json's tape, serde_json's
//! RawValue and sonic-rs' LazyValue on the same bytes. `cargo bench --bench scan`; read the ratios, not the figures.
//!
//! The rivals check less: only the scanner has read timestamps and refused what PostgreSQL would. simd-json unescapes
//! in place and keeps no text of what it read; with "+ texts" it has found each event's members and written payload
//! and metadata anew, which is what forwarding them takes. sonic-rs chooses its instructions when it is compiled: its
//! best figure needs `RUSTFLAGS='-C target-cpu=native'`, the others choose when they run.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ingestd::encode::tuple::{RowContext, append_tuple};
use ingestd::json::{Scratch, scan_body};
use ingestd::types::{Priority, UnixMicros};
use serde::Deserialize;
use serde_json::value::RawValue;
use simd_json::prelude::*;
use sonic_rs::LazyValue;
use support::{EVENTS, LIMITS, bodies};

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

/// The same for a careful user of sonic-rs.
#[derive(Deserialize)]
struct LazyBatch<'a> {
    #[serde(borrow)]
    events: Vec<LazyEvent<'a>>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "the fields are what is measured")]
struct LazyEvent<'a> {
    event_id: &'a str,
    service_name: &'a str,
    event_type: &'a str,
    #[serde(borrow)]
    payload: LazyValue<'a>,
    timestamp: &'a str,
    #[serde(borrow)]
    metadata: LazyValue<'a>,
}

/// Finds every event's members and writes its payload and metadata as JSON text; gives the bytes of the others.
fn write_texts(tape: &simd_json::Tape<'_>, texts: &mut Vec<u8>) -> Option<usize> {
    let mut bytes = 0;
    for event in tape.as_value().as_object()?.get("events")?.as_array()?.iter() {
        let event = event.as_object()?;
        for member in ["event_id", "service_name", "event_type", "timestamp"] {
            bytes += event.get(member)?.into_string()?.len();
        }
        event.get("payload")?.write(texts).ok()?;
        event.get("metadata")?.write(texts).ok()?;
    }
    Some(bytes)
}

fn scan(criterion: &mut Criterion) {
    for (kind, body) in bodies() {
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
        let mut texts = Vec::with_capacity(body.len());
        group.bench_function("simd-json tape + texts", |bencher| {
            bencher.iter(|| {
                copy.copy_from_slice(black_box(&body));
                let tape = simd_json::to_tape_with_buffers(&mut copy, &mut buffers).expect("a good body");
                texts.clear();
                black_box(write_texts(&tape, &mut texts).expect("members as expected"))
            });
        });
        group.bench_function("serde_json RawValue", |bencher| {
            bencher.iter(|| {
                let batch: RawBatch<'_> = serde_json::from_slice(black_box(&body)).expect("a good body");
                black_box(batch.events.len())
            });
        });
        group.bench_function("sonic-rs LazyValue", |bencher| {
            bencher.iter(|| {
                let batch: LazyBatch<'_> = sonic_rs::from_slice(black_box(&body)).expect("a good body");
                black_box(batch.events.len())
            });
        });
        group.finish();
    }
}

criterion_group!(benches, scan);
criterion_main!(benches);
