//! How long PostgreSQL may take for one statement of a COPY's transaction. Pure.

use std::time::Duration;

/// How long PostgreSQL may take for a statement of a COPY's transaction after the first one; `None`: for ever. Not for Citus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeLimits {
    /// For a lock (`lock_timeout`); SQLSTATE 55P03 after that.
    pub lock: Option<Duration>,
    /// For the statement (`statement_timeout`); SQLSTATE 57014 after that.
    pub statement: Option<Duration>,
}

impl TimeLimits {
    /// As PostgreSQL takes it: 0 is none.
    pub fn setting(limit: Option<Duration>) -> String {
        limit.map_or_else(|| "0".to_owned(), |limit| format!("{}ms", limit.as_millis().max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_rounded_to_none() {
        let settings = [None, Some(Duration::from_micros(10)), Some(Duration::from_secs(2))].map(TimeLimits::setting);
        assert_eq!(settings, ["0", "1ms", "2000ms"]);
    }
}
