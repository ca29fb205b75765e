//! What became of the requests: counts, latencies, and the batches that the server promised to keep.

use std::collections::HashMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cli::client::{Answer, NoAnswer};
use crate::types::PRIORITY_RESERVED_MIN;

/// Latencies above this count as this.
const LATENCY_MICROS_MAX: u64 = 3_600_000_000;

/// What one request came to.
pub(super) enum Outcome {
    /// 200 or 202: the server keeps `events` events under `batch_id`.
    Accepted {
        /// The id that the server chose.
        batch_id: String,
        /// Events taken.
        events: u64,
    },
    /// 429 or 503: nothing was taken, come again later.
    Refused,
    /// The server does not know whether it keeps the batch.
    Unknown(String),
    /// Any other answer.
    Unexpected(String),
    /// No answer: what was sent of the batch may be kept or not.
    Failed(NoAnswer),
}

/// The code of a 503 that leaves open whether the batch is kept.
const OUTCOME_UNKNOWN: &str = "outcome_unknown";

#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
}

#[derive(Deserialize)]
struct Accepted {
    batch_id: String,
    accepted: u64,
}

impl Outcome {
    /// What `answer` means.
    pub(super) fn of(answer: &Result<Answer, NoAnswer>) -> Self {
        match answer {
            Ok((200 | 202, body)) => match serde_json::from_slice::<Accepted>(body) {
                Ok(Accepted { batch_id, accepted }) => Self::Accepted { batch_id, events: accepted },
                Err(error) => Self::Unexpected(format!("the response is not from ingestd: {error}")),
            },
            Ok((429 | 503, body)) => match serde_json::from_slice::<Problem>(body) {
                Ok(Problem { code, detail }) if code == OUTCOME_UNKNOWN => Self::Unknown(detail),
                _ => Self::Refused,
            },
            Ok((status, body)) => {
                let text: String = String::from_utf8_lossy(body).chars().take(300).collect();
                Self::Unexpected(format!("{status}: {}", text.escape_debug()))
            }
            Err(no_answer) => Self::Failed(no_answer.clone()),
        }
    }
}

/// Quantiles of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Quantiles {
    pub count: u64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl From<&Histogram<u64>> for Quantiles {
    fn from(histogram: &Histogram<u64>) -> Self {
        let millis = |micros: u64| micros as f64 / 1000.0;
        let at = |quantile: f64| millis(histogram.value_at_quantile(quantile));
        let count = histogram.len();
        Self { count, p50: at(0.5), p95: at(0.95), p99: at(0.99), p999: at(0.999), max: millis(histogram.max()) }
    }
}

/// Counts and latencies of a run.
pub(super) struct Tally {
    pub events_sent: u64,
    pub events_accepted: u64,
    pub events_unknown: u64,
    pub requests_accepted: u64,
    pub requests_refused: u64,
    pub requests_unexpected: u64,
    pub requests_failed: u64,
    /// The first answer that nobody expected, or the first reason why there was none.
    pub first_trouble: Option<String>,
    /// Events by the batch that has them.
    pub kept: HashMap<String, u64>,
    /// Of accepted requests, from when they were due; of priorities below 8, and from 8 on.
    latency: [Histogram<u64>; 2],
    /// From when a request was due to when it was sent.
    late: Histogram<u64>,
    /// As `latency`, since the last progress line.
    recent: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_MICROS_MAX, 3).expect("the bounds are valid")
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            events_sent: 0,
            events_accepted: 0,
            events_unknown: 0,
            requests_accepted: 0,
            requests_refused: 0,
            requests_unexpected: 0,
            requests_failed: 0,
            first_trouble: None,
            kept: HashMap::new(),
            latency: [histogram(), histogram()],
            late: histogram(),
            recent: histogram(),
        }
    }

    /// Counts a request of `events` events that was sent `late` after it was due and answered `latency` after that.
    pub(super) fn record(&mut self, priority: u8, events: usize, late: Duration, latency: Duration, outcome: Outcome) {
        let micros = |duration: Duration| duration.as_micros() as u64;
        self.events_sent += events as u64;
        self.late.saturating_record(micros(late));
        match outcome {
            Outcome::Accepted { batch_id, events } => {
                self.requests_accepted += 1;
                self.events_accepted += events;
                self.kept.insert(batch_id, events);
                let urgent = priority >= PRIORITY_RESERVED_MIN.get();
                self.latency[usize::from(urgent)].saturating_record(micros(latency));
                self.recent.saturating_record(micros(latency));
            }
            Outcome::Refused => self.requests_refused += 1,
            Outcome::Unknown(why) => {
                self.requests_failed += 1;
                self.events_unknown += events as u64;
                self.first_trouble.get_or_insert(why);
            }
            Outcome::Unexpected(what) => {
                self.requests_unexpected += 1;
                self.first_trouble.get_or_insert(what);
            }
            Outcome::Failed(NoAnswer { why, was_sent }) => {
                self.requests_failed += 1;
                self.events_unknown += if was_sent { events as u64 } else { 0 };
                self.first_trouble.get_or_insert(why);
            }
        }
    }

    /// Latencies since the last call.
    pub(super) fn take_recent(&mut self) -> Quantiles {
        let quantiles = Quantiles::from(&self.recent);
        self.recent.reset();
        quantiles
    }

    /// Latencies of all accepted requests; below priority 8; from 8 on; and how late requests were sent.
    pub(super) fn latencies(&self) -> [Quantiles; 4] {
        let [below, urgent] = &self.latency;
        let mut all = below.clone();
        all.add(urgent).expect("both have the same bounds");
        [&all, below, urgent, &self.late].map(Quantiles::from)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn outcome(status: u16, body: &'static str) -> Outcome {
        Outcome::of(&Ok((status, Bytes::from_static(body.as_bytes()))))
    }

    #[test]
    fn only_accepted_requests_have_a_latency_and_only_unanswered_ones_an_unknown_end() {
        let mut tally = Tally::new();
        let millis = Duration::from_millis;
        let accepted = r#"{"batch_id":"b","status":"queued","accepted":10,"rejected":0}"#;
        tally.record(0, 10, millis(0), millis(4), outcome(202, accepted));
        tally.record(9, 10, millis(1), millis(400), outcome(503, ""));
        tally.record(9, 10, millis(1), millis(500), outcome(422, "no"));
        tally.record(
            9,
            10,
            millis(1),
            millis(600),
            Outcome::of(&Err(NoAnswer { why: "gone".to_owned(), was_sent: true })),
        );
        let unknown = r#"{"status":503,"code":"outcome_unknown","detail":"it may have been taken, or not"}"#;
        tally.record(9, 10, millis(1), millis(700), outcome(503, unknown));
        let [all, below, urgent, late] = tally.latencies();
        assert_eq!((all.count, below.count, urgent.count, late.count), (1, 1, 0, 5));
        assert_eq!((tally.events_sent, tally.events_accepted, tally.events_unknown), (50, 10, 20));
        assert_eq!((tally.requests_refused, tally.requests_failed), (1, 2));
        assert_eq!(tally.first_trouble.as_deref(), Some("422: no"));
        assert_eq!(tally.kept["b"], 10);
        assert!((all.max - 4.0).abs() < 0.01);
    }
}
