//! Clients that choose the ids of their batches, send each until it is acknowledged, and remember what they were promised.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Failure;

/// Clients, events of a batch, and a client's pause between two: 40,000 events a second while all is well.
const CLIENTS: u64 = 8;
pub const EVENTS: u64 = 500;
const PAUSE: Duration = Duration::from_millis(100);
/// Pause before a batch is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long one batch may take to be acknowledged.
const BATCH_WAIT_MAX: Duration = Duration::from_secs(60);

/// What the clients know.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
    retries: AtomicU64,
    /// Longest that a batch took since it was last asked for, in microseconds.
    longest_micros: AtomicU64,
}

/// Clients at work.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<Vec<String>, String>>>,
}

impl Clients {
    /// Starts them against `url`.
    pub fn start(url: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let client = |number| {
            let (shared, url) = (Arc::clone(&shared), format!("{url}/v1/ingest/batch"));
            thread::spawn(move || shared.client(&url, number))
        };
        Self { threads: (0..CLIENTS).map(client).collect(), shared }
    }

    /// Events acknowledged so far.
    pub fn acked_events(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed) * EVENTS
    }

    /// Times that a batch was sent again.
    pub fn retries(&self) -> u64 {
        self.shared.retries.load(Ordering::Relaxed)
    }

    /// Longest that a batch took to be acknowledged, its retries included, since this was asked last.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_micros.swap(0, Ordering::Relaxed))
    }

    /// Has them end; the ids of all batches that were acknowledged.
    pub fn stop(self) -> Result<Vec<String>, Failure> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut batches = Vec::new();
        for thread in self.threads {
            batches.extend(thread.join().map_err(|_| "a client panicked")??);
        }
        Ok(batches)
    }
}

impl Shared {
    fn client(&self, url: &str, number: u64) -> Result<Vec<String>, String> {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(BATCH_WAIT_MAX));
        let agent: ureq::Agent = config.build().into();
        let mut batches = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let id = format!("fault-{number}-{}", batches.len());
            let (begun, body) = (Instant::now(), body(&id));
            // Every second one lets nginx see the id: it may then give the batch to another node by itself.
            let shown = batches.len() % 2 == 0;
            while !self.send(&agent, url, &id, &body, shown)? {
                if begun.elapsed() > BATCH_WAIT_MAX {
                    return Err(format!("batch {id} was not acknowledged within {BATCH_WAIT_MAX:?}"));
                }
                self.retries.fetch_add(1, Ordering::Relaxed);
                thread::sleep(RETRY_PAUSE);
            }
            self.acked.fetch_add(1, Ordering::Relaxed);
            self.longest_micros.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            batches.push(id);
            thread::sleep(PAUSE);
        }
        Ok(batches)
    }

    /// False when it must be sent again.
    fn send(&self, agent: &ureq::Agent, url: &str, id: &str, body: &str, shown: bool) -> Result<bool, String> {
        let mut request = agent.post(url).header("Content-Type", "application/json");
        if shown {
            request = request.header("Idempotency-Key", id);
        }
        match request.send(body) {
            // No answer, or one without an end.
            Err(_) => Ok(false),
            Ok(answer) => match answer.status().as_u16() {
                200 | 202 => Ok(true),
                429 | 502 | 503 => Ok(false),
                status => Err(format!("batch {id} was answered {status}")),
            },
        }
    }
}

/// Without timestamps: each node would stamp its own, so that the primary key cannot hide a batch that landed twice.
fn body(id: &str) -> String {
    let mut text = format!(r#"{{"batch_id":"{id}","events":["#);
    for number in 0..EVENTS {
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(
            text,
            r#"{comma}{{"event_id":"{id}/{number}","service_name":"cluster","event_type":"fault","payload":{{"number":{number}}}}}"#
        );
    }
    text.push_str("]}");
    text
}
