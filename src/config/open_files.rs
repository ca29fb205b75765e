//! How many files a server may need open at once, and how many connections that leaves.
//!
//! A client that opens connections must not take the descriptors that the journal needs for its next segment. So what
//! the server itself needs is set apart, and `MAX_CONNECTIONS` holds only as far as the rest goes:
//!
//! | for | files |
//! |---|---|
//! | the journal | two for each segment that `JOURNAL_MAX_MB` allows, for the spares and for one being made |
//! | PostgreSQL | `DB_POOL_MAX_SIZE`, and a few that watch, migrate, cancel |
//! | an HTTP worker | its runtime, and a listener and a spare file for each address |
//! | the rest | Redis, the trace collector, an embedded PostgreSQL, the log, files that are read again, name resolution |

use std::fmt;

use super::Config;
use crate::limits::{
    JOURNAL_SPARES_MAX, OPEN_FILES_FOR_CONNECTIONS_MIN, OPEN_FILES_OTHER, OPEN_FILES_PER_LISTENER,
    OPEN_FILES_PER_SEGMENT, OPEN_FILES_PER_WORKER, segment_bytes,
};

/// The plan of a server's open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// The limit of the process; `None`: there is none.
    pub limit: Option<u64>,
    /// Kept for everything but connections.
    pub reserved: u64,
    /// `MAX_CONNECTIONS`.
    pub connections_asked: usize,
    /// Connections that are accepted at a time.
    pub connections_max: usize,
}

impl OpenFiles {
    /// What `limit` open files allow a server with `config` and `workers` HTTP workers.
    ///
    /// # Errors
    /// They are too few to serve at all: one line that says what to do.
    pub fn plan(config: &Config, workers: usize, limit: Option<u64>) -> Result<Self, String> {
        let (reserved, connections_asked) = (reserved(config, workers), config.connections_max);
        let asked = connections_asked as u64;
        let allowed = limit.map_or(asked, |limit| limit.saturating_sub(reserved).min(asked));
        if allowed < asked.min(OPEN_FILES_FOR_CONNECTIONS_MIN) {
            let limit = limit.unwrap_or_default();
            return Err(format!(
                "the limit of {limit} open files is too low: ingestd keeps {reserved} for journal, PostgreSQL and \
                 workers, and needs {OPEN_FILES_FOR_CONNECTIONS_MIN} for connections; raise the limit to {} (ulimit -n, \
                 LimitNOFILE=, docker run --ulimit nofile=), or lower JOURNAL_MAX_MB, DB_POOL_MAX_SIZE or WORKERS",
                reserved + asked
            ));
        }
        Ok(Self { limit, reserved, connections_asked, connections_max: allowed as usize })
    }

    /// True when the limit leaves less than half of what `MAX_CONNECTIONS` asks for.
    pub fn is_short(&self) -> bool {
        self.connections_max < self.connections_asked / 2
    }
}

impl fmt::Display for OpenFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, reserved, connections_asked, connections_max } = self;
        let kept = format!("{reserved} are kept for journal, PostgreSQL and workers");
        match limit {
            None => write!(f, "up to {connections_max} connections (MAX_CONNECTIONS): open files have no limit"),
            Some(limit) if connections_max == connections_asked => write!(
                f,
                "up to {connections_max} connections (MAX_CONNECTIONS): the limit of {limit} open files leaves room for \
                 them, {kept}"
            ),
            Some(limit) => write!(
                f,
                "up to {connections_max} connections instead of MAX_CONNECTIONS={connections_asked}: the limit is \
                 {limit} open files, and {kept}; for all of them raise it to {} (ulimit -n, LimitNOFILE=)",
                reserved + *connections_asked as u64
            ),
        }
    }
}

/// Files that a server needs beside those of its connections.
fn reserved(config: &Config, workers: usize) -> u64 {
    let segments = config.journal_bytes_max.div_ceil(segment_bytes(config.journal_bytes_max));
    let journal = (segments + JOURNAL_SPARES_MAX as u64 + 1) * OPEN_FILES_PER_SEGMENT;
    let per_worker = OPEN_FILES_PER_WORKER + config.listen.len() as u64 * OPEN_FILES_PER_LISTENER;
    journal + u64::from(config.pool_connections_max) + workers as u64 * per_worker + OPEN_FILES_OTHER
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::{Raw, Sources};

    fn config() -> Config {
        Config::from_raw(&Raw::gather(Sources::default())).expect("the defaults are valid")
    }

    #[test]
    fn connections_get_what_the_server_itself_does_not_need() {
        let config = config();
        let plan = |limit| OpenFiles::plan(&config, 2, limit);
        let OpenFiles { reserved, .. } = plan(None).expect("no limit");
        assert!((200..600).contains(&reserved), "{reserved}");
        let enough = reserved + config.connections_max as u64;
        for limit in [None, Some(1 << 20), Some(enough)] {
            assert_eq!(plan(limit).expect("enough").connections_max, config.connections_max);
        }
        let capped = plan(Some(enough - 1)).expect("one less");
        assert_eq!(capped.connections_max, config.connections_max - 1);
        assert!(capped.to_string().contains("instead of MAX_CONNECTIONS=20000") && !capped.is_short(), "{capped}");
        let short = plan(Some(1024)).expect("few");
        assert_eq!(short.connections_max as u64, 1024 - reserved);
        assert!(short.is_short());
    }

    #[test]
    fn a_limit_that_leaves_nothing_for_connections_is_refused_with_what_to_do() {
        let config = config();
        let OpenFiles { reserved, .. } = OpenFiles::plan(&config, 2, None).expect("no limit");
        assert!(OpenFiles::plan(&config, 2, Some(reserved + OPEN_FILES_FOR_CONNECTIONS_MIN)).is_ok());
        for limit in [0, 64, reserved, reserved + OPEN_FILES_FOR_CONNECTIONS_MIN - 1] {
            let told = OpenFiles::plan(&config, 2, Some(limit)).expect_err("too few");
            assert!(told.contains("ulimit -n") && told.contains("JOURNAL_MAX_MB"), "{told}");
        }
    }

    #[test]
    fn a_larger_journal_and_more_workers_need_more_files() {
        let small = config();
        let large = Config { journal_bytes_max: small.journal_bytes_max * 16, ..small.clone() };
        assert!(reserved(&large, 2) > reserved(&small, 2) + 1000);
        assert!(reserved(&small, 32) > reserved(&small, 2) + 100);
    }
}
