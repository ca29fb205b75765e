//! A batch from thread to thread: through a core's ring and through its lanes, beside crossbeam's `ArrayQueue` alone,
//! which the ring is made of.
//!
//! What travels in the ring is 80 bytes, about as large as a submission; in the lanes it is a pointer's 8, as there,
//! so those have an `ArrayQueue` of their own. One thread that does both ends in turn, and two threads that each do
//! one; both give way when there is nothing to do. `cargo bench --bench ring`; read the ratios, not the figures: with
//! two threads these also depend on which cores the system chose.

use std::hint::{black_box, spin_loop};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
use ingestd::limits::RING_BATCHES_MAX;
use ingestd::ring::lanes::Lanes;
use ingestd::ring::ring::Ring;
use ingestd::types::{PRIORITY_COUNT, Priority};

/// About as large as an `http::submission::Submission`.
type Submission = [u64; 10];
/// Bytes that each takes of the ring's budget, as many as fill it in number before they do in bytes.
const BLOCK_BYTES: u64 = 4096;
/// Items of one iteration: a ring holds them all.
const ITEMS: u64 = 512;
const _: () = assert!(ITEMS < RING_BATCHES_MAX as u64);

/// A queue under test: both may be refused, then the other end has to do something first.
trait Queue<T>: Sync {
    fn push(&self, item: T) -> Result<(), T>;
    /// Takes what is there, up to an amount of the queue's own choice; says how many.
    fn take(&self) -> u64;
}

impl<T: Send> Queue<T> for Ring<T> {
    fn push(&self, item: T) -> Result<(), T> {
        Self::push(self, BLOCK_BYTES, item)
    }

    fn take(&self) -> u64 {
        u64::from(black_box(self.pop()).is_some())
    }
}

impl<T: Send> Queue<T> for ArrayQueue<T> {
    fn push(&self, item: T) -> Result<(), T> {
        Self::push(self, item)
    }

    fn take(&self) -> u64 {
        u64::from(black_box(self.pop()).is_some())
    }
}

/// The lanes as a queue: priorities in turn, and a sweep over all of them as the flushers do it.
impl Queue<u64> for Lanes<u64> {
    fn push(&self, item: u64) -> Result<(), u64> {
        Self::push(self, 0, Priority::ALL[item as usize % PRIORITY_COUNT], item);
        Ok(())
    }

    fn take(&self) -> u64 {
        let mut taken = 0;
        for priority in Priority::ALL {
            self.drain(priority, |item| taken += u64::from(black_box(item) < u64::MAX));
        }
        taken
    }
}

/// Pushes [`ITEMS`] items, then takes them.
fn fill_and_empty<T>(queue: &impl Queue<T>, item: impl Fn(u64) -> T) {
    for number in 0..ITEMS {
        assert!(queue.push(black_box(item(number))).is_ok(), "a full queue");
    }
    let mut left = ITEMS;
    while left > 0 {
        left -= queue.take();
    }
}

/// A short wait for the other end. On one core only giving way lets it run.
fn wait(tries: &mut u32) {
    *tries += 1;
    if tries.is_multiple_of(64) { thread::yield_now() } else { spin_loop() }
}

/// The time until another thread has taken `count` items.
fn pass<T>(queue: &impl Queue<T>, item: impl Fn(u64) -> T + Sync, count: u64) -> Duration {
    let (start, mut tries) = (Barrier::new(2), 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut tries = 0;
            start.wait();
            for number in 0..count {
                let mut refused = queue.push(item(number));
                while let Err(item) = refused {
                    wait(&mut tries);
                    refused = queue.push(item);
                }
            }
        });
        start.wait();
        let begun = Instant::now();
        let mut left = count;
        while left > 0 {
            match queue.take() {
                0 => wait(&mut tries),
                taken => left -= taken,
            }
        }
        begun.elapsed()
    })
}

/// Measures `queue` in one thread, or over two.
fn measure<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    two_threads: bool,
    queue: &impl Queue<T>,
    item: impl Fn(u64) -> T + Sync,
) {
    group.bench_function(name, |bencher| {
        if two_threads {
            bencher.iter_custom(|times| pass(queue, &item, times * ITEMS));
        } else {
            bencher.iter(|| fill_and_empty(queue, &item));
        }
    });
}

fn queues(criterion: &mut Criterion) {
    for (threads, two_threads) in [("one_thread", false), ("two_threads", true)] {
        let mut group = criterion.benchmark_group(format!("ring/{threads}"));
        group.throughput(Throughput::Elements(ITEMS));
        let submission = |number| -> Submission { [number; 10] };
        measure(&mut group, "ring", two_threads, &Ring::default(), submission);
        measure(&mut group, "array_queue", two_threads, &ArrayQueue::new(RING_BATCHES_MAX), submission);
        group.finish();

        let mut group = criterion.benchmark_group(format!("lanes/{threads}"));
        group.throughput(Throughput::Elements(ITEMS));
        measure(&mut group, "lanes", two_threads, &Lanes::new(1), |number| number);
        measure(&mut group, "array_queue", two_threads, &ArrayQueue::new(RING_BATCHES_MAX), |number| number);
        group.finish();
    }
}

criterion_group!(benches, queues);
criterion_main!(benches);
