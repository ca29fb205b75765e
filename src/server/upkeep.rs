//! The upkeep thread: probes PostgreSQL while no COPY tells how it is, prepares its schema when it comes back,
//! makes partitions ahead and drops old ones, expires finished batches, samples throughput.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::config::Config;
use crate::http::app::App;
use crate::limits::{EXPIRY_INTERVAL, FLUSH_STOP_WAIT_MAX, PARTITION_UPKEEP_INTERVAL, PROBE_INTERVAL, UPKEEP_INTERVAL};
use crate::pg::health::Witness;
use crate::pg::sqlstate::Fault;
use crate::server::{ServeError, database, join_within, spawn};

/// The running thread.
pub struct Upkeep {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

struct Chores {
    app: Arc<App>,
    partitions_ahead: u32,
    retention_months: Option<u32>,
    /// The schema has been migrated by this process, or was found up to date.
    prepared: bool,
    partitions_due: Instant,
    expiry_due: Instant,
    probe_due: Instant,
}

impl Upkeep {
    /// Starts it; `prepared` says whether the start has migrated the schema already.
    pub fn start(app: Arc<App>, config: &Config, prepared: bool) -> Result<Self, ServeError> {
        let now = Instant::now();
        let mut chores = Chores {
            app,
            partitions_ahead: config.partitions_ahead_months,
            retention_months: config.partition_retention_months,
            prepared,
            partitions_due: now,
            expiry_due: now + EXPIRY_INTERVAL,
            probe_due: now,
        };
        let (stop, stopped) = bounded(1);
        let thread = spawn("upkeep", move || chores.run(&stopped))?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread after the chore in hand, or leaves it to the end of the process when PostgreSQL holds it up;
    /// true when it panicked.
    pub fn stop(self) -> bool {
        drop(self.stop);
        join_within("upkeep thread", vec![self.thread], FLUSH_STOP_WAIT_MAX)
    }
}

impl Chores {
    fn run(&mut self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(UPKEEP_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            let now = Instant::now();
            self.app.metrics.tick(now);
            if now >= self.expiry_due {
                self.app.batches.expire(now);
                self.expiry_due = now + EXPIRY_INTERVAL;
            }
            let working = self.app.database.is_working();
            if !working || !self.prepared || now >= self.probe_due || now >= self.partitions_due {
                self.probe_due = now + PROBE_INTERVAL;
                self.look_after_database(now);
            }
        }
    }

    fn look_after_database(&mut self, now: Instant) {
        let outcome = self.with_database(now);
        match outcome {
            Ok(()) => {
                if self.app.database.works(Witness::Probe) {
                    self.app.queue.admission.excuse(self.app.metrics.queue_events.sum());
                }
            }
            Err(fault) => self.app.database.fails(Witness::Probe, &fault.message),
        }
    }

    fn with_database(&mut self, now: Instant) -> Result<(), Fault> {
        let mut session = self.app.pool.get().map_err(|error| Fault::lost(error.to_string()))?;
        let done = self.chores(session.client(), now);
        if done.is_err() {
            session.discard();
        }
        done
    }

    fn chores(&mut self, client: &mut postgres::Client, now: Instant) -> Result<(), Fault> {
        if !self.prepared || now >= self.partitions_due {
            database::prepare(client, self.partitions_ahead)?;
            self.prepared = true;
            if let Some(months) = self.retention_months {
                database::drop_old_partitions(client, months)?;
            }
            self.partitions_due = now + PARTITION_UPKEEP_INTERVAL;
            return Ok(());
        }
        client.is_valid(Duration::from_secs(5)).map_err(Fault::from)
    }
}
