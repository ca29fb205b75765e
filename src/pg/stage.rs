//! The way for rows that may be there already: COPY into a temporary table, then `INSERT … ON CONFLICT (the key) DO NOTHING`.
//! About 1.6 times the cost of a plain COPY, so only on demand.
//!
//! The conflict names the key of `events` and nothing else: what another unique index refuses is refused.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use postgres::{Client, GenericClient, Statement, Transaction};

use crate::encode::timestamp::append_rfc3339;
use crate::pg::copy::{Rows, copy_columns, copy_rows, copy_statement};
use crate::pg::event_key::EventKey;
use crate::pg::quarantine::Row;
use crate::sharding::Sharding;
use crate::types::UnixMicros;

/// Only the columns that are copied, and none of their constraints: a newer ingestd may have added one that is not null, and
/// what a row violates is for `events` to say.
fn create(on_commit: &str, sharding: Sharding) -> String {
    let columns = copy_columns(sharding);
    format!(
        "CREATE TEMPORARY TABLE IF NOT EXISTS ingest_stage ON COMMIT {on_commit} AS \
         SELECT {columns} FROM events WITH NO DATA"
    )
}

/// Limits how long the rest of a transaction waits for locks.
fn wait(lock_wait: Option<Duration>) -> String {
    lock_wait.map_or_else(String::new, |wait| format!("SET LOCAL lock_timeout = {}; ", wait.as_millis()))
}

/// What an event is recognised by: service, type, time in microseconds and id.
pub type Identity = (String, String, i64, String);

/// [`Identity`] as the columns of `table`.
fn identity_columns(table: &str) -> String {
    format!(
        "{table}.service_name, {table}.event_type, (extract(epoch FROM {table}.\"timestamp\") * 1000000)::bigint, {table}.event_id"
    )
}

fn identity(row: &postgres::Row) -> Identity {
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

/// The statements of the staging table, prepared on one connection.
#[derive(Clone)]
pub struct Stage {
    sharding: Sharding,
    /// The key of `events` when it was prepared.
    key: EventKey,
    copy: Statement,
    insert: Statement,
}

impl Stage {
    /// Makes the temporary table of this connection and prepares its statements. Outside a transaction.
    pub fn prepare(
        client: &mut Client,
        sharding: Sharding,
        lock_wait: Option<Duration>,
    ) -> Result<Self, postgres::Error> {
        let mut transaction = client.transaction()?;
        transaction.batch_execute(&format!("{}{}", wait(lock_wait), create("DELETE ROWS", sharding)))?;
        let stage = Self::statements(&mut transaction, sharding)?;
        transaction.commit()?;
        Ok(stage)
    }

    /// As [`Self::prepare`] for this transaction alone; the value is dropped before its end.
    pub fn prepare_within(
        transaction: &mut Transaction<'_>,
        sharding: Sharding,
        lock_wait: Option<Duration>,
    ) -> Result<Self, postgres::Error> {
        transaction.batch_execute(&format!("{}DROP TABLE IF EXISTS pg_temp.ingest_stage", wait(lock_wait)))?;
        transaction.batch_execute(&create("DROP", sharding))?;
        Self::statements(transaction, sharding)
    }

    fn statements(client: &mut impl GenericClient, sharding: Sharding) -> Result<Self, postgres::Error> {
        let copy = client.prepare(&copy_statement("ingest_stage", sharding))?;
        let (columns, key) = (copy_columns(sharding), EventKey::of(client)?);
        // Sorted: two nodes that insert the same events lock them in the same order, also where one is of an older version.
        let insert = client.prepare(&format!(
            "WITH landed AS (INSERT INTO events ({columns}) SELECT {columns} FROM ingest_stage \
             ORDER BY \"timestamp\", event_id, service_name, event_type {} RETURNING batch_id) \
             SELECT batch_id, count(*) FROM landed GROUP BY batch_id",
            key.on_conflict()
        ))?;
        Ok(Self { sharding, key, copy, insert })
    }

    /// How the tables are laid out.
    pub fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// Lands `parts` (whole tuples); gives the rows inserted by batch id. The rest were there already.
    /// The stage is left filled: it empties at the end of the transaction, or by [`Self::clear`].
    pub fn land<'a>(
        &self,
        transaction: &mut Transaction<'_>,
        parts: impl Iterator<Item = Rows<'a>>,
    ) -> Result<HashMap<String, u32>, postgres::Error> {
        // The INSERT behind it finds out whether the transaction still runs.
        copy_rows(transaction, &self.copy, self.sharding, parts)?;
        let rows = transaction.query(&self.insert, &[])?;
        Ok(rows.iter().map(|row| (row.get(0), u32::try_from(row.get::<_, i64>(1)).unwrap_or(u32::MAX))).collect())
    }

    /// The staged rows `part` that [`Self::land`] neither inserted nor found in `events`: triggers left them out.
    pub fn left_out(
        &self,
        transaction: &mut Transaction<'_>,
        part: &[Row<'_>],
    ) -> Result<HashSet<Identity>, postgres::Error> {
        match self.sharding {
            Sharding::None => {
                // Constants, so that the plan locks no partition that none of the rows is in.
                let bound = |at: Option<UnixMicros>| {
                    let mut text = String::new();
                    append_rfc3339(&mut text, at.unwrap_or(UnixMicros(0)));
                    text
                };
                let times = || part.iter().map(|row| row.view.timestamp);
                let (first, last) = (bound(times().min()), bound(times().max()));
                let rows = transaction.query(
                    &format!(
                        "SELECT {} FROM ingest_stage s WHERE NOT EXISTS (SELECT FROM events e WHERE {} \
                          AND e.\"timestamp\" BETWEEN '{first}'::timestamptz AND '{last}'::timestamptz)",
                        identity_columns("s"),
                        self.key.equality("e", "s")
                    ),
                    &[],
                )?;
                Ok(rows.iter().map(identity).collect())
            }
            // The stage is the coordinator's: it cannot be joined with shards.
            Sharding::Citus => {
                let ids: Vec<&str> = part.iter().map(|row| row.view.event_id).collect();
                let shards: Vec<i32> = part.iter().map(|row| row.rows.shard.0).collect();
                let rows = transaction.query(
                    &format!(
                        "SELECT {} FROM events e WHERE ingest_shard = ANY ($1) AND event_id = ANY ($2)",
                        identity_columns("e")
                    ),
                    &[&shards, &ids],
                )?;
                let there: HashSet<Identity> = rows.iter().map(|row| self.key.narrowed(identity(row))).collect();
                let staged = part.iter().map(|row| row.identity());
                Ok(staged.filter(|row| !there.contains(&self.key.narrowed(row.clone()))).collect())
            }
        }
    }

    /// True when a trigger is there that may leave rows out: before each row, on `events` or one of its partitions.
    pub fn may_leave_out(transaction: &mut Transaction<'_>) -> Result<bool, postgres::Error> {
        // Bits of tgtype, from PostgreSQL's catalog/pg_trigger.h: 1 for each row, 2 before, 4 on INSERT. From the catalogue, as
        // pg_partition_tree would wait for whoever has locked a partition.
        let query = "WITH RECURSIVE tree AS (SELECT to_regclass('events')::oid AS relation \
                       UNION ALL SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = relation) \
                     SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 7 = 7 \
                       AND tgrelid IN (SELECT relation FROM tree))";
        Ok(transaction.query_one(query, &[])?.get(0))
    }

    /// Empties the stage within a transaction.
    pub fn clear(transaction: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        transaction.batch_execute("TRUNCATE ingest_stage")
    }
}
