//! The way for rows that may be there already: COPY into a temporary table, then
//! `INSERT … ON CONFLICT DO NOTHING`. About 1.6 times the cost of a plain COPY, so only on demand.

use std::collections::{HashMap, HashSet};

use postgres::{Client, GenericClient, Statement, Transaction};

use crate::pg::copy::{Rows, copy_columns, copy_rows, copy_statement};
use crate::pg::quarantine::Row;
use crate::sharding::Sharding;

/// Only the columns that are copied, and none of their constraints: a newer ingestd may have added one that is not null, and
/// what a row violates is for `events` to say.
fn create(on_commit: &str, sharding: Sharding) -> String {
    let columns = copy_columns(sharding);
    format!(
        "CREATE TEMPORARY TABLE IF NOT EXISTS ingest_stage ON COMMIT {on_commit} AS \
         SELECT {columns} FROM events WITH NO DATA"
    )
}

/// The statements of the staging table, prepared on one connection.
#[derive(Clone)]
pub struct Stage {
    sharding: Sharding,
    copy: Statement,
    insert: Statement,
}

impl Stage {
    /// Makes the temporary table of this connection and prepares its statements. Outside a transaction.
    pub fn prepare(client: &mut Client, sharding: Sharding) -> Result<Self, postgres::Error> {
        client.batch_execute(&create("DELETE ROWS", sharding))?;
        Self::statements(client, sharding)
    }

    /// As [`Self::prepare`] for this transaction alone; the value is dropped before its end.
    pub fn prepare_within(transaction: &mut Transaction<'_>, sharding: Sharding) -> Result<Self, postgres::Error> {
        transaction.batch_execute("DROP TABLE IF EXISTS pg_temp.ingest_stage")?;
        transaction.batch_execute(&create("DROP", sharding))?;
        Self::statements(transaction, sharding)
    }

    fn statements(client: &mut impl GenericClient, sharding: Sharding) -> Result<Self, postgres::Error> {
        let copy = client.prepare(&copy_statement("ingest_stage", sharding))?;
        let columns = copy_columns(sharding);
        // Sorted: two nodes that insert the same events lock them in the same order.
        let insert = client.prepare(&format!(
            "WITH landed AS (INSERT INTO events ({columns}) SELECT {columns} FROM ingest_stage \
             ORDER BY \"timestamp\", event_id ON CONFLICT DO NOTHING RETURNING batch_id) \
             SELECT batch_id, count(*) FROM landed GROUP BY batch_id"
        ))?;
        Ok(Self { sharding, copy, insert })
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
        copy_rows(transaction, &self.copy, self.sharding, parts)?;
        let rows = transaction.query(&self.insert, &[])?;
        Ok(rows.iter().map(|row| (row.get(0), u32::try_from(row.get::<_, i64>(1)).unwrap_or(u32::MAX))).collect())
    }

    /// Ids and times (microseconds) of the staged rows `part` that [`Self::land`] neither inserted nor found in `events`:
    /// triggers left them out.
    pub fn left_out(
        &self,
        transaction: &mut Transaction<'_>,
        part: &[Row<'_>],
    ) -> Result<HashSet<(String, i64)>, postgres::Error> {
        match self.sharding {
            Sharding::None => {
                let rows = transaction.query(
                    "SELECT event_id, (extract(epoch FROM \"timestamp\") * 1000000)::bigint FROM ingest_stage s WHERE NOT EXISTS \
                     (SELECT FROM events e WHERE e.\"timestamp\" = s.\"timestamp\" AND e.event_id = s.event_id)",
                    &[],
                )?;
                Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
            }
            // The stage is the coordinator's: it cannot be joined with shards.
            Sharding::Citus => {
                let ids: Vec<&str> = part.iter().map(|row| row.view.event_id).collect();
                let shards: Vec<i32> = part.iter().map(|row| row.rows.shard.0).collect();
                let rows = transaction.query(
                    "SELECT event_id, (extract(epoch FROM \"timestamp\") * 1000000)::bigint FROM events \
                     WHERE ingest_shard = ANY ($1) AND event_id = ANY ($2)",
                    &[&shards, &ids],
                )?;
                let there: HashSet<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
                let staged = part.iter().map(|row| (row.view.event_id.to_owned(), row.view.timestamp.0));
                Ok(staged.filter(|row| !there.contains(row)).collect())
            }
        }
    }

    /// True when a trigger is there that may leave rows out: before each row, on `events` or one of its partitions.
    pub fn may_leave_out(transaction: &mut Transaction<'_>) -> Result<bool, postgres::Error> {
        // Bits of tgtype, from PostgreSQL's catalog/pg_trigger.h: 1 for each row, 2 before, 4 on INSERT.
        let query = "SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 7 = 7 \
                     AND tgrelid IN (SELECT relid FROM pg_partition_tree('events')))";
        Ok(transaction.query_one(query, &[])?.get(0))
    }

    /// Empties the stage within a transaction.
    pub fn clear(transaction: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        transaction.batch_execute("TRUNCATE ingest_stage")
    }
}
