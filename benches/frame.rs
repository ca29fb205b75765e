//! Making and verifying a journal frame, beside what it cannot do without: CRC32C of the same bytes, and a memcpy of
//! as many as the yardstick. And beside what it does without: LZ4 of the same bytes, whose share of them is in its name.
//!
//! The payload is the block of a batch of 1000 events, about 350 kB. `cargo bench --bench frame`; read the ratios, not
//! the figures. The disk is in the bench `journal`, which also has the header alone.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ingestd::journal::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, Found, FrameHeader, FrameKind, FrameScan};
use ingestd::types::Sequence;

const SEGMENT: u64 = 1;

/// The header of `payload`'s frame, its checksum computed as whoever seals a block does.
fn header(payload: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let header = FrameHeader {
        kind: FrameKind::Block,
        payload_bytes: payload.len() as u32,
        payload_crc32c: crc32c::crc32c(payload),
        segment: SEGMENT,
        sequence: Sequence(1),
        group_first: Sequence(1),
        committed_below: Sequence(1),
        synced_below: Sequence(1),
    };
    header.encode()
}

/// Writes the whole frame of `payload` to `segment`, as it stands in the file.
fn write_frame(segment: &mut Vec<u8>, payload: &[u8]) {
    segment.clear();
    segment.extend_from_slice(&header(payload));
    segment.extend_from_slice(payload);
    segment.resize(segment.len().next_multiple_of(FRAME_ALIGN), 0);
}

fn is_sound(segment: &[u8]) -> bool {
    matches!(FrameScan::new(segment, SEGMENT, 0).next(), Some(Found::Frame { .. }))
}

fn frames(criterion: &mut Criterion) {
    let block = support::block();
    let payload = block.bytes();
    let mut segment = Vec::with_capacity(payload.len() + 2 * FRAME_HEADER_BYTES);
    write_frame(&mut segment, payload);
    assert!(is_sound(&segment));

    let mut group = criterion.benchmark_group(format!("frame/{}kB", payload.len() / 1000));
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("make_header", |bencher| bencher.iter(|| header(black_box(payload))));
    let mut out = segment.clone();
    group.bench_function("make_whole", |bencher| {
        bencher.iter(|| {
            write_frame(&mut out, black_box(payload));
            black_box(&mut out).len()
        });
    });
    group.bench_function("verify", |bencher| bencher.iter(|| is_sound(black_box(&segment))));
    group.bench_function("crc32c", |bencher| bencher.iter(|| crc32c::crc32c(black_box(payload))));
    let mut copy = payload.to_vec();
    group.bench_function("memcpy", |bencher| {
        bencher.iter(|| {
            copy.copy_from_slice(black_box(payload));
            black_box(&mut copy).len()
        });
    });
    let mut compressed = vec![0; lz4_flex::block::get_maximum_output_size(payload.len())];
    let compress =
        |out: &mut [u8]| lz4_flex::block::compress_into(black_box(payload), out).expect("it is large enough");
    let share = 100 * compress(&mut compressed) / payload.len();
    group.bench_function(format!("lz4 to {share} %"), |bencher| bencher.iter(|| compress(&mut compressed)));
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
