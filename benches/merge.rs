//! The choice of the next COPY's batches with 1, 100 and 10,000 batches waiting, priorities mixed, beside a binary heap
//! of as many.
//!
//! A batch has 100 events of about 400 bytes, a COPY takes 10,000 rows, so 100 batches. The choice should cost what it
//! takes, not what waits: compare 100 with 10,000. `cargo bench --bench merge`; read the ratios, not the figures.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use ingestd::flush::cut::{CutSettings, Linger};
use ingestd::flush::merge::{Cut, Item, Merge, Moment, Next, Role};
use ingestd::sharding::IngestShard;
use ingestd::types::{PRIORITY_COUNT, PRIORITY_RESERVED_MIN, Priority};

const BATCH_ROWS: u32 = 100;
const BATCH_BYTES: u64 = 41_200;
const COPY_ROWS: u32 = 10_000;
const COPY_BATCHES: usize = (COPY_ROWS / BATCH_ROWS) as usize;
/// The server's defaults.
const SETTINGS: CutSettings =
    CutSettings { rows_min: 1000, bytes_max: 100 << 20, timeout: Duration::from_secs(30), linger: Linger::Adaptive };

/// The priority of batch `number`, from `0..below`, in no order.
fn priority(number: usize, below: usize) -> Priority {
    Priority::ALL[PRIORITY_COUNT - 1 - number.wrapping_mul(0x9E37_79B9) / 7 % below]
}

/// `count` waiting batches of priorities below `below`, queued within a second that ended `ago`.
fn merge(count: usize, below: usize, now: Instant, ago: Duration) -> Merge<usize> {
    let mut merge = Merge::new(SETTINGS, 1);
    let first = now - ago - Duration::from_secs(1);
    for number in 0..count {
        let queued_at = first + Duration::from_secs(1) * number as u32 / count as u32;
        let priority = priority(number, below);
        merge.push(Box::new(Item {
            priority,
            rows: BATCH_ROWS,
            bytes: BATCH_BYTES,
            shard: IngestShard::default(),
            queued_at,
            value: number,
        }));
    }
    merge
}

fn moment(now: Instant) -> Moment {
    let working_since = now - Duration::from_secs(3600);
    Moment { now, others_rows: 1, working_since, hurry: true, rows_target: COPY_ROWS }
}

fn cut(merge: &mut Merge<usize>, moment: &Moment) -> Option<Cut<usize>> {
    match merge.next(Role::General, moment) {
        Next::Copy(cut) => Some(cut),
        Next::WaitUntil(_) | Next::Idle => None,
    }
}

/// Takes the batches of one COPY and puts them back, so that as many wait the next time.
fn one_copy(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, count: usize, ago: Duration) {
    let now = Instant::now();
    let (moment, below) = (moment(now), PRIORITY_RESERVED_MIN.lane());
    let mut merge = merge(count, below, now, ago);
    group.throughput(Throughput::Elements(count.min(COPY_BATCHES) as u64));
    group.bench_function(format!("{name}/{count}"), |bencher| {
        bencher.iter(|| {
            let cut = cut(&mut merge, black_box(&moment)).expect("work waits");
            assert_eq!(cut.items.len(), count.min(COPY_BATCHES));
            merge.put_back(black_box(cut).items);
        });
    });
}

/// Highest priority first, the oldest first within one, by a heap of pointers: what the lanes save.
fn heap(group: &mut BenchmarkGroup<'_, WallTime>, count: usize) {
    let below = PRIORITY_RESERVED_MIN.lane();
    let entry = |number| (priority(number, below), Reverse(number), Box::new([0u64; 6]));
    let mut heap: BinaryHeap<_> = (0..count).map(entry).collect();
    group.throughput(Throughput::Elements(count.min(COPY_BATCHES) as u64));
    group.bench_function(format!("binary_heap/{count}"), |bencher| {
        bencher.iter(|| {
            let mut taken = Vec::new();
            while taken.len() < COPY_BATCHES
                && let Some(entry) = heap.pop()
            {
                taken.push(entry);
            }
            heap.extend(black_box(taken));
        });
    });
}

fn next_copy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("merge/one_copy_and_back");
    for count in [1, 100, 10_000] {
        one_copy(&mut group, "by_priority", count, Duration::ZERO);
        // Every second COPY of these goes by age.
        one_copy(&mut group, "overdue", count, SETTINGS.timeout);
        heap(&mut group, count);
    }
    group.finish();
}

/// COPY after COPY until nothing waits, payments among the batches; each is freed, as after its commit.
fn all_copies(criterion: &mut Criterion) {
    let now = Instant::now();
    let moment = moment(now);
    let mut group = criterion.benchmark_group("merge/until_none_wait");
    for count in [1, 100, 10_000] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(count.to_string(), |bencher| {
            bencher.iter_batched_ref(
                || merge(count, PRIORITY_COUNT, now, Duration::ZERO),
                |merge| {
                    let mut taken = 0;
                    while let Some(cut) = cut(merge, &moment) {
                        taken += black_box(cut).items.len();
                    }
                    assert_eq!(taken, count);
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, next_copy, all_copies);
criterion_main!(benches);
