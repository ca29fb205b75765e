//! Rows that PostgreSQL refuses: found by bisection under savepoints, written to `dead_letter_events` in the
//! transaction that lands the others. O(bad · log n) statements; where one row after the other is refused, one a row, at
//! a bounded pace.

use std::collections::{HashMap, HashSet};

use postgres::types::ToSql;
use postgres::{Statement, Transaction};

use crate::encode::tuple::TupleView;
use crate::limits::{REASONS_TOLD_MAX, REFUSALS_IN_A_ROW_MAX, REFUSED_ROW_PAUSE};
use crate::pg::copy::Rows;
use crate::pg::land::Landing;
use crate::pg::sqlstate::{Fault, Verdict};
use crate::pg::stage::Stage;
use crate::sharding::Sharding;
use crate::status::model::Counts;
use crate::status::recent::Reason;

/// Writes events to the dead letters, within one transaction.
pub struct DeadLetters<'a> {
    statement: Statement,
    sharding: Sharding,
    node: &'a str,
}

/// A row of a batch: index into the batches, the tuple's bytes, its fields.
pub struct Row<'a> {
    /// Index of its batch.
    pub batch: usize,
    /// The tuple as encoded.
    pub rows: Rows<'a>,
    /// Its fields.
    pub view: TupleView<'a>,
}

/// What became of rows that were landed or buried.
#[derive(Debug)]
pub struct Buried {
    /// Counts by batch index.
    pub counts: Vec<Counts>,
    /// Why rows were refused: the first [`REASONS_TOLD_MAX`] kinds of reasons.
    pub reasons: Vec<Reason>,
}

impl Buried {
    /// One row of `batch` went to the dead letters because of `fault`.
    fn count(&mut self, batch: usize, fault: &Fault) {
        self.counts[batch].dead_lettered += 1;
        let is_same = |known: &Reason| known.sqlstate == fault.sqlstate && known.message == fault.message;
        match self.reasons.iter().position(is_same) {
            Some(known) => self.reasons[known].events += 1,
            None if self.reasons.len() < REASONS_TOLD_MAX => self.reasons.push(Reason::of(fault, 1)),
            None => {}
        }
    }
}

/// Lands `rows`, bisecting around those that PostgreSQL refuses.
///
/// On a Citus cluster every partition that the rows need is there.
///
/// # Errors
/// Any fault that is not a row's own: the caller rolls back and does what its verdict says.
pub fn land_or_bury(
    transaction: &mut Transaction<'_>,
    stage: &Stage,
    batches: &[Landing<'_>],
    rows: &[Row<'_>],
    node: &str,
) -> Result<Buried, Fault> {
    let index: HashMap<&str, usize> = batches.iter().enumerate().map(|(at, batch)| (&*batch.key.id, at)).collect();
    let mut buried = Buried { counts: vec![Counts::default(); batches.len()], reasons: Vec::new() };
    let whole = 0..rows.len();
    let mut ranges = vec![whole];
    let mut refused_in_a_row = 0;
    let dead_letters = DeadLetters::prepare(transaction, stage.sharding(), node)?;
    while let Some(range) = ranges.pop() {
        let row_by_row = refused_in_a_row >= REFUSALS_IN_A_ROW_MAX;
        if row_by_row && range.len() > 1 {
            ranges.push(range.start + 1..range.end);
            ranges.push(range.start..range.start + 1);
            continue;
        }
        let part = &rows[range.clone()];
        match land_part(transaction, stage, part)? {
            Ok(Outcome { inserted, left_out }) => {
                refused_in_a_row = 0;
                for row in part {
                    if left_out.contains(&(row.view.event_id.to_string(), row.view.timestamp.0)) {
                        let fault = Fault::left_out();
                        dead_letters.bury(transaction, &batches[row.batch], &row.view, &fault)?;
                        buried.count(row.batch, &fault);
                    } else {
                        buried.counts[row.batch].duplicates += 1;
                    }
                }
                for (batch_id, inserted) in inserted {
                    // A trigger may have changed the id.
                    let Some(at) = index.get(&*batch_id) else { continue };
                    let counts = &mut buried.counts[*at];
                    counts.inserted += inserted;
                    counts.duplicates = counts.duplicates.saturating_sub(inserted);
                }
            }
            Err(fault) if part.len() == 1 => {
                let row = &part[0];
                dead_letters.bury(transaction, &batches[row.batch], &row.view, &fault)?;
                buried.count(row.batch, &fault);
                refused_in_a_row += 1;
                if refused_in_a_row == REFUSALS_IN_A_ROW_MAX {
                    tracing::warn!(rows = refused_in_a_row, batch = %batches[row.batch].key, reason = fault.message,
                        "PostgreSQL is rejecting consecutive rows; falling back to throttled row-by-row inserts");
                }
                if row_by_row {
                    std::thread::sleep(REFUSED_ROW_PAUSE);
                }
            }
            Err(_) => {
                let middle = range.start + part.len() / 2;
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
        }
    }
    Ok(buried)
}

/// What became of rows none of which was refused. The others were there already.
struct Outcome {
    /// Rows inserted, by batch id.
    inserted: HashMap<String, u32>,
    /// Ids and times of those that triggers left out.
    left_out: HashSet<(String, i64)>,
}

/// Tries `part` under a savepoint: the outer error ends everything, the inner one is a row's fault.
fn land_part(
    transaction: &mut Transaction<'_>,
    stage: &Stage,
    part: &[Row<'_>],
) -> Result<Result<Outcome, Fault>, Fault> {
    let mut savepoint = transaction.transaction()?;
    match try_part(&mut savepoint, stage, part).map_err(Fault::from) {
        Ok(outcome) => {
            savepoint.commit()?;
            Ok(Ok(outcome))
        }
        Err(fault) if is_of_a_row(&fault, stage.sharding()) => {
            savepoint.rollback()?;
            Ok(Err(fault))
        }
        Err(fault) => Err(fault),
    }
}

/// True when `fault` lies with a row. A Citus worker does not name the constraint that a row breaks, so a CHECK looks like a
/// missing partition there; the caller has made the partitions.
fn is_of_a_row(fault: &Fault, sharding: Sharding) -> bool {
    match fault.verdict {
        Verdict::RowFault => true,
        Verdict::MissingPartition => sharding == Sharding::Citus,
        _ => false,
    }
}

fn try_part(transaction: &mut Transaction<'_>, stage: &Stage, part: &[Row<'_>]) -> Result<Outcome, postgres::Error> {
    let inserted = stage.land(transaction, part.iter().map(|row| row.rows))?;
    let all_are_in = inserted.values().map(|rows| *rows as usize).sum::<usize>() == part.len();
    let left_out = if all_are_in { HashSet::new() } else { stage.left_out(transaction, part)? };
    Stage::clear(transaction)?;
    Ok(Outcome { inserted, left_out })
}

impl<'a> DeadLetters<'a> {
    /// Prepares the statement; `node` is the one that gives the events up.
    pub fn prepare(
        transaction: &mut Transaction<'_>,
        sharding: Sharding,
        node: &'a str,
    ) -> Result<Self, postgres::Error> {
        let (column, value) = match sharding {
            Sharding::None => ("", ""),
            Sharding::Citus => (", ingest_shard", ", $11::int4"),
        };
        let statement = transaction.prepare(&format!(
            "INSERT INTO dead_letter_events (owner, batch_id, priority, event_id, \"timestamp\", event, sqlstate, message, received_at, node{column}) \
             VALUES ($1, $2, $3, $4, to_timestamp($5::bigint / 1e6), $6, $7, $8, to_timestamp($9::bigint / 1e6), $10{value})"
        ))?;
        Ok(Self { statement, sharding, node })
    }

    /// Writes one event, as JSON text with its payload as it was sent.
    pub fn bury(
        &self,
        transaction: &mut Transaction<'_>,
        batch: &Landing<'_>,
        event: &TupleView<'_>,
        fault: &Fault,
    ) -> Result<(), Fault> {
        let mut text = String::new();
        event.to_json(&mut text);
        let (owner, id, priority) = (&*batch.key.owner, &*batch.key.id, i16::from(batch.priority.get()));
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![
            &owner,
            &id,
            &priority,
            &event.event_id,
            &event.timestamp.0,
            &text,
            &fault.sqlstate,
            &fault.message,
            &batch.received_at.0,
            &self.node,
        ];
        if self.sharding == Sharding::Citus {
            values.push(&batch.shard.0);
        }
        transaction.execute(&self.statement, &values)?;
        Ok(())
    }
}
