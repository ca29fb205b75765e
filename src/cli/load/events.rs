//! Events as microservices send them: services and types by Zipf's law, sizes log-normal within bounds.

use std::io::Write;
use std::ops::RangeInclusive;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal, Zipf};

/// Texts that events are made of; more would only fill the processor's cache.
const TEMPLATES: usize = 1024;
const SERVICES: u32 = 40;
const TYPES: u32 = 12;
/// Exponent of both Zipf distributions: the first of 40 services sends a quarter of the events.
const ZIPF_EXPONENT: f64 = 1.1;
/// Spread of the sizes; with it one event in fifty is more than six times the median.
const SIZE_SIGMA: f64 = 0.9;
/// What an event has besides its template: id and timestamp with their names.
const HEAD_BYTES: usize =
    r#"{"event_id":"0123456789abcdef-000000000000","timestamp":"2026-11-01T00:00:00.000000Z""#.len();
/// The smallest event that has all its members.
pub(super) const EVENT_BYTES_MIN: usize = 300;
/// The largest one worth asking for.
pub(super) const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// Makes bodies; every event of a run has an id of its own.
pub(super) struct Events {
    run: String,
    templates: Vec<Box<[u8]>>,
    random: SmallRng,
    made: u64,
}

impl Events {
    /// Events of `bytes` each, whose ids begin with `run`; the same `seed` gives the same texts.
    pub(super) fn new(run: &str, bytes: &RangeInclusive<usize>, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let templates = (0..TEMPLATES).map(|_| template(bytes, &mut random)).collect();
        Self { run: run.to_owned(), templates, random, made: 0 }
    }

    /// Writes a body of `events` events into `body`, which is emptied first; `timestamp` is RFC 3339.
    pub(super) fn write_body(&mut self, body: &mut Vec<u8>, events: usize, priority: u8, timestamp: &str) {
        body.clear();
        body.extend_from_slice(format!(r#"{{"priority":{priority},"events":["#).as_bytes());
        for number in 0..events {
            if number > 0 {
                body.push(b',');
            }
            // Writing to a vector does not fail.
            let _ = write!(body, r#"{{"event_id":"{}-{:012}","timestamp":"{timestamp}""#, self.run, self.made);
            self.made += 1;
            body.extend_from_slice(&self.templates[self.random.random_range(0..TEMPLATES)]);
        }
        body.extend_from_slice(b"]}");
    }
}

/// The part of an event behind its timestamp.
fn template(bytes: &RangeInclusive<usize>, random: &mut SmallRng) -> Box<[u8]> {
    let (service, event_type) = (zipf(SERVICES, random), zipf(TYPES, random));
    let mut text = format!(
        r#","service_name":"service-{service:02}","event_type":"type-{event_type:02}","payload":{{"user_id":"user-{:06}","amount":{}.{:02},"currency":"EUR","success":{},"text":""#,
        random.random_range(0..1_000_000),
        random.random_range(1..1000),
        random.random_range(0..100),
        random.random_bool(0.9),
    );
    let tail = format!(
        r#""}},"metadata":{{"ip":"192.0.2.{}","trace":"{:016x}"}}}}"#,
        random.random_range(1..255),
        random.random_range(0..u64::MAX),
    );
    let wanted = size(bytes, random);
    while HEAD_BYTES + text.len() + tail.len() < wanted {
        text.push(if random.random_bool(0.15) { ' ' } else { char::from(random.random_range(b'a'..=b'z')) });
    }
    text.push_str(&tail);
    text.into_bytes().into()
}

fn zipf(of: u32, random: &mut SmallRng) -> u32 {
    let zipf = Zipf::new(f64::from(of), ZIPF_EXPONENT).expect("both are positive");
    zipf.sample(random) as u32
}

/// A size in `bytes`, most of them near the lower end.
fn size(bytes: &RangeInclusive<usize>, random: &mut SmallRng) -> usize {
    let above = LogNormal::new(0.0, SIZE_SIGMA).expect("sigma is finite").sample(random);
    (*bytes.start() as f64 * above.max(1.0)).min(*bytes.end() as f64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::json::{ScanLimits, Scratch, scan_body};
    use crate::types::UnixMicros;

    const TIMESTAMP: &str = "2026-11-01T00:00:00.000000Z";

    /// Ids of the events that the server finds in `body`.
    fn scan(body: &[u8]) -> Vec<String> {
        let limits =
            ScanLimits { events_max: 10_000, timestamp_min: UnixMicros(i64::MIN), timestamp_max: UnixMicros(i64::MAX) };
        let mut scratch = Scratch::new();
        scan_body(body, &limits, &mut scratch).expect("the server takes it");
        assert!(scratch.rejects().is_empty());
        let value: serde_json::Value = serde_json::from_slice(body).expect("JSON");
        value["events"].as_array().expect("events").iter().map(|event| event["event_id"].to_string()).collect()
    }

    #[test]
    fn the_server_takes_every_event_and_no_two_have_the_same_id() {
        let mut events = Events::new("run", &(400..=20_000), 7);
        let (mut body, mut ids) = (Vec::new(), HashSet::new());
        for _ in 0..3 {
            events.write_body(&mut body, 500, 5, TIMESTAMP);
            ids.extend(scan(&body));
        }
        assert_eq!(ids.len(), 1500);
    }

    #[test]
    fn sizes_stay_within_their_bounds() {
        let mut events = Events::new("0123456789abcdef", &(EVENT_BYTES_MIN..=EVENT_BYTES_MIN), 7);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        events.write_body(&mut one, 1, 0, TIMESTAMP);
        events.write_body(&mut two, 1001, 0, TIMESTAMP);
        assert_eq!(two.len() - one.len(), 1000 * (EVENT_BYTES_MIN + ",".len()));
    }
}
