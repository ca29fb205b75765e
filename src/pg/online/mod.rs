//! Changes of the indexes of `events` while nodes run: its key, and the index for queries by time alone.
//!
//! ```text
//!  each partition: CREATE INDEX CONCURRENTLY ──▶ all have one ──▶ a short transaction, alone with the tables: exchange
//!        ▲                                                          │ partitions came or grew meanwhile
//!        └──────────────────────────────────────────────────────────┘
//! ```
//!
//! `ingestd migrate` does it ([`run`]). A server that starts does the second step alone, where partitions are so small that
//! their indexes are built within it ([`LOCKED_BUILD_BYTES_MAX`]): a fresh database, above all.
//!
//! Invariants:
//! * Whatever ends it, at any point, leaves the tables as they were or as they are to be, and COPYs go on with either. What
//!   was built is found by its name and used by the next run; what was left unfinished is dropped and built again.
//! * One at a time, by a lock of the session ([`ADVISORY_ONLINE`]): a transaction that waits for its turn would hold a
//!   snapshot, which is what CREATE INDEX CONCURRENTLY waits for. So a run needs a session of its own; behind a transaction
//!   pooler only small tables are changed.
//! * COPYs wait only while the tables are locked, and no attempt to lock them lasts longer than
//!   [`EXCHANGE_LOCK_WAIT_MAX`]. Vacuums and partitions under way are waited for before that, under a lock that COPYs do not
//!   mind.

mod build;
pub mod event_key;
pub mod time_index;
mod tree;

use std::fmt;
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::types::Type;
use postgres::{Client, GenericClient, Transaction};

use self::build::IndexSpec;
use self::tree::{Table, Tree};
use super::backing::Backing;
use super::connect::one_line;
use super::migrate::ADVISORY_CLASS;
use super::partitions;
use crate::limits::{
    EXCHANGE_ATTEMPTS_AT_START_MAX, EXCHANGE_ATTEMPTS_MAX, EXCHANGE_CALM_WAIT_MAX, EXCHANGE_LOCK_WAIT_MAX,
    EXCHANGE_LOCK_WAIT_MIN, EXCHANGE_PAUSE, LOCKED_BUILD_BYTES_MAX, ONLINE_ROUNDS_MAX, ONLINE_TURN_POLL,
    ONLINE_TURN_WAIT_MAX, SMALL_PARTITION_BYTES_MAX,
};

/// Second key of an advisory lock, of the session: changes of indexes.
pub const ADVISORY_ONLINE: i32 = 3;

/// Why indexes could not be changed. What was built stays, the rest is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OnlineError {
    /// The session's backend is a pooler's.
    #[error(
        "indexes of large partitions are built while nodes run, which needs a session of its own: connect 'ingestd \
         migrate' to PostgreSQL itself and not to a transaction pooler (MIGRATE_DATABASE_URL)"
    )]
    Pooled,
    /// The role may not.
    #[error("this role does not own events: run 'ingestd migrate' with a role that does, or set MIGRATE_DATABASE_URL")]
    NotOwner,
    /// Another one is at it.
    #[error(
        "another session builds indexes of events (PID {pid}); one that 'ingestd migrate' began and did not end goes on \
         until the index in hand is built: wait for it, or end it with pg_terminate_backend({pid}), then retry"
    )]
    Turn {
        /// Its backend; 0 when it has just ended.
        pid: i32,
    },
    /// Objects of the user need the key as it is.
    #[error(
        "the primary key of events cannot be exchanged because other objects depend on it: {}; nothing was changed: drop \
         them, or let them use another unique index, then run 'ingestd migrate' again", .0.join("; ")
    )]
    InTheWay(Vec<String>),
    /// A relation has the name of an index.
    #[error("relation {name} exists but is not an index of {table}: rename it, then run 'ingestd migrate' again")]
    NameTaken {
        /// The relation.
        name: String,
        /// The partition.
        table: String,
    },
    /// Somebody uses the tables all the time.
    #[error(
        "could not lock events {attempts} times ({reason}); indexes that were built are kept: see pg_stat_activity, end \
         long transactions, then run 'ingestd migrate' again"
    )]
    Locked {
        /// How often.
        attempts: u32,
        /// What PostgreSQL said at last.
        reason: String,
    },
    /// Partitions grow faster than their indexes are built.
    #[error("partitions of events were added or grew {ONLINE_ROUNDS_MAX} times meanwhile: run 'ingestd migrate' again")]
    Growing,
    /// Citus cannot build indexes so.
    #[error(
        "on a Citus cluster the indexes of events cannot be changed while nodes run: {0}; nodes work with it as it is"
    )]
    Sharded(&'static str),
    /// The role that owns the tables cannot connect.
    #[error("{0}")]
    Unreachable(String),
    /// A step failed.
    #[error("{what} failed: {error}", error = one_line(.error))]
    Failed {
        /// The step.
        what: String,
        /// What PostgreSQL said.
        error: postgres::Error,
    },
    /// The database could not be asked.
    #[error("{}", one_line(.0))]
    Postgres(#[from] postgres::Error),
}

/// What an online change did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changed {
    /// Partitions whose index was built while nodes ran, with the time that it took.
    pub built: Vec<(String, Duration)>,
    /// How long nobody else could use the tables.
    pub locked: Duration,
    /// How often that was tried in vain.
    pub attempts_in_vain: u32,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (table, took) in &self.built {
            writeln!(f, "built the index of {table} in {:.1} s", took.as_secs_f64())?;
        }
        let (times, tail) = (self.attempts_in_vain + 1, if self.attempts_in_vain == 0 { "" } else { "s" });
        write!(f, "events was locked for {} ms, after {times} attempt{tail}", self.locked.as_millis())
    }
}

/// How an attempt to exchange indexes ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Done: how long the tables were locked.
    Done(Duration),
    /// Another session has done it meanwhile.
    ByAnother,
    /// These partitions have no index yet, and are too large to get one while they are locked.
    Unready(Vec<Table>),
    /// Somebody uses the tables.
    Busy(String),
}

/// How long an attempt waits for locks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For vacuums and changes of the tables, while COPYs go on.
    pub(super) calm: Duration,
    /// For COPYs under way, while others wait.
    pub(super) lock: Duration,
}

impl Patience {
    /// That of attempt number `attempt`, from 0 on.
    pub(super) fn of(attempt: u32) -> Self {
        let doubled = EXCHANGE_LOCK_WAIT_MIN.saturating_mul(1 << attempt.min(10));
        Self { calm: EXCHANGE_CALM_WAIT_MAX, lock: doubled.min(EXCHANGE_LOCK_WAIT_MAX) }
    }

    /// The same for a server that starts: it has better things to do.
    pub(super) fn at_start(attempt: u32) -> Self {
        let Self { lock, .. } = Self::of(attempt);
        Self { calm: EXCHANGE_LOCK_WAIT_MAX, lock }
    }
}

/// Attempts `exchange` a few times, as a server does at its start; what is not done then is for `ingestd migrate`.
pub(super) fn attempt_at_start(
    client: &mut Client,
    exchange: &mut dyn FnMut(&mut Client, Patience) -> Result<Outcome, OnlineError>,
) -> Result<Outcome, OnlineError> {
    let mut attempt = 0;
    loop {
        let outcome = exchange(client, Patience::at_start(attempt))?;
        attempt += 1;
        if !matches!(outcome, Outcome::Busy(_)) || attempt == EXCHANGE_ATTEMPTS_AT_START_MAX {
            return Ok(outcome);
        }
        std::thread::sleep(EXCHANGE_PAUSE / 10);
    }
}

/// Builds what `spec` says on every partition, and attempts `exchange` until that is done; `None` where another session did it.
pub(super) fn run(
    client: &mut Client,
    backing: Backing,
    spec: &IndexSpec,
    exchange: &mut dyn FnMut(&mut Client, Patience) -> Result<Outcome, OnlineError>,
) -> Result<Option<Changed>, OnlineError> {
    if backing == Backing::Lent {
        return Err(OnlineError::Pooled);
    }
    take_turn(client)?;
    let changed = run_alone(client, spec, exchange);
    // The session may be broken, and its end gives the lock back as well.
    let _ = client.execute_typed("SELECT pg_advisory_unlock($1, $2)", &turn());
    changed
}

fn run_alone(
    client: &mut Client,
    spec: &IndexSpec,
    exchange: &mut dyn FnMut(&mut Client, Patience) -> Result<Outcome, OnlineError>,
) -> Result<Option<Changed>, OnlineError> {
    let (mut changed, mut rounds) = (Changed::default(), 0);
    loop {
        match exchange(client, Patience::of(changed.attempts_in_vain))? {
            Outcome::Done(locked) => {
                changed.locked = locked;
                return Ok(Some(changed));
            }
            Outcome::ByAnother => return Ok(None),
            Outcome::Unready(tables) => {
                let few = |table: &&Table| rounds > 0 || table.bytes > SMALL_PARTITION_BYTES_MAX;
                for table in tables.iter().filter(few) {
                    let took = build::concurrently(client, spec, table)?;
                    tracing::info!(partition = table.name, seconds = took.as_secs(), "index built; COPYs went on");
                    changed.built.push((table.name.clone(), took));
                }
                rounds += 1;
                if rounds == ONLINE_ROUNDS_MAX {
                    return Err(OnlineError::Growing);
                }
            }
            Outcome::Busy(reason) => {
                let pause = EXCHANGE_PAUSE + 2 * Patience::of(changed.attempts_in_vain).lock;
                changed.attempts_in_vain += 1;
                if changed.attempts_in_vain == EXCHANGE_ATTEMPTS_MAX {
                    return Err(OnlineError::Locked { attempts: EXCHANGE_ATTEMPTS_MAX, reason });
                }
                std::thread::sleep(pause);
            }
        }
    }
}

fn turn() -> [(&'static (dyn postgres::types::ToSql + Sync), Type); 2] {
    [(&ADVISORY_CLASS, Type::INT4), (&ADVISORY_ONLINE, Type::INT4)]
}

/// Waits for its turn, without a snapshot in hand, and frees the session from limits of time that the role or the database has.
fn take_turn(client: &mut Client) -> Result<(), OnlineError> {
    client.query_typed(
        "SELECT set_config(name, CASE name WHEN 'default_transaction_read_only' THEN 'off' ELSE '0' END, false) FROM pg_settings \
         WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout', \
                        'idle_session_timeout', 'default_transaction_read_only')",
        &[],
    )?;
    let deadline = Instant::now() + ONLINE_TURN_WAIT_MAX;
    let mut is_told = false;
    loop {
        if client.query_typed_one("SELECT pg_try_advisory_lock($1, $2)", &turn())?.get(0) {
            return Ok(());
        }
        let pid = holder(client)?;
        if Instant::now() > deadline {
            return Err(OnlineError::Turn { pid });
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(pid, "waiting for another session that builds indexes of events");
        }
        std::thread::sleep(ONLINE_TURN_POLL);
    }
}

/// Who has the turn; 0 when nobody has.
fn holder(client: &mut impl GenericClient) -> Result<i32, postgres::Error> {
    let query = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 AND classid = $1::int4::int8::oid AND objid = $2::int4::int8::oid";
    Ok(client.query_typed_opt(query, &turn())?.map_or(0, |row| row.get(0)))
}

/// `events` with its partitions, and nobody else uses them until the transaction ends.
pub(super) struct Held {
    pub(super) tree: Tree,
    /// Partitions without an index of the wanted kind, small enough to get one now.
    pub(super) unready: Vec<Table>,
    /// When others began to wait.
    pub(super) since: Instant,
}

/// What [`hold`] has.
pub(super) enum Hold {
    /// The tables.
    Held(Held),
    /// Nothing, for this reason.
    Not(Outcome),
}

/// First thing in an exchange: no limit of the role or the database ends it half-way, and it waits for no lock for long.
pub(super) fn begin_calmly(transaction: &mut Transaction<'_>, patience: Patience) -> Result<(), postgres::Error> {
    transaction.batch_execute(&format!(
        "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = 0; \
         SELECT set_config('transaction_timeout', '0', true) WHERE current_setting('transaction_timeout', true) IS NOT NULL",
        patience.calm.as_millis()
    ))
}

/// Locks `events` and all of its partitions, for which `spec` says what they need. The transaction has begun with
/// [`begin_calmly`].
///
/// # Errors
/// Only those that are not [`Outcome::Busy`].
pub(super) fn hold(
    transaction: &mut Transaction<'_>,
    spec: Option<&IndexSpec>,
    patience: Patience,
) -> Result<Hold, OnlineError> {
    match try_hold(transaction, spec, patience) {
        Err(OnlineError::Postgres(error)) if is_busy(&error) => Ok(Hold::Not(Outcome::Busy(one_line(&error)))),
        outcome => outcome,
    }
}

fn try_hold(
    transaction: &mut Transaction<'_>,
    spec: Option<&IndexSpec>,
    patience: Patience,
) -> Result<Hold, OnlineError> {
    // As long as this is held, nobody attaches or detaches a partition.
    transaction.batch_execute("LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE")?;
    let tree = Tree::read(transaction)?;
    transaction.batch_execute(&tree.lock("SHARE UPDATE EXCLUSIVE"))?;
    let unready = match spec {
        Some(spec) => build::unready(transaction, spec, &tree)?,
        None => Vec::new(),
    };
    if unready.iter().map(|table| table.bytes).sum::<i64>() > LOCKED_BUILD_BYTES_MAX {
        return Ok(Hold::Not(Outcome::Unready(unready)));
    }
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {}", patience.lock.as_millis()))?;
    let since = Instant::now();
    transaction.batch_execute(&tree.lock("ACCESS EXCLUSIVE"))?;
    Ok(Hold::Held(Held { tree, unready, since }))
}

/// True for what passes when others have ended: a lock that was not to be had, a deadlock.
pub(super) fn is_busy(error: &postgres::Error) -> bool {
    matches!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED))
}

/// True when the role of `client` may change the tables.
pub(super) fn owns_events(client: &mut impl GenericClient) -> Result<bool, postgres::Error> {
    Ok(partitions::owns_events(client)?.unwrap_or(false))
}

/// True when the indexes of all partitions together are built in a moment. False also where somebody has locked one.
pub(super) fn is_quick(client: &mut Client) -> Result<bool, postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {}", EXCHANGE_LOCK_WAIT_MIN.as_millis()))?;
    match Tree::read(&mut transaction) {
        Ok(tree) => Ok(tree.bytes() <= LOCKED_BUILD_BYTES_MAX),
        Err(error) if is_busy(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_waits_longer_than_the_last_one_and_none_without_end() {
        let waits: Vec<u128> = [0, 1, 2, 3, 4, 59].map(|attempt| Patience::of(attempt).lock.as_millis()).to_vec();
        assert_eq!(waits, [500, 1000, 2000, 4000, 4000, 4000]);
        assert!(Patience::at_start(0).calm < Patience::of(0).calm);
    }

    #[test]
    fn what_was_done_is_told_by_partition() {
        let mut changed = Changed { locked: Duration::from_millis(12), ..Changed::default() };
        assert_eq!(changed.to_string(), "events was locked for 12 ms, after 1 attempt");
        changed.built.push(("events_2026_11".to_owned(), Duration::from_millis(3210)));
        changed.attempts_in_vain = 1;
        assert_eq!(
            changed.to_string(),
            "built the index of events_2026_11 in 3.2 s\nevents was locked for 12 ms, after 2 attempts"
        );
    }
}
