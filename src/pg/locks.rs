//! Who keeps a COPY from locking what it needs: asked after PostgreSQL has ended the wait (SQLSTATE 55P03).
//!
//! A COPY takes ROW EXCLUSIVE on `events`, on each partition that a row falls into when the first one does, and on their
//! indexes. So a lock on one partition (REINDEX, CREATE INDEX, VACUUM FULL, a long ALTER) is in the way of batches with rows
//! of it, and of no others. Read from the catalogue alone: this takes no lock on a table itself.

use std::sync::LazyLock;

use postgres::{GenericClient, Row};

use crate::pg::month::Month;
use crate::pg::partitions::{LOWER_BOUND, PLAIN_TEXT, UPPER_BOUND};
use crate::types::UnixMicros;

/// What keeps COPYs waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A lock that every COPY has to wait for, on `events` or the ledger.
    Tables {
        /// Which table, by whom, for how long.
        reason: String,
    },
    /// A lock on one partition, or on an index of it.
    Partition(Blocked),
}

/// A stretch of time, mostly a partition's, whose rows cannot land at present, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// First instant; `None` when unbounded.
    pub start: Option<UnixMicros>,
    /// First instant after it; `None` when unbounded.
    pub end: Option<UnixMicros>,
    /// Why its rows cannot land.
    pub reason: String,
}

impl Obstacle {
    /// The reason, if every COPY has to wait.
    pub fn of_all_tables(&self) -> Option<&str> {
        match self {
            Self::Tables { reason } => Some(reason),
            Self::Partition(_) => None,
        }
    }

    /// The rows that have to wait, if not all do.
    pub fn into_blocked(self) -> Option<Blocked> {
        match self {
            Self::Tables { .. } => None,
            Self::Partition(blocked) => Some(blocked),
        }
    }
}

impl Blocked {
    /// The rows of `month`.
    pub fn month(month: Month, reason: &str) -> Self {
        Self { start: Some(month.start()), end: Some(month.end()), reason: reason.to_owned() }
    }

    /// True when `at` falls into it.
    pub fn holds(&self, at: UnixMicros) -> bool {
        self.start.is_none_or(|start| start <= at) && self.end.is_none_or(|end| at < end)
    }
}

/// Modes that conflict with ROW EXCLUSIVE: PostgreSQL documentation, "Explicit Locking". A session that waits for one of them is
/// in the way as well, as locks are given in the order of their requests. Ancestors come from the root down, so the second is
/// the partition of `events` itself, whatever is below it.
static LOOK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH RECURSIVE {PLAIN_TEXT}, tree AS ( \
            SELECT to_regclass('events')::oid AS relation \
            UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.relation), \
          wanted AS ( \
            SELECT relation, relation AS held_by FROM tree \
            UNION ALL SELECT relation, i.indexrelid FROM tree JOIN pg_index i ON i.indrelid = tree.relation \
            UNION ALL SELECT to_regclass('ingest_batches')::oid, to_regclass('ingest_batches')::oid), \
          locked AS ( \
            SELECT DISTINCT ON (wanted.relation) wanted.relation, l.mode, l.granted, a.pid, nullif(a.application_name, '') AS name, \
                   to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS since \
            FROM pg_locks l JOIN wanted ON l.relation = wanted.held_by JOIN pg_stat_activity a ON a.pid = l.pid \
            WHERE l.locktype = 'relation' AND l.pid <> pg_backend_pid() AND a.datname = current_database() \
              AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
            ORDER BY wanted.relation, l.granted DESC, a.xact_start), \
          named AS ( \
            SELECT locked.*, (ARRAY( \
                SELECT above.relid::oid FROM pg_partition_ancestors(locked.relation) WITH ORDINALITY AS above (relid, level) \
                ORDER BY level DESC))[2] AS partition \
            FROM locked), \
          bounded AS MATERIALIZED ( \
            SELECT named.*, c.oid IS NOT NULL AS is_partition, {LOWER_BOUND} AS lower, {UPPER_BOUND} AS upper \
            FROM plain_text CROSS JOIN named LEFT JOIN pg_class c ON c.oid = named.partition) \
        SELECT relation::regclass::text, mode, granted, pid, name, coalesce(since, '?'), is_partition, \
               (extract(epoch FROM nullif(lower[1]::timestamptz, '-infinity')) * 1000000)::int8, \
               (extract(epoch FROM nullif(upper[1]::timestamptz, 'infinity')) * 1000000)::int8 \
        FROM bounded ORDER BY 1"
    )
});

/// Locks of other sessions that a COPY has to wait for at this moment. Without those on a default partition, as nobody can tell
/// from a row alone whether it goes there.
pub fn obstacles(client: &mut impl GenericClient) -> Result<Vec<Obstacle>, postgres::Error> {
    Ok(client.query_typed(&LOOK, &[])?.iter().filter_map(obstacle).collect())
}

fn obstacle(row: &Row) -> Option<Obstacle> {
    let (table, mode, granted): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
    let (pid, name, since): (i32, Option<String>, String) = (row.get(3), row.get(4), row.get(5));
    let who = name.map_or(format!("PID {pid}"), |name| format!("PID {pid} ({name})"));
    let how = if granted { "is locked" } else { "is about to be locked" };
    let reason = format!(
        "{table} {how} ({mode}) by {who}, whose transaction began at {since}: rows for it wait until that ends (SQLSTATE 55P03)"
    );
    if !row.get::<_, bool>(6) {
        return Some(Obstacle::Tables { reason });
    }
    let instant = |index| row.get::<_, Option<i64>>(index).map(UnixMicros);
    let (start, end) = (instant(7), instant(8));
    (start.is_some() || end.is_some()).then_some(Obstacle::Partition(Blocked { start, end, reason }))
}
