//! Rows that PostgreSQL refuses: found by bisection under savepoints, written to `dead_letter_events` in the
//! transaction that lands the others. O(bad · log n) statements; where one row after the other is refused, one a row.
//!
//! Which refusals are a row's is [`Refusals`]: mostly those that name a value; after a batch was stuck for
//! `STUCK_BATCH_MINUTES`, all that leave the session usable.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use postgres::Transaction;
use postgres::types::{ToSql, Type};

use crate::encode::tuple::TupleView;
use crate::limits::{
    DEAD_LETTERS_BYTES_MAX, DEAD_LETTERS_PER_STATEMENT_MAX, DUPLICATE_RACES_MAX, REASONS_TOLD_MAX,
    REFUSALS_IN_A_ROW_MAX, REFUSED_BEFORE_CLEARED,
};
use crate::pg::copy::Rows;
use crate::pg::event_key;
use crate::pg::land::Landing;
use crate::pg::month::Month;
use crate::pg::sqlstate::{Fault, Verdict};
use crate::pg::stage::{Identity, Stage};
use crate::sharding::Sharding;
use crate::status::model::Counts;
use crate::status::recent::Reason;

/// Which refusals of PostgreSQL are a row's own, when that row is tried by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// Those with [`Verdict::RowFault`].
    RowFaults,
    /// All after which the session goes on: whatever it is, it is the same for this row each time.
    AllOfRows,
}

/// Rows that are dead letters without being tried.
#[derive(Clone, Debug, Default)]
pub struct GivenUp {
    /// All of them, because of this.
    pub all: Option<Fault>,
    /// Those of these months, because of that.
    pub months: HashMap<Month, Fault>,
}

impl GivenUp {
    fn reason(&self, row: &Row<'_>) -> Option<&Fault> {
        self.all.as_ref().or_else(|| self.months.get(&Month::of(row.view.timestamp)))
    }
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

impl Row<'_> {
    /// What it is recognised by.
    pub fn identity(&self) -> Identity {
        let TupleView { service_name, event_type, timestamp, event_id, .. } = self.view;
        (service_name.to_owned(), event_type.to_owned(), timestamp.0, event_id.to_owned())
    }
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
    fn of(batches: usize) -> Self {
        Self { counts: vec![Counts::default(); batches], reasons: Vec::new() }
    }

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

/// Lands `rows`, bisecting around those that PostgreSQL refuses; `given_up` ones are buried at once.
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
    refusals: Refusals,
    given_up: &GivenUp,
    node: &str,
) -> Result<Buried, Fault> {
    let index: HashMap<&str, usize> = batches.iter().enumerate().map(|(at, batch)| (&*batch.key.id, at)).collect();
    let mut buried = Buried::of(batches.len());
    let mut dead_letters = DeadLetters::new(stage.sharding(), node);
    let mut given_up = given_up.clone();
    let (mut refused, mut refused_in_a_row, mut races) = (0u32, 0, 0);
    let mut ranges = by_month(rows, refusals);
    while let Some(range) = ranges.pop() {
        let part = &rows[range.clone()];
        if refused_in_a_row >= REFUSALS_IN_A_ROW_MAX && part.len() > 1 {
            ranges.push(range.start + 1..range.end);
            ranges.push(range.start..range.start + 1);
            continue;
        }
        if let [row] = part
            && let Some(fault) = given_up.reason(row).cloned()
        {
            dead_letters.bury(transaction, &batches[row.batch], &row.view, &fault)?;
            buried.count(row.batch, &fault);
            continue;
        }
        if part.iter().all(|row| given_up.reason(row).is_some()) {
            ranges.extend(range.rev().map(|at| at..at + 1));
            continue;
        }
        match land_part(transaction, stage, part, refusals)? {
            Ok(Outcome { inserted, left_out }) => {
                refused_in_a_row = 0;
                for row in part {
                    if left_out.contains(&row.identity()) {
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
            Err(fault) => {
                if let [row] = part {
                    if fault.verdict == Verdict::Duplicates
                        && event_key::is_violated(transaction, stage.sharding(), &fault)?
                    {
                        if races == DUPLICATE_RACES_MAX {
                            return Err(Fault { verdict: Verdict::Retry, ..fault });
                        }
                        races += 1;
                        ranges.push(range);
                        continue;
                    }
                    dead_letters.bury(transaction, &batches[row.batch], &row.view, &fault)?;
                    buried.count(row.batch, &fault);
                    refused_in_a_row += 1;
                    refused += 1;
                    if refused % REFUSED_BEFORE_CLEARED == 0 {
                        // What was rolled back is still read by each statement that follows.
                        Stage::clear(transaction)?;
                    }
                    if refused_in_a_row >= REFUSALS_IN_A_ROW_MAX
                        && !matches!(fault.verdict, Verdict::RowFault | Verdict::Duplicates)
                    {
                        // Not what is in the rows, but where they go: each attempt may cost a wait.
                        given_up.months.insert(Month::of(row.view.timestamp), fault);
                        refused_in_a_row = 0;
                    }
                    continue;
                }
                let middle = range.start + part.len() / 2;
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
        }
    }
    dead_letters.write(transaction)?;
    Ok(buried)
}

/// Buries all `rows`, for the reasons in `given_up`.
pub fn bury_all(
    transaction: &mut Transaction<'_>,
    sharding: Sharding,
    batches: &[Landing<'_>],
    rows: &[Row<'_>],
    given_up: &GivenUp,
    node: &str,
) -> Result<Buried, Fault> {
    let mut buried = Buried::of(batches.len());
    let mut dead_letters = DeadLetters::new(sharding, node);
    for row in rows {
        let fault = given_up.reason(row).ok_or_else(|| Fault::lost("no reason to give up a row"))?;
        dead_letters.bury(transaction, &batches[row.batch], &row.view, fault)?;
        buried.count(row.batch, fault);
    }
    dead_letters.write(transaction)?;
    Ok(buried)
}

/// The parts to begin with, the first one last. Where whole months may be refused, a stretch of rows of one month each.
fn by_month(rows: &[Row<'_>], refusals: Refusals) -> Vec<Range<usize>> {
    let whole = 0..rows.len();
    if refusals == Refusals::RowFaults {
        return vec![whole];
    }
    let month = |at: usize| Month::of(rows[at].view.timestamp);
    let mut parts: Vec<Range<usize>> = Vec::new();
    for at in whole {
        match parts.last_mut() {
            Some(part) if month(part.start) == month(at) => part.end = at + 1,
            _ => parts.push(at..at + 1),
        }
    }
    parts.reverse();
    parts
}

/// What became of rows none of which was refused. The others were there already.
struct Outcome {
    /// Rows inserted, by batch id.
    inserted: HashMap<String, u32>,
    /// Those that triggers left out.
    left_out: HashSet<Identity>,
}

/// Tries `part` under a savepoint: the outer error ends everything, the inner one is a row's fault.
fn land_part(
    transaction: &mut Transaction<'_>,
    stage: &Stage,
    part: &[Row<'_>],
    refusals: Refusals,
) -> Result<Result<Outcome, Fault>, Fault> {
    let mut savepoint = transaction.transaction()?;
    match try_part(&mut savepoint, stage, part).map_err(Fault::from) {
        Ok(outcome) => {
            savepoint.commit()?;
            Ok(Ok(outcome))
        }
        Err(fault) if is_of_a_row(&fault, stage.sharding(), refusals) => {
            savepoint.rollback()?;
            Ok(Err(fault))
        }
        Err(fault) => Err(fault),
    }
}

/// True when `fault` lies with a row. A Citus worker does not name the constraint that a row breaks, so a CHECK looks like a
/// missing partition there; the caller has made the partitions.
fn is_of_a_row(fault: &Fault, sharding: Sharding, refusals: Refusals) -> bool {
    match (fault.verdict_on(sharding), refusals) {
        // The INSERT names the key, so another unique index has refused it. Whether it was really another one, the caller asks.
        (Verdict::RowFault | Verdict::Duplicates, _) => true,
        // Nothing of the rows.
        (Verdict::KeyChanged, _) => false,
        (Verdict::MissingPartition, Refusals::RowFaults) => sharding == Sharding::Citus,
        (_, Refusals::RowFaults) => false,
        (_, Refusals::AllOfRows) => leaves_the_session(&fault.sqlstate),
    }
}

/// True when a session goes on after `sqlstate`, and the same would come again. PostgreSQL documentation, appendix A: 08 is a broken
/// connection, 40 another transaction, 57P0x the server's shutdown.
fn leaves_the_session(sqlstate: &str) -> bool {
    !(sqlstate.starts_with("08") || sqlstate.starts_with("40") || sqlstate.starts_with("57P"))
}

fn try_part(transaction: &mut Transaction<'_>, stage: &Stage, part: &[Row<'_>]) -> Result<Outcome, postgres::Error> {
    let inserted = stage.land(transaction, part.iter().map(|row| row.rows))?;
    let all_are_in = inserted.values().map(|rows| *rows as usize).sum::<usize>() == part.len();
    let left_out = if all_are_in { HashSet::new() } else { stage.left_out(transaction, part)? };
    Stage::clear(transaction)?;
    Ok(Outcome { inserted, left_out })
}

/// Events on their way to the dead letters, within one transaction: a statement for many of them.
pub struct DeadLetters<'a> {
    sharding: Sharding,
    node: &'a str,
    waiting: Columns,
}

/// One value an event in each.
#[derive(Default)]
struct Columns {
    owners: Vec<String>,
    batch_ids: Vec<String>,
    priorities: Vec<i16>,
    event_ids: Vec<String>,
    timestamps: Vec<i64>,
    events: Vec<String>,
    sqlstates: Vec<String>,
    messages: Vec<String>,
    received: Vec<i64>,
    shards: Vec<i32>,
    /// Of `events`.
    bytes: usize,
}

impl<'a> DeadLetters<'a> {
    /// `node` is the one that gives the events up.
    pub fn new(sharding: Sharding, node: &'a str) -> Self {
        Self { sharding, node, waiting: Columns::default() }
    }

    /// Takes one event, as JSON text with its payload as it was sent; [`Self::write`] has to follow.
    pub fn bury(
        &mut self,
        transaction: &mut Transaction<'_>,
        batch: &Landing<'_>,
        event: &TupleView<'_>,
        fault: &Fault,
    ) -> Result<(), Fault> {
        let mut text = String::new();
        event.to_json(&mut text);
        let columns = &mut self.waiting;
        columns.owners.push(batch.key.owner.to_string());
        columns.batch_ids.push(batch.key.id.to_string());
        columns.priorities.push(i16::from(batch.priority.get()));
        columns.event_ids.push(event.event_id.to_owned());
        columns.timestamps.push(event.timestamp.0);
        columns.bytes += text.len();
        columns.events.push(text);
        columns.sqlstates.push(fault.sqlstate.clone());
        columns.messages.push(fault.message.clone());
        columns.received.push(batch.received_at.0);
        columns.shards.push(batch.shard.0);
        if columns.events.len() >= DEAD_LETTERS_PER_STATEMENT_MAX || columns.bytes >= DEAD_LETTERS_BYTES_MAX {
            self.write(transaction)?;
        }
        Ok(())
    }

    /// Writes what was taken.
    pub fn write(&mut self, transaction: &mut Transaction<'_>) -> Result<(), Fault> {
        let columns = std::mem::take(&mut self.waiting);
        if columns.events.is_empty() {
            return Ok(());
        }
        let (column, values) = match self.sharding {
            Sharding::None => ("", ""),
            Sharding::Citus => (", ingest_shard", ", $11::int4[]"),
        };
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&columns.owners, Type::TEXT_ARRAY),
            (&columns.batch_ids, Type::TEXT_ARRAY),
            (&columns.priorities, Type::INT2_ARRAY),
            (&columns.event_ids, Type::TEXT_ARRAY),
            (&columns.timestamps, Type::INT8_ARRAY),
            (&columns.events, Type::TEXT_ARRAY),
            (&columns.sqlstates, Type::TEXT_ARRAY),
            (&columns.messages, Type::TEXT_ARRAY),
            (&columns.received, Type::INT8_ARRAY),
            (&self.node, Type::TEXT),
        ];
        if self.sharding == Sharding::Citus {
            parameters.push((&columns.shards, Type::INT4_ARRAY));
        }
        transaction.execute_typed(
            &format!(
                "INSERT INTO dead_letter_events (owner, batch_id, priority, event_id, \"timestamp\", event, sqlstate, message, received_at, node{column}) \
                 SELECT owner, batch_id, priority, event_id, to_timestamp(at / 1e6), event, sqlstate, message, to_timestamp(received / 1e6), $10{column} \
                 FROM unnest($1::text[], $2::text[], $3::int2[], $4::text[], $5::int8[], $6::text[], $7::text[], $8::text[], $9::int8[]{values}) \
                      AS letter (owner, batch_id, priority, event_id, at, event, sqlstate, message, received{column})"
            ),
            &parameters,
        )?;
        Ok(())
    }
}
