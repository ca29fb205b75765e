//! Clients that send batches from several threads, remember what was promised, and compare with the tables.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use postgres::Client;

use super::WAIT_MAX;
use super::nginx::TestNginx;
use super::postgres::{TestDatabase, TestPostgres};
use super::server::{self, Ingestd};

/// Events of one batch.
const BATCH_EVENTS: RangeInclusive<u64> = 200..=1000;
/// Pause of a client that was turned away or found no server.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A small generator of random numbers (xorshift64*, Vigna 2016): a seed gives the same run of numbers again.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that it never leaves.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number in `range`.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16;
        range.start() + number % (range.end() - range.start() + 1)
    }

    /// A number in `range`, which does not begin at 0, with each order of magnitude as likely as the others.
    pub fn magnitude(&mut self, range: &RangeInclusive<u64>) -> u64 {
        let (low, high) = (*range.start() as f64, *range.end() as f64);
        let share = self.within(0..=1_000_000) as f64 / 1e6;
        (low * (high / low).powf(share)) as u64
    }

    /// A duration of at most `max`.
    pub fn duration(&mut self, max: Duration) -> Duration {
        Duration::from_micros(self.within(0..=max.as_micros() as u64))
    }
}

/// `INGESTD_TEST_SEED`, or a fresh seed; announced with the test's name either way.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("INGESTD_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.subsec_nanos() as u64 + since.as_secs())
    });
    super::announce(&format!("{test}: INGESTD_TEST_SEED={seed}"));
    seed
}

/// A server that was killed with a backlog which only its journal has: batches `b0`, `b1` … of `events` events each. PostgreSQL
/// has been killed, too.
pub fn killed_with_backlog(batches: usize, events: u64) -> (TestPostgres, TestDatabase, Ingestd) {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let mut server = Ingestd::builder().database(&database).start();
    postgres.kill9();
    for number in 0..batches {
        let id = format!("b{number}");
        let text = body(&id, Some(&id), 3, events);
        let reply = server::post(&server.url("/v1/ingest/batch"), &[], text.as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    server.kill9();
    (postgres, database, server)
}

/// A body of `events` events without timestamps: whoever takes the same body twice gives it two times, so
/// that the primary key of `events` cannot hide a doubled batch.
pub fn body(tag: &str, batch_id: Option<&str>, priority: u64, events: u64) -> String {
    let mut text = String::with_capacity(events as usize * 160 + 100);
    text.push('{');
    if let Some(batch_id) = batch_id {
        let _ = write!(text, r#""batch_id":"{batch_id}","#);
    }
    let _ = write!(text, r#""priority":{priority},"events":["#);
    for number in 0..events {
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(
            text,
            r#"{comma}{{"event_id":"{tag}/{number}","service_name":"load","event_type":"test","payload":{{"number":{number},"tag":"{tag}"}}}}"#
        );
    }
    text.push_str("]}");
    text
}

/// What a load is made of.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Threads, each with connections of its own.
    pub clients: u64,
    /// Events over all clients, about; `u64::MAX` until [`Load::stop`].
    pub events: u64,
    /// For sizes, priorities and which batches have an id of the client's.
    pub seed: u64,
    /// Batches have a priority from 0 to this.
    pub priority_max: u64,
    /// A client waits this long between its batches.
    pub pause: Duration,
}

/// One batch as its client knows it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What the ids of its events begin with.
    pub tag: String,
    /// The id that the client chose, if it did.
    pub batch_id: Option<String>,
    /// Its events.
    pub events: u64,
    /// The server has promised to keep it.
    pub acked: bool,
}

/// What a load does beside what its options say.
#[derive(Debug, Default)]
struct Kind {
    /// Its server is a balancer: batches with an id show it, so that a second node may get them, and 502 is an unknown end.
    balanced: bool,
    /// The URL of a second server, which gets each batch at the same time. All batches have an id then.
    twin: Option<String>,
    /// Each batch is one event of so many bytes or a little more, as many of a size as of any other order of magnitude.
    bytes: Option<RangeInclusive<u64>>,
}

struct Shared {
    /// Where the server is now.
    base: Mutex<String>,
    kind: Kind,
    /// Events that no client has taken on yet.
    left: AtomicU64,
    acked_events: AtomicU64,
    retries: AtomicU64,
    refused: AtomicU64,
    stop: AtomicBool,
    options: LoadOptions,
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<Sent>>>,
}

impl Load {
    /// Starts the clients against `server`.
    pub fn start(server: &Ingestd, options: LoadOptions) -> Self {
        Self::start_at(server.url(""), Kind::default(), options)
    }

    /// Starts the clients against the balancer at `url`.
    pub fn start_through(balancer: &TestNginx, options: LoadOptions) -> Self {
        Self::start_at(balancer.url(""), Kind { balanced: true, ..Kind::default() }, options)
    }

    /// Starts the clients against `server` and `twin`: each batch goes to both at the same time. Both keep their addresses.
    pub fn start_to_both(server: &Ingestd, twin: &Ingestd, options: LoadOptions) -> Self {
        Self::start_at(server.url(""), Kind { twin: Some(twin.url("")), ..Kind::default() }, options)
    }

    /// Starts the clients against `server`, with batches of one event that has about so many bytes.
    pub fn start_with_bytes(server: &Ingestd, bytes: RangeInclusive<u64>, options: LoadOptions) -> Self {
        Self::start_at(server.url(""), Kind { bytes: Some(bytes), ..Kind::default() }, options)
    }

    fn start_at(url: String, kind: Kind, options: LoadOptions) -> Self {
        let shared = Arc::new(Shared {
            base: Mutex::new(url),
            kind,
            left: AtomicU64::new(options.events),
            acked_events: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            options,
        });
        let client = |number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.client(number))
        };
        let clients = (0..options.clients).map(client).collect();
        Self { shared, clients }
    }

    /// The server has another address now.
    pub fn follow(&self, server: &Ingestd) {
        *self.shared.base.lock() = server.url("");
    }

    /// Events that were promised so far.
    pub fn acked_events(&self) -> u64 {
        self.shared.acked_events.load(Ordering::Relaxed)
    }

    /// Waits until `events` more or less were promised, or all clients are done.
    pub fn wait_for_acked(&self, events: u64, wait_max: Duration) {
        super::wait_until(&format!("{events} events acknowledged"), wait_max, || {
            self.acked_events() >= events || self.clients.iter().all(JoinHandle::is_finished)
        });
    }

    /// Times that a client was turned away with 429 or 503.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Waits for the clients to be done.
    pub fn finish(self) -> Outcome {
        let batches =
            self.clients.into_iter().flat_map(|client| client.join().expect("a client did its work")).collect();
        let (retries, refused) = (&self.shared.retries, &self.shared.refused);
        Outcome {
            batches,
            retries: retries.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            seed: self.shared.options.seed,
        }
    }

    /// Has the clients end after the batch in hand; the server must be up for that.
    pub fn stop(self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }
}

impl Shared {
    fn client(&self, number: u64) -> Vec<Sent> {
        let mut random = Random::new(self.options.seed.wrapping_add(number));
        let mut batches = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let wanted = if self.kind.bytes.is_some() { 1 } else { random.within(BATCH_EVENTS) };
            let take = |left: u64| (left > 0).then(|| left.saturating_sub(wanted));
            if self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                break;
            }
            let tag = format!("{:x}-{number}-{}", self.options.seed, batches.len());
            let has_id = random.within(0..=1) == 1 || self.kind.twin.is_some();
            let batch_id = has_id.then(|| format!("b-{tag}"));
            let priority = random.within(0..=self.options.priority_max);
            let mut body = body(&tag, batch_id.as_deref(), priority, wanted);
            if let Some(bytes) = &self.kind.bytes {
                let filler = "x".repeat(random.magnitude(bytes) as usize);
                body = body.replace(r#""payload":{"#, &format!(r#""payload":{{"filler":"{filler}","#));
            }
            let acked = self.send_to_all(&body, batch_id.as_deref());
            if acked {
                self.acked_events.fetch_add(wanted, Ordering::Relaxed);
            }
            batches.push(Sent { tag, batch_id, events: wanted, acked });
            if !self.options.pause.is_zero() {
                thread::sleep(self.options.pause);
            }
        }
        batches
    }

    /// True when any server has acknowledged it.
    fn send_to_all(&self, body: &str, batch_id: Option<&str>) -> bool {
        let base = || self.base.lock().clone();
        let Some(twin) = &self.kind.twin else { return self.send(base, body, batch_id) };
        thread::scope(|scope| {
            let other = scope.spawn(|| self.send(|| twin.clone(), body, batch_id));
            let acked = self.send(base, body, batch_id);
            other.join().expect("a client did its work") || acked
        })
    }

    /// Sends one batch; false when its outcome stays unknown, which only a batch without an id may leave so.
    fn send(&self, base: impl Fn() -> String, body: &str, batch_id: Option<&str>) -> bool {
        let deadline = Instant::now() + WAIT_MAX;
        // Of a batch without an id of which the server does not know whether it took it.
        let mut given_id: Option<String> = None;
        loop {
            assert!(Instant::now() < deadline, "a batch could not be sent within {WAIT_MAX:?}");
            let base = base();
            let mut headers = vec![("Content-Type", "application/json")];
            headers.extend(batch_id.filter(|_| self.kind.balanced).map(|id| ("Idempotency-Key", id)));
            headers.extend(given_id.as_deref().map(|id| ("Idempotency-Key", id)));
            match server::try_post(&format!("{base}/v1/ingest/batch"), &headers, body.as_bytes()) {
                Ok(reply) if matches!(reply.status, 200 | 202) => return true,
                // The block may be on the disk and land after a restart: docs/api.md.
                Ok(reply) if batch_id.is_none() && is_unknown(&reply) => {
                    let id = reply.json()["batch_id"].as_str().expect("the id to send it again with").to_owned();
                    given_id.get_or_insert(id);
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(RETRY_PAUSE);
                }
                Ok(reply) if matches!(reply.status, 429 | 503) => {
                    if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        println!("first refusal: {}", reply.text());
                    }
                    assert!(!reply.header("retry-after").is_empty(), "a refusal says when to come again");
                    thread::sleep(RETRY_PAUSE);
                }
                Ok(reply) if reply.status != 502 || !self.kind.balanced => {
                    panic!("unexpected answer {}: {}", reply.status, reply.text())
                }
                Ok(_) | Err(_) => {
                    self.wait_for_server(&base, deadline);
                    if batch_id.is_none() && given_id.is_none() {
                        return false;
                    }
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(RETRY_PAUSE);
                }
            }
        }
    }

    /// Waits until the server at `gone`, or one that has taken its place, answers.
    fn wait_for_server(&self, gone: &str, deadline: Instant) {
        let is_first = self.kind.twin.as_deref() != Some(gone);
        loop {
            let base = if is_first { self.base.lock().clone() } else { gone.to_owned() };
            if server::try_get(&format!("{base}/livez")).is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "no server within {WAIT_MAX:?}");
            thread::sleep(RETRY_PAUSE);
        }
    }
}

/// Whether a refusal leaves open what becomes of the batch: its block could not be written, or not be synced.
fn is_unknown(reply: &server::Reply) -> bool {
    reply.status == 503 && reply.json()["code"] == "outcome_unknown"
}

/// Everything that the clients know in the end.
#[derive(Debug, Default)]
pub struct Outcome {
    /// All batches, in no order.
    pub batches: Vec<Sent>,
    /// Times that a batch with an id was sent again because its answer did not come.
    pub retries: u64,
    /// Times that a batch was turned away.
    pub refused: u64,
    /// Reproduces sizes, priorities and ids.
    pub seed: u64,
}

/// A comparison of what was promised with what the table has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events promised.
    pub acked: u64,
    /// Rows of `events`.
    pub committed: u64,
    /// Batches sent again.
    pub retries: u64,
    /// Batches turned away.
    pub refused: u64,
    /// Events of batches whose outcome their client never learned.
    pub unknown: u64,
    /// Events that were promised and are not there.
    pub lost: u64,
    /// Rows beyond the first of an event, and rows that only the primary key kept out.
    pub doubled: u64,
    /// Batches without promise that are there in part.
    pub half_taken: u64,
    /// Reproduces sizes, priorities and ids.
    pub seed: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acked={} committed={} retries={} refused={} unknown={} lost={} doubled={} half_taken={} seed={}",
            self.acked,
            self.committed,
            self.retries,
            self.refused,
            self.unknown,
            self.lost,
            self.doubled,
            self.half_taken,
            self.seed
        )
    }
}

impl Outcome {
    /// Both together, for two loads on one database.
    pub fn with(mut self, other: Self) -> Self {
        self.batches.extend(other.batches);
        self.retries += other.retries;
        self.refused += other.refused;
        self
    }

    /// Compares with the tables that `client` sees.
    pub fn tally(&self, client: &mut Client) -> Tally {
        let mut tally = Tally { retries: self.retries, refused: self.refused, seed: self.seed, ..Tally::default() };
        let by_tag = "SELECT split_part(event_id, '/', 1), count(*), count(DISTINCT event_id) FROM events GROUP BY 1";
        let rows = client.query(by_tag, &[]).expect("the events can be counted");
        let count = |row: &postgres::Row, column: usize| row.get::<_, i64>(column).unsigned_abs();
        let mut found: HashMap<String, (u64, u64)> =
            rows.iter().map(|row| (row.get(0), (count(row, 1), count(row, 2)))).collect();
        for batch in &self.batches {
            let (rows, events) = found.remove(&batch.tag).unwrap_or_default();
            tally.committed += rows;
            tally.doubled += rows - events;
            if batch.acked {
                tally.acked += batch.events;
                tally.lost += batch.events - events;
            } else {
                tally.unknown += batch.events;
                tally.half_taken += u64::from(events != 0 && events != batch.events);
            }
        }
        assert!(found.is_empty(), "rows of batches that nobody sent: {found:?}");
        let kept_out = client.query_one("SELECT coalesce(sum(duplicates), 0)::bigint FROM ingest_batches", &[]);
        tally.doubled += count(&kept_out.expect("the ledger can be read"), 0);
        tally
    }

    /// Says the tally on stderr and panics unless every promised event is there once and no event twice.
    pub fn assert_exactly_once(&self, client: &mut Client) -> Tally {
        let tally = self.tally(client);
        super::announce(&tally.to_string());
        assert!(tally.acked > 0, "nothing was acknowledged: {tally}");
        assert_eq!((tally.lost, tally.doubled, tally.half_taken), (0, 0, 0), "{tally}");
        let ledger = client.query_one("SELECT coalesce(sum(inserted), 0)::bigint FROM ingest_batches", &[]);
        let in_ledger: i64 = ledger.expect("the ledger can be read").get(0);
        assert_eq!(in_ledger.unsigned_abs(), tally.committed, "the ledger tells what is in the table");
        tally
    }
}

/// Waits until nothing that `server` accepted is still on its way to PostgreSQL.
pub fn wait_until_committed(server: &Ingestd, wait_max: Duration) {
    super::wait_until("all accepted batches committed", wait_max, || {
        let health = server::get(&server.url("/v1/health")).json();
        health["checks"]["database"]["queued_batches"].as_u64() == Some(0)
    });
}
