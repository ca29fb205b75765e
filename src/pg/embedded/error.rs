//! What can go wrong with the embedded PostgreSQL, each as one line that says what to do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::Version;
use crate::limits::POSTGRES_LOG_QUOTE_BYTES_MAX;

/// Why the embedded PostgreSQL does not run. Each message is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Nothing was found on this machine.
    #[error(
        "no PostgreSQL server found: run `make setup`, install postgresql 15 or newer, or set INGESTD_PG_BIN or \
         DATABASE_URL"
    )]
    NoServer,
    /// The folder that was named has no server that can be used.
    #[error("no usable PostgreSQL in {}: {reason}; set INGESTD_PG_BIN to the directory that contains postgres and \
        initdb", path.display())]
    BadBinDir {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data were written by another major version than the one that was found.
    #[error(
        "the data was written by PostgreSQL {data}, but only {found} was found: set INGESTD_PG_BIN to PostgreSQL \
         {data}, or move the data directory away to start empty"
    )]
    OtherMajor {
        /// Major version of the data.
        data: u32,
        /// The newest version found.
        found: Version,
    },
    /// Another ingestd runs on the data.
    #[error("another ingestd is using {}: stop it, or start this one in another directory", data_dir.display())]
    InUse {
        /// The data folder.
        data_dir: PathBuf,
    },
    /// A PostgreSQL without its ingestd does not end.
    #[error("PostgreSQL of an earlier ingestd (PID {pid}) is still running on {} and does not stop: stop it, then \
        start again", data_dir.display())]
    StillRuns {
        /// One of its processes.
        pid: i32,
        /// The data folder.
        data_dir: PathBuf,
    },
    /// The data folder holds something else.
    #[error("{} is neither empty nor a complete PostgreSQL data directory: move it away, then start \
        again", path.display())]
    NotData {
        /// The data folder.
        path: PathBuf,
    },
    /// The data belong to a user that this process cannot act as.
    #[error("{} belongs to user {uid}: start ingestd as that user, or in another directory", path.display())]
    OtherOwner {
        /// The data folder.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The data exist where their user cannot get to.
    #[error("PostgreSQL runs as user {uid}, which cannot access the parent directories of {}: allow it (chmod o+x), or \
        move the data", path.display())]
    Unreachable {
        /// The data folder.
        path: PathBuf,
        /// PostgreSQL's user.
        uid: u32,
    },
    /// The link to the data leads nowhere.
    #[error(
        "{} links to {}, which no longer exists: restore it, or remove the link to start empty",
        link.display(), target.display()
    )]
    DataGone {
        /// The link.
        link: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// A file, folder or program could not be used.
    #[error("embedded PostgreSQL: could not {what} {}: {source}", path.display())]
    Io {
        /// A verb.
        what: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed ({status}): {quote} (full log: {})", log.display())]
    InitFailed {
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        quote: String,
        /// Its log.
        log: PathBuf,
    },
    /// PostgreSQL ended while it was starting.
    #[error("PostgreSQL did not start ({ending}): {quote} (full log: {})", log.display())]
    StartFailed {
        /// How it ended.
        ending: String,
        /// Its last words.
        quote: String,
        /// Its log.
        log: PathBuf,
    },
    /// PostgreSQL runs but does not answer.
    #[error("PostgreSQL did not respond within {} s: {reason} (see {})", waited.as_secs(), log.display())]
    NoAnswer {
        /// How long it was given.
        waited: Duration,
        /// What the last attempt to connect said.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
    /// The database could not be made.
    #[error("could not prepare the database of the embedded PostgreSQL: {0}")]
    Prepare(postgres::Error),
    /// PostgreSQL did not end, not even when killed.
    #[error("PostgreSQL (PID {pid}) could not be stopped: stop it manually")]
    StopFailed {
        /// The postmaster.
        pid: u32,
    },
}

impl EmbeddedError {
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { what, path: path.into(), source }
    }
}

/// The most telling line that PostgreSQL wrote to `log` after its first `after` bytes.
pub(super) fn log_quote(log: &Path, after: u64) -> String {
    /// Enough of the end to hold the last messages.
    const TAIL_BYTES: u64 = 16 * 1024;
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(after.max(length.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let severe = ["FATAL:", "PANIC:", "error:", "ERROR:"];
    let lines = || text.lines().rev().filter(|line| !line.trim().is_empty());
    let line = lines().find(|line| severe.iter().any(|word| line.contains(word))).or_else(|| lines().next());
    on_one_line(line.unwrap_or("no message"))
}

/// `text` without line ends, cut to what an error may quote.
pub(super) fn on_one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > POSTGRES_LOG_QUOTE_BYTES_MAX {
        line.truncate(line.floor_char_boundary(POSTGRES_LOG_QUOTE_BYTES_MAX));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quote_is_the_last_severe_line_of_this_start() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("postgres.log");
        let before = "LOG:  starting\nFATAL:  of an earlier start\n";
        let after = "LOG:  starting\nFATAL:  port in use\nLOG:  shut down\n\n";
        std::fs::write(&log, format!("{before}{after}")).expect("ours");
        assert_eq!(log_quote(&log, before.len() as u64), "FATAL: port in use");
        assert_eq!(log_quote(&log, (before.len() + after.len()) as u64), "no message");
        assert_eq!(log_quote(&folder.path().join("none"), 0), "no message");
    }

    #[test]
    fn a_quote_is_one_short_line() {
        let line = on_one_line(&"ä\n".repeat(POSTGRES_LOG_QUOTE_BYTES_MAX));
        assert!(line.len() <= POSTGRES_LOG_QUOTE_BYTES_MAX + '…'.len_utf8() && !line.contains('\n'));
    }
}
