//! One transaction that lands batches exactly once:
//! `BEGIN ▸ ledger rows ▸ COPY events ▸ COMMIT`, copying only the batches whose ledger row was free.
//!
//! The plain way is tried first; the flusher asks for [`Way::Staged`] after a unique violation and for
//! [`Way::Quarantine`] after a row fault. Every way leaves the ledger with the counts that the batch's
//! status shows.

use std::time::{Duration, Instant};

use postgres::Transaction;

use crate::encode::tuple::tuples;
use crate::pg::connect::TRANSACTION_LIMITS;
use crate::pg::copy::{Rows, copy_rows, still_runs};
use crate::pg::ledger;
use crate::pg::pool::Session;
use crate::pg::quarantine::{DeadLetters, GivenUp, Refusals, Row, bury_all, land_or_bury};
use crate::pg::sqlstate::Fault;
use crate::pg::stage::Stage;
use crate::pg::time_limits::TimeLimits;
use crate::pg::wal::{self, Commit, Run};
use crate::sharding::{IngestShard, Sharding};
use crate::status::model::Counts;
use crate::status::recent::Reason;
use crate::types::{BatchKey, BodyDigest, Priority, UnixMicros};

/// A batch to land, borrowed from its block.
#[derive(Clone, Copy, Debug)]
pub struct Landing<'a> {
    /// Owner and id; ids are distinct among the batches of one call.
    pub key: &'a BatchKey,
    /// Digest of its body.
    pub digest: BodyDigest,
    /// Its priority.
    pub priority: Priority,
    /// Its events.
    pub events: u32,
    /// When the request arrived.
    pub received_at: UnixMicros,
    /// Its tuples, as COPY reads them.
    pub tuples: &'a [u8],
    /// Where its rows go.
    pub shard: IngestShard,
}

impl<'a> Landing<'a> {
    fn rows(&self) -> Rows<'a> {
        Rows { tuples: self.tuples, shard: self.shard }
    }
}

/// How rows get into `events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// COPY straight into `events`.
    Plain,
    /// Through the temporary table, counting duplicates.
    Staged,
    /// Through the temporary table, bisecting around refused rows, telling duplicates from rows that were left out.
    Quarantine,
    /// As [`Self::Quarantine`]; and whatever else PostgreSQL says of a row by itself sends it to the dead letters.
    RowByRow,
    /// Not at all: every row goes to the dead letters.
    Buried,
}

impl Way {
    fn is_staged(self) -> bool {
        matches!(self, Self::Staged | Self::Quarantine | Self::RowByRow)
    }
}

/// On which terms a transaction lands batches.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whether its COMMIT flushes.
    pub commit: Commit,
    /// How long PostgreSQL may take.
    pub limits: TimeLimits,
    /// Why rows go to the dead letters that are not tried: those of months that cannot be made, or all ([`Way::Buried`]).
    pub given_up: GivenUp,
}

/// What became of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landed {
    /// Committed now.
    Now(Counts),
    /// Committed before, by a transaction whose outcome was unknown, a retry or another node.
    Before(Counts),
    /// Another body was committed under this id: all events are dead letters.
    Conflict,
}

/// How long the steps took, for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Rows went through the temporary table.
    pub staged: bool,
    /// The ledger's INSERT.
    pub claim: Duration,
    /// The COPY, or staging and insert.
    pub copy: Duration,
    /// COMMIT.
    pub commit: Duration,
}

/// What was committed.
#[derive(Debug)]
pub struct Done {
    /// What became of each batch, in their order.
    pub landed: Vec<Landed>,
    /// How long it took.
    pub timings: Timings,
    /// When the transaction began.
    pub begun_at: Instant,
    /// When its COMMIT was answered.
    pub committed_at: Instant,
    /// The run of PostgreSQL that committed it.
    pub run: Run,
    /// Somebody has cancelled the wait for a synchronous standby: a failover may lose it, until a later COMMIT has waited.
    pub is_unconfirmed: bool,
    /// Why events went to the dead letters.
    pub reasons: Vec<Reason>,
}

/// Lands `batches` in one transaction.
///
/// # Errors
/// Nothing is in the database then, unless COMMIT itself got no answer: send the same batches again, the
/// ledger knows.
pub fn land(
    session: &mut Session,
    batches: &[Landing<'_>],
    way: Way,
    terms: &Terms,
    node: &str,
) -> Result<Done, Fault> {
    debug_assert!(!batches.is_empty());
    let (pulse, sharding) = (session.pulse(), session.sharding());
    let mut timings = Timings { staged: way.is_staged(), ..Timings::default() };
    let begun_at = Instant::now();
    let (mut transaction, statements) = session.begin(way.is_staged(), terms.limits.lock)?;
    if sharding == Sharding::Citus {
        // A lock's own limit does not end the wait for a worker.
        transaction.batch_execute(TRANSACTION_LIMITS)?;
    }
    if matches!(way, Way::Quarantine | Way::RowByRow) {
        // A deferred constraint would refuse at the COMMIT, where no row can be told from another.
        transaction.batch_execute("SET CONSTRAINTS ALL IMMEDIATE")?;
    }
    let (claimed, run) = ledger::claim(&mut transaction, &statements.claim, sharding, batches, terms, node, &pulse)?;
    timings.claim = begun_at.elapsed();

    let started = Instant::now();
    let ours: Vec<Landing<'_>> = keep(batches, &claimed, true);
    let mut reasons = Vec::new();
    let counts = match (way, &statements.stage) {
        (Way::Staged, Some(stage)) => {
            let inserted = stage.land(&mut transaction, ours.iter().map(Landing::rows))?;
            let counts: Vec<_> =
                ours.iter().map(|batch| staged_counts(batch, inserted.get(&*batch.key.id).copied())).collect();
            if counts.iter().any(|counts| counts.duplicates > 0) && Stage::may_leave_out(&mut transaction)? {
                return Err(Fault::left_out());
            }
            counts
        }
        (Way::Quarantine | Way::RowByRow, Some(stage)) => {
            let whose = if way == Way::RowByRow { Refusals::AllOfRows } else { Refusals::RowFaults };
            let buried = land_or_bury(&mut transaction, stage, &ours, &rows_of(&ours)?, whose, &terms.given_up, node)?;
            reasons = buried.reasons;
            buried.counts
        }
        (Way::Buried, _) => {
            let buried = bury_all(&mut transaction, sharding, &ours, &rows_of(&ours)?, &terms.given_up, node)?;
            reasons = buried.reasons;
            buried.counts
        }
        _ if ours.is_empty() => Vec::new(),
        _ => {
            let copied = copy_rows(&mut transaction, &statements.copy, sharding, ours.iter().map(Landing::rows))?;
            still_runs(&mut transaction)?;
            if copied != ours.iter().map(|batch| u64::from(batch.events)).sum::<u64>() {
                return Err(Fault::left_out());
            }
            ours.iter().map(|batch| Counts { inserted: batch.events, ..Counts::default() }).collect()
        }
    };
    let of_ours = ours.iter().zip(&counts);
    let corrected: Vec<(&BatchKey, Counts)> = of_ours
        .filter(|(batch, counts)| counts.inserted != batch.events)
        .map(|(batch, counts)| (batch.key, *counts))
        .collect();
    ledger::settle(&mut transaction, sharding, &corrected)?;
    let others = settle_others(&mut transaction, sharding, &keep(batches, &claimed, false), node)?;
    timings.copy = started.elapsed();

    let started = Instant::now();
    // They may be this transaction's only, see `Session::begin`.
    drop(statements);
    let (committed, is_unconfirmed) = pulse.committing(|| transaction.commit());
    committed?;
    let committed_at = Instant::now();
    timings.commit = committed_at - started;

    let (mut counts, mut others) = (counts.into_iter(), others.into_iter());
    let mut landed = Vec::with_capacity(batches.len());
    for ours in claimed {
        landed.extend(if ours { counts.next().map(Landed::Now) } else { others.next() });
    }
    assert_eq!(landed.len(), batches.len(), "every batch has an outcome");
    Ok(Done { landed, timings, begun_at, committed_at, run, is_unconfirmed, reasons })
}

fn keep<'a>(batches: &[Landing<'a>], claimed: &[bool], wanted: bool) -> Vec<Landing<'a>> {
    batches.iter().zip(claimed).filter(|(_, claimed)| **claimed == wanted).map(|(batch, _)| *batch).collect()
}

fn staged_counts(batch: &Landing<'_>, inserted: Option<u32>) -> Counts {
    let inserted = inserted.unwrap_or(0);
    Counts { inserted, duplicates: batch.events - inserted, dead_lettered: 0 }
}

fn rows_of<'a>(batches: &[Landing<'a>]) -> Result<Vec<Row<'a>>, Fault> {
    let mut rows = Vec::new();
    for (batch, landing) in batches.iter().enumerate() {
        for tuple in tuples(landing.tuples) {
            let (bytes, view) = tuple.map_err(|error| Fault::lost(format!("batch {}: {error}", landing.key)))?;
            rows.push(Row { batch, rows: Rows { tuples: bytes, shard: landing.shard }, view });
        }
    }
    Ok(rows)
}

/// Batches whose ledger row was there: the same body was committed before, or another body has the id.
fn settle_others(
    transaction: &mut Transaction<'_>,
    sharding: Sharding,
    others: &[Landing<'_>],
    node: &str,
) -> Result<Vec<Landed>, Fault> {
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<&BatchKey> = others.iter().map(|batch| batch.key).collect();
    let rows = ledger::find(transaction, sharding, &keys)?;
    // Another node may have committed them without; this transaction may have nothing else to flush.
    wal::flush(transaction)?;
    let mut landed = Vec::with_capacity(others.len());
    for batch in others {
        let row = rows.iter().find(|row| row.key == *batch.key);
        landed.push(match row {
            Some(row) if row.digest == batch.digest => Landed::Before(row.counts),
            Some(_) => bury_conflict(transaction, sharding, batch, node)?,
            // Removed between the two statements (ledger upkeep): claim it again.
            None => return Err(Fault::lost(format!("the ledger row of batch {} has disappeared", batch.key))),
        });
    }
    Ok(landed)
}

/// Dead-letters a batch whose id another body has. A ledger row under a name that no client can choose
/// makes a second replay of the same batch find that this was done.
fn bury_conflict(
    transaction: &mut Transaction<'_>,
    sharding: Sharding,
    batch: &Landing<'_>,
    node: &str,
) -> Result<Landed, Fault> {
    let digest: String = batch.digest.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let (column, value) = match sharding {
        Sharding::None => ("", String::new()),
        Sharding::Citus => (", ingest_shard", format!(", {}", batch.shard.0)),
    };
    let first_time = transaction.execute(
        &format!(
            "INSERT INTO ingest_batches (owner, batch_id, body_digest, priority, events, inserted, duplicates, dead_lettered, received_at, node{column}) \
             VALUES ($1, $2, $3, $4, $5, 0, 0, $5, to_timestamp($6::bigint / 1e6), $7{value}) ON CONFLICT DO NOTHING"
        ),
        &[
            &&*batch.key.owner,
            &format!("{}#conflict:{digest}", batch.key.id),
            &&batch.digest.0[..],
            &i16::from(batch.priority.get()),
            &batch.events.cast_signed(),
            &batch.received_at.0,
            &node,
        ],
    )?;
    if first_time == 1 {
        let fault = Fault::id_conflict();
        let mut dead_letters = DeadLetters::new(sharding, node);
        for row in rows_of(std::slice::from_ref(batch))? {
            dead_letters.bury(transaction, batch, &row.view, &fault)?;
        }
        dead_letters.write(transaction)?;
    }
    Ok(Landed::Conflict)
}
