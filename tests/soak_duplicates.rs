//! Promise: a stream with many duplicates costs at most twice as much as one without.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use postgres::Client;
use support::announce;
use support::load::wait_until_committed;
use support::measure::{cpu_seconds, quantile};
use support::postgres::{AS_EMBEDDED, TestPostgres, connect, empty_tables};
use support::server::{Ingestd, post};

const WAIT_MAX: Duration = Duration::from_secs(120);
const BATCH_EVENTS: u64 = 1000;
/// Batches of one stream: some seconds of work.
const BATCHES: u64 = 600;
const CLIENTS: usize = 4;
/// A new PostgreSQL writes each WAL file twice until it recycles them: so many streams come first and do not count.
const WARM_UP_STREAMS: u64 = 8;
const ROUNDS: usize = 3;
/// What counts as a failure on a noisy machine; the goal is 2.
const RATIO_MAX: f64 = 2.5;

/// The streams by how many of 1000 events in each batch were sent before; a fresh one comes before each other.
const FRESH: u64 = 0;
const MIXED: [u64; 3] = [1, 500, 1000];

/// What one stream cost for each event sent.
#[derive(Clone, Copy, Debug)]
struct Cost {
    micros: f64,
    postgres_cpu_micros: f64,
    server_cpu_micros: f64,
}

/// The events of all streams: event `number` has the same id, time and payload whenever it is sent.
struct Events {
    first_at: Timestamp,
    next: u64,
}

impl Events {
    /// The bodies of a stream; `repeated` of 1000 events are those that the last fresh stream began with.
    fn stream(&mut self, repeated: u64) -> Vec<String> {
        let previous = self.next - self.next.min(BATCHES * BATCH_EVENTS);
        (0..BATCHES)
            .map(|batch| {
                let mut text = String::from(r#"{"events":["#);
                for event in 0..BATCH_EVENTS {
                    // Spread evenly over the batch.
                    let is_repeated = event * repeated / 1000 != (event + 1) * repeated / 1000;
                    let number = if is_repeated { previous + batch * BATCH_EVENTS + event } else { self.take() };
                    self.write(&mut text, number);
                    text.push(if event + 1 == BATCH_EVENTS { ']' } else { ',' });
                }
                text.push('}');
                text
            })
            .collect()
    }

    fn take(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn write(&self, text: &mut String, number: u64) {
        let at = Timestamp::from_microsecond(self.first_at.as_microsecond() + number as i64).expect("a time");
        let _ = write!(
            text,
            r#"{{"event_id":"event-{number}","service_name":"load","event_type":"test","timestamp":"{at}","payload":{{"number":{number}}}}}"#
        );
    }
}

/// Sends `bodies` to the server, started anew because it remembers duplicates for a while, and waits until everything
/// is committed.
fn send(server: &mut Ingestd, postgres: &TestPostgres, bodies: &[String]) -> Cost {
    server.terminate();
    server.restart();
    let server = &*server;
    let cpu = || (postgres.cpu_seconds(), cpu_seconds(server.pid()));
    let (begun, before, next) = (Instant::now(), cpu(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let reply = post(&server.url("/v1/ingest/batch"), &[], body.as_bytes());
                    assert_eq!(reply.status, 202, "{}", reply.text());
                }
            });
        }
    });
    wait_until_committed(server, WAIT_MAX);
    let (seconds, after) = (begun.elapsed().as_secs_f64(), cpu());
    let each = |seconds: f64| seconds * 1e6 / (bodies.len() as u64 * BATCH_EVENTS) as f64;
    Cost {
        micros: each(seconds),
        postgres_cpu_micros: each(after.0 - before.0),
        server_cpu_micros: each(after.1 - before.1),
    }
}

/// Every event is there once, and the ledger says how many came again.
fn check(client: &mut Client, events: &Events, repeated: u64) {
    let one = |client: &mut Client, query: &str| -> i64 { client.query_one(query, &[]).expect("a count").get(0) };
    assert_eq!(one(client, "SELECT count(*) FROM events").unsigned_abs(), events.next);
    assert_eq!(one(client, "SELECT count(DISTINCT event_id) FROM events").unsigned_abs(), events.next);
    assert_eq!(one(client, "SELECT sum(duplicates)::bigint FROM ingest_batches").unsigned_abs(), repeated);
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn a_stream_with_duplicates_costs_at_most_twice_as_much_as_one_without() {
    let postgres = TestPostgres::start_private(&AS_EMBEDDED);
    let database = postgres.create_database();
    let mut server = Ingestd::builder().database(&database).start();
    let mut client = connect(&database.url);
    let mut events = Events { first_at: Timestamp::now(), next: 0 };
    for _ in 0..WARM_UP_STREAMS {
        send(&mut server, &postgres, &events.stream(FRESH));
    }
    check(&mut client, &events, 0);
    empty_tables(&mut client);

    let mut events = Events { first_at: Timestamp::now(), next: 0 };
    let mut costs: BTreeMap<u64, Vec<Cost>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for repeated in MIXED.into_iter().flat_map(|repeated| [FRESH, repeated]) {
            let bodies = events.stream(repeated);
            costs.entry(repeated).or_default().push(send(&mut server, &postgres, &bodies));
        }
    }
    let repeated = MIXED.iter().sum::<u64>() * BATCHES * BATCH_EVENTS / 1000 * ROUNDS as u64;
    check(&mut client, &events, repeated);

    let median = |repeated: u64, figure: fn(&Cost) -> f64| {
        quantile(&costs[&repeated].iter().map(figure).collect::<Vec<_>>(), 0.5)
    };
    let ratio = |repeated: u64, figure: fn(&Cost) -> f64| median(repeated, figure) / median(FRESH, figure);
    let mut line = String::from("soak_duplicates: us an event sent (PostgreSQL's CPU, the server's CPU):");
    for repeated in costs.keys().copied() {
        let _ = write!(
            line,
            " {repeated}/1000: {:.2} ({:.2}, {:.2}) ratio {:.2} ({:.2}, {:.2});",
            median(repeated, |cost| cost.micros),
            median(repeated, |cost| cost.postgres_cpu_micros),
            median(repeated, |cost| cost.server_cpu_micros),
            ratio(repeated, |cost| cost.micros),
            ratio(repeated, |cost| cost.postgres_cpu_micros),
            ratio(repeated, |cost| cost.server_cpu_micros),
        );
    }
    announce(&format!("{line} rounds={ROUNDS} events={} duplicates={repeated} lost=0 duplicated=0", events.next));
    for repeated in MIXED {
        let ratio = ratio(repeated, |cost| cost.micros);
        assert!(ratio <= RATIO_MAX, "{repeated} of 1000 duplicates cost {ratio} times as much: {costs:?}");
    }
}
