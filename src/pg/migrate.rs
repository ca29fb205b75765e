//! The schema: `sql/NNNN_name.sql`, built into the program and applied in order, each exactly once.
//!
//! Each migration runs in a transaction of its own that first takes the advisory lock
//! [`ADVISORY_CLASS`]`, `[`ADVISORY_MIGRATE`] and then looks again what is to be done. So any number of
//! nodes may start at once: one applies, the others wait (at most [`MIGRATE_LOCK_WAIT_MAX`]) and find
//! nothing left. The lock belongs to the transaction, not to the session: it works behind PgBouncer and
//! cannot be left behind.
//!
//! A schema that is up to date costs one read. A schema that is newer than this program is refused at a start.
//!
//! While nodes are replaced one by one, those of the older version go on over the schema that the first new one has
//! migrated. So migrations are additive, within a release and from each to the next:
//!
//! * They add tables, indices, functions, and columns that may be null or have a default. What the version before names
//!   stays, with its name, type and meaning: it says which columns it writes and reads, never `*`.
//! * They tighten nothing that the version before could violate: no constraint, no NOT NULL, no unique index.
//! * What is to go is first left unused by one release, and removed by the next.
//!
//! There are two kinds ([`Step`]). SQL is applied by whoever comes first, also a server that starts. What would keep COPYs
//! waiting for as long as PostgreSQL reads the table is *online* ([`super::online`]): a server applies it where that takes a
//! moment, as on a fresh database, and else goes on without it and says that it waits; [`migrate_while_nodes_run`], which is
//! `ingestd migrate`, does it at its ease. So a program works with an online migration and without it, migrations behind one
//! do not build on it, and what a schema lacks is a set and no number.
//!
//! Absent on purpose: going back. A migration that was applied is never edited; the next one corrects it.

use std::collections::HashSet;
use std::fmt;

use postgres::error::SqlState;
use postgres::{Client, GenericClient, IsolationLevel, Transaction};

use super::backing::Backing;
use super::connect::{Connector, StartFault, classify_start_error, one_line};
use super::online::{self, Changed, OnlineError, Outcome, Patience};
use super::requirements::{self, Lacks};
use crate::limits::MIGRATE_LOCK_WAIT_MAX;

/// First key of every advisory lock of ingestd: "ingd" in ASCII.
pub const ADVISORY_CLASS: i32 = i32::from_be_bytes(*b"ingd");
/// Second key: migrations.
pub const ADVISORY_MIGRATE: i32 = 1;
/// Second key: partitions, see [`crate::pg::partitions`].
pub const ADVISORY_PARTITIONS: i32 = 2;

/// One step of the schema.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// 1, 2, 3 … without gaps.
    pub version: i32,
    /// The file's name without its number.
    pub name: &'static str,
    step: Step,
}

/// What a migration does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Runs this.
    Sql(&'static str),
    /// Exchanges the key of `events`: [`online::event_key`].
    EventKey,
}

impl Migration {
    /// True when nodes go on without it until `ingestd migrate` has applied it.
    pub fn is_online(&self) -> bool {
        self.step == Step::EventKey
    }
}

macro_rules! migration {
    ($version:literal, $number:literal, $name:literal) => {
        Migration {
            version: $version,
            name: $name,
            step: Step::Sql(include_str!(concat!("../../sql/", $number, "_", $name, ".sql"))),
        }
    };
}

/// Every migration, in order.
pub const MIGRATIONS: &[Migration] = &[
    migration!(1, "0001", "events"),
    migration!(2, "0002", "ingest_batches"),
    migration!(3, "0003", "dead_letter_events"),
    migration!(4, "0004", "partition_functions"),
    migration!(5, "0005", "database_identity"),
    migration!(6, "0006", "function_settings"),
    Migration { version: 7, name: "event_key", step: Step::EventKey },
];

/// The schema's version that this program works with.
pub const SCHEMA_VERSION: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

const _: () = {
    let mut index = 0;
    while index < MIGRATIONS.len() {
        assert!(MIGRATIONS[index].version == index as i32 + 1);
        index += 1;
    }
};

/// What [`migrate`] did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What this call applied, in order; empty when the schema was up to date.
    pub applied: Vec<&'static str>,
    /// What waits for `ingestd migrate`, and why.
    pub waiting: Option<String>,
    /// What an online migration did while nodes ran.
    pub changed: Option<Changed>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(changed) = &self.changed {
            writeln!(f, "{changed}")?;
        }
        match self.applied.as_slice() {
            [] if self.waiting.is_some() => {}
            [] => write!(f, "schema is up to date (version {SCHEMA_VERSION})")?,
            names => write!(f, "applied {} (schema version {SCHEMA_VERSION})", names.join(", "))?,
        }
        match &self.waiting {
            Some(waiting) if self.applied.is_empty() => write!(f, "{waiting}"),
            Some(waiting) => write!(f, "\n{waiting}"),
            None => Ok(()),
        }
    }
}

/// Why the schema is not as this program needs it.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Another node runs a newer version: start that one here too.
    #[error(
        "the database schema has version {found}, but this ingestd supports versions up to {SCHEMA_VERSION}: install \
         the newer ingestd"
    )]
    Newer {
        /// The version in the database.
        found: i32,
    },
    /// Someone holds a lock for long: try again, or find out who.
    #[error(
        "waited {} s for a lock held by another session while applying migrations; see pg_stat_activity, then retry",
        MIGRATE_LOCK_WAIT_MAX.as_secs()
    )]
    LockTimeout,
    /// The role may not: another one has to.
    #[error(
        "the database schema has version {found}, but version {SCHEMA_VERSION} is required, and this role is not \
         allowed to migrate it ({said}): run 'ingestd migrate' with a role that owns the tables, or set \
         MIGRATE_DATABASE_URL"
    )]
    NotAllowed {
        /// The version in the database.
        found: i32,
        /// What PostgreSQL said.
        said: String,
    },
    /// The database cannot hold the tables, or another relation has the name of one.
    #[error("{0}")]
    Lacks(Lacks),
    /// The role that may migrate cannot connect.
    #[error("{0}")]
    Connect(StartFault),
    /// A migration failed; nothing of it was kept.
    #[error("migration {version:04}_{name} failed: {error}", error = one_line(.error))]
    Failed {
        /// Its version.
        version: i32,
        /// Its name.
        name: &'static str,
        /// What PostgreSQL said.
        error: postgres::Error,
    },
    /// An online migration is not possible now; everything goes on without it.
    #[error("{0}")]
    Online(OnlineError),
    /// The database could not be asked.
    #[error("{}", one_line(.0))]
    Postgres(#[from] postgres::Error),
}

impl From<OnlineError> for MigrateError {
    fn from(error: OnlineError) -> Self {
        match error {
            OnlineError::Postgres(error) => Self::Postgres(error),
            other => Self::Online(other),
        }
    }
}

impl MigrateError {
    /// What it means for a start, and for commands.
    pub fn into_start_fault(self) -> StartFault {
        match self {
            Self::Connect(fault) => fault,
            Self::Lacks(_) | Self::Newer { .. } | Self::NotAllowed { .. } => {
                StartFault::Configuration(self.to_string())
            }
            // Waiting does not change the objects that a migration meets.
            Self::Failed { ref error, .. } if requirements::is_of_schema(error.code()) => {
                StartFault::Configuration(self.to_string())
            }
            Self::Postgres(error) | Self::Failed { error, .. } => classify_start_error(&error),
            Self::Online(
                OnlineError::Pooled | OnlineError::NotOwner | OnlineError::InTheWay(_) | OnlineError::NameTaken { .. },
            ) => StartFault::Configuration(self.to_string()),
            Self::LockTimeout | Self::Online(_) => StartFault::Transient(self.to_string()),
        }
    }
}

/// Brings the schema to [`SCHEMA_VERSION`], but for online migrations that take more than a moment. Idempotent; safe to run
/// from many nodes at once.
pub fn migrate(client: &mut Client) -> Result<Report, MigrateError> {
    let mut report = Report::default();
    loop {
        let schema = Schema::of(client)?;
        if schema.missing.is_empty() {
            return Ok(report);
        }
        if report.applied.is_empty() {
            check_migration(client)?;
        }
        match apply_next(client).map_err(|error| not_allowed(error, schema.version()))? {
            Applied::Done(name) => report.applied.push(name),
            Applied::ByAnother => {}
            Applied::Waits(why) => {
                report.waiting = Some(why);
                return Ok(report);
            }
        }
    }
}

/// As [`migrate`], over a connection of `owner` (`MIGRATE_DATABASE_URL`) where there is one; that is opened only when
/// `client`, of the role that serves, finds something to do.
pub fn migrate_by(client: &mut Client, owner: Option<&Connector>) -> Result<Report, MigrateError> {
    let Some(owner) = owner else { return migrate(client) };
    let schema = Schema::of(client)?;
    if schema.missing.is_empty() {
        return Ok(Report::default());
    }
    if schema.lacks_only_online() && !online::is_quick(client)? {
        return Ok(Report { waiting: online::event_key::advice(client)?, ..Report::default() });
    }
    migrate(&mut owner.connect().map_err(MigrateError::Connect)?)
}

/// As [`migrate`], and then applies online migrations, for as long as that takes, while nodes run. `client` has a session of
/// its own if `backing` says so; only then large tables can be changed.
pub fn migrate_while_nodes_run(client: &mut Client, backing: Backing) -> Result<Report, MigrateError> {
    let mut report = migrate(client)?;
    let missing = Schema::of(client)?.missing;
    let Some(next) = missing.first() else { return Ok(report) };
    if !online::owns_events(client)? {
        let (found, said) = (next.version - 1, "it does not own events".to_owned());
        return Err(MigrateError::NotAllowed { found, said });
    }
    let mut exchange = |client: &mut Client, patience| apply_event_key(client, next, patience);
    match online::run(client, backing, &online::event_key::spec(), &mut exchange) {
        Ok(changed) => {
            report.applied.extend(changed.is_some().then_some(next.name));
            (report.changed, report.waiting) = (changed, None);
        }
        // Said already.
        Err(OnlineError::Sharded(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(report)
}

/// Refuses a database that cannot hold the tables, or where another relation has the name of one.
pub fn check_migration(client: &mut Client) -> Result<(), MigrateError> {
    let lacks = requirements::lacks(client, false)?.of_migration();
    if lacks.is_empty() { Ok(()) } else { Err(MigrateError::Lacks(lacks)) }
}

fn not_allowed(error: MigrateError, found: i32) -> MigrateError {
    match error {
        MigrateError::Postgres(error) | MigrateError::Failed { error, .. }
            if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            MigrateError::NotAllowed { found, said: one_line(&error) }
        }
        error => error,
    }
}

/// What a database has of the schema.
struct Schema {
    /// What it lacks, in order.
    missing: Vec<&'static Migration>,
}

impl Schema {
    /// Takes no lock beyond that of a read.
    fn of(client: &mut impl GenericClient) -> Result<Self, MigrateError> {
        let known = client.query_typed_one("SELECT to_regclass('ingestd_migrations') IS NOT NULL", &[])?.get(0);
        let applied: HashSet<i32> = if known {
            let rows = client.query_typed("SELECT version FROM ingestd_migrations", &[])?;
            rows.iter().map(|row| row.get(0)).collect()
        } else {
            HashSet::new()
        };
        match applied.iter().max() {
            Some(&found) if found > SCHEMA_VERSION => Err(MigrateError::Newer { found }),
            _ => Ok(Self {
                missing: MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)).collect(),
            }),
        }
    }

    /// All migrations up to this one are applied, but for online ones.
    fn version(&self) -> i32 {
        let first = self.missing.iter().find(|migration| !migration.is_online());
        first.map_or(SCHEMA_VERSION, |migration| migration.version - 1)
    }

    fn lacks_only_online(&self) -> bool {
        self.missing.iter().all(|migration| migration.is_online())
    }
}

/// The version of the database's schema, 0 when it is empty, without regard to online migrations; takes no lock beyond that
/// of a read.
pub fn version(client: &mut impl GenericClient) -> Result<i32, MigrateError> {
    Ok(Schema::of(client)?.version())
}

/// What waits for `ingestd migrate` in a schema that is up to date otherwise; `None` where nothing does.
pub fn waiting(client: &mut impl GenericClient) -> Result<Option<String>, MigrateError> {
    let schema = Schema::of(client)?;
    if schema.missing.is_empty() || !schema.lacks_only_online() {
        return Ok(None);
    }
    Ok(online::event_key::advice(client)?)
}

/// What became of the first migration that was missing.
enum Applied {
    Done(&'static str),
    /// Another node came first.
    ByAnother,
    /// It is online, and takes more than a moment.
    Waits(String),
}

/// Applies the first migration that is missing, SQL before what is online.
fn apply_next(client: &mut Client) -> Result<Applied, MigrateError> {
    let missing = Schema::of(client)?.missing;
    let next = missing.iter().find(|migration| !migration.is_online()).or(missing.first());
    match next {
        None => Ok(Applied::ByAnother),
        Some(&&Migration { name, step: Step::Sql(sql), version }) => {
            let mut transaction = begin(client, MIGRATE_LOCK_WAIT_MAX)?;
            if !is_missing(&mut transaction, version)? {
                return Ok(Applied::ByAnother);
            }
            let failed = |error| match lock_timeout(error) {
                MigrateError::Postgres(error) => MigrateError::Failed { version, name, error },
                timeout => timeout,
            };
            transaction.batch_execute(sql).map_err(failed)?;
            record(transaction, version, name).map_err(failed)?;
            Ok(Applied::Done(name))
        }
        Some(migration) => apply_online_at_start(client, migration),
    }
}

/// Applies `migration` if that takes a moment.
fn apply_online_at_start(client: &mut Client, migration: &Migration) -> Result<Applied, MigrateError> {
    let advice = |client: &mut Client| -> Result<Applied, MigrateError> {
        Ok(online::event_key::advice(client)?.map_or(Applied::ByAnother, Applied::Waits))
    };
    if !online::owns_events(client)? || !online::is_quick(client)? {
        return advice(client);
    }
    let mut exchange = |client: &mut Client, patience| apply_event_key(client, migration, patience);
    match online::attempt_at_start(client, &mut exchange) {
        Ok(Outcome::Done(_)) => Ok(Applied::Done(migration.name)),
        Ok(Outcome::ByAnother) => Ok(Applied::ByAnother),
        Ok(Outcome::Unready(_) | Outcome::Busy(_)) | Err(OnlineError::Sharded(_)) => advice(client),
        Err(OnlineError::Postgres(error)) => Err(error.into()),
        // It is no reason not to serve.
        Err(error) => Ok(Applied::Waits(error.to_string())),
    }
}

/// Attempts the exchange of the key, and notes that it is done.
fn apply_event_key(client: &mut Client, migration: &Migration, patience: Patience) -> Result<Outcome, OnlineError> {
    let mut transaction = match begin(client, MIGRATE_LOCK_WAIT_MAX) {
        Err(MigrateError::LockTimeout) => return Ok(Outcome::Busy(MigrateError::LockTimeout.to_string())),
        Err(MigrateError::Postgres(error)) => return Err(error.into()),
        Err(_) => return Ok(Outcome::Busy("another session migrates".to_owned())),
        Ok(transaction) => transaction,
    };
    let is_missing = is_missing(&mut transaction, migration.version);
    if !is_missing.map_err(|error| OnlineError::Unreachable(error.to_string()))? {
        return Ok(Outcome::ByAnother);
    }
    let outcome = online::event_key::exchange(&mut transaction, patience)?;
    if matches!(outcome, Outcome::Done(_)) {
        record(transaction, migration.version, migration.name)?;
    }
    Ok(outcome)
}

/// Begins a transaction that changes the schema, alone of all nodes.
fn begin(client: &mut Client, wait_max: std::time::Duration) -> Result<Transaction<'_>, MigrateError> {
    // Read committed whatever the database's default is: what is read after the wait must be fresh.
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    lock(&mut transaction, ADVISORY_MIGRATE, wait_max).map_err(lock_timeout)?;
    transaction.batch_execute(
        "CREATE TABLE IF NOT EXISTS ingestd_migrations (
             version    integer PRIMARY KEY,
             name       text NOT NULL,
             applied_at timestamptz NOT NULL DEFAULT now()
         )",
    )?;
    Ok(transaction)
}

fn is_missing(transaction: &mut Transaction<'_>, version: i32) -> Result<bool, MigrateError> {
    Ok(Schema::of(transaction)?.missing.iter().any(|migration| migration.version == version))
}

/// Notes that a migration is applied, and commits.
fn record(mut transaction: Transaction<'_>, version: i32, name: &str) -> Result<(), postgres::Error> {
    let record = "INSERT INTO ingestd_migrations (version, name) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    transaction.execute(record, &[&version, &name])?;
    transaction.commit()
}

fn lock_timeout(error: postgres::Error) -> MigrateError {
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => MigrateError::LockTimeout,
        _ => MigrateError::Postgres(error),
    }
}

/// Takes an advisory lock of ingestd until the transaction ends. This and every later wait for a lock in
/// `transaction` ends after `wait_max` with SQLSTATE 55P03.
pub(super) fn lock(
    transaction: &mut Transaction<'_>,
    which: i32,
    wait_max: std::time::Duration,
) -> Result<(), postgres::Error> {
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {}", wait_max.as_millis()))?;
    transaction.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&ADVISORY_CLASS, &which])?;
    Ok(())
}
