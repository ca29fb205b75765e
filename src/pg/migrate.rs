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
//! Absent on purpose: going back. A migration that was applied is never edited; the next one corrects it.

use std::fmt;

use postgres::error::SqlState;
use postgres::{Client, IsolationLevel, Transaction};

use super::connect::{Connector, StartFault, classify_start_error, one_line};
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
    sql: &'static str,
}

macro_rules! migration {
    ($version:literal, $number:literal, $name:literal) => {
        Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../sql/", $number, "_", $name, ".sql")),
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What this call applied, in order; empty when the schema was up to date.
    pub applied: Vec<&'static str>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.applied.as_slice() {
            [] => write!(f, "schema is up to date (version {SCHEMA_VERSION})"),
            names => write!(f, "applied {} (schema version {SCHEMA_VERSION})", names.join(", ")),
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
    /// The database could not be asked.
    #[error("{}", one_line(.0))]
    Postgres(#[from] postgres::Error),
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
            Self::LockTimeout => StartFault::Transient(self.to_string()),
        }
    }
}

/// Brings the schema to [`SCHEMA_VERSION`]. Idempotent; safe to run from many nodes at once.
pub fn migrate(client: &mut Client) -> Result<Report, MigrateError> {
    let mut report = Report::default();
    loop {
        let found = version(client)?;
        if found >= SCHEMA_VERSION {
            return Ok(report);
        }
        if report.applied.is_empty() {
            check_migration(client)?;
        }
        report.applied.extend(apply_next(client).map_err(|error| not_allowed(error, found))?);
    }
}

/// As [`migrate`], over a connection of `owner` (`MIGRATE_DATABASE_URL`) where there is one; that is opened only when
/// `client`, of the role that serves, finds something to do.
pub fn migrate_by(client: &mut Client, owner: Option<&Connector>) -> Result<Report, MigrateError> {
    let Some(owner) = owner else { return migrate(client) };
    if version(client)? >= SCHEMA_VERSION {
        return Ok(Report::default());
    }
    migrate(&mut owner.connect().map_err(MigrateError::Connect)?)
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

/// The version of the database's schema, 0 when it is empty; takes no lock beyond that of a read.
pub fn version(client: &mut impl postgres::GenericClient) -> Result<i32, MigrateError> {
    let known = client.query_typed_one("SELECT to_regclass('ingestd_migrations') IS NOT NULL", &[])?.get(0);
    let found = if known {
        client.query_typed_one("SELECT coalesce(max(version), 0)::int FROM ingestd_migrations", &[])?.get(0)
    } else {
        0
    };
    if found > SCHEMA_VERSION { Err(MigrateError::Newer { found }) } else { Ok(found) }
}

/// Applies the first migration that is missing; `None` when another node came first.
fn apply_next(client: &mut Client) -> Result<Option<&'static str>, MigrateError> {
    // Read committed whatever the database's default is: what is read after the wait must be fresh.
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    lock(&mut transaction, ADVISORY_MIGRATE, MIGRATE_LOCK_WAIT_MAX).map_err(lock_timeout)?;
    transaction.batch_execute(
        "CREATE TABLE IF NOT EXISTS ingestd_migrations (
             version    integer PRIMARY KEY,
             name       text NOT NULL,
             applied_at timestamptz NOT NULL DEFAULT now()
         )",
    )?;
    let done = version(&mut transaction)?;
    let Some(next) = MIGRATIONS.iter().find(|migration| migration.version > done) else { return Ok(None) };
    let applied = transaction.batch_execute(next.sql).and_then(|()| {
        let record = "INSERT INTO ingestd_migrations (version, name) VALUES ($1, $2)";
        transaction.execute(record, &[&next.version, &next.name])
    });
    match applied.and_then(|_| transaction.commit()) {
        Ok(()) => Ok(Some(next.name)),
        Err(error) => match lock_timeout(error) {
            MigrateError::Postgres(error) => {
                Err(MigrateError::Failed { version: next.version, name: next.name, error })
            }
            timeout => Err(timeout),
        },
    }
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
