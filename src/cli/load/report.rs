//! The result of a run, for people and for programs.

use std::fmt::{self, Display};

use serde::Serialize;

use super::check::Found;
use super::tally::{Quantiles, Tally};

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Asked {
    pub url: String,
    pub events_per_second: u64,
    pub seconds: f64,
    pub batch_events: usize,
    pub connections: usize,
    pub ack: Option<String>,
    pub event_bytes: [usize; 2],
    pub seed: u64,
    /// What the ids of the run's events begin with.
    pub run: String,
}

/// A run and what came of it; rates are per second of the time until the last answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub asked: Asked,
    pub seconds: f64,
    pub requests: Requests,
    pub events: Events,
    /// From when a request was due to its answer.
    pub latency_ms: Latencies,
    /// From when a request was due to when it was sent: no connection was free, or this process had no time.
    pub sent_late_ms: Quantiles,
    pub client_cpu_micros_per_event: f64,
    /// Absent when nobody asked for it.
    pub loss_check: Option<Found>,
    /// The first answer that was neither an acceptance nor a refusal, or the first reason why there was none.
    pub first_trouble: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Requests {
    pub accepted: u64,
    pub refused: u64,
    pub unexpected: u64,
    pub failed: u64,
    /// Due, and given up because the server was too far behind.
    pub unsent: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Events {
    pub sent: u64,
    pub accepted: u64,
    pub accepted_per_second: f64,
    /// Of requests without an answer.
    pub unknown: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latencies {
    pub all: Quantiles,
    pub below_priority_8: Quantiles,
    pub priority_8_and_above: Quantiles,
}

impl Report {
    /// The report of a run that took `seconds`, with `unsent` requests left and `cpu_seconds` spent.
    pub(super) fn new(asked: Asked, seconds: f64, tally: &Tally, unsent: u64, cpu_seconds: f64) -> Self {
        let [all, below_priority_8, priority_8_and_above, sent_late_ms] = tally.latencies();
        Self {
            asked,
            seconds,
            requests: Requests {
                accepted: tally.requests_accepted,
                refused: tally.requests_refused,
                unexpected: tally.requests_unexpected,
                failed: tally.requests_failed,
                unsent,
            },
            events: Events {
                sent: tally.events_sent,
                accepted: tally.events_accepted,
                accepted_per_second: tally.events_accepted as f64 / seconds,
                unknown: tally.events_unknown,
            },
            latency_ms: Latencies { all, below_priority_8, priority_8_and_above },
            sent_late_ms,
            client_cpu_micros_per_event: cpu_seconds * 1e6 / tally.events_sent.max(1) as f64,
            loss_check: None,
            first_trouble: tally.first_trouble.clone(),
        }
    }

    /// Why the run is no success; `None` when it is one.
    pub(super) fn failure(&self) -> Option<String> {
        if let Some(found) = self.loss_check.filter(|found| found.lost > 0 || found.surplus > 0) {
            return Some(format!(
                "{} accepted events are lost, {} are stored more than once",
                found.lost, found.surplus
            ));
        }
        if self.requests.unexpected > 0 || self.requests.accepted == 0 {
            let why = self.first_trouble.as_deref().unwrap_or("every request was refused (429, 503)");
            return Some(format!("{} requests were accepted; {why}", self.requests.accepted));
        }
        None
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, requests, events, latency_ms, .. } = self;
        writeln!(
            f,
            "asked       {} events/s for {} s, {} events per batch of {}–{} bytes, {} connections, ack={}, seed {}, \
             run {}",
            asked.events_per_second,
            asked.seconds,
            asked.batch_events,
            asked.event_bytes[0],
            asked.event_bytes[1],
            asked.connections,
            asked.ack.as_deref().unwrap_or("server default"),
            asked.seed,
            asked.run,
        )?;
        writeln!(
            f,
            "events      {} accepted in {:.1} s: {:.0}/s; {} with unknown outcome",
            events.accepted, self.seconds, events.accepted_per_second, events.unknown
        )?;
        writeln!(
            f,
            "requests    {} accepted, {} refused (429, 503), {} unexpected, {} failed, {} never sent",
            requests.accepted, requests.refused, requests.unexpected, requests.failed, requests.unsent
        )?;
        writeln!(f, "latency, ms         count      p50      p95      p99    p99.9      max   (from when it was due)")?;
        row(f, "all", &latency_ms.all)?;
        row(f, "priority < 8", &latency_ms.below_priority_8)?;
        row(f, "priority 8–10", &latency_ms.priority_8_and_above)?;
        row(f, "sent late by", &self.sent_late_ms)?;
        write!(f, "client      {:.2} µs of CPU per event", self.client_cpu_micros_per_event)?;
        if let Some(found) = &self.loss_check {
            write!(
                f,
                "\nloss check  {} events expected: {} inserted, {} duplicates, {} dead-lettered, {} waiting, {} lost, \
                 {} extra",
                found.expected,
                found.there.inserted,
                found.there.duplicates,
                found.there.dead_lettered,
                found.there.waiting,
                found.lost,
                found.surplus
            )?;
        }
        if let Some(trouble) = &self.first_trouble {
            write!(f, "\ntrouble     {trouble}")?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, of: &Quantiles) -> fmt::Result {
    let Quantiles { count, p50, p95, p99, p999, max } = of;
    writeln!(f, "  {name:14}{count:>9}{p50:>9.2}{p95:>9.2}{p99:>9.2}{p999:>9.2}{max:>9.2}")
}
