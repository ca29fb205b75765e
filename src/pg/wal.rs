//! Whether what PostgreSQL has committed is on its disk.
//!
//! With `synchronous_commit = off` COMMIT answers before the WAL is flushed, and a crash takes back what was committed
//! last, in whole transactions. One thing settles it: a later COMMIT that does flush. WAL is one sequence, so whatever
//! committed before it is on disk then, provided that both belong to the same [`Run`] of PostgreSQL: after a crash the
//! sequence goes on where the flushed part of it ended, and what it had lost is not in it.
//!
//! Sessions do not tell runs apart: behind a pooler they outlive them, and process numbers come again in a container.

use std::sync::LazyLock;
use std::time::SystemTime;

use postgres::{GenericClient, Row};

use crate::pg::sqlstate::Fault;

/// What a COMMIT waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// That its WAL, and all before it, is on PostgreSQL's disk; also where PostgreSQL, the role or the URL say
    /// `synchronous_commit = off`. What they say else (`local`, `remote_apply`) is left as it is.
    Flushed,
    /// Nothing: what it wrote is lost if PostgreSQL crashes soon.
    Unflushed,
}

/// The life of one PostgreSQL between two recoveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// When its first process started.
    started: SystemTime,
    /// Since when it counts: a recovery begins its statistics anew, also when the first process stayed (the crash of a
    /// single session). Somebody who resets them by hand makes one run look like two, which is safe.
    counts_since: Option<SystemTime>,
}

/// Columns that [`Run::from_row`] reads.
pub(super) const RUN_COLUMNS: &str = "pg_postmaster_start_time(), pg_stat_get_bgwriter_stat_reset_time()";

/// A column that sets for its transaction, in no round trip of its own, what [`Commit`] says: [`Commit::Unflushed`] where
/// `unflushed`, an SQL condition, is true.
pub(super) fn commit_column(unflushed: &str) -> String {
    format!(
        "CASE WHEN {unflushed} THEN set_config('synchronous_commit', 'off', true) \
              WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'local', true) END"
    )
}

/// Writes a record that no table has, so that its COMMIT has something to flush.
static FLUSH: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT {RUN_COLUMNS}, pg_logical_emit_message(true, 'ingestd', ''), {}", commit_column("false"))
});

impl Run {
    /// The run from [`RUN_COLUMNS`], the first of which is column `first` of `row`.
    pub(super) fn from_row(row: &Row, first: usize) -> Self {
        Self { started: row.get(first), counts_since: row.get(first + 1) }
    }

    /// A run that began at `started`.
    #[cfg(test)]
    pub fn of_start(started: SystemTime) -> Self {
        Self { started, counts_since: None }
    }
}

/// Has everything flushed that was committed so far, and says in which run of PostgreSQL: with its return on a connection,
/// with the COMMIT in a transaction.
///
/// # Errors
/// Nothing is known of earlier commits then.
pub fn flush(client: &mut impl GenericClient) -> Result<Run, Fault> {
    let rows = client.query_typed(&FLUSH, &[])?;
    rows.first().map(|row| Run::from_row(row, 0)).ok_or_else(|| Fault::lost("no response to a SELECT"))
}
