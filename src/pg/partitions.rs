//! Monthly partitions of `events`: `events_2026_11` holds November 2026, UTC.
//!
//! ```text
//!               ensure (advisory lock, one transaction)
//!  missing ──────────────────────────────────────────────▶ attached
//!     ▲                                                       │ cleanup: mark, DETACH … CONCURRENTLY
//!     │   cleanup: DROP (advisory lock, one transaction)      ▼
//!     └────────────────────────────────────────────────── detached, marked
//! ```
//!
//! Neither direction blocks a running COPY: a partition is made as a table of its own and attached (SHARE
//! UPDATE EXCLUSIVE on `events`; `CREATE … PARTITION OF` would take ACCESS EXCLUSIVE), and it is detached
//! `CONCURRENTLY`. Any number of nodes may do either at once. A cleanup that was interrupted is completed
//! by the next one: the mark, a comment on the table, tells its leftover from a table that a person
//! detached to keep. Tables without the mark are never dropped.
//!
//! A session whose role does not own `events` has neither right. It calls the functions of
//! `sql/0004_partition_functions.sql` instead, if that was granted: they make partitions in the same way and drop old ones
//! without CONCURRENTLY, which functions cannot, and so only when no transaction keeps them waiting. The same holds where
//! the tables are spread over a Citus cluster, which has no DETACH … CONCURRENTLY.
//!
//! Which months are there is read from the partitions' bounds, not from their names: a partition made by
//! hand, for a quarter say, serves as well. Absent on purpose: a default partition, which would make every
//! later ATTACH scan it.

use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::types::Type;
use postgres::{Client, GenericClient, IsolationLevel, Row};

use super::citus::cluster::table_sizes;
use super::citus::layout::layout_of;
use super::connect::one_line;
use super::migrate::{ADVISORY_PARTITIONS, lock};
pub use super::month::Month;
use super::sqlstate::Fault;
use crate::limits::{
    PARTITION_DETACH_RETRY_PAUSE, PARTITION_DETACH_WAIT_MAX, PARTITION_LOCK_WAIT_MAX, PARTITIONS_PER_TRANSACTION_MAX,
    SHARDED_DROP_WAIT_MAX,
};
use crate::sharding::Sharding;
use crate::types::UnixMicros;

/// A common table expression for statements that read bounds: what PostgreSQL writes from then on in the transaction is in ISO
/// format and UTC. Whatever reads [`LOWER_BOUND`] is MATERIALIZED and joins `plain_text`, and so comes after it.
///
/// Up to PostgreSQL 17 a bound is written as the session's settings say, and not all of them write what they read:
/// `01/11/2026 05:30:00 IST` is India's time, and is read as Israel's.
pub(super) const PLAIN_TEXT: &str = "plain_text AS MATERIALIZED \
    (SELECT set_config('DateStyle', 'ISO', true), set_config('TimeZone', 'UTC', true))";
/// The first instant of the partition `c` in an array of one text; NULL where it has no bound. No backslash, which is not the same
/// to all sessions (`standard_conforming_strings`).
pub(super) const LOWER_BOUND: &str = "regexp_match(pg_get_expr(c.relpartbound, 0), 'FROM [(]''([^'']+)''[)]')";
/// The first instant after it.
pub(super) const UPPER_BOUND: &str = "regexp_match(pg_get_expr(c.relpartbound, 0), 'TO [(]''([^'']+)''[)]')";

/// The comment on a partition that [`cleanup`] is about to drop.
const MARK: &str = "ingestd: expired, being dropped";

/// A partition of `events` as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The table's name, with its schema where that is not on the search path, quoted where needed.
    pub name: String,
    /// First instant; `None` when unbounded.
    pub start: Option<UnixMicros>,
    /// First instant after it; `None` when unbounded or when it is the default partition.
    pub end: Option<UnixMicros>,
    /// About how many rows it has, from the statistics.
    pub rows_estimate: u64,
    /// Bytes on disk with indexes and large values.
    pub bytes: u64,
    /// True while a DETACH CONCURRENTLY is under way, or was interrupted.
    pub detaching: bool,
    /// True once a cleanup has chosen it.
    pub marked: bool,
}

impl Partition {
    fn covers(&self, month: Month) -> bool {
        let bounded = self.start.is_some() || self.end.is_some(); // or else it is a default partition
        let from = self.start.is_none_or(|start| start <= month.start());
        let to = self.end.is_none_or(|end| end >= month.end());
        !self.detaching && bounded && from && to
    }
}

/// Why partitions could not be made or dropped.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// A table has the partition's name but is no partition: someone detached it, or it is another table.
    #[error(
        "table {name} exists but is not a partition of events: attach it with ALTER TABLE events ATTACH PARTITION {name} \
         FOR VALUES FROM ... TO ..., or rename it"
    )]
    NameTaken {
        /// The table.
        name: String,
    },
    /// A partition has the name but other bounds than its month.
    #[error(
        "partition {name} of events exists {bounds}, which is not its whole month in UTC: rename it and attach partitions \
         for the rest of the month, or attach it again with the month's bounds"
    )]
    OtherBounds {
        /// The partition.
        name: String,
        /// `FOR VALUES FROM … TO …`, as PostgreSQL prints it.
        bounds: String,
    },
    /// The partition is being detached by a cleanup, now or interrupted.
    #[error(
        "partition {name} is being detached; if that was interrupted, complete it with 'ingestd partitions cleanup', \
         or with ALTER TABLE events DETACH PARTITION {name} FINALIZE if it was started manually"
    )]
    Detaching {
        /// The partition.
        name: String,
    },
    /// Transactions use `events` for so long that waiting for them would hold up COPYs.
    #[error(
        "table events is in use by long transactions; a role that does not own it, or a Citus cluster, cannot wait for \
         them without blocking COPYs; see pg_stat_activity, then retry"
    )]
    InUse,
    /// Another session holds a lock for longer than this waits.
    #[error(
        "another session holds a lock that is needed to change partitions of events; see pg_stat_activity, then retry"
    )]
    LockTimeout,
    /// Everything else.
    #[error("{}", one_line(.0))]
    Postgres(postgres::Error),
}

impl PartitionError {
    /// True when only the month in question is affected for certain, until a person has put it right.
    pub fn is_of_one_month(&self) -> bool {
        match self {
            Self::NameTaken { .. } | Self::OtherBounds { .. } | Self::Detaching { .. } => true,
            // 42P17, "invalid object definition": it would overlap another partition.
            Self::Postgres(error) => error.code() == Some(&SqlState::INVALID_OBJECT_DEFINITION),
            Self::InUse | Self::LockTimeout => false,
        }
    }

    /// The same with its SQLSTATE. What is no error of PostgreSQL's is its state: 55000 is "object not in prerequisite state".
    pub fn into_fault(self) -> Fault {
        match self {
            Self::Postgres(error) => Fault::from(error),
            Self::LockTimeout => Fault::retry(&SqlState::LOCK_NOT_AVAILABLE, self.to_string()),
            Self::NameTaken { .. } | Self::OtherBounds { .. } | Self::Detaching { .. } | Self::InUse => {
                Fault::retry(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, self.to_string())
            }
        }
    }
}

impl From<postgres::Error> for PartitionError {
    fn from(error: postgres::Error) -> Self {
        match error.code() {
            Some(&SqlState::LOCK_NOT_AVAILABLE) => Self::LockTimeout,
            _ => Self::Postgres(error),
        }
    }
}

/// Whether the role of `client` owns `events`, or may act as its owner; `None`: there is no such table.
pub(super) fn owns_events(client: &mut impl GenericClient) -> Result<Option<bool>, postgres::Error> {
    let query = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('events')";
    Ok(client.query_typed_opt(query, &[])?.map(|row| row.get(0)))
}

/// By which right a session changes partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// Its role owns `events`.
    Ownership,
    /// It may call functions that run with the owner's rights.
    Functions,
    /// Its role owns `events`, which is spread over a Citus cluster: there is no CONCURRENTLY.
    ShardedOwnership,
}

impl Right {
    fn of(client: &mut impl GenericClient) -> Result<Self, PartitionError> {
        let owns = owns_events(client)?.unwrap_or(true);
        Ok(match (owns, layout_of(client)?) {
            (false, _) => Self::Functions,
            (true, Sharding::None) => Self::Ownership,
            (true, Sharding::Citus) => Self::ShardedOwnership,
        })
    }
}

/// Makes the partitions of the previous month, this month and `ahead` more. Returns the names of new ones. A month whose
/// name is taken is told in the log and left out: its events wait, if any come, and no others.
pub fn ensure_ahead(client: &mut Client, now: UnixMicros, ahead: u32) -> Result<Vec<String>, PartitionError> {
    let this = Month::of(now);
    let months: Vec<_> = (-1..=ahead as i32).map(|offset| this.plus(offset)).collect();
    match ensure(client, &months) {
        Err(NotMade { error, .. }) if error.is_of_one_month() => {}
        outcome => return Ok(outcome?),
    }
    let mut made = Vec::new();
    for month in months {
        match ensure(client, &[month]) {
            Ok(names) => made.extend(names),
            Err(NotMade { error, .. }) if error.is_of_one_month() => {
                tracing::error!(%month, %error,
                    "cannot create a partition ahead of time; events of that month would have to wait");
            }
            Err(not_made) => return Err(not_made.error),
        }
    }
    Ok(made)
}

/// Why partitions were not made, and which one it was; `None`: any of them.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotMade {
    /// The month that the error is about.
    pub month: Option<Month>,
    /// What is wrong.
    pub error: PartitionError,
}

impl From<PartitionError> for NotMade {
    fn from(error: PartitionError) -> Self {
        Self { month: None, error }
    }
}

impl From<postgres::Error> for NotMade {
    fn from(error: postgres::Error) -> Self {
        PartitionError::from(error).into()
    }
}

impl From<NotMade> for PartitionError {
    fn from(not_made: NotMade) -> Self {
        not_made.error
    }
}

/// As [`ensure_within`], for those who can wait for a lock.
pub fn ensure(client: &mut Client, months: &[Month]) -> Result<Vec<String>, NotMade> {
    ensure_within(client, months, PARTITION_LOCK_WAIT_MAX)
}

/// Makes the partitions of `months` that are missing, [`PARTITIONS_PER_TRANSACTION_MAX`] in one transaction, and returns the
/// names of new ones; no lock is awaited for longer than `lock_wait`. An error leaves those of earlier transactions. When
/// all are there this is one read.
pub fn ensure_within(client: &mut Client, months: &[Month], lock_wait: Duration) -> Result<Vec<String>, NotMade> {
    let wanted = despite_deadlocks(client, |client| missing(client, months))?;
    let mut made = Vec::new();
    for months in wanted.chunks(PARTITIONS_PER_TRANSACTION_MAX) {
        made.extend(despite_deadlocks(client, |client| ensure_some(client, months, lock_wait))?);
    }
    Ok(made)
}

/// Makes the partitions of `months` that are missing, all or none.
fn ensure_some(client: &mut Client, months: &[Month], lock_wait: Duration) -> Result<Vec<String>, NotMade> {
    // Read committed whatever the database's default is: what is read after the wait must be fresh.
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    lock(&mut transaction, ADVISORY_PARTITIONS, lock_wait)?;
    let right = Right::of(&mut transaction)?;
    if right == Right::ShardedOwnership {
        // Only this ends the wait for a COPY on a worker.
        transaction.batch_execute(&format!("SET LOCAL statement_timeout = {}", lock_wait.as_millis()))?;
    }
    let mut made = Vec::new();
    for month in missing(&mut transaction, months)? {
        make(&mut transaction, right, month).map_err(|error| NotMade { month: Some(month), error })?;
        made.push(month.partition_name());
    }
    transaction.commit()?;
    Ok(made)
}

fn missing(client: &mut impl GenericClient, months: &[Month]) -> Result<Vec<Month>, PartitionError> {
    let there = bounds(client)?;
    let mut missing: Vec<_> = months.to_vec();
    missing.sort_unstable();
    missing.dedup();
    missing.retain(|&month| !there.iter().any(|partition| partition.covers(month)));
    Ok(missing)
}

fn make(transaction: &mut postgres::Transaction<'_>, right: Right, month: Month) -> Result<(), PartitionError> {
    let name = month.partition_name();
    let is_taken = is_taken_by_leftover(transaction, &name)?;
    if right == Right::Functions {
        let month_number = i32::try_from(month.month()).unwrap_or_default();
        transaction.execute("SELECT ingestd_make_partition($1, $2)", &[&month.year(), &month_number])?;
        return Ok(());
    }
    if is_taken {
        transaction.batch_execute(&format!("DROP TABLE {name}"))?;
    }
    // Names and bounds are made of digits: nothing to quote. The bounds carry their offset, so the
    // session's time zone does not matter.
    transaction.batch_execute(&format!(
        "CREATE TABLE {name} (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE
                              INCLUDING COMPRESSION INCLUDING GENERATED)"
    ))?;
    // By itself: Citus passes on the text that it came in.
    transaction.batch_execute(&format!(
        "ALTER TABLE events ATTACH PARTITION {name}
             FOR VALUES FROM ('{month}-01 00:00:00+00') TO ('{next}-01 00:00:00+00')",
        next = month.plus(1)
    ))?;
    Ok(())
}

/// True when a table has `name` that an interrupted cleanup left; refuses any other, as `events` has no partition for the month
/// when this is asked.
fn is_taken_by_leftover(transaction: &mut postgres::Transaction<'_>, name: &str) -> Result<bool, PartitionError> {
    let found = transaction.query_opt(
        "SELECT coalesce(i.inhdetachpending, false), i.inhparent IS NULL AND d.description IS NOT DISTINCT FROM $2,
                CASE WHEN i.inhparent = to_regclass('events') THEN pg_get_expr(c.relpartbound, 0) END
         FROM pg_class c
         LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
         LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
         WHERE c.oid = to_regclass($1)",
        &[&name, &MARK],
    )?;
    let Some(row) = found else { return Ok(false) };
    let (detaching, leftover): (bool, bool) = (row.get(0), row.get(1));
    if detaching {
        return Err(PartitionError::Detaching { name: name.into() });
    }
    if let Some(bounds) = row.get(2) {
        return Err(PartitionError::OtherBounds { name: name.into(), bounds });
    }
    if !leftover {
        return Err(PartitionError::NameTaken { name: name.into() });
    }
    Ok(true)
}

/// The partitions of `events`, oldest first, with their sizes.
pub fn list(client: &mut Client) -> Result<Vec<Partition>, PartitionError> {
    despite_deadlocks(client, |client| match layout_of(client)? {
        Sharding::None => partitions(client, "pg_total_relation_size(c.oid)"),
        Sharding::Citus => {
            let sizes = table_sizes(client)?;
            let mut all = bounds(client)?;
            for partition in &mut all {
                (partition.rows_estimate, partition.bytes) = sizes.get(&partition.name).copied().unwrap_or_default();
            }
            Ok(all)
        }
    })
}

/// Runs `step`, a whole transaction, again where PostgreSQL ended it as one side of a deadlock.
///
/// Reading a size locks the partition for a moment, with a snapshot in hand; whoever completes a detaching holds
/// that lock and waits for older snapshots. Neither can know of the other.
fn despite_deadlocks<T, E: AsRef<PartitionError>>(
    client: &mut Client,
    mut step: impl FnMut(&mut Client) -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + PARTITION_DETACH_WAIT_MAX;
    let is_deadlock = |error: &E| {
        let PartitionError::Postgres(error) = error.as_ref() else { return false };
        error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED)
    };
    loop {
        match step(client) {
            Err(error) if is_deadlock(&error) && Instant::now() < deadline => {
                std::thread::sleep(PARTITION_DETACH_RETRY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

impl AsRef<PartitionError> for PartitionError {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl AsRef<PartitionError> for NotMade {
    fn as_ref(&self) -> &PartitionError {
        &self.error
    }
}

/// As [`list`] without sizes: reads the catalogue only.
fn bounds(client: &mut impl GenericClient) -> Result<Vec<Partition>, PartitionError> {
    partitions(client, "0::bigint")
}

fn partitions(client: &mut impl GenericClient, size: &str) -> Result<Vec<Partition>, PartitionError> {
    // A bound names no column, so pg_get_expr needs no table; given one it would wait for whoever has locked it (a long ALTER).
    let rows = client.query_typed(
        &format!(
            "WITH {PLAIN_TEXT}, parts AS MATERIALIZED (
                SELECT c.oid, i.inhdetachpending, c.reltuples, {LOWER_BOUND} AS lower, {UPPER_BOUND} AS upper
                FROM plain_text CROSS JOIN pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = to_regclass('events')),
              bounds AS (
                SELECT oid, inhdetachpending, reltuples,
                       nullif(lower[1]::timestamptz, '-infinity') AS lower, nullif(upper[1]::timestamptz, 'infinity') AS upper
                FROM parts)
              SELECT c.oid::regclass::text, (extract(epoch FROM lower) * 1000000)::bigint,
                     (extract(epoch FROM upper) * 1000000)::bigint,
                     greatest(reltuples::bigint, pg_stat_get_live_tuples(c.oid), 0), {size}, inhdetachpending,
                     obj_description(c.oid, 'pg_class') IS NOT DISTINCT FROM $1
              FROM bounds c ORDER BY lower NULLS FIRST, 1"
        ),
        &[(&MARK, Type::TEXT)],
    )?;
    Ok(rows.iter().filter_map(partition).collect())
}

/// `None` for a partition that another session dropped while it was being read: then it has no size any more.
fn partition(row: &Row) -> Option<Partition> {
    Some(Partition {
        name: row.get(0),
        start: row.get::<_, Option<i64>>(1).map(UnixMicros),
        end: row.get::<_, Option<i64>>(2).map(UnixMicros),
        rows_estimate: row.get::<_, i64>(3).unsigned_abs(),
        bytes: row.get::<_, Option<i64>>(4)?.unsigned_abs(),
        detaching: row.get(5),
        marked: row.get(6),
    })
}

/// Drops the partitions that lie wholly before the month `older_than_months` before this one, and completes
/// cleanups that were interrupted. Returns what was dropped; with `dry_run`, what would be.
///
/// Waits for transactions that use `events`, without blocking new ones. On an error, partitions before it
/// are gone and the rest is there: run it again.
pub fn cleanup(
    client: &mut Client,
    now: UnixMicros,
    older_than_months: u32,
    dry_run: bool,
) -> Result<Vec<Partition>, PartitionError> {
    let oldest_kept = Month::of(now).plus(-(older_than_months as i32)).start();
    let mut expired = list(client)?;
    let interrupted = |partition: &Partition| partition.marked && partition.detaching;
    expired.retain(|partition| interrupted(partition) || partition.end.is_some_and(|end| end <= oldest_kept));
    // What was interrupted comes first: until it is complete, no other partition can be detached.
    expired.sort_by_key(|partition| !partition.detaching);
    if dry_run {
        return Ok(expired);
    }
    let right = Right::of(client)?;
    for partition in &expired {
        match right {
            Right::Ownership => {
                detach(client, partition)?;
                drop_detached(client, &partition.name)?;
            }
            Right::Functions => drop_by_function(client, &partition.name)?,
            Right::ShardedOwnership => drop_sharded(client, &partition.name)?,
        }
    }
    for leftover in leftovers(client)? {
        match right {
            Right::Ownership | Right::ShardedOwnership => drop_detached(client, &leftover)?,
            Right::Functions => drop_by_function(client, &leftover)?,
        }
    }
    Ok(expired)
}

/// Drops the partition or leftover `name`, in one step. That it is gone is fine.
fn drop_by_function(client: &mut Client, name: &str) -> Result<(), PartitionError> {
    despite_deadlocks(client, |client| {
        match client.execute_typed("SELECT ingestd_drop_partition(to_regclass($1))", &[(&name, Type::TEXT)]) {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Err(PartitionError::InUse),
            outcome => Ok(outcome.map(drop)?),
        }
    })
}

/// Drops the partition `name` of a distributed table, in one step. That it is gone is fine.
///
/// COPYs that come while this waits for those under way wait as well, so it does not wait for long.
fn drop_sharded(client: &mut Client, name: &str) -> Result<(), PartitionError> {
    despite_deadlocks(client, |client| {
        let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
        let mut transaction = begin.start()?;
        lock(&mut transaction, ADVISORY_PARTITIONS, PARTITION_LOCK_WAIT_MAX)?;
        // The first is for the coordinator's locks, the second for the workers'.
        let wait_ms = SHARDED_DROP_WAIT_MAX.as_millis();
        transaction.batch_execute(&format!(
            "SET LOCAL lock_timeout = {wait_ms}; SET LOCAL statement_timeout = {}",
            10 * wait_ms
        ))?;
        match transaction.batch_execute(&format!("DROP TABLE IF EXISTS {name}")) {
            Err(error) if matches!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::QUERY_CANCELED)) => {
                Err(PartitionError::InUse)
            }
            outcome => Ok(outcome.and_then(|()| transaction.commit())?),
        }
    })
}

/// Marks and detaches. That another node did so first, or does so now, is fine.
///
/// PostgreSQL detaches one partition of a table at a time and refuses any other meanwhile; and nodes that detach the same
/// one may wait for each other, which it ends as a deadlock. Both pass, so this tries again. A lock that keeps the other
/// nodes out would have to be the session's, as this is no transaction: it would not work behind PgBouncer.
fn detach(client: &mut Client, partition: &Partition) -> Result<(), PartitionError> {
    let name = &partition.name;
    let deadline = Instant::now() + PARTITION_DETACH_WAIT_MAX;
    let mut way = if partition.detaching { "FINALIZE" } else { "CONCURRENTLY" };
    loop {
        let marked = client.batch_execute(&format!("COMMENT ON TABLE {name} IS '{MARK}'"));
        let detached =
            marked.and_then(|()| client.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {name} {way}")));
        let Err(error) = detached else { return Ok(()) };
        let deadlock = match error.code() {
            Some(&SqlState::UNDEFINED_TABLE) => return Ok(()),
            Some(&SqlState::T_R_DEADLOCK_DETECTED) => true,
            _ => false,
        };
        let all = list(client)?;
        way = match all.iter().find(|there| there.name == *name) {
            None => return Ok(()),
            // It may be this node's own detaching that was ended, half done.
            Some(now) if now.detaching && (partition.detaching || deadlock) => "FINALIZE",
            Some(now) if now.detaching => return Ok(()),
            Some(_) => "CONCURRENTLY",
        };
        if !deadlock && error.code() != Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) {
            return Err(error.into());
        }
        if Instant::now() > deadline {
            let other = all.into_iter().find(|other| other.detaching);
            return Err(other.map_or_else(|| error.into(), |other| PartitionError::Detaching { name: other.name }));
        }
        std::thread::sleep(PARTITION_DETACH_RETRY_PAUSE);
    }
}

/// Drops `name` if it still is what [`detach`] leaves behind: by now, another node may have dropped it and a
/// third one may have made a new partition of that name.
fn drop_detached(client: &mut Client, name: &str) -> Result<(), PartitionError> {
    despite_deadlocks(client, |client| drop_detached_once(client, name))
}

fn drop_detached_once(client: &mut Client, name: &str) -> Result<(), PartitionError> {
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    lock(&mut transaction, ADVISORY_PARTITIONS, PARTITION_LOCK_WAIT_MAX)?;
    if leftovers(&mut transaction)?.iter().any(|leftover| leftover == name) {
        transaction.batch_execute(&format!("DROP TABLE {name}"))?;
    }
    transaction.commit()?;
    Ok(())
}

/// Tables that [`detach`] marked and that are no partition any more, in the schema of `events`.
fn leftovers(client: &mut impl GenericClient) -> Result<Vec<String>, PartitionError> {
    let rows = client.query_typed(
        "SELECT c.oid::regclass::text
         FROM pg_class c
         JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
         WHERE d.description = $1 AND c.relkind = 'r' AND NOT c.relispartition
           AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('events'))
         ORDER BY 1",
        &[(&MARK, Type::TEXT)],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::migrate::ADVISORY_CLASS;

    #[test]
    fn the_functions_know_the_same_mark_and_the_same_lock() {
        let sql = include_str!("../../sql/0004_partition_functions.sql");
        assert_eq!(sql.matches(&format!("'{MARK}'")).count(), 2);
        assert_eq!(sql.matches(&format!("pg_advisory_xact_lock({ADVISORY_CLASS}, {ADVISORY_PARTITIONS})")).count(), 2);
    }
}
