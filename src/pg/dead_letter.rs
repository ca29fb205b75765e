//! Events that PostgreSQL refused: look at them, take them out, try them again.
//!
//! Replay handles one row a transaction: find it, lock it (`FOR UPDATE SKIP LOCKED`, so that two replays at once
//! share the work and never double it), insert the event, set `replayed_at`, commit. A row that is refused
//! again stays, with the new reason; so does one that a unique index of the user's own refuses. An event whose key is in the
//! table is a duplicate, and done. The payload goes from the stored text to jsonb digit for digit, on
//! PostgreSQL's side.
//!
//! Absent on purpose: writing dead letters (the flusher does, in the transaction of the COPY), editing an
//! event, and correcting the counts in the ledger, which tell what happened when the batch was committed.

use std::io::{self, Write};

use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use postgres::{Client, GenericClient, IsolationLevel, Transaction};

use super::citus::layout::layout_of;
use super::connect::{TRANSACTION_LIMITS, one_line};
use super::event_key::{self, EventKey, SHARD_COLUMN, quoted};
use super::partitions::{self, Month, PartitionError};
use super::sqlstate::{Fault, Verdict};
use crate::limits::{DUPLICATE_RACES_MAX, KEY_CHANGES_MAX};
use crate::sharding::{IngestShard, Sharding};
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
    #[error("no dead letter {id} is waiting for a replay; see 'ingestd dead-letter list'")]
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
    let sharding = layout_of(client)?;
    while let Some(letter) = next_waiting(client, sharding, after, id)? {
        let number = letter.number;
        match replay_letter(client, letter)? {
            Outcome::Inserted => report.inserted += 1,
            Outcome::Duplicate => report.duplicates += 1,
            Outcome::Refused(reason) => report.refused.push((number, reason)),
            Outcome::TakenByAnother | Outcome::NoPartition(_) | Outcome::KeyChanged | Outcome::Race => {}
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
    /// Nothing was changed: the key of `events` is another one by now.
    KeyChanged,
    /// Nothing was changed: another transaction has just stored the event.
    Race,
    TakenByAnother,
}

/// A dead letter that waits.
#[derive(Clone, Copy)]
struct Letter {
    number: i64,
    sharding: Sharding,
    shard: IngestShard,
}

impl Letter {
    /// What picks its row, in a WHERE clause.
    fn its_row(self) -> String {
        format!("id = {}{}", self.number, self.sharding.and_shard(self.shard))
    }

    /// The columns of its event in `events`, quoted, and their values in its row.
    fn columns_and_values(self) -> (Vec<String>, Vec<&'static str>) {
        let shard = (SHARD_COLUMN, SHARD_COLUMN);
        let all = VALUES.into_iter().chain((self.sharding == Sharding::Citus).then_some(shard));
        all.map(|(column, value)| (quoted(column), value)).unzip()
    }
}

/// The first waiting row after number `after` (only `id`, when given); locks nothing.
fn next_waiting(
    client: &mut impl GenericClient,
    sharding: Sharding,
    after: i64,
    id: Option<i64>,
) -> Result<Option<Letter>, postgres::Error> {
    let shard = match sharding {
        Sharding::None => "0",
        Sharding::Citus => "ingest_shard",
    };
    let row = client.query_typed_opt(
        &format!(
            "SELECT id, {shard} FROM dead_letter_events
             WHERE replayed_at IS NULL AND id > $1 AND ($2::bigint IS NULL OR id = $2) ORDER BY id LIMIT 1"
        ),
        &[(&after, Type::INT8), (&id, Type::INT8)],
    )?;
    Ok(row.map(|row| Letter { number: row.get(0), sharding, shard: IngestShard(row.get(1)) }))
}

/// Replays `letter`, as often as something that passes is in the way.
fn replay_letter(client: &mut Client, letter: Letter) -> Result<Outcome, DeadLetterError> {
    let (mut has_partition, mut key_changes, mut races) = (false, 0, 0);
    loop {
        let outcome = replay_one(client, letter, has_partition)?;
        match outcome {
            Outcome::NoPartition(month) => {
                partitions::ensure(client, &[month]).map_err(PartitionError::from)?;
                has_partition = true;
            }
            Outcome::KeyChanged if key_changes < KEY_CHANGES_MAX => key_changes += 1,
            Outcome::Race if races < DUPLICATE_RACES_MAX => races += 1,
            outcome => return Ok(outcome),
        }
    }
}

/// Replays `letter`, in a transaction of its own. Once its partition is there, what looks as if it were missing is a CHECK:
/// a Citus worker does not name the constraint that a row breaks.
fn replay_one(client: &mut Client, letter: Letter, has_partition: bool) -> Result<Outcome, DeadLetterError> {
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    transaction.batch_execute(TRANSACTION_LIMITS)?;
    let its_row = letter.its_row();
    let lock = format!("SELECT FROM dead_letter_events WHERE {its_row} AND replayed_at IS NULL FOR UPDATE SKIP LOCKED");
    if transaction.query_opt(&lock, &[])?.is_none() {
        return Ok(Outcome::TakenByAnother);
    }
    let key = EventKey::of(&mut transaction)?;
    let outcome = match insert(&mut transaction, letter, &key) {
        Ok(false) if !is_there(&mut transaction, letter, &key)? => {
            let fault = Fault::left_out();
            refuse(&mut transaction, letter, &fault.sqlstate, &fault.message)?;
            Outcome::Refused(fault.message)
        }
        Ok(inserted) => {
            let done = format!("UPDATE dead_letter_events SET replayed_at = now() WHERE {its_row}");
            transaction.execute(&done, &[])?;
            if inserted { Outcome::Inserted } else { Outcome::Duplicate }
        }
        Err(error) if verdict_on(&error, letter.sharding) == Verdict::MissingPartition && !has_partition => {
            let month = month_of(&mut transaction, letter)?;
            transaction.rollback()?;
            return Ok(Outcome::NoPartition(month));
        }
        Err(error) if verdict_on(&error, letter.sharding) == Verdict::KeyChanged => return Ok(Outcome::KeyChanged),
        Err(error) if is_race(&mut transaction, letter, &error)? => return Ok(Outcome::Race),
        Err(error) if is_refusal(verdict_on(&error, letter.sharding)) => {
            let state = error.code().map_or("", SqlState::code);
            let message = error.as_db_error().map_or_else(String::new, |db| db.message().to_owned());
            refuse(&mut transaction, letter, state, &message)?;
            Outcome::Refused(one_line(&error))
        }
        Err(error) => return Err(error.into()),
    };
    transaction.commit()?;
    Ok(outcome)
}

/// When the event happened. The column is empty where the time itself could not be read.
const EVENT_TIME: &str = r#"coalesce("timestamp", (event::json ->> 'timestamp')::timestamptz, received_at)"#;

/// The columns of `events` that are part of an event, and what their values are in a dead letter.
const VALUES: [(&str, &str); 8] = [
    ("event_id", "coalesce(event_id, event::json ->> 'event_id')"),
    ("service_name", "event::json ->> 'service_name'"),
    ("event_type", "event::json ->> 'event_type'"),
    ("payload", "(event::json -> 'payload')::text::jsonb"),
    ("timestamp", EVENT_TIME),
    ("metadata", "nullif((event::json -> 'metadata')::text, 'null')::jsonb"),
    ("batch_id", "batch_id"),
    ("priority", "priority"),
];

/// Inserts the event of `letter`, under a savepoint; false when it was there already.
fn insert(transaction: &mut Transaction<'_>, letter: Letter, key: &EventKey) -> Result<bool, postgres::Error> {
    let mut savepoint = transaction.transaction()?;
    let (columns, values) = letter.columns_and_values();
    let inserted = savepoint.execute(
        &format!(
            "INSERT INTO events ({}) SELECT {} FROM dead_letter_events WHERE {} {}",
            columns.join(", "),
            values.join(", "),
            letter.its_row(),
            key.on_conflict()
        ),
        &[],
    )?;
    savepoint.commit()?;
    Ok(inserted > 0)
}

/// True when the event of `letter` is in the table.
fn is_there(transaction: &mut Transaction<'_>, letter: Letter, key: &EventKey) -> Result<bool, postgres::Error> {
    let (its_row, and_shard) = (letter.its_row(), letter.sharding.and_shard(letter.shard));
    let (columns, values) = letter.columns_and_values();
    let sent: Vec<String> = values.iter().zip(&columns).map(|(value, column)| format!("{value} AS {column}")).collect();
    let query = format!(
        "SELECT EXISTS (SELECT FROM events e, (SELECT {} FROM dead_letter_events WHERE {its_row}) d WHERE {}{})",
        sent.join(", "),
        key.equality("e", "d"),
        and_shard.replace("ingest_shard", "e.ingest_shard")
    );
    Ok(transaction.query_one(&query, &[])?.get(0))
}

/// True when `error` comes from an index that is being built beside the key: see [`event_key::is_violated`].
fn is_race(
    transaction: &mut Transaction<'_>,
    letter: Letter,
    error: &postgres::Error,
) -> Result<bool, postgres::Error> {
    match error.as_db_error().map(Fault::from) {
        Some(fault) => event_key::is_violated(transaction, letter.sharding, &fault),
        None => Ok(false),
    }
}

/// What a row's own fault looks like, once its partition is there.
fn is_refusal(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::RowFault | Verdict::MissingPartition | Verdict::Duplicates)
}

/// Notes why `letter` was refused this time.
fn refuse(
    transaction: &mut Transaction<'_>,
    letter: Letter,
    state: &str,
    message: &str,
) -> Result<(), postgres::Error> {
    let again = format!("UPDATE dead_letter_events SET sqlstate = $1, message = $2 WHERE {}", letter.its_row());
    transaction.execute(&again, &[&state, &message])?;
    Ok(())
}

/// The month of the event of `letter`.
fn month_of(transaction: &mut Transaction<'_>, letter: Letter) -> Result<Month, postgres::Error> {
    let query = format!(
        "SELECT (extract(epoch FROM {EVENT_TIME}) * 1000000)::bigint FROM dead_letter_events WHERE {}",
        letter.its_row()
    );
    Ok(Month::of(UnixMicros(transaction.query_one(&query, &[])?.get(0))))
}

/// What the flusher's table says of `error`: a replay refuses the rows that a COPY would refuse.
fn verdict_on(error: &postgres::Error, sharding: Sharding) -> Verdict {
    error.as_db_error().map_or(Verdict::Retry, |database| Fault::from(database).verdict_on(sharding))
}
