//! Lands what is in the journal of a node that will not come back, from whatever machine has its folder, and ends.
//!
//! The server's own parts without its listeners. Whatever landed before, by the dead node, by an earlier drain that was
//! killed, or by a drain of another copy of the same journal, the ledger knows.
//!
//! ```text
//!  journal: lock, verify, recover ─▶ PostgreSQL: connect, migrate, partitions ─▶ flushers ─┬─▶ nothing is queued
//!                                          ▲ away: again │                                 ├─▶ nothing lands for too long
//!                                          └─────────────┘                                 └─▶ SIGTERM, SIGINT
//!      flushers end ─▶ journal: let go what landed, close ─▶ last status to Redis ─▶ outcome
//! ```
//!
//! Absent on purpose: making the journal's folder (a wrong path must not look like an empty journal), and deleting it: a
//! person does that, after reading the outcome.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::sync::Parker;

use crate::config::Config;
use crate::encode::pool::BlockPool;
use crate::flush::flusher::FlushTools;
use crate::flush::queue::FlushQueue;
use crate::flush::sleepers::Seat;
use crate::journal::space::SEGMENT_BYTES_FLOOR;
use crate::journal::{DiskStorage, Journal, JournalHealth, JournalOptions, OnRead};
use crate::limits::{FLUSH_STOP_WAIT_MAX, JOURNAL_DRAIN_POLL, JOURNAL_DRAIN_RETRY_WAIT};
use crate::metrics::Metrics;
use crate::pg::connect::Connector;
use crate::pg::health::DatabaseHealth;
use crate::server::database::Database;
use crate::server::recover::{self, Lanes, Recovered};
use crate::server::{
    ServeError, flush_queue, join_within, rows_min, start_flushers, start_shared, unflushed_bytes_max,
};
use crate::status::memory::BatchMap;
use crate::status::recent::Recent;
use crate::status::shared::StatusFeed;
use crate::sys::affinity;
use crate::sys::signals::{self, Signal};

/// What to drain, and where to.
pub struct Order<'a> {
    /// The journal's folder.
    pub dir: &'a Path,
    /// PostgreSQL, which runs.
    pub database: Connector,
    /// How long nothing may land before the drain gives up.
    pub patience: Duration,
}

/// How far a drain is: batches done, and of how many.
pub type OnProgress<'a> = dyn FnMut(u64, u64) + 'a;

/// What a drain did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Nodes that wrote the journal, but for this one.
    pub nodes: Vec<String>,
    /// What the journal held, not known to be committed.
    pub found: Tally,
    /// What this drain committed.
    pub landed: Tally,
    /// What the ledger had already.
    pub before: Tally,
    /// Rows that the committed batches made.
    pub rows: u64,
    /// Events of them that PostgreSQL had already.
    pub duplicates: u64,
    /// Events of them that are in `dead_letter_events` now.
    pub dead_letters: u64,
    /// Batches that are in the journal still.
    pub left: u64,
    /// What is not as it was written; empty when all is.
    pub damage: Vec<String>,
    /// Why the drain ended.
    pub end: End,
}

/// Batches, and the events in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub batches: u64,
    /// Events.
    pub events: u64,
}

/// Why a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything that can land has landed.
    Done,
    /// PostgreSQL takes others, but not those that are left.
    Refused(String),
    /// Nothing has landed for too long.
    GaveUp(String),
    /// A signal asked for it.
    Interrupted,
}

/// Drains a journal; tells `on_read` how far reading it is, and `on_progress` how far landing it is.
///
/// # Errors
/// Nothing was landed then: a journal that is missing, in use, or of a newer version; settings that do not fit.
pub fn run(
    config: &Config,
    order: Order<'_>,
    on_read: &mut OnRead<'_>,
    on_progress: &mut OnProgress<'_>,
) -> Result<Drained, ServeError> {
    let parker = Parker::new();
    let interrupted = on_termination(&parker)?;
    let node: Arc<str> = Arc::from(config.node_id.as_str());
    let metrics = Metrics::new(&node, &crate::json::REJECTION_CODES);
    let cores = config.workers.unwrap_or_else(affinity::default_workers);
    let (queue, seats) = flush_queue(config, cores);
    let batches = Arc::new(BatchMap::new(config.status_ttl));
    let journal_health = Arc::new(JournalHealth::default());
    let lanes = Lanes { cores, queue: &queue, batches: &batches, metrics: &metrics };
    let recovered = open_journal(order.dir, &node, &lanes, &journal_health, on_read)?;

    let health = Arc::new(DatabaseHealth::new());
    let database = Database::over(order.database, config, &health)?;
    let shared = start_shared(config, &node, &database.id)?;
    let mut drain = Drain {
        found: Tally { batches: queue.budgets.batches.used(), events: recovered.events },
        journal: recovered.journal,
        journal_fault: None,
        queue,
        metrics,
        health,
        journal_health,
        batches,
        parker,
        interrupted,
        patience: order.patience,
    };
    let feed = shared.as_ref().map(|shared| shared.feed.clone());
    let end = drain.land(config, database, seats, feed, on_progress)?;
    if let Some(shared) = shared {
        shared.stop();
    }
    let mut damage: Vec<String> = recovered.recovery.damage.iter().map(ToString::to_string).collect();
    let set_aside = recovered.recovery.quarantined.iter();
    damage.extend(set_aside.map(|file| format!("{file} was set aside by an earlier start")));
    let is_degraded = recovered.recovery.is_degraded();
    drain.outcome(end, recovered.recovery.foreign_nodes, if is_degraded { damage } else { Vec::new() })
}

/// A flag that SIGTERM and SIGINT raise; they wake `parker`.
fn on_termination(parker: &Parker) -> Result<Arc<AtomicBool>, ServeError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (flag, unparker) = (Arc::clone(&interrupted), parker.unparker().clone());
    signals::install(move |signal| {
        if signal == Signal::Terminate {
            // Relaxed: nothing else is read because of it.
            flag.store(true, Ordering::Relaxed);
            unparker.unpark();
        }
    })
    .map_err(|error| ServeError::failed("cannot install signal handlers", error))?;
    Ok(interrupted)
}

/// Small segments, and no cap: the disk may be full, which may be why the node is dead. Files to recycle make room.
fn open_journal(
    dir: &Path,
    node: &str,
    lanes: &Lanes<'_>,
    health: &JournalHealth,
    on_read: &mut OnRead<'_>,
) -> Result<Recovered, ServeError> {
    let options = JournalOptions { node_id: node.to_owned(), bytes_max: u64::MAX, segment_bytes: SEGMENT_BYTES_FLOOR };
    let storage = DiskStorage::existing(dir).map_err(|error| no_journal(dir, error))?;
    recover::open(storage, &options, lanes, health, on_read)
}

fn no_journal(dir: &Path, error: std::io::Error) -> ServeError {
    let dir: PathBuf = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    ServeError::Failed(format!("no journal in {}: {error}; give its directory with --dir", dir.display()))
}

struct Drain {
    found: Tally,
    journal: Journal,
    /// The first thing that went wrong in writing the journal; what lands goes on landing.
    journal_fault: Option<String>,
    queue: Arc<FlushQueue>,
    metrics: Arc<Metrics>,
    health: Arc<DatabaseHealth>,
    journal_health: Arc<JournalHealth>,
    batches: Arc<BatchMap>,
    parker: Parker,
    interrupted: Arc<AtomicBool>,
    patience: Duration,
}

impl Drain {
    fn land(
        &mut self,
        config: &Config,
        mut database: Database,
        seats: Vec<Seat>,
        feed: Option<StatusFeed>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<End, ServeError> {
        if self.found.batches == 0 {
            return Ok(End::Done);
        }
        if let Some(end) = self.prepare(&mut database)? {
            return Ok(end);
        }
        let tools = Arc::new(FlushTools {
            pool: database.pool.clone(),
            reader: self.journal.reader(),
            releaser: self.journal.releaser(),
            health: Arc::clone(&self.health),
            batches: Arc::clone(&self.batches),
            recent: Arc::new(Recent::new(1)),
            feed,
            metrics: Arc::clone(&self.metrics),
            traces: None,
            node: Arc::from(config.node_id.as_str()),
            blocks: Arc::new(BlockPool::default()),
            journal_health: Arc::clone(&self.journal_health),
            batch_size: rows_min(config),
            stuck_after: config.stuck_after,
            unflushed_bytes_max: unflushed_bytes_max(config),
            journal: self.parker.unparker().clone(),
        });
        self.queue.set_shards(database.shards.clone());
        // Nothing more will come: nobody waits for it.
        self.queue.drain();
        let flushers = start_flushers(&self.queue, &tools, seats)?;
        let end = self.follow(on_progress);
        self.queue.stop();
        join_within("flusher", flushers, FLUSH_STOP_WAIT_MAX);
        database.stop();
        Ok(end)
    }

    /// Waits until PostgreSQL can be reached and its schema is in order; gives the end when that does not come about.
    fn prepare(&self, database: &mut Database) -> Result<Option<End>, ServeError> {
        let give_up_at = Instant::now() + self.patience;
        while !database.prepared {
            let retry_at = Instant::now() + JOURNAL_DRAIN_RETRY_WAIT;
            while Instant::now() < retry_at && !self.is_interrupted() {
                self.parker.park_deadline(retry_at);
            }
            if self.is_interrupted() {
                return Ok(Some(End::Interrupted));
            }
            if Instant::now() >= give_up_at {
                return Ok(Some(End::GaveUp(self.health.reason())));
            }
            database.prepare_again(&self.health)?;
        }
        Ok(None)
    }

    /// Lets go what lands, until there is no more to wait for.
    fn follow(&mut self, on_progress: &mut OnProgress<'_>) -> End {
        let (mut left_before, mut landed_at) = (self.found.batches, Instant::now());
        loop {
            self.reclaim();
            let left = self.queue.budgets.batches.used();
            on_progress(self.found.batches - left, self.found.batches);
            if self.queue.is_drained() {
                return self.queue.stuck().map_or(End::Done, |(_, reason)| End::Refused(reason));
            }
            if self.is_interrupted() {
                return End::Interrupted;
            }
            if left < left_before {
                (left_before, landed_at) = (left, Instant::now());
            }
            if landed_at.elapsed() >= self.patience {
                return End::GaveUp(self.why_nothing_lands());
            }
            self.parker.park_timeout(JOURNAL_DRAIN_POLL);
        }
    }

    fn why_nothing_lands(&self) -> String {
        if !self.health.is_working() {
            return self.health.reason();
        }
        let stuck = self.queue.stuck().map(|(_, reason)| reason);
        stuck.or_else(|| self.health.doubtful()).unwrap_or_else(|| "PostgreSQL is not responding".to_owned())
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn reclaim(&mut self) {
        if let Err(error) = self.journal.reclaim() {
            self.journal_fault.get_or_insert_with(|| error.to_string());
        }
    }

    fn outcome(mut self, end: End, nodes: Vec<String>, mut damage: Vec<String>) -> Result<Drained, ServeError> {
        self.reclaim();
        let left = self.journal.space().stats().live_frames;
        if let Err(error) = self.journal.close() {
            self.journal_fault.get_or_insert_with(|| error.to_string());
        }
        let unreadable = self.journal_health.damage();
        if damage.is_empty() && !unreadable.is_empty() {
            damage.push(unreadable);
        }
        if let Some(fault) = self.journal_fault {
            let said = "committed batches could not be marked in the journal: the next drain finds them again and \
                changes nothing";
            damage.push(format!("{fault} ({said})"));
        }
        let (rows, duplicates) = (self.metrics.events_committed.get(), self.metrics.events_duplicate.get());
        let dead_letters = self.metrics.events_dead_lettered.get();
        let before = Tally { batches: self.metrics.batches_before.get(), events: self.metrics.events_before.get() };
        let landed = Tally {
            batches: (self.found.batches - left).saturating_sub(before.batches),
            events: rows + duplicates + dead_letters,
        };
        Ok(Drained { nodes, found: self.found, landed, before, rows, duplicates, dead_letters, left, damage, end })
    }
}
