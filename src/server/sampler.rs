//! The sampler thread: notes throughput and history once a second. A thread of its own, since the others wait for
//! PostgreSQL now and then, and history is of most use when PostgreSQL is away. It also tells the service manager's watchdog that the server is alive: it
//! passes the locks that would stop the others.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use crate::http::app::{App, JournalRoom};
use crate::limits::SAMPLE_INTERVAL;
use crate::server::{ServeError, join, spawn};
use crate::state_log::StateLog;
use crate::sys::clock::wall_now;
use crate::sys::service_manager;

/// The running thread.
pub struct Sampler {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

impl Sampler {
    /// Starts it.
    pub fn start(app: Arc<App>) -> Result<Self, ServeError> {
        let (stop, stopped) = bounded::<()>(1);
        let watchdog = service_manager::watchdog();
        // A service manager is told twice in its time.
        let interval = watchdog.map_or(SAMPLE_INTERVAL, |wait| SAMPLE_INTERVAL.min(wait / 2));
        let thread = spawn("sampler", move || {
            let mut full = Full::default();
            loop {
                app.read_gauges();
                full.look(&app);
                app.metrics.tick(Instant::now(), wall_now());
                if watchdog.is_some() {
                    service_manager::alive();
                }
                if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { thread, stop })
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self.stop);
        join(vec![self.thread]);
    }
}

/// What is full, and keeps batches from being accepted.
#[derive(Default)]
struct Full {
    journal: StateLog,
    queue: StateLog,
}

impl Full {
    /// Logs what has become full, or has room again.
    fn look(&mut self, app: &App) {
        let begins = "the journal is full (JOURNAL_MAX_MB): batches below priority 8 are rejected until PostgreSQL has caught up";
        log_change(&mut self.journal, app.journal_room() != JournalRoom::Free, begins, "the journal has room again");
        let batches = &app.queue.budgets.batches;
        let begins = "too many batches are waiting for PostgreSQL (MEMORY_LIMIT_MB): further ones are rejected";
        log_change(&mut self.queue, batches.used() >= batches.limit(), begins, "there is room for more batches again");
    }
}

fn log_change(log: &mut StateLog, is_full: bool, begins: &str, ends: &str) {
    let now = Instant::now();
    if !is_full {
        if let Some(lasted) = log.ends(now) {
            tracing::info!(lasted_ms = lasted.as_millis() as u64, "{ends}");
        }
    } else if let Some(begun) = log.holds(0, now) {
        tracing::warn!(unlogged = begun.unlogged, "{begins}");
    }
}
