//! What a worker does with a body once it is read: scan, digest and encode into a block, as `http::ingest` does it;
//! and each part alone. The yardstick is a copy of the body by memcpy, which no encoder can beat.
//!
//! A batch of 1000 events of about 400 bytes, in ASCII, and with text outside it. `cargo bench --bench encode`; read
//! the ratios within a group, not the figures.

mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ingestd::encode;
use ingestd::encode::pool::BlockPool;
use ingestd::encode::text::Lines;
use ingestd::encode::tuple::{RowContext, append_tuple};
use ingestd::json::Scratch;
use ingestd::sharding::IngestShard;
use ingestd::types::BodyDigest;
use support::{EVENTS, batch_throughput, block_header, bodies, build_block, scan};

fn whole(criterion: &mut Criterion) {
    for (kind, body) in bodies() {
        let mut group = criterion.benchmark_group(format!("encode/{kind}/{}B", body.len() / EVENTS));
        group.throughput(batch_throughput(&body));
        let (pool, mut scratch) = (BlockPool::default(), Scratch::new());
        group.bench_function("scan+digest+block", |bencher| {
            bencher.iter(|| {
                let body = black_box(&body[..]);
                scan(body, &mut scratch);
                let header = block_header(BodyDigest::of(body));
                let block = black_box(build_block(&pool, body, &scratch, &header));
                pool.give_back(block.into_buffer());
            });
        });
        group.bench_function("digest", |bencher| bencher.iter(|| BodyDigest::of(black_box(&body))));
        let mut copy = Vec::with_capacity(body.len());
        group.bench_function("memcpy", |bencher| {
            bencher.iter(|| {
                copy.clear();
                copy.extend_from_slice(black_box(&body));
                black_box(&mut copy).len()
            });
        });
        group.finish();
    }
}

/// From spans to bytes, with the block's header and checksum and without them.
fn alone(criterion: &mut Criterion) {
    for (kind, body) in bodies() {
        let mut group = criterion.benchmark_group(format!("encode_alone/{kind}/{}B", body.len() / EVENTS));
        group.throughput(batch_throughput(&body));
        let (pool, mut scratch) = (BlockPool::default(), Scratch::new());
        scan(&body, &mut scratch);
        let header = block_header(BodyDigest::of(&body));
        group.bench_function("block", |bencher| {
            bencher.iter(|| {
                let block = black_box(build_block(&pool, black_box(&body), &scratch, &header));
                pool.give_back(block.into_buffer());
            });
        });
        let row = RowContext::new(&header.key.id, header.priority, header.received_at);
        let mut tuples = Vec::with_capacity(row.tuple_bytes_max(body.len(), EVENTS));
        group.bench_function("tuples", |bencher| {
            bencher.iter(|| {
                let body = black_box(&body[..]);
                tuples.clear();
                scratch.events().iter().for_each(|event| append_tuple(&mut tuples, body, event, &row));
                black_box(&mut tuples).len()
            });
        });
        // What SHARDING=citus does besides, when it copies them.
        let mut lines = Vec::with_capacity(2 * tuples.len());
        group.bench_function("lines of text", |bencher| {
            bencher.iter(|| {
                lines.clear();
                let mut writer = Lines::new(IngestShard(1));
                for tuple in encode::tuple::tuples(black_box(&tuples)) {
                    writer.append(&mut lines, &tuple.expect("a tuple").1);
                }
                black_box(&mut lines).len()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, whole, alone);
criterion_main!(benches);
