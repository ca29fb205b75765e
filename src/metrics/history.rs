//! The last minutes of one node, a sample a second: what the dashboard draws.
//!
//! Counts are since start, so that a reader who missed samples still gets true rates. Latencies are those of the sample's
//! own second: the difference of two readings of the histograms (a quantile since start would hide what happens now).

use std::collections::VecDeque;

use serde::Serialize;

use super::histogram::{Histogram, Merged};
use super::labels::{HttpStatus, Label, PoolState};
use super::process::ProcessStats;
use super::registry::Metrics;
use crate::limits::HISTORY_SAMPLES_MAX;
use crate::types::UnixMicros;

const MICROS_PER_MILLI: f64 = 1e3;

/// One second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// When it was taken, in milliseconds since 1970.
    pub at_ms: i64,
    /// Events since start: accepted.
    pub accepted: u64,
    /// Refused by validation.
    pub rejected: u64,
    /// Committed to PostgreSQL.
    pub committed: u64,
    /// Refused by PostgreSQL.
    pub dead_lettered: u64,
    /// Requests since start that were refused for load: 429 and 503.
    pub refused_requests: u64,
    /// Requests since start that the server failed on: 500.
    pub failed_requests: u64,
    /// Batches that wait for their COPY.
    pub queue_batches: u64,
    /// Events in them.
    pub queue_events: u64,
    /// Bytes of them.
    pub queue_bytes: u64,
    /// Bytes that the journal takes on disk.
    pub journal_bytes: u64,
    /// Bytes of rows in memory.
    pub memory_bytes: u64,
    /// Connections that wait for work.
    pub pool_idle: u64,
    /// Connections that are lent out.
    pub pool_busy: u64,
    /// CPU time of this process since its start, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory of this process in RAM, in bytes.
    pub resident_bytes: Option<u64>,
    /// Request received to answer sent.
    pub ack_ms: Spread,
    /// Request received to commit.
    pub batch_ms: Spread,
    /// A COPY with its ledger rows and COMMIT.
    pub copy_ms: Spread,
    /// One fsync of the journal.
    pub fsync_ms: Spread,
    /// Rows a COPY, on average.
    pub copy_rows: f64,
}

/// Quantiles of one second's latencies in milliseconds; all 0 when there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// How many.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 95 of 100 were no longer.
    pub p95: f64,
    /// 99 of 100 were no longer.
    pub p99: f64,
}

/// The latest samples, oldest first, no more than [`HISTORY_SAMPLES_MAX`].
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    /// Samples that were dropped.
    dropped: u64,
    earlier: Option<Readings>,
}

/// What the histograms read at the last sample.
#[derive(Debug)]
struct Readings {
    ack: Merged,
    batch: Merged,
    copy: Merged,
    fsync: Merged,
    rows: Merged,
}

impl Readings {
    fn of(metrics: &Metrics) -> Self {
        let read = |histogram: &Histogram| histogram.merge();
        Self {
            ack: read(&metrics.ack_latency),
            batch: read(&metrics.batch_latency),
            copy: read(&metrics.copy_latency),
            fsync: read(&metrics.journal_fsync),
            rows: read(&metrics.copy_rows),
        }
    }
}

impl History {
    /// Takes a sample, and drops the oldest one when full. The first call only begins.
    pub fn push(&mut self, metrics: &Metrics, at: UnixMicros) {
        let now = Readings::of(metrics);
        let Some(earlier) = self.earlier.replace(now) else { return };
        let Some(now) = &self.earlier else { return };
        let sample = sample(metrics, at, now, &earlier);
        if self.samples.len() == HISTORY_SAMPLES_MAX {
            self.samples.pop_front();
            self.dropped += 1;
        }
        self.samples.push_back(sample);
    }

    /// The samples from number `first` on, or what is left of them, and the number of the next one.
    pub fn from(&self, first: u64) -> (Vec<Sample>, u64) {
        let next = self.dropped + self.samples.len() as u64;
        // A reader from before a restart is ahead: it gets all.
        let first = if first > next { 0 } else { first };
        let skipped = usize::try_from(first.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        (self.samples.iter().skip(skipped).cloned().collect(), next)
    }
}

fn sample(metrics: &Metrics, at: UnixMicros, now: &Readings, earlier: &Readings) -> Sample {
    let process = ProcessStats::read();
    let requests = |codes: &[u16]| {
        let is_of = |code: &str| codes.iter().any(|wanted| HttpStatus(*wanted).value() == code);
        metrics.requests.iter().filter(|(_, code, _)| is_of(code)).map(|(_, _, count)| count).sum()
    };
    Sample {
        at_ms: at.0 / 1000,
        accepted: metrics.events_accepted.get(),
        rejected: metrics.events_rejected.sum(),
        committed: metrics.events_committed.get(),
        dead_lettered: metrics.events_dead_lettered.get(),
        refused_requests: requests(&[429, 503]),
        failed_requests: requests(&[500]),
        queue_batches: metrics.queue_batches.sum(),
        queue_events: metrics.queue_events.sum(),
        queue_bytes: metrics.queue_bytes.sum(),
        journal_bytes: metrics.journal_bytes.get(),
        memory_bytes: metrics.memory_bytes.get(),
        pool_idle: metrics.db_pool_connections.of(PoolState::Idle).get(),
        pool_busy: metrics.db_pool_connections.of(PoolState::Busy).get(),
        cpu_seconds: process.cpu_seconds,
        resident_bytes: process.resident_bytes,
        ack_ms: spread(&now.ack, &earlier.ack),
        batch_ms: spread(&now.batch, &earlier.batch),
        copy_ms: spread(&now.copy, &earlier.copy),
        fsync_ms: spread(&now.fsync, &earlier.fsync),
        copy_rows: now.rows.since(&earlier.rows).mean().round(),
    }
}

fn spread(now: &Merged, earlier: &Merged) -> Spread {
    // Most seconds of an idle server have nothing: no need to look at every slot.
    if now.count() == earlier.count() {
        return Spread::default();
    }
    let window = now.since(earlier);
    let millis = |quantile| window.value_at_quantile(quantile) as f64 / MICROS_PER_MILLI;
    Spread { count: window.count(), p50: millis(0.5), p95: millis(0.95), p99: millis(0.99) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn numbers(history: &History, first: u64) -> (Vec<i64>, u64) {
        let (samples, next) = history.from(first);
        (samples.iter().map(|sample| sample.at_ms).collect(), next)
    }

    fn pushed(history: &mut History, metrics: &Arc<Metrics>, seconds: std::ops::Range<i64>) {
        seconds.for_each(|second| history.push(metrics, UnixMicros(second * 1000)));
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen() {
        let (mut history, metrics) = (History::default(), Metrics::new("node-1", &[]));
        pushed(&mut history, &metrics, 0..4);
        assert_eq!(numbers(&history, 0), (vec![1, 2, 3], 3), "the first call only begins");
        assert_eq!(numbers(&history, 2), (vec![3], 3));
        assert_eq!(numbers(&history, 3), (vec![], 3));
        assert_eq!(numbers(&history, 4), (vec![1, 2, 3], 3), "a reader of another run");
    }

    #[test]
    fn the_oldest_samples_go() {
        let (mut history, metrics) = (History::default(), Metrics::new("node-1", &[]));
        let last = HISTORY_SAMPLES_MAX as i64 + 2;
        pushed(&mut history, &metrics, 0..last + 1);
        let (kept, next) = numbers(&history, 0);
        assert_eq!((kept.len(), kept[0], next), (HISTORY_SAMPLES_MAX, 3, last as u64));
        assert_eq!(numbers(&history, next - 1).0, [last]);
    }

    #[test]
    fn latencies_are_of_their_own_second() {
        let (mut history, metrics) = (History::default(), Metrics::new("node-1", &[]));
        let recorder = metrics.ack_latency.recorder();
        recorder.record_elapsed(Duration::from_secs(1));
        pushed(&mut history, &metrics, 0..1);
        recorder.record_elapsed(Duration::from_millis(2));
        pushed(&mut history, &metrics, 1..3);
        let spreads: Vec<_> = history.from(0).0.iter().map(|sample| sample.ack_ms).collect();
        assert_eq!(spreads, [Spread { count: 1, p50: 2.0, p95: 2.0, p99: 2.0 }, Spread::default()]);
    }
}
