//! Histograms that are recorded without an atomic shared between cores, and read exactly.
//!
//! Each recording thread owns a [`Recorder`], the only writer of its shard. A shard counts values in the layout of
//! HdrHistogram with three significant digits: values below 2048 exactly, from there on 1024 slots for each power
//! of two, so that a slot is never wider than 1/1024 of its values.
//!
//! ```text
//!   octave   values              slots   width
//!        0   0 … 1023             1024       1
//!        1   1024 … 2047          1024       1
//!        2   2048 … 4095          1024       2
//!        k   2^(9+k) … 2^(10+k)-1 1024   2^(k-1)
//!       22   2^31 … 2^32-1        1024   2^21
//! ```
//!
//! Values are whole microseconds for latencies, and rows for COPY sizes; both end at [`VALUE_MAX`] (an hour), what is
//! above counts as that. An octave (8 KiB) is allocated when a recorder first meets it: at most 22 times in its
//! life, and a shard that sees only a few powers of two costs only those.
//!
//! A scrape merges the shards into an [`hdrhistogram::Histogram`], which gives the quantiles, and into the buckets of
//! a classic histogram. Both come from one reading of the counts, so they agree with each other.
//!
//! Orderings: counts and sum are relaxed. There is one writer, and a reader needs no more of a count than its own
//! modification order (it never falls). `sum` and counts are read apart, so a value that is being recorded may be in
//! one and not yet in the other. An octave is published by its `OnceLock` (release) and found by it (acquire).

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use super::labels::Label;

/// The largest value that is told apart: an hour in microseconds.
pub const VALUE_MAX: u64 = 3_600_000_000;
/// Decimal digits of a value that are kept.
const SIGNIFICANT_DIGITS: u8 = 3;
/// log2 of the slots in an octave: the smallest power of two that keeps three digits in its upper half.
const OCTAVE_BITS: u32 = 10;
const OCTAVE_SLOTS: usize = 1 << OCTAVE_BITS;
const OCTAVE_COUNT: usize = locate(VALUE_MAX).0 + 1;

const _: () = assert!(OCTAVE_SLOTS >= 10usize.pow(SIGNIFICANT_DIGITS as u32));
const _: () = assert!(OCTAVE_COUNT == 23);

const fn assert_send<T: Send>() {}
const _: () = assert_send::<Recorder>();

/// Upper bounds of the classic buckets of a latency, in microseconds: 100 µs to a minute.
const LATENCY_BOUNDS_MICROS: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
/// Upper bounds of the classic buckets of a COPY's size, in rows.
const ROWS_BOUNDS: &[u64] = &[1, 10, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000];

/// A set of values recorded by several threads.
pub struct Histogram {
    bounds: &'static [u64],
    /// Locked to make a recorder and to merge, never to record.
    shards: Mutex<Vec<Arc<Shard>>>,
}

/// The right of one thread to record into a [`Histogram`].
///
/// It may move to another thread but is neither cloned nor shared, so its shard has one writer.
pub struct Recorder {
    shard: Arc<Shard>,
    not_sync: PhantomData<Cell<()>>,
}

/// A [`Histogram`] for each value of a label.
pub struct Histograms<L> {
    by_label: Box<[Histogram]>,
    label: PhantomData<fn(L)>,
}

/// A [`Recorder`] for each value of a label.
pub struct Recorders<L> {
    by_label: Box<[Recorder]>,
    label: PhantomData<fn(L)>,
}

/// What all recorders of a [`Histogram`] have recorded since start.
#[derive(Debug)]
pub struct Merged {
    hdr: hdrhistogram::Histogram<u64>,
    sum: u64,
    bounds: &'static [u64],
    bucket_counts: Box<[u64]>,
}

impl Histogram {
    /// A histogram of latencies, in microseconds.
    pub fn of_latencies() -> Self {
        Self::new(LATENCY_BOUNDS_MICROS)
    }

    /// A histogram of rows a COPY.
    pub fn of_rows() -> Self {
        Self::new(ROWS_BOUNDS)
    }

    fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, shards: Mutex::new(Vec::new()) }
    }

    /// A recorder for the calling thread; made at start-up and kept.
    ///
    /// It takes over the shard of a recorder that was dropped, if there is one, so restarted threads do not pile up
    /// shards.
    pub fn recorder(&self) -> Recorder {
        let mut shards = self.shards.lock();
        // `get_mut` succeeds only for a shard without a recorder, and acquires what its last one wrote.
        let index = shards.iter_mut().position(|shard| Arc::get_mut(shard).is_some()).unwrap_or_else(|| {
            shards.push(Arc::default());
            shards.len() - 1
        });
        Recorder { shard: Arc::clone(&shards[index]), not_sync: PhantomData }
    }

    /// Reads all shards; recorders do not notice. Costs about a microsecond for each octave of each shard.
    pub fn merge(&self) -> Merged {
        let mut merged = Merged::empty(self.bounds);
        let shards = self.shards.lock();
        for octave in 0..OCTAVE_COUNT {
            merged.add_octave(octave, shards.iter().filter_map(|shard| shard.octaves[octave].get()));
        }
        merged.sum = shards.iter().fold(0, |sum, shard| sum.wrapping_add(shard.sum.load(Relaxed)));
        merged
    }
}

impl Recorder {
    /// Records a latency, in whole microseconds (rounded down).
    pub fn record_elapsed(&self, elapsed: Duration) {
        self.record(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
    }

    /// Records `value`, in the histogram's unit. Wait-free but for the first value in an octave.
    pub fn record(&self, value: u64) {
        let value = value.min(VALUE_MAX);
        let (octave, slot) = locate(value);
        add_by_the_only_writer(&self.shard.octaves[octave].get_or_init(Octave::empty).0[slot], 1);
        add_by_the_only_writer(&self.shard.sum, value);
    }
}

/// What was recorded between two readings.
#[derive(Debug)]
pub(super) struct Window {
    hdr: hdrhistogram::Histogram<u64>,
    sum: u64,
}

impl Window {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.hdr.len()
    }

    /// Their mean; 0 when there are none.
    pub fn mean(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.sum as f64 / self.count() as f64 }
    }

    /// The value that a share of `quantile` (0 to 1) does not exceed, to three digits; 0 when there are none.
    pub fn value_at_quantile(&self, quantile: f64) -> u64 {
        self.hdr.value_at_quantile(quantile)
    }
}

impl<L: Label> Histograms<L> {
    pub(super) fn of_latencies() -> Self {
        Self { by_label: L::VALUES.iter().map(|_| Histogram::of_latencies()).collect(), label: PhantomData }
    }

    /// A recorder for the calling thread, for every label value.
    pub fn recorder(&self) -> Recorders<L> {
        Recorders { by_label: self.by_label.iter().map(Histogram::recorder).collect(), label: PhantomData }
    }

    /// Reads the histogram of `label`.
    pub fn merge(&self, label: L) -> Merged {
        self.by_label[label.index()].merge()
    }

    /// Reads the histogram of every label value.
    pub fn merge_all(&self) -> impl Iterator<Item = (&'static str, Merged)> {
        L::VALUES.iter().zip(&self.by_label).map(|(value, histogram)| (*value, histogram.merge()))
    }
}

impl<L: Label> Recorders<L> {
    /// Records a latency under `label`, in whole microseconds (rounded down).
    pub fn record_elapsed(&self, label: L, elapsed: Duration) {
        self.by_label[label.index()].record_elapsed(elapsed);
    }
}

impl Merged {
    fn empty(bounds: &'static [u64]) -> Self {
        let hdr = hdrhistogram::Histogram::new_with_bounds(1, VALUE_MAX, SIGNIFICANT_DIGITS)
            .expect("1 to an hour in microseconds with three digits is a valid range");
        Self { hdr, sum: 0, bounds, bucket_counts: vec![0; bounds.len() + 1].into() }
    }

    /// Adds one octave of all shards. Summed over shards first: a hundred shards mostly fill the same slots, and
    /// entering a slot costs ten times the addition.
    fn add_octave<'a>(&mut self, octave: usize, shards: impl Iterator<Item = &'a Box<Octave>>) {
        let mut counts = [0; OCTAVE_SLOTS];
        for shard in shards {
            for (sum, count) in counts.iter_mut().zip(&shard.0) {
                *sum += count.load(Relaxed);
            }
        }
        for (slot, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let value = value_at(octave, slot);
            self.hdr.saturating_record_n(value, count);
            self.bucket_counts[self.bounds.partition_point(|bound| *bound < value)] += count;
        }
    }

    /// What was recorded after `earlier` was read from the same histogram.
    pub(super) fn since(&self, earlier: &Self) -> Window {
        let mut hdr = self.hdr.clone();
        // No count ever falls, so nothing is taken away that is not there.
        let _ = hdr.subtract(&earlier.hdr);
        Window { sum: self.sum.wrapping_sub(earlier.sum), hdr }
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.hdr.len()
    }

    /// Their exact sum (each value [`VALUE_MAX`] at most).
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The value that a share of `quantile` (0 to 1) of all values does not exceed, to three digits; 0 when empty.
    pub fn value_at_quantile(&self, quantile: f64) -> u64 {
        self.hdr.value_at_quantile(quantile)
    }

    /// The largest value, to three digits; 0 when empty.
    pub fn max(&self) -> u64 {
        self.hdr.max()
    }

    /// Upper bound of each classic bucket with the count in it alone (not cumulative); the last one has no bound.
    ///
    /// A slot counts by its lowest value: what equals a bound is in that bucket, as `le` asks, and so may be what
    /// exceeds it by less than 0.1 %.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        bounds.zip(self.bucket_counts.iter().copied())
    }
}

/// What one recorder has recorded. Padded, so that no other thread's data shares its cache lines.
#[derive(Default)]
struct Shard {
    sum: CachePadded<AtomicU64>,
    octaves: CachePadded<[OnceLock<Box<Octave>>; OCTAVE_COUNT]>,
}

#[repr(align(128))]
struct Octave([AtomicU64; OCTAVE_SLOTS]);

impl Octave {
    #[cold]
    fn empty() -> Box<Self> {
        Box::new(Self([const { AtomicU64::new(0) }; OCTAVE_SLOTS]))
    }
}

/// Adds without a read-modify-write instruction: [`Recorder`] makes sure that nobody else writes.
fn add_by_the_only_writer(cell: &AtomicU64, amount: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
}

/// Octave and slot of `value`.
const fn locate(value: u64) -> (usize, usize) {
    let Some(shift) = (u64::BITS - value.leading_zeros()).checked_sub(OCTAVE_BITS + 1) else {
        return (0, value as usize);
    };
    (shift as usize + 1, (value >> shift) as usize & (OCTAVE_SLOTS - 1))
}

/// The lowest value of a slot: the inverse of [`locate`].
const fn value_at(octave: usize, slot: usize) -> u64 {
    if octave == 0 { slot as u64 } else { ((OCTAVE_SLOTS + slot) as u64) << (octave - 1) }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram").field("shards", &self.shards.lock().len()).finish_non_exhaustive()
    }
}

impl<L> std::fmt::Debug for Histograms<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.by_label).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const QUANTILES: [f64; 8] = [0.0, 0.1, 0.5, 0.95, 0.99, 0.999, 0.9999, 1.0];

    fn hdr_of(values: impl IntoIterator<Item = u64>) -> hdrhistogram::Histogram<u64> {
        let mut hdr = Merged::empty(&[]).hdr;
        for value in values {
            hdr.record(value.min(VALUE_MAX)).expect("in range");
        }
        hdr
    }

    /// Values of all magnitudes: uniform ones would nearly all fall into the topmost octave.
    fn any_value() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0..64u32).prop_map(|(bits, shift)| bits >> shift)
    }

    proptest! {
        #[test]
        fn merged_shards_equal_an_hdrhistogram_of_all_values(
            by_thread in prop::collection::vec(prop::collection::vec(any_value(), 0..200), 0..5),
        ) {
            let histogram = Histogram::of_latencies();
            let recorders: Vec<_> = by_thread.iter().map(|_| histogram.recorder()).collect();
            for (recorder, values) in recorders.iter().zip(&by_thread) {
                values.iter().for_each(|value| recorder.record(*value));
            }
            let (merged, expected) = (histogram.merge(), hdr_of(by_thread.iter().flatten().copied()));
            prop_assert_eq!(&merged.hdr, &expected);
            prop_assert_eq!(merged.max(), expected.max());
            for quantile in QUANTILES {
                prop_assert_eq!(merged.value_at_quantile(quantile), expected.value_at_quantile(quantile));
            }
            prop_assert_eq!(merged.sum(), by_thread.iter().flatten().map(|value| value.min(&VALUE_MAX)).sum::<u64>());
        }

        #[test]
        fn buckets_hold_what_le_says_to_a_tenth_of_a_percent(values in prop::collection::vec(any_value(), 0..300)) {
            let histogram = Histogram::of_latencies();
            let recorder = histogram.recorder();
            values.iter().for_each(|value| recorder.record(*value));
            let (mut cumulative, merged) = (0, histogram.merge());
            for (bound, count) in merged.buckets() {
                cumulative += count;
                let bound = bound.unwrap_or(u64::MAX);
                let within = |limit: u64| values.iter().filter(|value| **value <= limit).count() as u64;
                prop_assert!(cumulative >= within(bound));
                prop_assert!(cumulative <= within(bound.saturating_add(bound / 1000)));
            }
            prop_assert_eq!(cumulative, merged.count());
        }

        #[test]
        fn every_value_lies_in_its_slot(value in 0..=VALUE_MAX) {
            let (octave, slot) = locate(value);
            let lowest = value_at(octave, slot);
            prop_assert!(lowest <= value && value - lowest <= lowest / 1024);
        }
    }

    #[test]
    fn edges_of_octaves_are_located_as_drawn() {
        for (value, place) in [(0, (0, 0)), (1023, (0, 1023)), (1024, (1, 0)), (2047, (1, 1023)), (2048, (2, 0))] {
            assert_eq!(locate(value), place);
            assert_eq!(value_at(place.0, place.1), value);
        }
        assert_eq!(locate(VALUE_MAX).0, OCTAVE_COUNT - 1);
    }

    #[test]
    fn values_at_a_bound_are_in_its_bucket() {
        let histogram = Histogram::of_rows();
        let recorder = histogram.recorder();
        ROWS_BOUNDS.iter().for_each(|bound| recorder.record(*bound));
        recorder.record(1_000_000);
        assert!(histogram.merge().buckets().all(|(_, count)| count == 1));
    }

    #[test]
    fn a_window_holds_what_came_between_two_readings() {
        let histogram = Histogram::of_latencies();
        let recorder = histogram.recorder();
        recorder.record(1_000_000);
        let earlier = histogram.merge();
        let empty = histogram.merge().since(&earlier);
        assert_eq!((empty.count(), empty.mean(), empty.value_at_quantile(1.0)), (0, 0.0, 0));
        [10, 20, 60].into_iter().for_each(|value| recorder.record(value));
        let window = histogram.merge().since(&earlier);
        assert_eq!((window.count(), window.mean()), (3, 30.0));
        assert_eq!((window.value_at_quantile(0.5), window.value_at_quantile(1.0)), (20, 60));
    }

    #[test]
    fn an_empty_histogram_reads_zero() {
        let merged = Histogram::of_latencies().merge();
        assert_eq!((merged.count(), merged.sum(), merged.max(), merged.value_at_quantile(0.999)), (0, 0, 0, 0));
    }

    #[test]
    fn a_latency_beyond_an_hour_counts_as_an_hour() {
        let histogram = Histogram::of_latencies();
        histogram.recorder().record_elapsed(Duration::MAX);
        let merged = histogram.merge();
        assert_eq!((merged.count(), merged.sum()), (1, VALUE_MAX));
        assert_eq!(merged.buckets().last(), Some((None, 1)));
    }

    #[test]
    fn a_new_recorder_takes_over_a_dropped_ones_shard_and_its_counts() {
        let histogram = Histogram::of_latencies();
        let kept = histogram.recorder();
        for _ in 0..10 {
            histogram.recorder().record(7);
        }
        kept.record(7);
        assert_eq!(histogram.shards.lock().len(), 2);
        assert_eq!(histogram.merge().count(), 11);
    }

    #[test]
    fn merging_while_threads_record_never_loses_or_falls() {
        const THREADS: u64 = 3;
        const RECORDS: u64 = 20_000;
        let histogram = Histogram::of_latencies();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let writers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let recorder = histogram.recorder();
                    scope.spawn(move || (0..RECORDS).for_each(|n| recorder.record(n * (thread + 1))))
                })
                .collect();
            let reader = scope.spawn(|| {
                let mut last = 0;
                while !done.load(Relaxed) {
                    let count = histogram.merge().count();
                    assert!(count >= last && count <= THREADS * RECORDS);
                    last = count;
                }
            });
            for writer in writers {
                writer.join().expect("a writer does not panic");
            }
            done.store(true, Relaxed);
            reader.join().expect("counts do not fall");
        });
        let merged = histogram.merge();
        let expected = hdr_of((1..=THREADS).flat_map(|factor| (0..RECORDS).map(move |n| n * factor)));
        assert_eq!(merged.hdr, expected);
        assert_eq!(merged.sum(), 6 * RECORDS * (RECORDS - 1) / 2);
    }
}
