//! The upkeep thread: probes PostgreSQL while no COPY tells how it is, prepares its schema when it comes back,
//! makes partitions ahead and drops old ones, forgets old batches, expires finished ones.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::config::Config;
use crate::http::app::App;
use crate::limits::{
    CLUSTER_LOOK_INTERVAL, EXPIRY_INTERVAL, FLUSH_STOP_WAIT_MAX, LEDGER_FORGET_ROWS_MAX, MAINTENANCE_RETRY_INTERVAL,
    PARTITION_UPKEEP_INTERVAL, PROBE_INTERVAL, REQUIREMENTS_LOOK_INTERVAL, UPKEEP_INTERVAL,
};
use crate::pg::citus::{cluster, layout};
use crate::pg::clock;
use crate::pg::connect::{Connector, one_line};
use crate::pg::health::{Doubt, Witness};
use crate::pg::identity;
use crate::pg::ledger;
use crate::pg::sqlstate::Fault;
use crate::server::database::{Database, Schema, SchemaDoubts};
use crate::server::{ServeError, database, join_within, spawn};
use crate::sharding::Sharding;
use crate::types::UnixMicros;

/// The running thread.
pub struct Upkeep {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

struct Chores {
    app: Arc<App>,
    /// What the database has to be.
    schema: Schema,
    retention_months: Option<u32>,
    ledger_retention: Option<Duration>,
    /// The schema has been migrated by this process, or was found up to date.
    prepared: bool,
    partitions_due: Instant,
    ledger_due: Instant,
    expiry_due: Instant,
    probe_due: Instant,
    requirements_due: Instant,
    /// The database and the role had all that batches need when last asked.
    lacks_nothing: bool,
    /// When to look how the Citus cluster is, over a connection of its own; `None`: there is none.
    cluster_due: Option<Instant>,
    connector: Connector,
}

impl Upkeep {
    /// Starts it; `database` says whether the start has migrated the schema already.
    pub fn start(app: Arc<App>, config: &Config, database: &Database) -> Result<Self, ServeError> {
        let now = Instant::now();
        let mut chores = Chores {
            app,
            schema: database.schema.clone(),
            retention_months: config.partition_retention_months,
            ledger_retention: config.ledger_retention,
            prepared: database.prepared,
            partitions_due: now,
            ledger_due: now,
            expiry_due: now + EXPIRY_INTERVAL,
            probe_due: now,
            requirements_due: now + REQUIREMENTS_LOOK_INTERVAL,
            lacks_nothing: true,
            cluster_due: (config.sharding == Sharding::Citus).then_some(now),
            connector: database.connector.clone(),
        };
        let (stop, stopped) = bounded(1);
        let thread = spawn("upkeep", move || chores.run(&stopped))?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread after the chore in hand, or leaves it to the end of the process when PostgreSQL holds it up.
    pub fn stop(self) {
        drop(self.stop);
        join_within("upkeep thread", vec![self.thread], FLUSH_STOP_WAIT_MAX);
    }
}

impl Chores {
    fn run(&mut self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(UPKEEP_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            let now = Instant::now();
            if now >= self.expiry_due {
                self.app.batches.expire(now);
                self.app.gate.forget_idle(now);
                self.expiry_due = now + EXPIRY_INTERVAL;
            }
            let working = self.app.database.is_working();
            if self.cluster_due.is_some_and(|due| now >= due) {
                self.cluster_due = Some(now + CLUSTER_LOOK_INTERVAL);
                if let Err(reason) = self.look_at_cluster() {
                    tracing::debug!(reason, "could not check the Citus cluster");
                }
            }
            let is_due = now >= self.probe_due || now >= self.partitions_due;
            if !working || !self.prepared || is_due || self.forgets(now) {
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
                    self.app.queue.admission.excuse_all();
                }
            }
            Err(fault) => self.app.database.fails(Witness::Probe, &fault),
        }
    }

    fn with_database(&mut self, now: Instant) -> Result<(), Fault> {
        let mut session = self.app.pool.get().map_err(|error| Fault::lost(error.to_string()))?;
        let waiting = session.wait();
        let done = self.chores(session.client(), now);
        drop(waiting);
        // The cure may be a setting of the role, which only a new session has.
        if done.is_err() || !self.lacks_nothing {
            session.discard();
        }
        done
    }

    fn chores(&mut self, client: &mut postgres::Client, now: Instant) -> Result<(), Fault> {
        let is_new = !self.prepared || !self.app.database.is_working();
        if (is_new || now >= self.requirements_due) && self.look_at_requirements(client, now)? && !self.prepared {
            return Ok(());
        }
        if !self.prepared || now >= self.partitions_due || !self.app.database.is_working() {
            // After an outage it may be another database: restored, or failed over to.
            self.note_schema(self.schema.prepare(client)?);
            // It is for Redis only.
            self.app.database_id.set(identity::read(client).ok());
            self.prepared = true;
            let done = self.maintain(client);
            return self.note_maintenance(client, done, now);
        }
        if self.forgets(now) {
            let done = self.forget(client, now);
            return self.note_maintenance(client, done, now);
        }
        client.is_valid(Duration::from_secs(5))?;
        self.note_schema(database::check_schema(client)?);
        Ok(())
    }

    fn note_schema(&self, doubts: SchemaDoubts) {
        self.app.database.doubt(Doubt::Schema, doubts.newer);
        self.app.database.doubt(Doubt::Migration, doubts.waiting);
    }

    /// Tells health what the database and the role lack; true when that bars migrations.
    fn look_at_requirements(&mut self, client: &mut postgres::Client, now: Instant) -> Result<bool, Fault> {
        let lacks = self.schema.lacks(client)?;
        self.lacks_nothing = lacks.is_empty();
        self.requirements_due = now + if self.lacks_nothing { REQUIREMENTS_LOOK_INTERVAL } else { PROBE_INTERVAL };
        if self.app.database.doubt(Doubt::Requirements, lacks.reason()) {
            tracing::info!("the database meets all requirements again");
            // They may have failed for what was missing.
            self.partitions_due = now;
        }
        Ok(lacks.bar_migration())
    }

    /// Makes partitions ahead and drops old ones.
    fn maintain(&mut self, client: &mut postgres::Client) -> Result<(), Fault> {
        self.schema.make_partitions_ahead(client)?;
        match self.retention_months {
            Some(months) => database::drop_old_partitions(client, months),
            None => Ok(()),
        }
    }

    /// A chore that PostgreSQL refuses concerns that chore: batches land all the same, so it is a doubt, and no outage.
    fn note_maintenance(
        &mut self,
        client: &postgres::Client,
        done: Result<(), Fault>,
        now: Instant,
    ) -> Result<(), Fault> {
        let refused = match done {
            Err(fault) if client.is_closed() => return Err(fault),
            outcome => outcome.err(),
        };
        let pause = if refused.is_some() { MAINTENANCE_RETRY_INTERVAL } else { PARTITION_UPKEEP_INTERVAL };
        self.partitions_due = now + pause;
        let reason = refused.map(|fault| {
            self.ledger_due = self.ledger_due.max(now + pause);
            format!(
                "maintenance failed, batches are not affected: {}; retrying every {} s",
                fault.message,
                pause.as_secs()
            )
        });
        self.app.database.doubt(Doubt::Maintenance, reason);
        Ok(())
    }

    /// Learns where shards are and how workers are. The coordinator away is the probe's to find.
    fn look_at_cluster(&self) -> Result<(), String> {
        let (mut client, _) = self.connector.connect_within(PROBE_INTERVAL).map_err(|fault| fault.to_string())?;
        let shards = layout::shard_map(&mut client).map_err(|error| one_line(&error))?;
        self.app.queue.set_shards(shards);
        let cluster = cluster::look(&mut client).map_err(|error| one_line(&error))?;
        self.app.database.note_cluster(cluster);
        Ok(())
    }

    /// True when old rows of the ledger are to go. Not while what an earlier process left in the journal may still be
    /// looked up there.
    fn forgets(&self, now: Instant) -> bool {
        self.ledger_retention.is_some() && now >= self.ledger_due && !self.app.queue.admission.is_excusing()
    }

    /// One step; the next is due at once when there is more to do.
    fn forget(&mut self, client: &mut postgres::Client, now: Instant) -> Result<(), Fault> {
        let Some(retention) = self.ledger_retention else { return Ok(()) };
        let age = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
        let before = UnixMicros(clock::agreed_now(client)?.0.saturating_sub(age));
        let forgotten = ledger::forget(client, self.schema.sharding, before, LEDGER_FORGET_ROWS_MAX)?;
        if forgotten < LEDGER_FORGET_ROWS_MAX.unsigned_abs() {
            self.ledger_due = now + PARTITION_UPKEEP_INTERVAL;
        }
        if forgotten > 0 {
            tracing::info!(batches = forgotten, "expired old ledger entries (LEDGER_RETENTION_DAYS)");
        }
        Ok(())
    }
}
