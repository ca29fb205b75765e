//! The composition root: bind, open and recover the journal, connect, pin and start, serve, stop in order.
//!
//! ```text
//!  start                                     stop (SIGTERM, SIGINT)
//!  1 bind addresses (in use? say so now)     1 /readyz says no, listeners close
//!  2 journal: lock, verify, recover          2 requests under way are answered
//!  3 PostgreSQL: embedded or connect         3 what is queued is committed, within a bound
//!    migrate, partitions                     4 flushers end, journal thread closes the journal
//!  4 Redis, look-ups, flushers, upkeep       5 last status to Redis, last spans to the collector,
//!  5 journal thread, HTTP workers              embedded PostgreSQL stops
//! ```
//!
//! A journal that has failed ends the process as SIGTERM does, with exit code 1, so that a supervisor starts it again: the
//! next start finds out what of the last writes is on disk. Faults that pass end nothing (`journal_state`).
//!
//! PostgreSQL that cannot be reached stops nothing: batches go into the journal and wait. PostgreSQL that
//! refuses (wrong password, unknown database, too old) stops the start: only the operator can help. So does a
//! database that lacks what batches need (a right, an encoding), unless the journal holds batches: that node serves.

mod database;
pub mod drain;
mod group_commit;
mod journal_state;
mod listen;
mod recover;
mod reload;
pub mod relocator;
mod sampler;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Sender};
use crossbeam::sync::Parker;
use tokio::sync::watch;

use crate::config::open_files::OpenFiles;
use crate::config::{Auth, Config, Linger as LingerSetting};
use crate::encode::pool::BlockPool;
use crate::flush::cut::{CutSettings, Linger};
use crate::flush::flusher::{FlushTools, Flusher};
use crate::flush::queue::{FlushQueue, QueueBudgets};
use crate::flush::sleepers::Seat;
use crate::http::app::{App, HeadLimits, IngestSettings};
use crate::http::body::BodyLimits;
use crate::http::connections::Connections;
use crate::http::site::Hosts;
use crate::http::stream::Patience;
use crate::http::tls::{self, Tls};
use crate::http::worker::{self, WorkerStart};
use crate::journal::{Journal, JournalHealth, JournalOptions, OnRead};
use crate::limits::{FLUSH_DRAIN_WAIT_MAX, FLUSH_STOP_WAIT_MAX, STOP_POLL, queue_batches_max};
use crate::metrics::Metrics;
use crate::pg::health::DatabaseHealth;
use crate::pg::requirements::Lacks;
use crate::ring::budget::Budget;
use crate::ring::ring::Ring;
use crate::server::database::{Database, OnLacks};
use crate::server::group_commit::GroupCommit;
use crate::server::recover::Lanes;
use crate::server::reload::Reread;
use crate::server::sampler::Sampler;
use crate::server::upkeep::Upkeep;
use crate::sharding::Sharding;
use crate::status::durable::Durable;
use crate::status::lookup::{Lookup, Sources};
use crate::status::memory::BatchMap;
use crate::status::recent::Recent;
use crate::status::shared::{DatabaseId, Shared};
use crate::sys::affinity;
use crate::sys::open_files;
use crate::sys::service_manager;
use crate::sys::signals::{self, Signal};
use crate::sys::vital;
use crate::telemetry::Traces;

/// Why the server did not start, or did not stop cleanly: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings do not fit this machine or its database: exit code 2.
    #[error("{0}")]
    Configuration(String),
    /// The database or its role lacks what ingestd requires: exit code 2, a line for each.
    #[error("{0}")]
    Lacks(Lacks),
    /// Anything else: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl ServeError {
    fn failed(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }
}

/// Serves until SIGTERM or SIGINT. `reread` gathers the settings once more, for SIGHUP; `on_recovery` is told how far
/// reading the journal is.
///
/// # Errors
/// One line for the operator.
pub fn run(config: &Config, reread: Reread<'_>, on_recovery: &mut OnRead<'_>) -> Result<(), ServeError> {
    let (signal_sender, signals) = channel::bounded(16);
    signals::install(move |signal| {
        // A full channel means that 15 reloads wait already.
        let _ = signal_sender.try_send(signal);
    })
    .map_err(|error| ServeError::failed("cannot install signal handlers", error))?;
    let (on_failure, journal_failed) = channel::bounded(1);
    let server = Server::start(config, on_recovery, on_failure)?;
    let serving = server.app.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    service_manager::ready(&format!("serving {serving}"));
    loop {
        channel::select! {
            recv(signals) -> signal => match signal {
                Ok(Signal::Reload) => {
                    service_manager::reloading();
                    reload::reload(&server.app, reread);
                    service_manager::ready(&format!("serving {serving}"));
                }
                _ => break,
            },
            recv(journal_failed) -> _ => break,
        }
    }
    service_manager::stopping("committing queued batches");
    server.stop()
}

struct Server {
    app: Arc<App>,
    database: Database,
    shared: Option<Shared>,
    upkeep: Upkeep,
    sampler: Sampler,
    traces: Option<Arc<Traces>>,
    workers: Vec<JoinHandle<()>>,
    flushers: Vec<JoinHandle<()>>,
    journal_thread: JoinHandle<()>,
    journal_stopping: Arc<AtomicBool>,
    drain: watch::Sender<bool>,
}

impl Server {
    fn start(
        config: &Config,
        on_recovery: &mut OnRead<'_>,
        on_journal_failure: Sender<()>,
    ) -> Result<Self, ServeError> {
        let started_at = Instant::now();
        let worker_count = config.workers.unwrap_or_else(affinity::default_workers);
        // Files are set apart for what must go on whatever clients do.
        let planned = OpenFiles::plan(config, worker_count, open_files::limit()).map_err(ServeError::Configuration)?;
        let gate = reload::gate(config).map_err(|error| ServeError::Configuration(error.to_string()))?;
        let tls = start_tls(config)?;
        let traces = start_traces(config, tls.is_some())?;
        let bound = listen::bind(&config.listen, worker_count)?;
        let node: Arc<str> = Arc::from(config.node_id.as_str());
        let metrics = Metrics::new(&node, &crate::json::REJECTION_CODES);
        metrics.memory_limit_bytes.set(config.memory_bytes_max as u64);
        metrics.journal_limit_bytes.set(config.journal_bytes_max);
        metrics.db_pool_connections_limit.set(config.pool_connections_max.into());
        let (queue, seats) = flush_queue(config, worker_count);
        let batches = Arc::new(BatchMap::new(config.status_ttl));
        let recent = Arc::new(Recent::new(worker_count));
        let journal_health = Arc::new(JournalHealth::default());
        let lanes = Lanes { cores: worker_count, queue: &queue, batches: &batches, metrics: &metrics };
        let folder = recover::folder(&config.journal_dir)?;
        let options = JournalOptions::new(&*node, config.journal_bytes_max);
        let journal = recover::open(folder, &options, &lanes, &journal_health, on_recovery)?.journal;

        let health = Arc::new(DatabaseHealth::new());
        // What was acknowledged is to land: a restart takes traffic and waits for the cure.
        let on_lacks = if queue.budgets.batches.used() > 0 { OnLacks::Serve } else { OnLacks::Refuse };
        let database = Database::start(config, &health, on_lacks)?;
        queue.set_shards(database.shards.clone());
        let shared = start_shared(config, &node, &database.id)?;
        let sources = Sources {
            pool: database.pool.clone(),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            shared: shared.as_ref().map(|shared| shared.reader.clone()),
        };
        let lookup =
            Lookup::start(sources).map_err(|error| ServeError::failed("cannot start the lookup threads", error))?;
        let feed = shared.as_ref().map(|shared| shared.feed.clone());
        let blocks = Arc::new(BlockPool::default());
        let parker = Parker::new();
        let tools = Arc::new(FlushTools {
            pool: database.pool.clone(),
            reader: journal.reader(),
            releaser: journal.releaser(),
            health: Arc::clone(&health),
            batches: Arc::clone(&batches),
            recent: Arc::clone(&recent),
            feed: feed.clone(),
            metrics: Arc::clone(&metrics),
            traces: traces.clone(),
            node: Arc::clone(&node),
            blocks: Arc::clone(&blocks),
            journal_health: Arc::clone(&journal_health),
            batch_size: rows_min(config),
            stuck_after: config.stuck_after,
            unflushed_bytes_max: unflushed_bytes_max(config),
            journal: parker.unparker().clone(),
        });
        let flushers = start_flushers(&queue, &tools, seats)?;
        let app = Arc::new(App {
            settings: ingest_settings(config),
            patience: Patience { head: config.header_timeout, idle: config.keep_alive, write: config.write_timeout },
            head_limits: HeadLimits {
                headers_max: config.headers_max,
                bytes_max: config.header_bytes_max,
                url_bytes_max: config.url_bytes_max,
            },
            gate,
            hosts: if config.auth == Auth::Loopback { Hosts::Loopback } else { Hosts::Any },
            tls,
            connections: Connections::new(planned.connections_max, config.connections_per_address_max),
            rings: (0..worker_count).map(|_| Ring::default()).collect(),
            journal: parker.unparker().clone(),
            space: journal.space(),
            journal_health,
            durable: Durable::default(),
            queue,
            batches,
            recent,
            lookup,
            blocks,
            request_bytes: Arc::new(Budget::new(config.requests_bytes_max)),
            database: health,
            database_id: Arc::clone(&database.id),
            pool: database.pool.clone(),
            redis: shared.as_ref().map(|shared| Arc::clone(&shared.health)),
            metrics,
            traces: traces.clone(),
            node,
            started_at,
            addresses: bound.addresses.clone(),
            draining: AtomicBool::new(false),
        });
        let upkeep = Upkeep::start(Arc::clone(&app), config, &database)?;
        let sampler = Sampler::start(Arc::clone(&app))?;
        let (journal_thread, journal_stopping) =
            start_journal_thread(&app, journal, (feed, parker), on_journal_failure)?;
        let (drain, draining) = watch::channel(false);
        let workers = start_workers(&app, bound, &draining)?;
        tell_open_files(&planned);
        let scheme = if app.tls.is_some() { "https" } else { "http" };
        for address in &app.addresses {
            tracing::info!(
                workers = worker_count,
                ack = config.ack.name(),
                node = &*app.node,
                "listening on {scheme}://{address}"
            );
        }
        Ok(Self {
            app,
            database,
            shared,
            upkeep,
            sampler,
            traces,
            workers,
            flushers,
            journal_thread,
            journal_stopping,
            drain,
        })
    }

    /// The right column of the module's drawing.
    fn stop(self) -> Result<(), ServeError> {
        tracing::info!("shutting down: finishing open requests; queued batches are committed or stay in the journal");
        self.app.draining.store(true, Ordering::Release);
        // Workers hold receivers; if all are gone already there is nobody to tell.
        let _ = self.drain.send(true);
        self.app.queue.drain();
        join(self.workers);
        let deadline = Instant::now() + FLUSH_DRAIN_WAIT_MAX;
        while !self.app.queue.is_drained() && self.app.database.is_working() && Instant::now() < deadline {
            std::thread::sleep(STOP_POLL);
        }
        self.app.queue.stop();
        join_within("flusher", self.flushers, FLUSH_STOP_WAIT_MAX);
        let left = self.app.queue.budgets.batches.used();
        // Release: partner of the Acquire in the journal thread.
        self.journal_stopping.store(true, Ordering::Release);
        self.app.journal.unpark();
        join(vec![self.journal_thread]);
        self.upkeep.stop();
        self.sampler.stop();
        if let Some(shared) = self.shared {
            shared.stop();
        }
        if let Some(traces) = self.traces {
            traces.stop();
        }
        let health = &self.app.journal_health;
        let failed = health.has_failed().then(|| health.message());
        self.database.stop();
        tracing::info!(batches_in_journal = left, "stopped");
        match failed {
            Some(why) => Err(ServeError::failed("the journal has failed, start ingestd again", why)),
            None => Ok(()),
        }
    }
}

/// Says how many connections the limit of open files leaves.
fn tell_open_files(planned: &OpenFiles) {
    if planned.is_short() {
        tracing::warn!("{planned}");
    } else {
        tracing::info!("{planned}");
    }
}

/// Reads the files of TLS, where it is set.
fn start_tls(config: &Config) -> Result<Option<Tls>, ServeError> {
    let Some(files) = &config.tls else { return Ok(None) };
    let loaded = tls::load(files).map_err(ServeError::Configuration)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(Some(Tls::new(loaded)))
}

/// Begins to send traces, where there is somebody to send them to. Whether that one answers is no reason to wait.
fn start_traces(config: &Config, has_tls: bool) -> Result<Option<Arc<Traces>>, ServeError> {
    let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
    let scheme = if has_tls { "https" } else { "http" };
    let traces = Traces::start(endpoint, &config.node_id, scheme).map_err(ServeError::Configuration)?;
    Ok(Some(Arc::new(traces)))
}

/// Begins to share the status of batches over Redis, where it is set.
fn start_shared(config: &Config, node: &Arc<str>, id: &Arc<DatabaseId>) -> Result<Option<Shared>, ServeError> {
    let started = config
        .redis
        .as_ref()
        .map(|url| Shared::start(url.with_password(), config.status_ttl, Arc::clone(node), Arc::clone(id)));
    started.transpose().map_err(|error| ServeError::Configuration(error.to_string()))
}

fn start_flushers(
    queue: &Arc<FlushQueue>,
    tools: &Arc<FlushTools>,
    seats: Vec<Seat>,
) -> Result<Vec<JoinHandle<()>>, ServeError> {
    let mut flushers = Vec::new();
    for (number, seat) in seats.into_iter().enumerate() {
        let flusher = Flusher::new(Arc::clone(queue), Arc::clone(tools), seat);
        flushers.push(spawn(&format!("flush-{number}"), move || flusher.run())?);
    }
    Ok(flushers)
}

fn flush_queue(config: &Config, worker_count: usize) -> (Arc<FlushQueue>, Vec<Seat>) {
    let settings = CutSettings {
        rows_min: rows_min(config),
        bytes_max: config.copy_bytes_max as u64,
        timeout: config.batch_timeout,
        linger: match config.batch_linger {
            LingerSetting::Adaptive => Linger::Adaptive,
            LingerSetting::Fixed(linger) => Linger::Fixed(linger),
        },
    };
    let budgets = QueueBudgets {
        batches: Budget::new(queue_batches_max(config.memory_bytes_max as u64)),
        memory_bytes: Budget::new(config.memory_bytes_max as u64),
    };
    let (general, reserved) = flusher_counts(config.pool_connections_max, worker_count, config.sharding);
    FlushQueue::new(worker_count, config.sharding, settings, budgets, general, reserved)
}

/// How many flushers a pool of `connections_max` feeds: as many general ones as there are cores keep PostgreSQL busy,
/// one more does while another waits for its COMMIT or reads blocks back (two more only make its sessions wait for each
/// other: 15 us a row instead of 11). One is reserved where there are at least two connections.
///
/// On a Citus cluster a COPY occupies one worker of many and then waits for a two-phase COMMIT: half of the pool flushes.
fn flusher_counts(connections_max: u32, worker_count: usize, sharding: Sharding) -> (usize, bool) {
    let connections = connections_max as usize;
    let reserved = connections >= 2;
    let enough = match sharding {
        Sharding::None => worker_count + 1,
        Sharding::Citus => (worker_count + 1).max(connections / 2),
    };
    let general = enough.min(connections.saturating_sub(usize::from(reserved))).max(1);
    (general, reserved)
}

fn unflushed_bytes_max(config: &Config) -> u64 {
    if config.synchronous_commit { 0 } else { config.copy_bytes_max as u64 }
}

fn rows_min(config: &Config) -> u32 {
    u32::try_from(config.copy_rows_min).unwrap_or(u32::MAX)
}

fn ingest_settings(config: &Config) -> IngestSettings {
    IngestSettings {
        ack: config.ack,
        body_limits: BodyLimits {
            bytes_max: config.body_bytes_max,
            bytes_per_second_min: config.body_bytes_per_second_min,
        },
        events_max: config.batch_events_max,
        event_age_max: config.event_age_max,
        event_future_max: config.event_future_max,
    }
}

fn start_journal_thread(
    app: &Arc<App>,
    journal: Journal,
    (feed, parker): (Option<crate::status::shared::StatusFeed>, Parker),
    on_failure: Sender<()>,
) -> Result<(JoinHandle<()>, Arc<AtomicBool>), ServeError> {
    let stopping = Arc::new(AtomicBool::new(false));
    let thread = GroupCommit::new(Arc::clone(app), journal, feed, parker, Arc::clone(&stopping), on_failure);
    Ok((spawn("journal", move || thread.run())?, stopping))
}

fn start_workers(
    app: &Arc<App>,
    bound: listen::Bound,
    draining: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, ServeError> {
    let cores = affinity::worker_cores(bound.listeners.len());
    let mut workers = Vec::new();
    for (index, listeners) in bound.listeners.into_iter().enumerate() {
        let start = WorkerStart { index, core: cores[index], listeners, drain: draining.clone() };
        let app = Arc::clone(app);
        workers.push(spawn(&format!("http-{index}"), move || {
            if let Err(error) = worker::run(start, app) {
                panic!("HTTP worker {index} cannot serve: {error}");
            }
        })?);
    }
    Ok(workers)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ServeError> {
    vital::spawn(name, body).map_err(|error| ServeError::failed(&format!("cannot start thread {name}"), error))
}

/// Waits for `threads`. A panic of one has ended the process.
fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        let _ = thread.join();
    }
}

/// As [`join`], but gives up after `wait_max` on threads that wait for PostgreSQL: a lock or a frozen server can
/// hold an answer back for ever. Their transactions end with the process; whether a COMMIT under way took place
/// is what the ledger tells the next start.
fn join_within(what: &str, mut threads: Vec<JoinHandle<()>>, wait_max: Duration) {
    let deadline = Instant::now() + wait_max;
    while !threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
        std::thread::sleep(STOP_POLL);
    }
    let waiting = threads.extract_if(.., |thread| !thread.is_finished()).count();
    if waiting > 0 {
        tracing::warn!(
            threads = waiting,
            "{what} still blocked on PostgreSQL at shutdown; leaving its batches in the journal"
        );
    }
    join(threads);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushers_fit_the_pool_and_one_is_reserved_where_possible() {
        assert_eq!(flusher_counts(1, 2, Sharding::None), (1, false));
        assert_eq!(flusher_counts(2, 2, Sharding::None), (1, true));
        assert_eq!(flusher_counts(20, 2, Sharding::None), (3, true));
        assert_eq!(flusher_counts(20, 1, Sharding::None), (2, true));
        assert_eq!(flusher_counts(20, 8, Sharding::None), (9, true));
        assert_eq!(flusher_counts(4, 64, Sharding::None), (3, true));
        assert_eq!(flusher_counts(20, 2, Sharding::Citus), (10, true));
        assert_eq!(flusher_counts(2, 2, Sharding::Citus), (1, true));
    }
}
