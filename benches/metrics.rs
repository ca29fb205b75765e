//! What recording costs the recorder, beside its rivals, and what a scrape costs the scraper.
//!
//! `cargo bench --bench metrics`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ingestd::metrics::{Format, Histogram, Metrics, Statement};

/// Flushers of a full pool, each with a shard of every histogram it records.
const FLUSHERS: u64 = 20;
const HTTP_WORKERS: u64 = 8;

/// Latencies around a millisecond, one of a hundred up to a quarter of a second: the same sequence on every run.
fn latency_micros(n: u64) -> u64 {
    let spread = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 46;
    if n.is_multiple_of(100) { 1_000 + spread } else { 500 + spread % 2_000 }
}

fn recording(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    let histogram = Histogram::of_latencies();
    let recorder = histogram.recorder();
    let mut n = 0;
    group.bench_function("recorder", |b| {
        b.iter(|| {
            n += 1;
            recorder.record(black_box(latency_micros(n)));
        })
    });
    let mut hdr = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3).expect("valid bounds");
    group.bench_function("hdrhistogram", |b| {
        b.iter(|| {
            n += 1;
            hdr.saturating_record(black_box(latency_micros(n)));
        })
    });
    // What `prometheus-client` would do: one lock and a search, shared by all threads.
    let bounds = prometheus_client::metrics::histogram::exponential_buckets(1e-4, 2.0, 18);
    let shared = prometheus_client::metrics::histogram::Histogram::new(bounds);
    group.bench_function("prometheus_client", |b| {
        b.iter(|| {
            n += 1;
            shared.observe(black_box(latency_micros(n)) as f64 / 1e6);
        })
    });
    group.finish();
}

fn busy_server() -> Arc<Metrics> {
    let metrics = Metrics::new("bench", &["missing_field", "too_long"]);
    // Kept to the end: a dropped recorder's shard would be taken over by the next one.
    let workers: Vec<_> = (0..HTTP_WORKERS).map(|_| metrics.ack_latency.recorder()).collect();
    for (worker, recorder) in workers.iter().enumerate() {
        (0..10_000).for_each(|n| recorder.record(latency_micros(n + worker as u64)));
    }
    let flushers: Vec<_> = (0..FLUSHERS)
        .map(|_| {
            let latencies =
                [&metrics.queue_latency, &metrics.copy_latency, &metrics.batch_latency].map(Histogram::recorder);
            (latencies, metrics.db_query.recorder())
        })
        .collect();
    for (latencies, statements) in &flushers {
        for n in 0..10_000 {
            latencies.iter().for_each(|recorder| recorder.record(latency_micros(n)));
            for statement in [Statement::LedgerInsert, Statement::Copy, Statement::Commit] {
                statements.record_elapsed(statement, Duration::from_micros(latency_micros(n)));
            }
        }
    }
    metrics
}

fn scraping(c: &mut Criterion) {
    let metrics = busy_server();
    let mut group = c.benchmark_group("scrape");
    for format in [Format::Prometheus, Format::OpenMetrics, Format::Json] {
        group.bench_function(format!("{format:?}"), |b| {
            b.iter_batched(|| Arc::clone(&metrics), |metrics| format.render(&metrics), BatchSize::PerIteration)
        });
    }
    group.finish();
}

criterion_group!(benches, recording, scraping);
criterion_main!(benches);
