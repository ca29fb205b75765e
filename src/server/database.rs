//! The database at start: embedded or connected to, migrated, its partitions made.

use std::sync::Arc;

use postgres::Client;
use postgres::error::SqlState;

use crate::config::{self, Config, TimeIndex};
use crate::limits::CONNECT_WAIT_MAX;
use crate::pg::backing::Backing;
use crate::pg::capacity::Capacity;
use crate::pg::citus::cluster;
use crate::pg::citus::layout::{self, LayoutError};
use crate::pg::clock;
use crate::pg::connect::{Connector, StartFault, classify_start_error, one_line};
use crate::pg::embedded::{Embedded, EmbeddedOptions};
use crate::pg::health::{DatabaseHealth, Doubt, Witness};
use crate::pg::identity;
use crate::pg::migrate::{self, MigrateError, migrate_by};
use crate::pg::online::time_index;
use crate::pg::partitions::{self, PartitionError};
use crate::pg::pool::{self, Pool};
use crate::pg::requirements::{self, Lacks};
use crate::pg::sqlstate::Fault;
use crate::server::ServeError;
use crate::sharding::{ShardMap, Sharding};
use crate::status::shared::DatabaseId;
use crate::sys::clock::wall_now;

/// The database of a running server.
pub struct Database {
    /// Connections for everybody.
    pub pool: Pool,
    /// The schema is as it should be.
    pub prepared: bool,
    /// Where its shards are, as the start found them; a single one where it found none.
    pub shards: ShardMap,
    /// Which database it is ([`identity::read`]), once it could be asked.
    pub id: Arc<DatabaseId>,
    /// What it has to be.
    pub schema: Schema,
    /// For connections beside the pool.
    pub connector: Connector,
    embedded: Option<Embedded>,
}

/// What a start does where the database or the role lacks what batches need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLacks {
    /// Ends.
    Refuse,
    /// Serves, degraded: the journal holds batches, and the upkeep thread looks again.
    Serve,
}

/// What a database has to be before COPYs find what they need.
#[derive(Clone)]
pub struct Schema {
    /// For migrations, by the role of `MIGRATE_DATABASE_URL`.
    owner: Option<Connector>,
    /// How tables are laid out.
    pub sharding: Sharding,
    partitions_ahead_months: u32,
    time_index: TimeIndex,
    /// Connections of this node, which a cluster has to bear.
    pool_connections_max: u32,
}

impl Database {
    /// Starts or finds PostgreSQL. When it cannot be reached the server starts all the same: the upkeep thread
    /// prepares the schema when it comes back.
    ///
    /// # Errors
    /// What only the operator can mend: programs missing, wrong password, unknown database, too old; what the database
    /// or the role lacks, unless `on_lacks` says to serve.
    pub fn start(config: &Config, health: &Arc<DatabaseHealth>, on_lacks: OnLacks) -> Result<Self, ServeError> {
        let owner = config.migrate_database.as_deref().map(Connector::of_owner).transpose().map_err(refuse)?;
        let (embedded, connector) = match &config.database {
            config::Database::Embedded if owner.is_some() => {
                let message = "MIGRATE_DATABASE_URL is set but DATABASE_URL is not: set DATABASE_URL, or start with \
                    --embedded";
                return Err(ServeError::Configuration(message.to_owned()));
            }
            config::Database::Embedded => {
                let embedded = start_embedded(config)?;
                let connector = Connector::local(embedded.config(), "the embedded PostgreSQL".to_owned());
                (Some(embedded), connector)
            }
            config::Database::Url(url) => (None, Connector::new(url).map_err(refuse)?),
        };
        Self::open(config, connector, owner, embedded, health, on_lacks)
    }

    /// As [`Self::start`], with a PostgreSQL that runs and must lack nothing.
    pub fn over(connector: Connector, config: &Config, health: &Arc<DatabaseHealth>) -> Result<Self, ServeError> {
        let owner = config.migrate_database.as_deref().map(Connector::of_owner).transpose().map_err(refuse)?;
        Self::open(config, connector, owner, None, health, OnLacks::Refuse)
    }

    fn open(
        config: &Config,
        connector: Connector,
        owner: Option<Connector>,
        embedded: Option<Embedded>,
        health: &Arc<DatabaseHealth>,
        on_lacks: OnLacks,
    ) -> Result<Self, ServeError> {
        let schema = Schema {
            owner,
            sharding: config.sharding,
            partitions_ahead_months: config.partitions_ahead_months,
            time_index: config.time_index,
            pool_connections_max: config.pool_connections_max,
        };
        let prepared = schema.try_prepare(&connector, health, on_lacks)?;
        let watch = connector.watch(config.sharding, Arc::clone(health));
        let pool = pool::open(watch, config.sharding, config.pool_connections_min, config.pool_connections_max);
        let (is_prepared, Prepared { shards, id }) = (prepared.is_some(), prepared.unwrap_or_default());
        let known = Arc::new(DatabaseId::default());
        known.set(id);
        Ok(Self { pool, prepared: is_prepared, shards, id: known, schema, connector, embedded })
    }

    /// Tries again what [`Self::over`] could not do because PostgreSQL was away; true when the schema is as it should be.
    pub fn prepare_again(&mut self, health: &DatabaseHealth) -> Result<bool, ServeError> {
        if let Some(Prepared { shards, id }) = self.schema.try_prepare(&self.connector, health, OnLacks::Refuse)? {
            (self.prepared, self.shards) = (true, shards);
            self.id.set(id);
        }
        Ok(self.prepared)
    }

    /// Stops the embedded PostgreSQL, if there is one.
    pub fn stop(self) {
        drop(self.pool);
        if let Some(Err(error)) = self.embedded.map(Embedded::stop) {
            tracing::error!(%error, "embedded PostgreSQL did not stop cleanly");
        }
    }
}

fn start_embedded(config: &Config) -> Result<Embedded, ServeError> {
    let options =
        EmbeddedOptions { bin_dir: config.postgres_bin_dir.clone(), ..EmbeddedOptions::new(config.embedded_dir()) };
    Embedded::start(&options).map_err(|error| ServeError::Failed(error.to_string()))
}

/// What is known of a database that is prepared.
#[derive(Default)]
struct Prepared {
    shards: ShardMap,
    id: Option<String>,
}

/// Why the database is not prepared.
enum Unprepared {
    /// It cannot be used, or not yet.
    Fault(StartFault),
    /// It or its role lacks what batches need.
    Lacks(Lacks),
}

impl From<StartFault> for Unprepared {
    fn from(fault: StartFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<MigrateError> for Unprepared {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Lacks(lacks) => Self::Lacks(lacks),
            other => Self::Fault(other.into_start_fault()),
        }
    }
}

impl Schema {
    /// Connects, migrates, lays out, makes partitions; `None`, and told to `health`, when PostgreSQL cannot be reached or
    /// lacks what `on_lacks` tolerates.
    fn try_prepare(
        &self,
        connector: &Connector,
        health: &DatabaseHealth,
        on_lacks: OnLacks,
    ) -> Result<Option<Prepared>, ServeError> {
        match self.connect_and_prepare(connector) {
            Ok((mut client, backing)) => {
                self.check_capacity(&mut client, backing);
                health.works(Witness::Probe);
                // It is told once, and again when it has an end.
                health.doubt(Doubt::Migration, migrate::waiting(&mut client).unwrap_or_default());
                // Whoever flushes, and the upkeep thread, look again.
                let shards = self.shards(&mut client).unwrap_or_default();
                Ok(Some(Prepared { shards, id: identity::read(&mut client).ok() }))
            }
            Err(Unprepared::Fault(StartFault::Transient(reason))) => {
                health.fails(Witness::Probe, &Fault::lost(&reason));
                Ok(None)
            }
            Err(Unprepared::Lacks(lacks)) if on_lacks == OnLacks::Serve => {
                tracing::warn!(
                    "the database does not meet the requirements; serving all the same, because the journal holds batches"
                );
                health.doubt(Doubt::Requirements, lacks.reason());
                health.works(Witness::Probe);
                Ok(None)
            }
            Err(Unprepared::Lacks(lacks)) => Err(ServeError::Lacks(lacks)),
            Err(Unprepared::Fault(fault)) => Err(refuse(fault)),
        }
    }

    fn connect_and_prepare(&self, connector: &Connector) -> Result<(Client, Backing), Unprepared> {
        let (mut client, backing) = connector.connect_within(CONNECT_WAIT_MAX)?;
        self.require(&mut client)?;
        let report = migrate_by(&mut client, self.owner.as_ref())?;
        if !report.applied.is_empty() {
            tracing::info!(applied = ?report.applied, "database schema migrated");
            // The tables are there now.
            self.require(&mut client)?;
        }
        self.index_time(&mut client);
        self.arrange(&mut client).map_err(|error| match error {
            LayoutError::Distributed | LayoutError::NotReady(_) | LayoutError::Failed(_) => {
                StartFault::Configuration(error.to_string())
            }
            LayoutError::Connect(fault) => fault,
            LayoutError::Postgres(error) => classify_start_error(&error),
            LayoutError::LockTimeout => StartFault::Transient(error.to_string()),
        })?;
        if self.sharding == Sharding::Citus
            && let Err(error) = self.tell_lacks(&mut client)
        {
            tracing::warn!(reason = one_line(&error), "could not check what the Citus cluster lacks");
        }
        ensure_ahead(&mut client, self.partitions_ahead_months).map_err(|error| match error {
            PartitionError::Postgres(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let problem = format!("partitions cannot be created: {}", one_line(&error));
                Unprepared::Lacks(Lacks::one(problem, "grant the right, or run sql/roles/least_privilege.sql"))
            }
            PartitionError::Postgres(error) => classify_start_error(&error).into(),
            error => StartFault::Transient(error.to_string()).into(),
        })?;
        Ok((client, backing))
    }

    /// Makes the index for queries by time alone where that takes a moment. That it is not as `TIME_INDEX` says is no reason not
    /// to serve.
    fn index_time(&self, client: &mut Client) {
        match time_index::arrange_at_start(client, self.owner.as_ref(), self.time_index) {
            Ok(None) => {}
            Ok(Some(advice)) => tracing::warn!("{advice}"),
            Err(error) => tracing::warn!(%error, "could not check the index of events by time (TIME_INDEX)"),
        }
    }

    fn require(&self, client: &mut Client) -> Result<(), MigrateError> {
        let lacks = requirements::lacks(client, self.owner.is_some())?;
        if lacks.is_empty() { Ok(()) } else { Err(MigrateError::Lacks(lacks)) }
    }

    /// What the database and the role of `client` lack. Nothing where a newer ingestd has migrated: see [`check_schema`].
    pub fn lacks(&self, client: &mut Client) -> Result<Lacks, Fault> {
        match requirements::lacks(client, self.owner.is_some()) {
            Err(MigrateError::Newer { .. }) => Ok(Lacks::default()),
            Err(MigrateError::Postgres(error)) => Err(error.into()),
            outcome => outcome.map_err(|error| Fault::lost(error.to_string())),
        }
    }

    /// Tells where PostgreSQL has no room for this node's pool. How many backends a pooler lends is the pooler's to limit.
    fn check_capacity(&self, client: &mut Client, backing: Backing) {
        if backing == Backing::Lent {
            return;
        }
        match Capacity::read(client) {
            Ok(capacity) => {
                if let Some(reason) = capacity.shortage(self.pool_connections_max) {
                    tracing::warn!(reason, "PostgreSQL may run out of connections");
                }
            }
            Err(error) => tracing::debug!(%error, "could not read PostgreSQL's connection limits"),
        }
    }

    fn shards(&self, client: &mut Client) -> Result<ShardMap, postgres::Error> {
        match self.sharding {
            Sharding::None => Ok(ShardMap::default()),
            Sharding::Citus => layout::shard_map(client),
        }
    }

    /// Tells what the cluster lacks. Its tables are distributed, so that is no reason not to serve.
    fn tell_lacks(&self, client: &mut Client) -> Result<(), postgres::Error> {
        let lacks = cluster::lacks(client, Some(self.pool_connections_max))?;
        for told in lacks.into_iter().chain(cluster::advice(client)?) {
            tracing::warn!("{told}");
        }
        Ok(())
    }

    /// Lays the tables out as `SHARDING` says.
    fn arrange(&self, client: &mut Client) -> Result<(), LayoutError> {
        if layout::arrange_by(client, self.owner.as_ref(), self.sharding)? {
            tracing::info!("tables distributed over the Citus cluster");
        }
        Ok(())
    }

    /// Migrates, and makes partitions ahead: after an outage, and now and then. Gives what [`check_schema`] would.
    pub fn prepare(&self, client: &mut Client) -> Result<SchemaDoubts, Fault> {
        let migrated = migrate_by(client, self.owner.as_ref());
        let doubts = SchemaDoubts::of(migrated.map(|report| report.waiting))?;
        self.arrange(client).map_err(|error| Fault::lost(error.to_string()))?;
        Ok(doubts)
    }

    /// Makes the partitions ahead (`PARTITIONS_AHEAD`).
    pub fn make_partitions_ahead(&self, client: &mut Client) -> Result<(), Fault> {
        ensure_ahead(client, self.partitions_ahead_months).map_err(PartitionError::into_fault)
    }
}

fn refuse(fault: StartFault) -> ServeError {
    match fault {
        StartFault::Configuration(message) => ServeError::Configuration(message),
        StartFault::Transient(message) => ServeError::Failed(message),
    }
}

/// What to tell of a schema that a newer ingestd has migrated. A start refuses it; a node that runs goes on while its
/// COPYs fit, so that nodes can be replaced one by one.
pub fn check_schema(client: &mut Client) -> Result<SchemaDoubts, Fault> {
    SchemaDoubts::of(migrate::waiting(client))
}

/// What is not as it should be with a schema that batches land in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaDoubts {
    /// A newer ingestd has migrated it.
    pub newer: Option<String>,
    /// What waits for `ingestd migrate`.
    pub waiting: Option<String>,
}

impl SchemaDoubts {
    fn of(outcome: Result<Option<String>, MigrateError>) -> Result<Self, Fault> {
        match outcome {
            Ok(waiting) => Ok(Self { newer: None, waiting }),
            Err(error @ MigrateError::Newer { .. }) => Ok(Self { newer: Some(error.to_string()), waiting: None }),
            Err(error) => Err(Fault::lost(error.to_string())),
        }
    }
}

fn ensure_ahead(client: &mut Client, ahead: u32) -> Result<(), PartitionError> {
    let made = partitions::ensure_ahead(client, wall_now(), ahead)?;
    if !made.is_empty() {
        tracing::info!(partitions = ?made, "partitions created");
    }
    Ok(())
}

/// Drops partitions older than `months` (`PARTITION_RETENTION_MONTHS`).
pub fn drop_old_partitions(client: &mut Client, months: u32) -> Result<(), Fault> {
    let now = clock::agreed_now(client)?;
    let dropped = match partitions::cleanup(client, now, months, false) {
        Err(error @ PartitionError::InUse) => {
            tracing::warn!(%error, "could not drop old partitions yet (PARTITION_RETENTION_MONTHS); retrying later");
            return Ok(());
        }
        outcome => outcome.map_err(PartitionError::into_fault)?,
    };
    for partition in dropped {
        tracing::info!(
            partition = partition.name,
            rows = partition.rows_estimate,
            "dropped an old partition (PARTITION_RETENTION_MONTHS)"
        );
    }
    Ok(())
}
