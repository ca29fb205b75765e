//! What PostgreSQL's answer means for the batches in hand: one table, by SQLSTATE.
//!
//! | SQLSTATE | meaning here | action | with `SHARDING=citus` |
//! |---|---|---|---|
//! | no SQLSTATE (socket) | connection lost | [`Verdict::Retry`] | the same |
//! | 23505 | to a COPY: rows that are there already, or another unique index refuses one; to an INSERT, which names the key of `events`: another index | [`Verdict::Duplicates`] | the same, from INSERT only |
//! | 42P10 from the search for the key that an INSERT names | the key was exchanged | [`Verdict::KeyChanged`] | 42P10 |
//! | 23514 from the search for a partition | no partition for the row | [`Verdict::MissingPartition`] | 23514 without a constraint's name, from INSERT only |
//! | 22, 23, 44, 54, P0, and classes that users define | this row cannot be stored | [`Verdict::RowFault`] | the same, from INSERT only |
//! | none, but fewer rows than were sent | a trigger left this row out | [`Verdict::RowFault`] | the same |
//! | 3F, 42 | the schema is not what it should be | [`Verdict::Schema`] | the same |
//! | XX000 | the server's state | [`Verdict::Retry`] | anything: [`Verdict::Remote`] |
//! | everything else (08, 25, 28, 40, 53, 55, 57, 58, XX …) | the server's state | [`Verdict::Retry`] | the same: 57P01, 58030, 40P01 and 57014 are a worker's as well |
//!
//! A Citus coordinator reports what a worker said to a COPY as XX000, whatever it was; to an INSERT with the worker's own
//! code.
//!
//! Codes: PostgreSQL documentation, appendix A. The default is to retry: what was accepted is never given up
//! because of a code of PostgreSQL's that nobody foresaw. Classes that begin with 5–9 or I–Z are left to
//! implementations and their users by the SQL standard; those that PostgreSQL does not use itself come from a
//! user's trigger, and so from a row.

use postgres::error::{DbError, Severity, SqlState};

use crate::sharding::Sharding;

/// What the flusher does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Reconnect if need be, wait, send the same batches again; the ledger tells whether they are in.
    Retry,
    /// After a COPY: the same rows again, through the temporary table. After that: a row's fault, unless the index that it
    /// violates is the key's ([`super::event_key::is_violated`]).
    Duplicates,
    /// The statements were prepared for another key of `events`: prepare them again.
    KeyChanged,
    /// Create the partitions, then again.
    MissingPartition,
    /// Find the row by bisection and dead-letter it.
    RowFault,
    /// A worker refused a COPY, and its code was lost: a few times again, then by INSERT, which keeps it.
    Remote,
    /// Wait for the operator: a table, column or permission is missing. Retried, loudly.
    Schema,
}

/// What an operator has to look at: a fault of another kind is news while one of the same kind in other words is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FaultKind {
    /// No connection, or none that lasts: away, starting up, shutting down, too many clients (08, 57P, 53300).
    Connection,
    /// A role, a password, a certificate (28).
    Login,
    /// Disk, memory, I/O (53, 58).
    Room,
    /// Read-only (25).
    ReadOnly,
    /// A database, a table, a column or a right is missing (3D, 3F, 42).
    Schema,
    /// Cancelled, or a lock was not to be had (40, 55, 57014).
    Statement,
    /// Everything else.
    Other,
}

impl FaultKind {
    fn of_code(code: &str) -> Self {
        match (code, code.get(..2).unwrap_or_default()) {
            ("53300", _) | (_, "08") => Self::Connection,
            (code, "57") if code.starts_with("57P") => Self::Connection,
            (_, "28") => Self::Login,
            (_, "53" | "58") => Self::Room,
            (_, "25") => Self::ReadOnly,
            (_, "3D" | "3F" | "42") => Self::Schema,
            (_, "40" | "55" | "57") => Self::Statement,
            _ => Self::Other,
        }
    }

    /// The kind of what `message` quotes; `None` where it quotes no SQLSTATE.
    pub fn quoted_in(message: &str) -> Option<Self> {
        let (_, code) = message.split_once("(SQLSTATE ")?;
        Some(Self::of_code(code.get(..5)?))
    }
}

/// True for the notice with which PostgreSQL answers a COMMIT whose wait for a synchronous standby was cancelled: the transaction
/// has committed, and nobody knows whether the standby has it. It has the code of any warning, and its text depends on
/// `lc_messages`; so it is known by the routine of PostgreSQL's sources that sends it, the same from 9.1 to 18.
pub fn is_unconfirmed_commit(notice: &DbError) -> bool {
    notice.routine() == Some("SyncRepWaitForLSN")
}

/// The unique index that a row violates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViolatedIndex {
    /// The schema of its table, and so its own.
    pub schema: String,
    /// Its name: that of a partition's index.
    pub index: String,
}

/// A PostgreSQL error with its verdict, ready for the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What to do.
    pub verdict: Verdict,
    /// SQLSTATE; `08000` (connection exception) when the connection itself broke.
    pub sqlstate: String,
    /// One line: PostgreSQL's message, or the socket's. Never row contents beyond what PostgreSQL put there.
    pub message: String,
    /// PostgreSQL has named a constraint that is violated.
    pub names_constraint: bool,
    /// With [`Verdict::Duplicates`]: the index that PostgreSQL has named.
    pub violated: Option<Box<ViolatedIndex>>,
    /// The session is over with it. Any other error leaves the session, as far as PostgreSQL is concerned.
    pub ends_session: bool,
}

impl From<postgres::Error> for Fault {
    fn from(error: postgres::Error) -> Self {
        let Some(database) = error.as_db_error() else {
            let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            return Self::lost(format!("{error}{cause}"));
        };
        Self::from(database)
    }
}

impl From<&DbError> for Fault {
    fn from(database: &DbError) -> Self {
        let message = one_line(&format!("{} (SQLSTATE {})", database.message(), database.code().code()));
        Self {
            verdict: verdict(database.code(), database.routine()),
            sqlstate: database.code().code().to_owned(),
            message,
            names_constraint: database.constraint().is_some(),
            violated: violated(database).map(Box::new),
            ends_session: matches!(database.parsed_severity(), Some(Severity::Fatal | Severity::Panic)),
        }
    }
}

impl Fault {
    /// The connection or the pool failed before PostgreSQL could answer.
    pub fn lost(message: impl AsRef<str>) -> Self {
        Self { ends_session: true, ..Self::of(Verdict::Retry, "08000", message) }
    }

    /// A COMMIT whose wait for a synchronous standby was cancelled.
    pub fn unconfirmed() -> Self {
        Self::retry(&SqlState::QUERY_CANCELED, "the wait for a synchronous standby was cancelled")
    }

    /// What an operator has to look at. The pool hands on only a message of what it met.
    pub fn kind(&self) -> FaultKind {
        match FaultKind::of_code(&self.sqlstate) {
            FaultKind::Connection => FaultKind::quoted_in(&self.message).unwrap_or(FaultKind::Connection),
            kind => kind,
        }
    }

    /// The state of the database, found out by ingestd itself.
    pub fn retry(code: &SqlState, message: impl AsRef<str>) -> Self {
        Self::of(Verdict::Retry, code.code(), message)
    }

    fn of(verdict: Verdict, sqlstate: &str, message: impl AsRef<str>) -> Self {
        let message = one_line(message.as_ref());
        let sqlstate = sqlstate.to_owned();
        Self { verdict, sqlstate, message, names_constraint: false, violated: None, ends_session: false }
    }

    /// A row was neither stored nor refused: a `BEFORE` trigger answered NULL. SQLSTATE 02000 is "no data".
    pub fn left_out() -> Self {
        Self::of(Verdict::RowFault, "02000", "a trigger on events discarded the row: it returned NULL (SQLSTATE 02000)")
    }

    /// What to do where tables are laid out so: the table's last column.
    pub fn verdict_on(&self, sharding: Sharding) -> Verdict {
        match sharding {
            Sharding::Citus if self.sqlstate == SqlState::INTERNAL_ERROR.code() => Verdict::Remote,
            Sharding::Citus if self.sqlstate == SqlState::INVALID_COLUMN_REFERENCE.code() => Verdict::KeyChanged,
            // What a worker says comes without the name of the routine.
            Sharding::Citus if self.sqlstate == SqlState::CHECK_VIOLATION.code() && !self.names_constraint => {
                Verdict::MissingPartition
            }
            Sharding::Citus | Sharding::None => self.verdict,
        }
    }

    /// True for what a table, a function or a right is missing for (classes 3F and 42).
    pub fn is_of_schema(&self) -> bool {
        self.verdict == Verdict::Schema
    }

    /// Nobody tries this row any more: an operator has said so, or it broke each session that it was sent over. `refusal` is
    /// the SQLSTATE and the reason of the last time that its batch was tried.
    pub fn given_up(by_operator: bool, refusal: Option<(String, String)>) -> Self {
        let who = if by_operator { "given up by an operator" } else { "given up: the batch could not be committed" };
        match refusal {
            Some((sqlstate, reason)) => {
                Self::of(Verdict::RowFault, &sqlstate, format!("{who}; last refusal: {reason}"))
            }
            None => Self::of(Verdict::RowFault, "02000", format!("{who} (SQLSTATE 02000)")),
        }
    }

    /// An event's batch lost its id to another body, which no constraint could see.
    pub fn id_conflict() -> Self {
        let code = SqlState::UNIQUE_VIOLATION;
        Self::of(Verdict::RowFault, code.code(), "batch_id was already used with a different body")
    }
}

/// The function of PostgreSQL that looks for a row's partition (`src/backend/executor/execPartition.c`). A user's trigger that
/// raises the same code comes from another one.
const PARTITION_SEARCH: &str = "ExecFindPartition";

/// The function of PostgreSQL that looks for the index that `ON CONFLICT` names (`src/backend/optimizer/util/plancat.c`). A
/// user's function that raises the same code comes from another one.
const KEY_SEARCH: &str = "infer_arbiter_indexes";

fn violated(database: &DbError) -> Option<ViolatedIndex> {
    let (Some(schema), Some(index)) = (database.schema(), database.constraint()) else { return None };
    let is_unique = *database.code() == SqlState::UNIQUE_VIOLATION;
    is_unique.then(|| ViolatedIndex { schema: schema.to_owned(), index: index.to_owned() })
}

/// The table above. `routine` is the function that PostgreSQL sent with the error, if any.
pub fn verdict(code: &SqlState, routine: Option<&str>) -> Verdict {
    match (code.code(), &code.code()[..2]) {
        ("23505", _) => Verdict::Duplicates,
        ("23514", _) if routine == Some(PARTITION_SEARCH) => Verdict::MissingPartition,
        ("42P10", _) if routine == Some(KEY_SEARCH) => Verdict::KeyChanged,
        (_, "22" | "23" | "44" | "54" | "P0") => Verdict::RowFault,
        (_, "3F" | "42") => Verdict::Schema,
        (_, "53" | "55" | "57" | "58" | "72" | "XX") => Verdict::Retry,
        (_, class) if class.starts_with(['5', '6', '7', '8', '9']) || class >= "I" => Verdict::RowFault,
        _ => Verdict::Retry,
    }
}

/// `text` with control characters replaced, cut to a length that a log line bears.
pub fn one_line(text: &str) -> String {
    const CHARACTERS_MAX: usize = 500;
    text.chars().take(CHARACTERS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str) -> Verdict {
        verdict(&SqlState::from_code(code), None)
    }

    #[test]
    fn the_state_of_the_server_is_retried() {
        for code in ["08006", "57P01", "57P03", "57014", "53300", "53100", "40P01", "40001", "25006", "28P01", "XX000"]
        {
            assert_eq!(of(code), Verdict::Retry, "{code}");
        }
    }

    #[test]
    fn rows_that_cannot_be_stored_are_found_and_set_aside() {
        for code in ["22P02", "22021", "22001", "23502", "54000", "P0001", "ZX001", "99999"] {
            assert_eq!(of(code), Verdict::RowFault, "{code}");
        }
    }

    #[test]
    fn all_that_a_restart_says_is_of_one_kind_and_what_needs_another_hand_of_another() {
        let kind = |code: &str| Fault::retry(&SqlState::from_code(code), "said so").kind();
        for code in ["08000", "08006", "57P01", "57P02", "57P03", "53300"] {
            assert_eq!(kind(code), FaultKind::Connection, "{code}");
        }
        assert_eq!(Fault::lost("timed out waiting for connection").kind(), FaultKind::Connection);
        let starting = "timed out waiting for connection: the database system is starting up (SQLSTATE 57P03)";
        assert_eq!(Fault::lost(starting).kind(), FaultKind::Connection);
        let password = "timed out waiting for connection: password authentication failed (SQLSTATE 28P01)";
        assert_eq!(Fault::lost(password).kind(), FaultKind::Login);
        for (code, expected) in [
            ("53100", FaultKind::Room),
            ("58030", FaultKind::Room),
            ("25006", FaultKind::ReadOnly),
            ("42P01", FaultKind::Schema),
            ("3D000", FaultKind::Schema),
            ("57014", FaultKind::Statement),
            ("55P03", FaultKind::Statement),
            ("XX000", FaultKind::Other),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
        assert_eq!(FaultKind::quoted_in("no code (SQLSTATE 4"), None);
    }

    #[test]
    fn a_check_constraint_is_not_a_missing_partition() {
        let code = SqlState::CHECK_VIOLATION;
        assert_eq!(verdict(&code, Some(PARTITION_SEARCH)), Verdict::MissingPartition);
        assert_eq!(verdict(&code, Some("ExecConstraints")), Verdict::RowFault);
        assert_eq!(verdict(&code, Some("exec_stmt_raise")), Verdict::RowFault, "a user's trigger");
    }

    #[test]
    fn on_citus_only_the_code_that_hides_others_is_another_matter() {
        let fault = |sqlstate: &str| Fault { verdict: of(sqlstate), ..Fault::of(Verdict::Retry, sqlstate, "") };
        assert_eq!(fault("XX000").verdict_on(Sharding::Citus), Verdict::Remote);
        assert_eq!(fault("XX000").verdict_on(Sharding::None), Verdict::Retry);
        for code in ["57P01", "58030", "40P01", "57014", "08006", "XX001"] {
            assert_eq!(fault(code).verdict_on(Sharding::Citus), Verdict::Retry, "{code}");
        }
        assert_eq!(fault("22P02").verdict_on(Sharding::Citus), Verdict::RowFault);
        assert_eq!(fault("23514").verdict_on(Sharding::Citus), Verdict::MissingPartition);
        assert_eq!(Fault { names_constraint: true, ..fault("23514") }.verdict_on(Sharding::Citus), Verdict::RowFault);
    }

    #[test]
    fn duplicates_and_schema_have_their_own_answer() {
        assert_eq!(of("23505"), Verdict::Duplicates);
        assert_eq!(verdict(&SqlState::INVALID_COLUMN_REFERENCE, Some(KEY_SEARCH)), Verdict::KeyChanged);
        assert_eq!(of("42P10"), Verdict::Schema, "a user's function");
        assert_eq!(of("42P01"), Verdict::Schema);
        assert_eq!(of("42501"), Verdict::Schema);
    }
}
