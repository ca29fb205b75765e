//! Settings as given: from flags, environment, file and defaults to one validated [`Config`].
//!
//! ```text
//!  settings   the closed table: names, defaults, kinds, help
//!     ▼
//!  raw        every setting as text, with its origin
//!     ▼
//!  parse      text → Config, or every problem, one line each
//!     ▼
//!  consequences   what a valid Config means that its user may not expect
//! ```
//!
//! Nothing below this module reads the environment. What follows from the settings (sizes, budgets)
//! lives in [`crate::limits`]. Units stand in the names of fields; a setting in MB becomes bytes.
//!
//! SIGHUP gathers the settings once more, but only rate limits and what files hold is taken over ([`crate::server`]).
//!
//! Absent on purpose: reloading the others, and nested TOML.

mod consequences;
mod database_url;
pub mod open_files;
mod parse;
pub mod raw;
pub mod redact;
pub mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use database_url::{DatabaseUrl, SslMode, SslRootCert};

use crate::auth::rate::RateLimits;
use crate::sharding::Sharding;
use crate::types::AckLevel;

/// Where rows go.
#[derive(Clone, Debug)]
pub enum Database {
    /// A private PostgreSQL that the server starts itself, with its data in [`Config::embedded_dir`].
    Embedded,
    /// A PostgreSQL that runs already.
    Url(Box<DatabaseUrl>),
}

/// How long a free flusher waits for more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linger {
    /// Shrinks to nothing while load is low.
    Adaptive,
    /// Always this long.
    Fixed(Duration),
}

/// Who may send requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Who has a key of this file: `API_KEYS_FILE`.
    Keys(PathBuf),
    /// Everyone on this machine: no keys, loopback addresses only.
    Loopback,
    /// Everyone who can reach an address: `AUTH=off`.
    Off,
}

/// What serves queries of `events` by time alone (`TIME_INDEX`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeIndex {
    /// A small index of ranges.
    #[default]
    Brin,
    /// An entry for each row.
    Btree,
    /// Nothing.
    None,
}

impl TimeIndex {
    /// As the setting has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Brin => "brin",
            Self::Btree => "btree",
            Self::None => "none",
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What HTTPS is served with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// `TLS_CERT_FILE`: the server's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// `TLS_KEY_FILE`.
    pub key: PathBuf,
    /// `TLS_CLIENT_CA_FILE`; `None`: clients are not asked for certificates.
    pub client_ca: Option<PathBuf>,
}

/// A Redis URL. `Debug` never shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL with its password, for the client.
    pub fn with_password(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisUrl({})", redact::url(&self.0))
    }
}

/// The settings, valid one by one and together.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_URL`, `--embedded`.
    pub database: Database,
    /// `MIGRATE_DATABASE_URL`; `None`: `DATABASE_URL`'s role migrates, or nobody does.
    pub migrate_database: Option<Box<DatabaseUrl>>,
    /// `REDIS_URL`; `None`: status is kept in process.
    pub redis: Option<RedisUrl>,
    /// `BATCH_SIZE`: rows a COPY aims for at least.
    pub copy_rows_min: usize,
    /// `BATCH_TIMEOUT_SECONDS`.
    pub batch_timeout: Duration,
    /// `MAX_BATCH_MEMORY_MB`: bytes of one COPY at most.
    pub copy_bytes_max: usize,
    /// `DB_POOL_MIN_SIZE`.
    pub pool_connections_min: u32,
    /// `DB_POOL_MAX_SIZE`, never below the minimum.
    pub pool_connections_max: u32,
    /// `BATCH_LINGER_MS`.
    pub batch_linger: Linger,
    /// `SYNCHRONOUS_COMMIT`: every COPY waits until its commit is on PostgreSQL's disk.
    pub synchronous_commit: bool,
    /// `LISTEN_ADDR`, resolved; at least one.
    pub listen: Vec<SocketAddr>,
    /// `WORKERS`; `None`: one per usable core.
    pub workers: Option<usize>,
    /// `ACK`: the default level.
    pub ack: AckLevel,
    /// `JOURNAL_DIR`.
    pub journal_dir: PathBuf,
    /// `JOURNAL_MAX_MB`: the journal's hard cap.
    pub journal_bytes_max: u64,
    /// `MEMORY_LIMIT_MB`: bytes of rows held in memory over all queues.
    pub memory_bytes_max: usize,
    /// `MAX_BODY_MB`: bytes of one body after decompression.
    pub body_bytes_max: usize,
    /// `MAX_EVENTS_PER_BATCH`.
    pub batch_events_max: usize,
    /// `MAX_REQUESTS_MB`: bytes of requests in memory at once.
    pub requests_bytes_max: u64,
    /// `MAX_CONNECTIONS`.
    pub connections_max: usize,
    /// `MAX_CONNECTIONS_PER_ADDRESS`, by default as many.
    pub connections_per_address_max: usize,
    /// `MAX_HEADERS`.
    pub headers_max: usize,
    /// `MAX_HEADER_KB`.
    pub header_bytes_max: usize,
    /// `MAX_URL_KB`.
    pub url_bytes_max: usize,
    /// `WRITE_TIMEOUT_SECONDS`.
    pub write_timeout: Duration,
    /// `HEADER_TIMEOUT_SECONDS`.
    pub header_timeout: Duration,
    /// `KEEP_ALIVE_SECONDS`.
    pub keep_alive: Duration,
    /// `BODY_MIN_KB_PER_SECOND`, in bytes.
    pub body_bytes_per_second_min: u64,
    /// `EVENT_MAX_AGE_DAYS`.
    pub event_age_max: Duration,
    /// `EVENT_MAX_FUTURE_HOURS`.
    pub event_future_max: Duration,
    /// `PARTITIONS_AHEAD`, in months.
    pub partitions_ahead_months: u32,
    /// `PARTITION_RETENTION_MONTHS`; `None`: everything is kept.
    pub partition_retention_months: Option<u32>,
    /// `TIME_INDEX`.
    pub time_index: TimeIndex,
    /// `LEDGER_RETENTION_DAYS`; `None`: everything is kept.
    pub ledger_retention: Option<Duration>,
    /// `AUTH`.
    pub auth: Auth,
    /// `RATE_LIMIT_EVENTS_PER_SECOND`, `RATE_LIMIT_BURST` and the same of requests.
    pub rate_limits: RateLimits,
    /// `TLS_CERT_FILE` and the others; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// `STUCK_BATCH_MINUTES`.
    pub stuck_after: Duration,
    /// `STATUS_TTL_SECONDS`.
    pub status_ttl: Duration,
    /// `NODE_ID`, by default the host name.
    pub node_id: String,
    /// `LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `SHARDING`.
    pub sharding: Sharding,
    /// `LOG_LEVEL`.
    pub log_level: tracing::Level,
    /// `OTLP_ENDPOINT`, without a `/` at its end; `None`: no traces.
    pub otlp_endpoint: Option<String>,
    /// `DATA_DIR`.
    pub data_dir: PathBuf,
    /// `INGESTD_PG_BIN`; `None`: searched for.
    pub postgres_bin_dir: Option<PathBuf>,
}

/// Everything that is wrong with the settings, one line each; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(pub Vec<String>);

impl Config {
    /// The settings in `raw`, or all problems with them. Host names in `LISTEN_ADDR` are looked up.
    pub fn from_raw(raw: &raw::Raw) -> Result<Self, Problems> {
        parse::config(raw)
    }

    /// What these settings mean that their user may not expect, one line each. `raw` is what they came from.
    pub fn consequences(&self, raw: &raw::Raw) -> Vec<String> {
        consequences::of(self, raw)
    }

    /// Where the embedded PostgreSQL's data lives.
    pub fn embedded_dir(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }
}
