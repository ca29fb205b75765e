//! The closed table of settings. Everything that knows a setting by name (flags, environment, TOML
//! keys, `print-config`, validation) is driven from here, so that a setting cannot exist in one place only.
//!
//! Users rely on names, defaults and meanings; `docs/settings.md#all-settings` is made from this table. Pure data: no
//! I/O, no parsing.

/// A setting; also its row in [`SETTINGS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each variant is its name in the table, and the table has the meaning
pub enum Key {
    DatabaseUrl,
    DatabaseUrlFile,
    MigrateDatabaseUrl,
    MigrateDatabaseUrlFile,
    RedisUrl,
    RedisUrlFile,
    BatchSize,
    BatchTimeoutSeconds,
    MaxBatchMemoryMb,
    DbPoolMinSize,
    DbPoolMaxSize,
    BatchLingerMs,
    SynchronousCommit,
    ListenAddr,
    Workers,
    Ack,
    JournalDir,
    JournalMaxMb,
    MemoryLimitMb,
    MaxBodyMb,
    MaxEventsPerBatch,
    MaxRequestsMb,
    MaxConnections,
    MaxConnectionsPerAddress,
    MaxHeaders,
    MaxHeaderKb,
    MaxUrlKb,
    HeaderTimeoutSeconds,
    KeepAliveSeconds,
    WriteTimeoutSeconds,
    BodyMinKbPerSecond,
    EventMaxAgeDays,
    EventMaxFutureHours,
    PartitionsAhead,
    PartitionRetentionMonths,
    TimeIndex,
    LedgerRetentionDays,
    ApiKeysFile,
    Auth,
    RateLimitEventsPerSecond,
    RateLimitBurst,
    RateLimitRequestsPerSecond,
    RateLimitRequestsBurst,
    TlsCertFile,
    TlsKeyFile,
    TlsClientCaFile,
    StuckBatchMinutes,
    StatusTtlSeconds,
    NodeId,
    Sharding,
    LogFormat,
    LogLevel,
    OtlpEndpoint,
    DataDir,
    IngestdPgBin,
}

/// What holds when a setting is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// This value, written as a user would write it.
    Value(&'static str),
    /// No value; the text says what happens then.
    Unset(&'static str),
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number from `.0` to `.1`, both included.
    Whole(u64, u64),
    /// The word `.0`, or a whole number from `.1` to `.2`.
    WordOrWhole(&'static str, u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A directory or file.
    Path,
    /// `host:port`, several separated by commas.
    Addresses,
    /// A name of 1–128 printable characters without spaces.
    Name,
    /// `postgres://` or `postgresql://`; may hold a password.
    PostgresUrl,
    /// `redis://` or `rediss://`; may hold a password.
    RedisUrl,
    /// `http://` or `https://`; refused with a user or a password in it.
    HttpUrl,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Which setting this is; `SETTINGS[key as usize].key == key`.
    pub key: Key,
    /// The environment variable. Flag and TOML key follow from it.
    pub name: &'static str,
    /// What holds when it is not given.
    pub fallback: Fallback,
    /// What it may be.
    pub kind: Kind,
    /// The meaning, for `--help` and for the table in `docs/settings.md`.
    pub help: &'static str,
}

const fn row(key: Key, name: &'static str, fallback: Fallback, kind: Kind, help: &'static str) -> Setting {
    Setting { key, name, fallback, kind, help }
}

use Fallback::{Unset, Value};
use Kind::{Addresses, Choice, HttpUrl, Name, Path, PostgresUrl, RedisUrl, Whole, WordOrWhole};

/// How many settings there are.
pub const SETTINGS_COUNT: usize = 55;

/// Every setting; `docs/settings.md#all-settings` lists them by group.
#[rustfmt::skip]
pub const SETTINGS: [Setting; SETTINGS_COUNT] = [
    row(Key::DatabaseUrl, "DATABASE_URL", Unset("embedded"), PostgresUrl,
        "PostgreSQL 15 or newer (18 recommended), such as \
         postgresql://user:password@host:5432/database?sslmode=verify-full; sslrootcert is honoured too; unset: the \
         server starts a private PostgreSQL"),
    row(Key::DatabaseUrlFile, "DATABASE_URL_FILE", Unset("DATABASE_URL"), Path,
        "file with the value of DATABASE_URL on one line, such as a container secret; giving the URL and its file \
         together is an error"),
    row(Key::MigrateDatabaseUrl, "MIGRATE_DATABASE_URL", Unset("DATABASE_URL"), PostgresUrl,
        "the same database through a role that owns the tables, used for migrations only: the role of DATABASE_URL \
         then needs few rights"),
    row(Key::MigrateDatabaseUrlFile, "MIGRATE_DATABASE_URL_FILE", Unset("MIGRATE_DATABASE_URL"), Path,
        "file with the value of MIGRATE_DATABASE_URL on one line; giving the URL and its file together is an error"),
    row(Key::RedisUrl, "REDIS_URL", Unset("in process"), RedisUrl,
        "Redis that shares batch status between nodes (redis://, or rediss:// with a verified certificate: system \
         authorities or SSL_CERT_FILE); unset: each node keeps its own status"),
    row(Key::RedisUrlFile, "REDIS_URL_FILE", Unset("REDIS_URL"), Path,
        "file with the value of REDIS_URL on one line; giving the URL and its file together is an error"),
    row(Key::BatchSize, "BATCH_SIZE", Value("1000"), Whole(1, 1_000_000),
        "rows worth starting a COPY for; under load a COPY takes more rows, as long as it lasts about 250 ms (1 s with \
         SHARDING=citus)"),
    row(Key::BatchTimeoutSeconds, "BATCH_TIMEOUT_SECONDS", Value("30"), Whole(1, 86_400),
        "longest wait for a COPY to begin while PostgreSQL works; a request that would wait for more than half of it \
         behind the queue is held back, then gets 503"),
    row(Key::MaxBatchMemoryMb, "MAX_BATCH_MEMORY_MB", Value("100"), Whole(1, 4096),
        "largest size of one COPY; queued rows of that size start it at once; must not be below MAX_BODY_MB, as a \
         request is never split"),
    row(Key::DbPoolMinSize, "DB_POOL_MIN_SIZE", Value("5"), Whole(1, 1000),
        "idle connections to PostgreSQL that this node keeps ready, within DB_POOL_MAX_SIZE"),
    row(Key::DbPoolMaxSize, "DB_POOL_MAX_SIZE", Value("20"), Whole(1, 1000),
        "most connections of this node to PostgreSQL, not counting one that watches the others; WORKERS + 5 or more \
         keeps all flushers busy"),
    row(Key::BatchLingerMs, "BATCH_LINGER_MS", Value("adaptive"), WordOrWhole("adaptive", 0, 60_000),
        "how long an idle flusher waits for BATCH_SIZE rows; adaptive: up to 10 ms while another COPY runs, else not \
         at all"),
    row(Key::SynchronousCommit, "SYNCHRONOUS_COMMIT", Value("on"), Choice(&["on", "off"]),
        "off: flushers start the next COPY up to 200 ms before the last one is on PostgreSQL's disk; until it is, the \
         journal keeps its batches and their status is 'processing'"),
    row(Key::ListenAddr, "LISTEN_ADDR", Value("127.0.0.1:8000"), Addresses,
        "addresses to serve on, separated by commas; port 0 takes a free port; others than loopback need API_KEYS_FILE \
         or AUTH=off"),
    row(Key::Workers, "WORKERS", Unset("one per usable core"), Whole(1, 1024),
        "HTTP worker threads, each pinned to a core where the CPU quota allows it; the default respects cpusets and \
         the quota of the cgroup"),
    row(Key::Ack, "ACK", Value("journal"), Choice(&["memory", "journal", "commit"]),
        "default ack level: answer when the batch is queued (memory), when an fsync made it survive power loss \
         (journal), or when PostgreSQL committed it (commit)"),
    row(Key::JournalDir, "JOURNAL_DIR", Value("data/journal"), Path,
        "directory of the write-ahead journal; each node needs a separate one"),
    row(Key::JournalMaxMb, "JOURNAL_MAX_MB", Value("4096"), Whole(4, 16_777_216),
        "cap on the size of the journal's files; while it is full, batches get 503 until PostgreSQL has caught up"),
    row(Key::MemoryLimitMb, "MEMORY_LIMIT_MB", Value("512"), Whole(1, 1_048_576),
        "memory for queued rows, and about 400 bytes for each queued batch; above it rows stay in the journal only; \
         once batches take 64 MB beyond it, new ones get 503"),
    row(Key::MaxBodyMb, "MAX_BODY_MB", Value("16"), Whole(1, 1024),
        "largest request body, both as sent and after decompression; a larger one gets 413"),
    row(Key::MaxEventsPerBatch, "MAX_EVENTS_PER_BATCH", Value("10000"), Whole(1, 1_000_000),
        "most events in one request; more get 413"),
    row(Key::MaxRequestsMb, "MAX_REQUESTS_MB", Value("256"), Whole(1, 1_048_576),
        "memory for the bodies of all requests at once, over all connections; beyond it requests get 503"),
    row(Key::MaxConnections, "MAX_CONNECTIONS", Value("20000"), Whole(1, 1_000_000),
        "most open connections; one more gets 503 and is closed"),
    row(Key::MaxConnectionsPerAddress, "MAX_CONNECTIONS_PER_ADDRESS", Unset("MAX_CONNECTIONS"), Whole(1, 1_000_000),
        "most open connections from one address (IPv6: one /64); one more gets 503 and is closed; leave it unset \
         behind a proxy"),
    row(Key::MaxHeaders, "MAX_HEADERS", Value("128"), Whole(8, 4096),
        "most header fields of a request; more get 431"),
    row(Key::MaxHeaderKb, "MAX_HEADER_KB", Value("32"), Whole(8, 1024),
        "largest head of a request: request line and header fields; a larger one gets 431"),
    row(Key::MaxUrlKb, "MAX_URL_KB", Value("8"), Whole(1, 1024),
        "longest path and query of a request; a longer one gets 414, or 431 if the head exceeds MAX_HEADER_KB"),
    row(Key::HeaderTimeoutSeconds, "HEADER_TIMEOUT_SECONDS", Value("10"), Whole(1, 3600),
        "time for the head of a request to arrive, including the TLS handshake before the first one; then the \
         connection is closed"),
    row(Key::KeepAliveSeconds, "KEEP_ALIVE_SECONDS", Value("75"), Whole(1, 86_400),
        "how long a connection may stay open without a request; then it is closed"),
    row(Key::WriteTimeoutSeconds, "WRITE_TIMEOUT_SECONDS", Value("30"), Whole(1, 3600),
        "how long an answer may wait for its client to read on; then the connection is closed"),
    row(Key::BodyMinKbPerSecond, "BODY_MIN_KB_PER_SECOND", Value("4"), Whole(1, 1_048_576),
        "slowest rate at which a body may arrive, with 10 seconds of grace; a slower one gets 408"),
    row(Key::EventMaxAgeDays, "EVENT_MAX_AGE_DAYS", Value("3650"), Whole(0, 36_500),
        "how far in the past the timestamp of an event may be; an older one is rejected (timestamp_too_old)"),
    row(Key::EventMaxFutureHours, "EVENT_MAX_FUTURE_HOURS", Value("24"), Whole(0, 87_600),
        "how far in the future the timestamp of an event may be; a later one is rejected (timestamp_too_far_ahead)"),
    row(Key::PartitionsAhead, "PARTITIONS_AHEAD", Value("3"), Whole(0, 120),
        "months after the current one whose partitions are created in advance; partitions of other months are created \
         on demand"),
    row(Key::PartitionRetentionMonths, "PARTITION_RETENTION_MONTHS", Unset("keep everything"), Whole(1, 1200),
        "months before the current one that are kept; older partitions are dropped with their rows, once the clocks of \
         this machine and of PostgreSQL both say so"),
    row(Key::TimeIndex, "TIME_INDEX", Value("brin"), Choice(&["brin", "btree", "none"]),
        "index of events for queries by time alone: brin (small, for bounded times), btree (also for the latest rows; \
         an insert costs more) or none; made with new tables, changed by 'ingestd migrate'"),
    row(Key::LedgerRetentionDays, "LEDGER_RETENTION_DAYS", Unset("keep everything"), Whole(1, 36_500),
        "batch ids that were committed longer ago are forgotten, in small steps; a retry of a forgotten id is a new \
         batch"),
    row(Key::ApiKeysFile, "API_KEYS_FILE", Unset("no keys"), Path,
        "file of API keys, made by 'ingestd keys new'; reloaded on SIGHUP; unset: no keys, and only loopback addresses \
         unless AUTH=off"),
    row(Key::Auth, "AUTH", Unset("loopback only without keys"), Choice(&["off"]),
        "off: serve any address without keys, so that everyone who can reach it may send and read; an error together \
         with API_KEYS_FILE"),
    row(Key::RateLimitEventsPerSecond, "RATE_LIMIT_EVENTS_PER_SECOND", Unset("no limit"), Whole(1, 1_000_000_000),
        "events per second for each API key, or for each client address (IPv6: each /64) where there are no keys; \
         counted by each node separately; reloaded on SIGHUP"),
    row(Key::RateLimitBurst, "RATE_LIMIT_BURST", Unset("one second's worth"), Whole(1, 1_000_000_000),
        "events that a key or address may send at once; a larger batch gets 413; needs RATE_LIMIT_EVENTS_PER_SECOND; \
         reloaded on SIGHUP"),
    row(Key::RateLimitRequestsPerSecond, "RATE_LIMIT_REQUESTS_PER_SECOND", Unset("no limit"), Whole(1, 1_000_000),
        "requests per second for each API key, or for each client address (IPv6: each /64) where there are no keys; \
         counted by each node separately; reloaded on SIGHUP"),
    row(Key::RateLimitRequestsBurst, "RATE_LIMIT_REQUESTS_BURST", Unset("one second's worth"), Whole(1, 1_000_000),
        "requests that a key or address may send at once; needs RATE_LIMIT_REQUESTS_PER_SECOND; reloaded on SIGHUP"),
    row(Key::TlsCertFile, "TLS_CERT_FILE", Unset("plain HTTP"), Path,
        "certificate chain (PEM) to serve HTTPS with, the server's own certificate first; needs TLS_KEY_FILE; reloaded \
         on SIGHUP"),
    row(Key::TlsKeyFile, "TLS_KEY_FILE", Unset("plain HTTP"), Path,
        "private key (PEM, not encrypted) of TLS_CERT_FILE; reloaded on SIGHUP"),
    row(Key::TlsClientCaFile, "TLS_CLIENT_CA_FILE", Unset("clients are not asked for certificates"), Path,
        "authorities (PEM) that must have signed a client's certificate; clients without a certificate are still \
         served; reloaded on SIGHUP"),
    row(Key::StuckBatchMinutes, "STUCK_BATCH_MINUTES", Value("60"), Whole(0, 525_600),
        "a batch that cannot be committed although others are is committed row by row after this long; rejected rows \
         become dead letters"),
    row(Key::StatusTtlSeconds, "STATUS_TTL_SECONDS", Value("86400"), Whole(1, 31_536_000),
        "how long the status of a finished batch is kept in process (200,000 batches at most) and in Redis; after that \
         the ledger answers, for LEDGER_RETENTION_DAYS or for ever"),
    row(Key::NodeId, "NODE_ID", Unset("host name"), Name,
        "name of this node in status, metrics and ledger"),
    row(Key::Sharding, "SHARDING", Value("none"), Choice(&["none", "citus"]),
        "citus: distribute the tables over the workers of the Citus cluster whose coordinator DATABASE_URL names"),
    row(Key::LogFormat, "LOG_FORMAT", Value("text"), Choice(&["text", "json"]),
        "text for people, or json with one object per line; the log goes to stderr"),
    row(Key::LogLevel, "LOG_LEVEL", Value("info"), Choice(&["error", "warn", "info", "debug", "trace"]),
        "least severe level of the lines that are logged; debug has a line for each request"),
    row(Key::OtlpEndpoint, "OTLP_ENDPOINT", Unset("no traces"), HttpUrl,
        "OpenTelemetry collector that gets the spans of sampled requests by OTLP over HTTP (protobuf), such as \
         http://127.0.0.1:4318"),
    row(Key::DataDir, "DATA_DIR", Value("data"), Path,
        "directory of the embedded PostgreSQL, whose data are in its subdirectory postgres"),
    row(Key::IngestdPgBin, "INGESTD_PG_BIN", Unset("searched for"), Path,
        "directory of PostgreSQL's programs (postgres, initdb) for the embedded database"),
];

impl Key {
    /// The setting's row.
    pub const fn setting(self) -> &'static Setting {
        &SETTINGS[self as usize]
    }

    /// The setting that names a file to read this one from, as containers get their secrets.
    pub const fn file(self) -> Option<Key> {
        match self {
            Self::DatabaseUrl => Some(Self::DatabaseUrlFile),
            Self::MigrateDatabaseUrl => Some(Self::MigrateDatabaseUrlFile),
            Self::RedisUrl => Some(Self::RedisUrlFile),
            _ => None,
        }
    }

    /// The environment variable, such as `BATCH_SIZE`.
    pub const fn name(self) -> &'static str {
        self.setting().name
    }

    /// Where `--help` lists it.
    pub const fn group(self) -> Group {
        use Key::*;
        match self {
            DatabaseUrl
            | DatabaseUrlFile
            | MigrateDatabaseUrl
            | MigrateDatabaseUrlFile
            | RedisUrl
            | RedisUrlFile
            | DbPoolMinSize
            | DbPoolMaxSize
            | SynchronousCommit
            | PartitionsAhead
            | PartitionRetentionMonths
            | TimeIndex
            | LedgerRetentionDays
            | StatusTtlSeconds
            | Sharding
            | DataDir
            | IngestdPgBin => Group::Storage,
            BatchSize | BatchTimeoutSeconds | MaxBatchMemoryMb | BatchLingerMs | StuckBatchMinutes | Ack
            | JournalDir | JournalMaxMb | MemoryLimitMb => Group::Batching,
            ListenAddr | Workers | TlsCertFile | TlsKeyFile | TlsClientCaFile => Group::Serving,
            MaxBodyMb
            | MaxEventsPerBatch
            | MaxRequestsMb
            | MaxConnections
            | MaxConnectionsPerAddress
            | MaxHeaders
            | MaxHeaderKb
            | MaxUrlKb
            | HeaderTimeoutSeconds
            | KeepAliveSeconds
            | WriteTimeoutSeconds
            | BodyMinKbPerSecond
            | EventMaxAgeDays
            | EventMaxFutureHours => Group::Requests,
            ApiKeysFile
            | Auth
            | RateLimitEventsPerSecond
            | RateLimitBurst
            | RateLimitRequestsPerSecond
            | RateLimitRequestsBurst => Group::Access,
            NodeId | LogFormat | LogLevel | OtlpEndpoint => Group::Node,
        }
    }

    /// True for what most installations set, or should think about: the short help has no others.
    pub const fn is_essential(self) -> bool {
        use Key::*;
        matches!(
            self,
            DatabaseUrl
                | RedisUrl
                | ListenAddr
                | TlsCertFile
                | TlsKeyFile
                | ApiKeysFile
                | Auth
                | Ack
                | JournalDir
                | JournalMaxMb
                | MemoryLimitMb
                | PartitionRetentionMonths
                | LogFormat
                | LogLevel
        )
    }
}

/// What a setting is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Where to serve, and with which certificates.
    Serving,
    /// Who may send how much.
    Access,
    /// PostgreSQL, Redis, and how long things are kept there.
    Storage,
    /// The way from an accepted batch to a COPY.
    Batching,
    /// Limits of requests and connections.
    Requests,
    /// This node.
    Node,
}

impl Group {
    /// Every group, in the order of `--help`.
    pub const ALL: [Self; 6] = [Self::Serving, Self::Access, Self::Storage, Self::Batching, Self::Requests, Self::Node];

    /// What `--help` calls it.
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Serving => "Serving",
            Self::Access => "API keys and rate limits",
            Self::Storage => "PostgreSQL, Redis and retention",
            Self::Batching => "Acks, journal and batches",
            Self::Requests => "Limits of requests and connections",
            Self::Node => "Node and log",
        }
    }
}

impl Setting {
    /// The flag without its dashes, such as `batch-size`.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// The key in a TOML file, such as `batch_size`.
    pub fn toml_key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// True when the value may hold a password: it is only shown redacted.
    pub const fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::PostgresUrl | Kind::RedisUrl)
    }
}

impl Kind {
    /// What is allowed, to stand after "must be".
    pub fn allowed(&self) -> String {
        match self {
            Whole(min, max) => format!("a whole number from {min} to {max}"),
            WordOrWhole(word, min, max) => format!("'{word}' or a whole number from {min} to {max}"),
            Choice([only]) => format!("'{only}' or unset"),
            Choice(words) => format!("one of {}", words.join(", ")),
            Path => "a path".into(),
            Addresses => {
                "host:port, such as 127.0.0.1:8000, [::1]:8000 or localhost:8000, several separated by commas".into()
            }
            Name => "a name of 1 to 128 printable characters without spaces".into(),
            PostgresUrl => "a URL such as postgresql://user:password@host:5432/database".into(),
            RedisUrl => "a URL such as redis://:password@host:6379/0".into(),
            HttpUrl => "a URL such as http://127.0.0.1:4318".into(),
        }
    }

    /// The placeholder in `--help`.
    pub const fn placeholder(&self) -> &'static str {
        match self {
            Whole(..) => "N",
            WordOrWhole(..) => "N|WORD",
            Choice(_) => "WORD",
            Path => "PATH",
            Addresses => "HOST:PORT",
            Name => "NAME",
            PostgresUrl | RedisUrl | HttpUrl => "URL",
        }
    }
}

// `Key::setting` indexes by discriminant: the rows must stand in the order of the variants.
const _: () = {
    let mut index = 0;
    while index < SETTINGS_COUNT {
        assert!(SETTINGS[index].key as usize == index);
        // Whatever may hold a password can be given as a file.
        assert!(SETTINGS[index].is_secret() == SETTINGS[index].key.file().is_some());
        index += 1;
    }
    assert!(Key::IngestdPgBin as usize + 1 == SETTINGS_COUNT);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_flags_and_toml_keys() {
        let setting = Key::BatchTimeoutSeconds.setting();
        assert_eq!(setting.flag(), "batch-timeout-seconds");
        assert_eq!(setting.toml_key(), "batch_timeout_seconds");
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS_COUNT);
    }
}
