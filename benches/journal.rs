//! What the journal costs: a frame's header, the walk of recovery, and a group write on this machine's disk, with the
//! same bytes written by a plain `write` + `fdatasync` beside it as the floor.
//!
//! `JOURNAL_BENCH_DIR` chooses the directory (default: the target directory, because `/tmp` may be memory).

use std::hint::black_box;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ingestd::journal::frame::{FrameHeader, FrameKind, FrameScan};
use ingestd::journal::{Claim, DiskStorage, FrameToWrite, Journal, JournalOptions};
use ingestd::types::Sequence;

const BYTES_MAX: u64 = 512 << 20;
/// A batch of 1000 events of about 400 bytes, as in docs/performance.md#how-it-is-measured.
const BLOCK_BYTES: usize = 412_000;

fn header(payload: &[u8]) -> FrameHeader {
    FrameHeader {
        kind: FrameKind::Block,
        payload_bytes: payload.len() as u32,
        payload_crc32c: crc32c::crc32c(payload),
        segment: 1,
        sequence: Sequence(1),
        group_first: Sequence(1),
        committed_below: Sequence(1),
        synced_below: Sequence(1),
    }
}

fn frames(criterion: &mut Criterion) {
    let payload = vec![7; BLOCK_BYTES];
    let header = header(&payload);
    let bytes = header.encode();
    let mut group = criterion.benchmark_group("journal_frame");
    group.bench_function("encode_header", |bencher| bencher.iter(|| black_box(&header).encode()));
    group.bench_function("decode_header", |bencher| bencher.iter(|| FrameHeader::decode(black_box(&bytes), 1)));

    let mut segment = bytes.to_vec();
    segment.extend_from_slice(&payload);
    group.throughput(Throughput::Bytes(segment.len() as u64));
    group.bench_function("scan_and_verify", |bencher| {
        bencher.iter(|| FrameScan::new(black_box(&segment), 1, 0).count());
    });
    let empty = vec![0; 1 << 20];
    group.throughput(Throughput::Bytes(empty.len() as u64));
    group.bench_function("scan_unused", |bencher| bencher.iter(|| FrameScan::new(black_box(&empty), 1, 0).count()));
    group.finish();
}

fn groups(criterion: &mut Criterion) {
    let parent =
        std::env::var_os("JOURNAL_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(parent).expect("temporary directory");
    let storage = Arc::new(DiskStorage::create(dir.path().join("journal")).expect("makes the directory"));
    let options = JournalOptions::new("bench", BYTES_MAX);
    let (mut journal, _) = Journal::open(storage, &options, &mut |_, _| Ok(())).expect("opens");
    let (space, releaser) = (journal.space(), journal.releaser());
    let mut locations = Vec::new();

    let mut group = criterion.benchmark_group("journal_group");
    for (name, count, bytes, sync) in [
        ("one_block_synced", 1, BLOCK_BYTES, true),
        ("ten_blocks_synced", 10, BLOCK_BYTES / 10, true),
        ("one_block_unsynced", 1, BLOCK_BYTES, false),
    ] {
        let payload = vec![7; bytes];
        let frame = FrameToWrite { payload: &payload, crc32c: crc32c::crc32c(&payload) };
        let frames = vec![frame; count];
        group.throughput(Throughput::Bytes((bytes * count) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                frames
                    .iter()
                    .for_each(|frame| space.try_reserve(frame.payload.len(), Claim::Urgent).expect("has room"));
                locations.clear();
                journal.append_group(&frames, sync, &mut locations).expect("appends");
                locations.iter().for_each(|&location| releaser.release(location));
                journal.reclaim().expect("reclaims");
            });
        });
    }

    let mut plain = std::fs::File::create(dir.path().join("plain")).expect("creates");
    let payload = vec![7; BLOCK_BYTES];
    let mut written = 0;
    group.throughput(Throughput::Bytes(BLOCK_BYTES as u64));
    group.bench_function("plain_write_and_fdatasync", |bencher| {
        bencher.iter_batched(
            || (),
            |()| {
                if written > BYTES_MAX {
                    written = 0;
                    plain.seek(SeekFrom::Start(0)).expect("seeks");
                }
                plain.write_all(&payload).expect("writes");
                plain.sync_data().expect("syncs");
                written += payload.len() as u64;
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
    journal.close().expect("closes");
}

criterion_group!(benches, frames, groups);
criterion_main!(benches);
