//! Reading an RFC 3339 timestamp, in the shapes that clients send, beside jiff's parser on the same texts.
//!
//! 1000 texts of a shape, all different, so that no branch is learnt by heart; the figure is for all of them.
//! `cargo bench --bench timestamp`; read the ratios within a shape, not the figures. jiff does more: it reads time
//! zone annotations and much of ISO 8601, and its errors tell where. It cuts a fraction of the microsecond off where
//! ingestd rounds as PostgreSQL does.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ingestd::encode::timestamp::parse_rfc3339;
use jiff::fmt::temporal::DateTimeParser;

const TEXTS: u32 = 1000;
static JIFF: DateTimeParser = DateTimeParser::new();

fn texts(shape: &str) -> Vec<String> {
    // A multiplier without a common factor with the range: every number once, in no order that can be guessed.
    (0..TEXTS).map(|number| text(shape, u64::from(number) * 7_368_787 % 1_000_003)).collect()
}

/// One text of `shape`, its date and time made of `number`.
fn text(shape: &str, number: u64) -> String {
    let (month, day) = (number % 12 + 1, number % 28 + 1);
    let (hour, minute, second) = (number % 24, number / 24 % 60, number / 1440 % 60);
    let instant = format!("2026-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let sign = if number.is_multiple_of(2) { '+' } else { '-' };
    let offset = format!("{sign}{:02}:{:02}", number % 13, number % 4 * 15);
    match shape {
        "utc" => format!("{instant}Z"),
        "utc_millis" => format!("{instant}.{:03}Z", number % 1000),
        "utc_micros" => format!("{instant}.{:06}Z", number % 1_000_000),
        "utc_nanos" => format!("{instant}.{:09}Z", number * 997 % 1_000_000_000),
        "offset" => format!("{instant}{offset}"),
        "offset_micros" => format!("{instant}.{:06}{offset}", number % 1_000_000),
        _ => unreachable!("no such shape: {shape}"),
    }
}

fn micros(text: &str) -> i64 {
    parse_rfc3339(text.as_bytes()).expect("a good timestamp").0
}

fn jiff_micros(text: &str) -> i64 {
    JIFF.parse_timestamp(text).expect("a good timestamp").as_microsecond()
}

fn timestamps(criterion: &mut Criterion) {
    for shape in ["utc", "utc_millis", "utc_micros", "utc_nanos", "offset", "offset_micros"] {
        let texts = texts(shape);
        assert!(texts.iter().all(|text| (micros(text) - jiff_micros(text)).abs() <= 1), "the rivals disagree");
        let mut group = criterion.benchmark_group(format!("timestamp/{shape}"));
        group.throughput(Throughput::Elements(u64::from(TEXTS)));
        group.bench_function("ingestd", |bencher| {
            bencher.iter(|| black_box(&texts).iter().fold(0, |sum: i64, text| sum.wrapping_add(micros(text))));
        });
        group.bench_function("jiff", |bencher| {
            bencher.iter(|| black_box(&texts).iter().fold(0, |sum: i64, text| sum.wrapping_add(jiff_micros(text))));
        });
        group.finish();
    }
}

criterion_group!(benches, timestamps);
criterion_main!(benches);
