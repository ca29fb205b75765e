//! Small batches of high priority whose commits are waited for, one after the other: what an outage or an overload must
//! not hold up.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::load::{Sent, body};
use super::server::{Ingestd, post};

const EVENTS: u64 = 10;
const PRIORITY: u64 = 9;
const INTERVAL: Duration = Duration::from_millis(500);

/// The urgent batches that were committed, and how long each took.
#[derive(Debug, Default)]
pub struct Urgent {
    /// The batches.
    pub batches: Vec<Sent>,
    /// From the request to the answer that it is committed.
    pub latencies: Vec<Duration>,
}

impl Urgent {
    /// Commits one batch, and lets the rest of its interval pass.
    pub fn commit_one(&mut self, server: &Ingestd) {
        let (tag, begun) = (format!("urgent-{}", self.batches.len()), Instant::now());
        let body = body(&tag, None, PRIORITY, EVENTS);
        let reply = post(&server.url("/v1/ingest/batch?ack=commit"), &[], body.as_bytes());
        self.latencies.push(begun.elapsed());
        assert_eq!(reply.status, 200, "{}", reply.text());
        self.batches.push(Sent { tag, batch_id: None, events: EVENTS, acked: true });
        sleep(INTERVAL.saturating_sub(begun.elapsed()));
    }
}
