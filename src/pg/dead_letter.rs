//! Events that PostgreSQL refused: look at them, take them out, try them again.
//!
//! Replay handles one row a transaction: lock it (`FOR UPDATE SKIP LOCKED`, so that two replays at once
//! share the work and never double it), insert the event, set `replayed_at`, commit. A row that is refused
//! again stays, with the new reason. The payload goes from the stored text to jsonb digit for digit, on
//! PostgreSQL's side.
//!
//! Absent on purpose: writing dead letters (the flusher does, in the transaction of the COPY), editing an
//! event, and correcting the counts in the ledger, which tell what happened when the batch was committed.

use std::io::{self, Write};

use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use postgres::{Client, GenericClient, IsolationLevel, Transaction};

use super::connect::{TRANSACTION_LIMITS, one_line};
use super::partitions::{self, Month, PartitionError};
use super::sqlstate::{Fault, Verdict, verdict};
use crate::types::UnixMicros;

/// A dead letter without its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number.
    pub id: i64,
    /// Who sent the batch.
    pub owner: String,
    /// The batch.
    pub batch_id: String,
    /// The event's id, where it could be read.
    pub event_id: Option<String>,
    /// PostgreSQL's code for the reason.
    pub sqlstate: String,
    /// PostgreSQL's reason.
    pub message: String,
    /// When, RFC 3339 in UTC.
    pub dead_at: String,
    /// When it was replayed, RFC 3339 in UTC.
    pub replayed_at: Option<String>,
}

/// What [`replay`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Rows that are in `events` now and were not before.
    pub inserted: u64,
    /// Rows whose event was there already.
    pub duplicates: u64,
    /// Rows that PostgreSQL refused again: number and new reason.
    pub refused: Vec<(i64, String)>,
}

/// Why dead letters could not be read or replayed. What was replayed before stays replayed.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// No row has this number, or it was replayed already.
    #[error("no dead letter {id} waits for a replay; see 'ingestd dead-letter list'")]
    NotWaiting {
        /// The number.
        id: i64,
    },
    /// A partition is missing and could not be made.
    #[error("a partition is missing: {0}")]
    Partition(#[from] PartitionError),
    /// Writing the output failed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
    /// Everything else; run it again.
    #[error("{}", one_line(.0))]
    Postgres(#[from] postgres::Error),
}

/// Timestamps for people and machines, whatever the session's time zone is.
macro_rules! utc {
    ($column:literal) => {
        concat!("to_char(", $column, r#" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#)
    };
}

/// The first `limit` dead letters by number; with `replayed`, also those that were replayed.
pub fn list(client: &mut impl GenericClient, replayed: bool, limit: i64) -> Result<Vec<DeadLetter>, DeadLetterError> {
    let rows = client.query_typed(
        concat!(
            "SELECT id, owner, batch_id, event_id, sqlstate, message, ",
            utc!("dead_at"),
            ", ",
            utc!("replayed_at"),
            " FROM dead_letter_events WHERE replayed_at IS NULL OR $1 ORDER BY id LIMIT $2"
        ),
        &[(&replayed, Type::BOOL), (&limit, Type::INT8)],
    )?;
    let letter = |row: &postgres::Row| DeadLetter {
        id: row.get(0),
        owner: row.get(1),
        batch_id: row.get(2),
        event_id: row.get(3),
        sqlstate: row.get(4),
        message: row.get(5),
        dead_at: row.get(6),
        replayed_at: row.get(7),
    };
    Ok(rows.iter().map(letter).collect())
}

/// How many dead letters there are; with `replayed`, also those that were replayed.
pub fn count(client: &mut impl GenericClient, replayed: bool) -> Result<u64, DeadLetterError> {
    let query = "SELECT count(*) FROM dead_letter_events WHERE replayed_at IS NULL OR $1";
    Ok(client.query_typed_one(query, &[(&replayed, Type::BOOL)])?.get::<_, i64>(0).unsigned_abs())
}

/// Writes dead letters as NDJSON, an object a line, the event verbatim as its member `event`. Rows are
/// streamed: memory does not grow with their number. Tells `on_written` how many there are after each.
pub fn export(
    client: &mut impl GenericClient,
    replayed: bool,
    out: &mut impl Write,
    on_written: &mut dyn FnMut(u64),
) -> Result<(), DeadLetterError> {
    let query = concat!(
        "SELECT row_to_json(about)::text, d.event FROM dead_letter_events d CROSS JOIN LATERAL (",
        "SELECT d.id, d.owner, d.batch_id, d.priority, d.event_id, ",
        utc!(r#"d."timestamp""#),
        r#" AS "timestamp", d.sqlstate, d.message, "#,
        utc!("d.received_at"),
        " AS received_at, ",
        utc!("d.dead_at"),
        " AS dead_at, d.node, ",
        utc!("d.replayed_at"),
        " AS replayed_at) about WHERE d.replayed_at IS NULL OR $1 ORDER BY d.id"
    );
    let mut rows = client.query_typed_raw(query, [(replayed, Type::BOOL)])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let (about, event): (&str, &str) = (row.get(0), row.get(1));
        // The object is closed by hand around the event's text: no JSON function may touch its digits.
        let about = about.strip_suffix('}').unwrap_or(about);
        // A line break in JSON text can only be white space between tokens.
        let event = event.replace(['\n', '\r'], " ");
        writeln!(out, "{about},\"event\":{event}}}")?;
        count += 1;
        on_written(count);
    }
    Ok(())
}

/// Tries every dead letter that waits once more, or only number `id`. Tells `on_tried` how many there are after each.
pub fn replay(
    client: &mut Client,
    id: Option<i64>,
    on_tried: &mut dyn FnMut(u64),
) -> Result<ReplayReport, DeadLetterError> {
    let mut report = ReplayReport::default();
    let (mut after, mut tried) = (0, 0);
    while let Some((number, mut outcome)) = replay_next(client, after, id)? {
        if let Outcome::NoPartition(month) = outcome {
            partitions::ensure(client, &[month])?;
            match replay_next(client, number - 1, Some(number))? {
                Some((_, second)) => outcome = second,
                None => outcome = Outcome::TakenByAnother,
            }
        }
        match outcome {
            Outcome::Inserted => report.inserted += 1,
            Outcome::Duplicate => report.duplicates += 1,
            Outcome::Refused(reason) => report.refused.push((number, reason)),
            Outcome::TakenByAnother => {}
            Outcome::NoPartition(month) => {
                report.refused.push((number, format!("the partition of {month} was dropped again meanwhile")));
            }
        }
        after = number;
        tried += 1;
        on_tried(tried);
    }
    match id {
        Some(id) if after != id => Err(DeadLetterError::NotWaiting { id }),
        _ => Ok(report),
    }
}

enum Outcome {
    Inserted,
    Duplicate,
    Refused(String),
    /// Nothing was changed: make the partition and try again.
    NoPartition(Month),
    TakenByAnother,
}

/// Replays the first waiting row after number `after` (only `id`, when given), in a transaction of its own.
/// `None`: no such row, or another replay has it.
fn replay_next(client: &mut Client, after: i64, id: Option<i64>) -> Result<Option<(i64, Outcome)>, DeadLetterError> {
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    transaction.batch_execute(TRANSACTION_LIMITS)?;
    let row = transaction.query_opt(
        "SELECT id FROM dead_letter_events
         WHERE replayed_at IS NULL AND id > $1 AND ($2::bigint IS NULL OR id = $2)
         ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED",
        &[&after, &id],
    )?;
    let Some(number) = row.map(|row| row.get::<_, i64>(0)) else { return Ok(None) };
    let outcome = match insert(&mut transaction, number) {
        Ok(false) if !is_there(&mut transaction, number)? => {
            let fault = Fault::left_out();
            refuse(&mut transaction, number, &fault.sqlstate, &fault.message)?;
            Outcome::Refused(fault.message)
        }
        Ok(inserted) => {
            let done = "UPDATE dead_letter_events SET replayed_at = clock_timestamp() WHERE id = $1";
            transaction.execute(done, &[&number])?;
            if inserted { Outcome::Inserted } else { Outcome::Duplicate }
        }
        Err(error) if verdict_on(&error) == Verdict::MissingPartition => {
            let month = month_of(&mut transaction, number)?;
            transaction.rollback()?;
            return Ok(Some((number, Outcome::NoPartition(month))));
        }
        Err(error) if verdict_on(&error) == Verdict::RowFault => {
            let state = error.code().map_or("", SqlState::code);
            let message = error.as_db_error().map_or_else(String::new, |db| db.message().to_owned());
            refuse(&mut transaction, number, state, &message)?;
            Outcome::Refused(one_line(&error))
        }
        Err(error) => return Err(error.into()),
    };
    transaction.commit()?;
    Ok(Some((number, outcome)))
}

/// When the event happened. The column is empty where the time itself could not be read.
macro_rules! event_time {
    () => {
        r#"coalesce("timestamp", (event::json ->> 'timestamp')::timestamptz, received_at)"#
    };
}

/// Inserts the event of row `number`, under a savepoint; false when it was there already.
fn insert(transaction: &mut Transaction<'_>, number: i64) -> Result<bool, postgres::Error> {
    let mut savepoint = transaction.transaction()?;
    let inserted = savepoint.execute(
        concat!(
            r#"INSERT INTO events (event_id, service_name, event_type, payload, "timestamp", metadata, batch_id, priority)
               SELECT coalesce(event_id, event::json ->> 'event_id'), event::json ->> 'service_name',
                      event::json ->> 'event_type', (event::json -> 'payload')::text::jsonb, "#,
            event_time!(),
            r#", nullif((event::json -> 'metadata')::text, 'null')::jsonb, batch_id, priority
               FROM dead_letter_events WHERE id = $1
               ON CONFLICT DO NOTHING"#
        ),
        &[&number],
    )?;
    savepoint.commit()?;
    Ok(inserted > 0)
}

/// True when the event of row `number` is in the table.
fn is_there(transaction: &mut Transaction<'_>, number: i64) -> Result<bool, postgres::Error> {
    let query = concat!(
        "SELECT EXISTS (SELECT FROM events e, (SELECT coalesce(event_id, event::json ->> 'event_id') AS event_id, ",
        event_time!(),
        r#" AS "at" FROM dead_letter_events WHERE id = $1) d WHERE e."timestamp" = d."at" AND e.event_id = d.event_id)"#
    );
    Ok(transaction.query_one(query, &[&number])?.get(0))
}

/// Notes why row `number` was refused this time.
fn refuse(transaction: &mut Transaction<'_>, number: i64, state: &str, message: &str) -> Result<(), postgres::Error> {
    let again = "UPDATE dead_letter_events SET sqlstate = $2, message = $3 WHERE id = $1";
    transaction.execute(again, &[&number, &state, &message])?;
    Ok(())
}

/// The month of row `number`'s event.
fn month_of(transaction: &mut Transaction<'_>, number: i64) -> Result<Month, postgres::Error> {
    let query = concat!(
        "SELECT (extract(epoch FROM ",
        event_time!(),
        ") * 1000000)::bigint FROM dead_letter_events WHERE id = $1"
    );
    Ok(Month::of(UnixMicros(transaction.query_one(query, &[&number])?.get(0))))
}

/// What the flusher's table says of `error`: a replay refuses the rows that a COPY would refuse.
fn verdict_on(error: &postgres::Error) -> Verdict {
    error.as_db_error().map_or(Verdict::Retry, |db| verdict(db.code(), db.constraint()))
}
