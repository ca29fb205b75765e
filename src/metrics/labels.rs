//! The closed label sets: which values a label may have, in the order in which they are exported.

use crate::types::{PRIORITY_COUNT, Priority};

/// A label whose values are known at compile time.
pub trait Label: Copy {
    /// The label's name in the exposition.
    const KEY: &'static str;
    /// All its values, by [`Label::index`].
    const VALUES: &'static [&'static str];

    /// This value's place in [`Label::VALUES`].
    fn index(self) -> usize;

    /// This value as text.
    fn value(self) -> &'static str {
        Self::VALUES[self.index()]
    }
}

/// Declares an enum whose variants are the values of one label.
macro_rules! label_set {
    ($(#[$doc:meta])* $name:ident, $key:literal { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl Label for $name {
            const KEY: &'static str = $key;
            const VALUES: &'static [&'static str] = &[$($value,)+];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label_set! {
    /// Why a caller was not let in.
    AuthFailure, "reason" {
        /// No key.
        Missing = "key_missing",
        /// A wrong key.
        Wrong = "key_invalid",
        /// A wrong key, after too many others from the same address.
        Slowed = "too_many_failed_attempts",
        /// A key without the scope.
        Forbidden = "scope_missing",
        /// More than the rate allows.
        RateLimited = "rate_limited",
    }
}

label_set! {
    /// What became of a batch; each batch counts once as queued and once as one of the others.
    BatchOutcome, "status" {
        /// Accepted.
        Queued = "queued",
        /// All its events are in PostgreSQL.
        Completed = "completed",
        /// Some of its events are in PostgreSQL, some in the dead letters.
        Partial = "partial",
        /// None of its events is in PostgreSQL.
        Failed = "failed",
    }
}

label_set! {
    /// A path of the HTTP interface.
    Route, "route" {
        /// `POST /v1/ingest/batch`.
        IngestBatch = "/v1/ingest/batch",
        /// `GET /v1/batch/{batch_id}/status`.
        BatchStatus = "/v1/batch/{batch_id}/status",
        /// `GET /v1/batches`.
        Batches = "/v1/batches",
        /// `POST /v1/batch/{batch_id}/retry`.
        BatchRetry = "/v1/batch/{batch_id}/retry",
        /// `POST /v1/batch/{batch_id}/bury`.
        BatchBury = "/v1/batch/{batch_id}/bury",
        /// `GET /v1/health`.
        Health = "/v1/health",
        /// `GET /livez`.
        Live = "/livez",
        /// `GET /readyz`.
        Ready = "/readyz",
        /// `GET /v1/metrics`.
        Metrics = "/v1/metrics",
        /// `GET /openapi.json`.
        OpenApi = "/openapi.json",
        /// `GET /` and the files of that page.
        Dashboard = "/",
        /// `GET /dashboard/data`, what that page shows.
        DashboardData = "/dashboard/data",
        /// Any other path.
        Other = "other",
    }
}

label_set! {
    /// What a statement to PostgreSQL is for.
    Statement, "statement" {
        /// Ledger rows of the batches of one COPY.
        LedgerInsert = "ledger_insert",
        /// `COPY events FROM STDIN`.
        Copy = "copy",
        /// Rows again through a temporary table, after a duplicate.
        Staging = "staging",
        /// Rows that PostgreSQL refused.
        DeadLetter = "dead_letter",
        /// `COMMIT`.
        Commit = "commit",
        /// A batch's status from the ledger.
        Lookup = "lookup",
        /// Making, listing or dropping partitions.
        Partition = "partition",
        /// Whether PostgreSQL answers.
        Probe = "probe",
    }
}

label_set! {
    /// What a connection of the pool does.
    PoolState, "state" {
        /// Waits for work.
        Idle = "idle",
        /// Is lent out.
        Busy = "busy",
    }
}

label_set! {
    /// Whether a Citus worker can be reached.
    WorkerState, "state" {
        /// The coordinator connects to it.
        Reachable = "reachable",
        /// It does not.
        Unreachable = "unreachable",
    }
}

label_set! {
    /// The class of an SQLSTATE: its first two characters (PostgreSQL manual, appendix A).
    SqlstateClass, "sqlstate_class" {
        /// No SQLSTATE at all: the connection broke or was not made.
        NoSqlstate = "connection",
        /// Connection exception.
        ConnectionException = "08",
        /// Data exception.
        DataException = "22",
        /// Integrity constraint violation.
        IntegrityConstraint = "23",
        /// Invalid transaction state.
        TransactionState = "25",
        /// Invalid authorization.
        Authorization = "28",
        /// Transaction rollback: serialization failure, deadlock.
        TransactionRollback = "40",
        /// Syntax error, missing object, missing privilege.
        SyntaxOrAccess = "42",
        /// Insufficient resources: disk full, out of memory, too many connections.
        InsufficientResources = "53",
        /// Program limit exceeded.
        ProgramLimit = "54",
        /// Object not in the required state.
        ObjectState = "55",
        /// Operator intervention: shutdown, cancelled.
        OperatorIntervention = "57",
        /// System error outside PostgreSQL: I/O.
        SystemError = "58",
        /// Internal error.
        Internal = "XX",
        /// Any other class.
        Other = "other",
    }
}

impl SqlstateClass {
    /// The class of `sqlstate`; `None` means that the error carried none.
    pub fn of(sqlstate: Option<&str>) -> Self {
        let Some(class) = sqlstate.map(|code| code.get(..2).unwrap_or_default()) else { return Self::NoSqlstate };
        match class {
            "08" => Self::ConnectionException,
            "22" => Self::DataException,
            "23" => Self::IntegrityConstraint,
            "25" => Self::TransactionState,
            "28" => Self::Authorization,
            "40" => Self::TransactionRollback,
            "42" => Self::SyntaxOrAccess,
            "53" => Self::InsufficientResources,
            "54" => Self::ProgramLimit,
            "55" => Self::ObjectState,
            "57" => Self::OperatorIntervention,
            "58" => Self::SystemError,
            "XX" => Self::Internal,
            _ => Self::Other,
        }
    }
}

impl Label for Priority {
    const KEY: &'static str = "priority";
    const VALUES: &'static [&'static str] = &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];

    fn index(self) -> usize {
        self.lane()
    }
}

const _: () = assert!(Priority::VALUES.len() == PRIORITY_COUNT);

/// The status code of an answer. Codes that the server does not use are counted as `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpStatus(pub u16);

impl Label for HttpStatus {
    const KEY: &'static str = "code";
    const VALUES: &'static [&'static str] = &[
        "200", "202", "204", "304", "400", "401", "403", "404", "405", "406", "408", "409", "411", "413", "414", "415",
        "422", "429", "431", "500", "501", "503", "505", "other",
    ];

    fn index(self) -> usize {
        STATUS_CODES.iter().position(|code| *code == self.0).unwrap_or(STATUS_CODES.len())
    }
}

/// The codes of [`HttpStatus`] as numbers, in the same order; `other` comes after them.
const STATUS_CODES: [u16; 23] =
    [200, 202, 204, 304, 400, 401, 403, 404, 405, 406, 408, 409, 411, 413, 414, 415, 422, 429, 431, 500, 501, 503, 505];

const _: () = assert!(STATUS_CODES.len() + 1 == HttpStatus::VALUES.len());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_falls_into_its_class() {
        let expect = |sqlstate, class: &str| assert_eq!(SqlstateClass::of(sqlstate).value(), class, "{sqlstate:?}");
        expect(None, "connection");
        expect(Some(""), "other");
        expect(Some("ä"), "other");
        expect(Some("0A000"), "other");
        for (sqlstate, class) in [("08006", "08"), ("23505", "23"), ("57P01", "57"), ("XX000", "XX"), ("42P01", "42")] {
            expect(Some(sqlstate), class);
        }
        for class in SqlstateClass::VALUES.iter().filter(|class| class.len() == 2) {
            assert_eq!(SqlstateClass::of(Some(&format!("{class}000"))).value(), *class);
        }
    }

    #[test]
    fn unused_status_codes_are_counted_as_other() {
        for code in STATUS_CODES {
            assert_eq!(HttpStatus(code).value(), code.to_string());
        }
        assert_eq!(HttpStatus(418).value(), "other");
        assert_eq!(HttpStatus(0).value(), "other");
    }

    #[test]
    fn a_priority_is_its_own_label_value() {
        for number in 0..=10 {
            let priority = Priority::new(number).expect("0–10 are priorities");
            assert_eq!(priority.value(), number.to_string());
        }
    }
}
