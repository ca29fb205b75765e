//! Batch status shared between nodes over Redis.
//!
//! One thread writes, in pipelines, whatever flushers and the journal thread publish; a bounded queue stands
//! between them, so Redis slow or away never holds up ingestion. When the queue is full the oldest news are
//! dropped and counted: finished batches are in the ledger anyway.
//!
//! Key `ingestd:<database>:batch:<owner>:<batch_id>`, so that deployments which share a Redis do not meet; nothing is read or
//! written before the database is known. Value the status document as JSON with `digest` (hex) beside it,
//! expiring after `STATUS_TTL_SECONDS`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::limits::{
    REDIS_GROUP_MAX, REDIS_IO_WAIT_MAX, REDIS_QUEUE_MAX, REDIS_RETRY_WAIT, REDIS_STOP_WAIT_MAX, STOP_POLL,
};
use crate::pg::sqlstate::one_line;
use crate::state_log::StateLog;
use crate::status::model::{Batch, StatusDocument};
use crate::sys::vital;
use crate::types::{BatchKey, BodyDigest};

/// A batch's status as Redis has it.
#[derive(Clone, Debug)]
pub struct SharedStatus {
    /// As clients see it.
    pub document: StatusDocument,
    /// Digest of the body that has the id.
    pub digest: BodyDigest,
}

/// Which database the batches are for; unknown until it could be asked.
#[derive(Debug, Default)]
pub struct DatabaseId(Mutex<Option<Arc<str>>>);

impl DatabaseId {
    /// It is this one, as far as it could be asked. After an outage it may be another one than before.
    pub fn set(&self, id: Option<String>) {
        *self.0.lock() = id.map(Arc::from);
    }

    fn get(&self) -> Option<Arc<str>> {
        self.0.lock().clone()
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    document: StatusDocument,
    digest: String,
}

/// The fault before anybody has tried.
const NOT_YET: &str = "not connected yet";

/// Whether Redis works, as its threads last saw it.
pub struct RedisHealth {
    working: AtomicBool,
    reason: Mutex<String>,
    log: Mutex<StateLog>,
    dropped: AtomicU64,
}

impl RedisHealth {
    /// Not working until the writer has seen it work.
    fn new() -> Self {
        let (reason, log) = (Mutex::new(NOT_YET.to_owned()), Mutex::default());
        Self { working: AtomicBool::new(false), reason, log, dropped: AtomicU64::new(0) }
    }

    /// True when the last word was success.
    pub fn is_working(&self) -> bool {
        self.working.load(Ordering::Relaxed)
    }

    /// Why it does not work.
    pub fn reason(&self) -> String {
        self.reason.lock().clone()
    }

    /// Status changes that did not fit the queue.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn works(&self) {
        if !self.working.swap(true, Ordering::Relaxed) {
            let before = std::mem::take(&mut *self.reason.lock());
            let away = self.log.lock().ends(Instant::now());
            if before != NOT_YET && away.is_none() {
                return;
            }
            let away_ms = away.map(|away| away.as_millis() as u64);
            tracing::info!(away_ms, "Redis is reachable; batch status is shared");
        }
    }

    fn fails(&self, error: &redis::RedisError) {
        let reason = one_line(&error.to_string());
        self.working.store(false, Ordering::Relaxed);
        if let Some(begun) = self.log.lock().holds(kind(error), Instant::now()) {
            tracing::warn!(
                reason,
                unlogged = begun.unlogged,
                "Redis is not responding; batch status is served from memory and the ledger, ingestion continues"
            );
        }
        *self.reason.lock() = reason;
    }
}

/// What an operator has to look at: it is away or busy (0), wants a password or a right, is read-only, is full, or
/// something else.
fn kind(error: &redis::RedisError) -> u8 {
    match error.code() {
        None | Some("LOADING" | "BUSY" | "TRYAGAIN") => 0,
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => 1,
        Some("READONLY" | "MASTERDOWN") => 2,
        Some("OOM" | "MISCONF") => 3,
        Some(_) => 4,
    }
}

/// Connections for look-ups, made with timeouts.
pub struct RedisManager(redis::Client);

impl r2d2::ManageConnection for RedisManager {
    type Connection = redis::Connection;
    type Error = redis::RedisError;

    fn connect(&self) -> Result<redis::Connection, redis::RedisError> {
        open(&self.0)
    }

    fn is_valid(&self, connection: &mut redis::Connection) -> Result<(), redis::RedisError> {
        redis::cmd("PING").query(connection)
    }

    fn has_broken(&self, connection: &mut redis::Connection) -> bool {
        !redis::ConnectionLike::is_open(connection)
    }
}

fn open(client: &redis::Client) -> Result<redis::Connection, redis::RedisError> {
    let connection = client.get_connection_with_timeout(REDIS_IO_WAIT_MAX)?;
    connection.set_read_timeout(Some(REDIS_IO_WAIT_MAX))?;
    connection.set_write_timeout(Some(REDIS_IO_WAIT_MAX))?;
    Ok(connection)
}

/// r2d2 reports failed attempts here; the writer thread logs Redis's state once.
#[derive(Debug)]
struct QuietErrors;

impl r2d2::HandleError<redis::RedisError> for QuietErrors {
    fn handle_error(&self, error: redis::RedisError) {
        tracing::debug!(error = %one_line(&error.to_string()), "connection attempt to Redis failed");
    }
}

/// Reads status from Redis.
#[derive(Clone)]
pub struct StatusReader {
    pool: r2d2::Pool<RedisManager>,
    health: Arc<RedisHealth>,
    database: Arc<DatabaseId>,
}

impl StatusReader {
    /// The status of each of `keys`, in their order; `None` when Redis is away. Asked only while its writer finds it
    /// working: the writer alone is the judge of that.
    pub fn find(&self, keys: &[&BatchKey]) -> Option<Vec<Option<SharedStatus>>> {
        if !self.health.is_working() {
            return None;
        }
        let database = self.database.get()?;
        let mut connection = self.pool.get().ok()?;
        let names: Vec<String> = keys.iter().map(|key| redis_key(&database, key)).collect();
        let found: Vec<Option<String>> = redis::cmd("MGET").arg(names).query(&mut *connection).ok()?;
        Some(found.into_iter().map(|text| text.and_then(|text| parse(&text))).collect())
    }
}

/// Where status changes are published.
#[derive(Clone)]
pub struct StatusFeed {
    news: Sender<Arc<Batch>>,
    oldest: Receiver<Arc<Batch>>,
    health: Arc<RedisHealth>,
}

impl StatusFeed {
    /// Publishes the present status of `batch`. Never waits.
    pub fn publish(&self, batch: &Arc<Batch>) {
        let mut news = Arc::clone(batch);
        while let Err(TrySendError::Full(unsent)) = self.news.try_send(news) {
            if self.oldest.try_recv().is_ok() {
                self.health.dropped.fetch_add(1, Ordering::Relaxed);
            }
            news = unsent;
        }
    }
}

/// Redis as the server holds it.
pub struct Shared {
    /// For flushers and the journal thread.
    pub feed: StatusFeed,
    /// For look-ups.
    pub reader: StatusReader,
    /// For health.
    pub health: Arc<RedisHealth>,
    stopping: Arc<AtomicBool>,
    writer: std::thread::JoinHandle<()>,
}

impl Shared {
    /// Starts the writer thread; does not wait for Redis.
    pub fn start(
        url: &str,
        time_to_live: Duration,
        node: Arc<str>,
        database: Arc<DatabaseId>,
    ) -> Result<Self, StartError> {
        let client = redis::Client::open(url)?;
        let health = Arc::new(RedisHealth::new());
        let pool = r2d2::Pool::builder()
            .min_idle(Some(0))
            .max_size(2)
            .connection_timeout(REDIS_IO_WAIT_MAX)
            // Redis may have been restarted: one PING a group of look-ups keeps stale connections out.
            .test_on_check_out(true)
            .error_handler(Box::new(QuietErrors))
            .build_unchecked(RedisManager(client.clone()));
        let (news, waiting) = bounded(REDIS_QUEUE_MAX);
        let stopping = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            client,
            connection: None,
            waiting: waiting.clone(),
            health: Arc::clone(&health),
            stopping: Arc::clone(&stopping),
            seconds: time_to_live.as_secs().max(1),
            node,
            database: Arc::clone(&database),
        };
        let writer = vital::spawn("status-redis", move || writer.run())?;
        let feed = StatusFeed { news, oldest: waiting, health: Arc::clone(&health) };
        let reader = StatusReader { pool, health: Arc::clone(&health), database };
        Ok(Self { feed, reader, health, stopping, writer })
    }

    /// Writes what is queued, within a bound, and ends the thread.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + REDIS_STOP_WAIT_MAX;
        // One that a Redis holds up in a call ends with the process.
        while !self.writer.is_finished() && Instant::now() < deadline {
            std::thread::sleep(STOP_POLL);
        }
    }
}

/// Why Redis cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The URL.
    #[error("REDIS_URL is not valid: {0}")]
    Url(#[from] redis::RedisError),
    /// The thread.
    #[error("cannot start the thread that writes batch status to Redis: {0}")]
    Thread(#[from] std::io::Error),
}

struct Writer {
    client: redis::Client,
    connection: Option<redis::Connection>,
    waiting: Receiver<Arc<Batch>>,
    health: Arc<RedisHealth>,
    stopping: Arc<AtomicBool>,
    seconds: u64,
    node: Arc<str>,
    database: Arc<DatabaseId>,
}

impl Writer {
    fn run(mut self) {
        let mut group: Vec<Arc<Batch>> = Vec::with_capacity(REDIS_GROUP_MAX);
        let mut stop_by = None;
        // The first look at Redis waits for nothing.
        let mut wait = Duration::ZERO;
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                let stop_by = *stop_by.get_or_insert_with(|| Instant::now() + REDIS_STOP_WAIT_MAX);
                if (group.is_empty() && self.waiting.is_empty()) || Instant::now() >= stop_by {
                    return;
                }
            }
            if group.is_empty() {
                match self.waiting.recv_timeout(wait) {
                    Ok(batch) => group.push(batch),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                wait = REDIS_RETRY_WAIT;
            }
            group.extend(self.waiting.try_iter().take(REDIS_GROUP_MAX - group.len()));
            let database = self.database.get();
            let written = match &database {
                Some(database) => self.write(database, &group),
                None => self.write("", &[]),
            };
            match written {
                Ok(()) => {
                    self.health.works();
                    if database.is_some() {
                        group.clear();
                    } else {
                        std::thread::sleep(REDIS_RETRY_WAIT);
                    }
                }
                Err(error) => {
                    self.health.fails(&error);
                    self.connection = None;
                    std::thread::sleep(REDIS_RETRY_WAIT);
                }
            }
        }
    }

    /// Writes `group` in one pipeline; an empty one is a PING, so that health knows of a Redis that died while
    /// there was nothing to write.
    fn write(&mut self, database: &str, group: &[Arc<Batch>]) -> Result<(), redis::RedisError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => empty.insert(open(&self.client)?),
        };
        let mut pipeline = redis::pipe();
        pipeline.cmd("PING").ignore();
        // The news of a batch are its status now, not when they were queued: one that has lost its id since then must
        // not write over the batch which has it.
        for batch in group.iter().filter(|batch| !batch.lost_its_id()) {
            let stored = Stored { document: batch.document(&self.node), digest: hex(batch.digest) };
            let text = serde_json::to_string(&stored).unwrap_or_default();
            pipeline.cmd("SET").arg(redis_key(database, &batch.key)).arg(text).arg("EX").arg(self.seconds);
            if !stored.document.is_committed() {
                // Another node may have taken the same id: until a commit decides, the first one stands.
                pipeline.arg("NX");
            }
            pipeline.ignore();
        }
        pipeline.query(connection)
    }
}

fn redis_key(database: &str, key: &BatchKey) -> String {
    format!("ingestd:{database}:batch:{}:{}", key.owner, key.id)
}

fn hex(digest: BodyDigest) -> String {
    format!("{:032x}", u128::from_be_bytes(digest.0))
}

fn parse(text: &str) -> Option<SharedStatus> {
    let stored: Stored = serde_json::from_str(text).ok()?;
    let digest = BodyDigest(u128::from_str_radix(&stored.digest, 16).ok()?.to_be_bytes());
    Some(SharedStatus { document: stored.document, digest })
}
