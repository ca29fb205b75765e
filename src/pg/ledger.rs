//! The ledger `ingest_batches`: one row a batch, written in the transaction of its COPY. It alone makes
//! "exactly once": whoever inserts a batch's row first copies its events, everybody else finds the row.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Statement, Transaction};

use crate::pg::land::{Landing, Terms};
use crate::pg::sqlstate::Fault;
use crate::pg::time_limits::TimeLimits;
use crate::pg::wal::{Commit, RUN_COLUMNS, Run, commit_column};
use crate::pg::watch::Pulse;
use crate::sharding::{IngestShard, Sharding};
use crate::status::model::Counts;
use crate::types::{BatchKey, BodyDigest, UnixMicros};

/// What the ledger knows of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// Owner and id.
    pub key: BatchKey,
    /// Digest of the body that was committed.
    pub digest: BodyDigest,
    /// 0–10.
    pub priority: u8,
    /// Events accepted.
    pub events: u32,
    /// Where they ended.
    pub counts: Counts,
    /// When the request arrived.
    pub received_at: UnixMicros,
    /// When the row was written.
    pub committed_at: UnixMicros,
    /// The node that committed it.
    pub node: String,
}

/// Inserts rows for `$1..$6`, all counted as inserted; gives back the backend, its run and the ids that were free, in one
/// row at least. `$8`: this transaction's COMMIT flushes nothing. `$9`, where sharded: the values of `ingest_shard`; elsewhere the
/// limits of [`TimeLimits`].
///
/// The role's, the database's or the URL's limits of time do not decide how long a COPY may take: the first statement of its
/// transaction replaces them for all that follow. On a Citus cluster [`crate::pg::connect::TRANSACTION_LIMITS`] has set ours.
pub fn claim_statement(sharding: Sharding) -> String {
    let commit = commit_column("$8");
    let (limits, from_limits) = match sharding {
        Sharding::None => (OWN_LIMITS, "limits, "),
        Sharding::Citus => ("", ""),
    };
    let (column, values) = match sharding {
        Sharding::None => ("", ""),
        Sharding::Citus => (", ingest_shard", ", $9::int4[]"),
    };
    format!(
        "WITH {limits}free AS (INSERT INTO ingest_batches (owner, batch_id, body_digest, priority, events, inserted, duplicates, dead_lettered, received_at, node{column}) \
         SELECT owner, batch_id, body_digest, priority, events, events, 0, 0, received_at, $7{column} \
         FROM {from_limits}unnest($1::text[], $2::text[], $3::bytea[], $4::int2[], $5::int4[], $6::timestamptz[]{values}) \
              AS batch (owner, batch_id, body_digest, priority, events, received_at{column}) \
         ORDER BY owner, batch_id \
         ON CONFLICT DO NOTHING RETURNING owner, batch_id) \
         SELECT pg_backend_pid(), owner, batch_id, {RUN_COLUMNS}, {commit} FROM (VALUES (1)) AS one LEFT JOIN free ON true"
    )
}

/// Set before the first row is inserted, which may have to wait for another transaction with the same id. A session that froze
/// must not keep its locks, so the time without a statement stays limited. PostgreSQL has `transaction_timeout` from 17 on.
const OWN_LIMITS: &str = "limits AS MATERIALIZED (SELECT concat( \
    set_config('lock_timeout', $9, true), set_config('statement_timeout', $10, true), \
    set_config('idle_in_transaction_session_timeout', '60s', true), \
    CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL THEN set_config('transaction_timeout', '0', true) END)), ";

/// A macro, as a constant could not be put together from it.
macro_rules! row_columns {
    () => {
        "owner, batch_id, body_digest, priority, events, inserted, duplicates, dead_lettered, received_at, committed_at, node"
    };
}

const FIND: &str = concat!(
    "SELECT ",
    row_columns!(),
    " FROM ingest_batches JOIN unnest($1::text[], $2::text[]) AS wanted (owner, batch_id) USING (owner, batch_id)"
);

/// Finds more than was asked for where an owner's id is another one's, too: a join would go to every shard in turn.
const FIND_SHARDED: &str = concat!(
    "SELECT ",
    row_columns!(),
    " FROM ingest_batches WHERE owner = ANY ($1) AND batch_id = ANY ($2) AND ingest_shard = ANY ($3)"
);

const SETTLE: &str = "\
    UPDATE ingest_batches AS batch SET inserted = its.inserted, duplicates = its.duplicates, dead_lettered = its.dead_lettered \
    FROM unnest($1::text[], $2::text[], $3::int4[], $4::int4[], $5::int4[]) AS its (owner, batch_id, inserted, duplicates, dead_lettered) \
    WHERE batch.owner = its.owner AND batch.batch_id = its.batch_id";

/// An UPDATE there goes to the shard of one batch.
const SETTLE_SHARDED: &str = "\
    UPDATE ingest_batches SET inserted = $3, duplicates = $4, dead_lettered = $5 WHERE owner = $1 AND batch_id = $2";

/// Claims `batches`; the result says for each whether it is ours to copy, and in which run of PostgreSQL; `pulse` learns
/// by which backend. Waits for another transaction that holds the same id. Ids are distinct within `batches`.
pub fn claim(
    transaction: &mut Transaction<'_>,
    statement: &Statement,
    sharding: Sharding,
    batches: &[Landing<'_>],
    terms: &Terms,
    node: &str,
    pulse: &Pulse,
) -> Result<(Vec<bool>, Run), Fault> {
    let owners: Vec<&str> = batches.iter().map(|batch| &*batch.key.owner).collect();
    let ids: Vec<&str> = batches.iter().map(|batch| &*batch.key.id).collect();
    let digests: Vec<&[u8]> = batches.iter().map(|batch| &batch.digest.0[..]).collect();
    let priorities: Vec<i16> = batches.iter().map(|batch| i16::from(batch.priority.get())).collect();
    let events: Vec<i32> = batches.iter().map(|batch| batch.events.cast_signed()).collect();
    let received: Vec<SystemTime> = batches.iter().map(|batch| system_time(batch.received_at)).collect();
    let unflushed = terms.commit == Commit::Unflushed;
    let (lock, time) = (TimeLimits::setting(terms.limits.lock), TimeLimits::setting(terms.limits.statement));
    let shards: Vec<i32> = batches.iter().map(|batch| batch.shard.0).collect();
    let mut values: Vec<&(dyn ToSql + Sync)> =
        vec![&owners, &ids, &digests, &priorities, &events, &received, &node, &unflushed];
    match sharding {
        Sharding::None => values.extend([&lock as &(dyn ToSql + Sync), &time]),
        Sharding::Citus => values.push(&shards),
    }
    let rows = transaction.query(statement, &values)?;
    let first = rows.first().ok_or_else(|| Fault::lost("no response to the ledger's INSERT"))?;
    pulse.served_by(first.get(0));
    let run = Run::from_row(first, 3);
    let free: HashSet<(Option<&str>, Option<&str>)> = rows.iter().map(|row| (row.get(1), row.get(2))).collect();
    let claimed = batches.iter().map(|batch| free.contains(&(Some(&*batch.key.owner), Some(&*batch.key.id))));
    Ok((claimed.collect(), run))
}

/// Corrects the counts of batches that were claimed in this transaction.
pub fn settle(
    transaction: &mut Transaction<'_>,
    sharding: Sharding,
    batches: &[(&BatchKey, Counts)],
) -> Result<(), postgres::Error> {
    if batches.is_empty() {
        return Ok(());
    }
    if sharding == Sharding::Citus {
        for (key, Counts { inserted, duplicates, dead_lettered }) in batches {
            transaction.execute(
                &format!("{SETTLE_SHARDED}{}", sharding.and_shard(IngestShard::of(&key.id))),
                &[
                    &&*key.owner,
                    &&*key.id,
                    &inserted.cast_signed(),
                    &duplicates.cast_signed(),
                    &dead_lettered.cast_signed(),
                ],
            )?;
        }
        return Ok(());
    }
    let owners: Vec<&str> = batches.iter().map(|(key, _)| &*key.owner).collect();
    let ids: Vec<&str> = batches.iter().map(|(key, _)| &*key.id).collect();
    let counts =
        |of: fn(&Counts) -> u32| batches.iter().map(|(_, counts)| of(counts).cast_signed()).collect::<Vec<i32>>();
    let (inserted, duplicates) = (counts(|counts| counts.inserted), counts(|counts| counts.duplicates));
    let dead_lettered = counts(|counts| counts.dead_lettered);
    let settled = transaction.execute_typed(
        SETTLE,
        &[
            (&owners, Type::TEXT_ARRAY),
            (&ids, Type::TEXT_ARRAY),
            (&inserted, Type::INT4_ARRAY),
            (&duplicates, Type::INT4_ARRAY),
            (&dead_lettered, Type::INT4_ARRAY),
        ],
    )?;
    debug_assert_eq!(settled, batches.len() as u64, "settled batches that were not claimed");
    Ok(())
}

/// The rows of those `keys` that the ledger has, in any order.
pub fn find(
    client: &mut impl GenericClient,
    sharding: Sharding,
    keys: &[&BatchKey],
) -> Result<Vec<LedgerRow>, postgres::Error> {
    let owners: Vec<&str> = keys.iter().map(|key| &*key.owner).collect();
    let ids: Vec<&str> = keys.iter().map(|key| &*key.id).collect();
    let shards: Vec<i32> = keys.iter().map(|key| IngestShard::of(&key.id).0).collect();
    let mut values: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&owners, Type::TEXT_ARRAY), (&ids, Type::TEXT_ARRAY)];
    let query = match sharding {
        Sharding::None => FIND,
        Sharding::Citus => {
            values.push((&shards, Type::INT4_ARRAY));
            FIND_SHARDED
        }
    };
    let rows = client.query_typed(query, &values)?;
    let wanted: HashSet<&BatchKey> = keys.iter().copied().collect();
    Ok(rows.iter().map(row_from).filter(|row| wanted.contains(&row.key)).collect())
}

const FORGET: &str = "\
    DELETE FROM ingest_batches WHERE ctid = ANY (ARRAY( \
        SELECT ctid FROM ingest_batches WHERE committed_at < to_timestamp($1::bigint / 1e6) LIMIT $2))";

/// No row of a shard can be named in another one's statement, so what to forget is named by its time.
const LAST_TO_FORGET: &str = "\
    SELECT max(committed_at) FROM ( \
        SELECT committed_at FROM ingest_batches WHERE committed_at < to_timestamp($1::bigint / 1e6) \
        ORDER BY committed_at LIMIT $2) AS oldest";

/// Removes at most `rows_max` rows (a few more where sharded) of batches that were committed before `before`; returns how many there were.
///
/// What is forgotten can be sent again, and a journal that still holds it may replay it: then its rows meet themselves
/// in the primary key, because a block carries its events' timestamps, and count as duplicates.
pub fn forget(
    client: &mut impl GenericClient,
    sharding: Sharding,
    before: UnixMicros,
    rows_max: i64,
) -> Result<u64, postgres::Error> {
    match sharding {
        Sharding::None => client.execute_typed(FORGET, &[(&before.0, Type::INT8), (&rows_max, Type::INT8)]),
        Sharding::Citus => {
            let last: Option<SystemTime> =
                client.query_typed_one(LAST_TO_FORGET, &[(&before.0, Type::INT8), (&rows_max, Type::INT8)])?.get(0);
            let Some(last) = last else { return Ok(0) };
            client.execute_typed("DELETE FROM ingest_batches WHERE committed_at <= $1", &[(&last, Type::TIMESTAMPTZ)])
        }
    }
}

fn row_from(row: &postgres::Row) -> LedgerRow {
    let count = |index: usize| row.get::<_, i32>(index).cast_unsigned();
    let mut digest = [0; 16];
    let stored: &[u8] = row.get(2);
    if stored.len() == digest.len() {
        digest.copy_from_slice(stored);
    }
    LedgerRow {
        key: BatchKey { owner: row.get::<_, &str>(0).into(), id: row.get::<_, &str>(1).into() },
        digest: BodyDigest(digest),
        priority: u8::try_from(row.get::<_, i16>(3)).unwrap_or_default(),
        events: count(4),
        counts: Counts { inserted: count(5), duplicates: count(6), dead_lettered: count(7) },
        received_at: unix_micros(row.get(8)),
        committed_at: unix_micros(row.get(9)),
        node: row.get(10),
    }
}

fn system_time(at: UnixMicros) -> SystemTime {
    let distance = Duration::from_micros(at.0.unsigned_abs());
    if at.0 >= 0 { SystemTime::UNIX_EPOCH + distance } else { SystemTime::UNIX_EPOCH - distance }
}

fn unix_micros(at: SystemTime) -> UnixMicros {
    let micros = |distance: Duration| i64::try_from(distance.as_micros()).unwrap_or(i64::MAX);
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => UnixMicros(micros(after)),
        Err(before) => UnixMicros(-micros(before.duration())),
    }
}
