//! Connections: from [`DatabaseUrl`] to a [`Client`], and what a failed one means for a start.
//!
//! Nothing is `SET` for a session: PgBouncer would hand it on to other clients. What a transaction needs it sets with
//! `SET LOCAL`, such as [`TRANSACTION_LIMITS`]; statements must not depend on a session's time zone. The one start-up
//! parameter that PgBouncer may refuse tells that it is there, see [`super::backing`].
//!
//! A dead peer is noticed within about ten seconds (keepalives, `TCP_USER_TIMEOUT`); parameters in the URL
//! win over these defaults. What is alive but silent is noticed by [`Connector::connect`], which commands and the start
//! use, and for the connections of the pool by [`super::watch`].

use std::error::Error as _;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, Config};

use super::backing::{self, Backing};
use super::health::DatabaseHealth;
use super::tls;
pub use super::tls::Tls;
use super::watch::Watch;
use crate::config::settings::Key;
use crate::config::{DatabaseUrl, SslMode};
use crate::limits::{
    CONNECT_TIMEOUT, CONNECT_WAIT_MAX, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, SERVER_VERSION_MIN,
    TCP_USER_TIMEOUT,
};
use crate::sharding::Sharding;

/// First thing in a transaction that must not hang: no statement takes longer than a minute, no lock is
/// awaited longer than half of one, and a node that freezes does not keep its locks.
pub const TRANSACTION_LIMITS: &str = "SET LOCAL statement_timeout = '60s'; \
     SET LOCAL lock_timeout = '30s'; \
     SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// What messages advise to correct.
const DATABASE_URL: &str = Key::DatabaseUrl.name();

/// What to do about a pooler in statement mode.
const POOL_MODE: &str = "set pool_mode = transaction (or session) in PgBouncer for this database and user";
/// How often a pooler may close a session at its first transaction before that is its mode, and no accident.
const POOLER_CLOSED_MAX: u32 = 3;

/// Opens connections to one database. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    config: Config,
    tls: Tls,
    address: String,
    /// The setting that the URL came from, for messages.
    setting: &'static str,
}

/// Why a start cannot use the database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartFault {
    /// Nothing will change by waiting: say this and exit with code 2.
    #[error("{0}")]
    Configuration(String),
    /// May pass: say this, and try again (a server takes traffic meanwhile; a command gives up).
    #[error("{0}")]
    Transient(String),
}

impl StartFault {
    /// The same fault with `context` in front of its message.
    fn at(self, context: &str) -> Self {
        self.map(|message| format!("{context}: {message}"))
    }

    /// The same fault, for a URL that `setting` gave.
    fn of(self, setting: &'static str) -> Self {
        self.map(|message| if setting == DATABASE_URL { message } else { message.replace(DATABASE_URL, setting) })
    }

    fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Configuration(message) => Self::Configuration(change(message)),
            Self::Transient(message) => Self::Transient(change(message)),
        }
    }
}

impl Connector {
    /// A connector for `url`. Reads the file of `sslrootcert`; connects to nothing.
    pub fn new(url: &DatabaseUrl) -> Result<Self, StartFault> {
        Self::from_setting(url, DATABASE_URL)
    }

    /// As [`Self::new`], for the role of `MIGRATE_DATABASE_URL`, which faults name.
    pub fn of_owner(url: &DatabaseUrl) -> Result<Self, StartFault> {
        Self::from_setting(url, Key::MigrateDatabaseUrl.name())
    }

    fn from_setting(url: &DatabaseUrl, setting: &'static str) -> Result<Self, StartFault> {
        let tls = tls::connector(url).map_err(|why| StartFault::Configuration(format!("{setting}={url}: {why}")))?;
        let mut config = url.driver_config().clone();
        config.notice_callback(|notice| quiet_notice(&notice));
        let given = |parameter: &str| url.has_parameter(parameter);
        if !given("application_name") {
            config.application_name("ingestd");
        }
        if !given("connect_timeout") {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if !given("tcp_user_timeout") {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        if !given("keepalives_idle") {
            config.keepalives_idle(KEEPALIVE_IDLE);
        }
        if !given("keepalives_interval") {
            config.keepalives_interval(KEEPALIVE_INTERVAL);
        }
        if !given("keepalives_retries") {
            config.keepalives_retries(KEEPALIVE_RETRIES);
        }
        config.ssl_mode(match url.ssl_mode() {
            _ if url.is_unix_socket() => postgres::config::SslMode::Disable,
            SslMode::Disable => postgres::config::SslMode::Disable,
            SslMode::Allow | SslMode::Prefer => postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => postgres::config::SslMode::Require,
        });
        Ok(Self { config, tls, address: url.address(), setting })
    }

    /// A connector for a database of our own on this machine: never TLS. `address` is for messages.
    pub fn local(mut config: Config, address: String) -> Self {
        config.notice_callback(|notice| quiet_notice(&notice));
        config.application_name("ingestd").connect_timeout(CONNECT_TIMEOUT);
        config.ssl_mode(postgres::config::SslMode::Disable);
        Self { config, tls: tls::unused(), address, setting: DATABASE_URL }
    }

    /// A connection to a PostgreSQL that is new enough. The fault's message says what to do.
    pub fn connect(&self) -> Result<Client, StartFault> {
        Ok(self.connect_within(CONNECT_WAIT_MAX)?.0)
    }

    /// As [`Self::connect`], giving up after `wait_max`; says whose the backend is.
    pub fn connect_within(&self, wait_max: Duration) -> Result<(Client, Backing), StartFault> {
        let (sender, receiver) = mpsc::channel();
        let (config, tls) = (self.config.clone(), self.tls.clone());
        // The driver's own timeout ends once TCP is connected. A thread that never gets an answer stays behind.
        std::thread::spawn(move || {
            let checked = open_and_check(&config, &tls);
            let _receiver_gave_up = sender.send(checked);
        });
        let silent = |_| StartFault::Transient(format!("no response within {wait_max:?}; is it overloaded?"));
        let answered = receiver.recv_timeout(wait_max).map_err(silent).flatten();
        answered.map_err(|fault| fault.of(self.setting).at(&format!("PostgreSQL at {}", self.address)))
    }

    /// What a connection pool opens connections with; tells `health` of locks.
    pub fn watch(&self, sharding: Sharding, health: Arc<DatabaseHealth>) -> Arc<Watch> {
        Watch::start(self.config.clone(), self.tls.clone(), sharding, health)
    }

    /// `host:port`s, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Notices ("relation exists, skipping") are not events of interest to an operator.
pub(super) fn quiet_notice(notice: &postgres::error::DbError) {
    tracing::debug!(message = %notice.message(), severity = notice.severity(), "notice from PostgreSQL");
}

/// A session with a PostgreSQL that is new enough, over a pooler that lets transactions through.
fn open_and_check(config: &Config, tls: &Tls) -> Result<(Client, Backing), StartFault> {
    let token_is_refused = AtomicBool::new(false);
    let mut closed = 0;
    loop {
        let opened = backing::open(config, tls, &token_is_refused);
        let (mut client, backing) = opened.map_err(|error| classify_start_error(&error))?;
        check_server_version(&mut client)?;
        if backing == Backing::Own {
            return Ok((client, backing));
        }
        match client.transaction().and_then(|mut begun| begun.query_typed_one("SELECT 1", &[])) {
            Ok(_) => return Ok((client, backing)),
            // The reason may have come when nobody was listening.
            Err(error) if error.code().is_none() && closed < POOLER_CLOSED_MAX => closed += 1,
            Err(error) if error.code().is_none() => {
                let said = one_line(&error);
                return Err(StartFault::Configuration(format!(
                    "a pooler closes every session that starts a transaction ({said}); {POOL_MODE}"
                )));
            }
            Err(error) => return Err(classify_start_error(&error)),
        }
    }
}

fn check_server_version(client: &mut Client) -> Result<(), StartFault> {
    let query = "SELECT current_setting('server_version_num')::int, version()";
    let row = client.query_typed_one(query, &[]).map_err(|error| classify_start_error(&error))?;
    let (number, text): (i32, String) = (row.get(0), row.get(1));
    if number >= SERVER_VERSION_MIN {
        return Ok(());
    }
    let version = text.split(" on ").next().unwrap_or("an unknown version");
    Err(StartFault::Configuration(format!(
        "the server is {version}, but ingestd requires PostgreSQL 15 or newer: upgrade it"
    )))
}

/// What `error`, met while starting, means. The message is one line, says what to do, and never holds the
/// password.
pub fn classify_start_error(error: &postgres::Error) -> StartFault {
    let Some(state) = error.code() else { return classify_driver_error(error) };
    let said = one_line(error);
    let advice = match *state {
        SqlState::INVALID_PASSWORD => "correct the user and password in DATABASE_URL",
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "correct DATABASE_URL, or allow this user and address in the server's pg_hba.conf"
        }
        SqlState::INVALID_CATALOG_NAME => "create the database (createdb), or correct its name in DATABASE_URL",
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "grant the required privileges to this user (sql/roles/least_privilege.sql), or use another user in \
             DATABASE_URL"
        }
        SqlState::INVALID_SCHEMA_NAME => "create a schema, or correct the user's search_path",
        _ if said.contains("statement pooling mode") => POOL_MODE,
        _ if state.code().starts_with("28") => "correct DATABASE_URL",
        _ => return StartFault::Transient(said),
    };
    StartFault::Configuration(format!("{said}; {advice}"))
}

/// Faults that PostgreSQL did not report itself. The driver keeps their kind to itself; its texts are
/// stable within a version, and tests hold them.
fn classify_driver_error(error: &postgres::Error) -> StartFault {
    let said = one_line(error);
    let broken = io_error(error).is_some_and(|io| io.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>()));
    if said.starts_with("error performing TLS handshake") && !broken {
        return StartFault::Configuration(format!("{said}; correct sslmode or sslrootcert in DATABASE_URL"));
    }
    if said.starts_with("authentication error") || said.starts_with("invalid configuration") {
        return StartFault::Configuration(format!("{said}; correct the user and password in DATABASE_URL"));
    }
    if said.starts_with("error connecting to server") || said.starts_with("timeout waiting for server") {
        return StartFault::Transient(format!("{said}; is it running, and is DATABASE_URL correct?"));
    }
    StartFault::Transient(said)
}

fn io_error(error: &postgres::Error) -> Option<&std::io::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

/// `error` with its causes, in one line; for an error of PostgreSQL its message and SQLSTATE.
pub fn one_line(error: &postgres::Error) -> String {
    let mut text = match error.as_db_error() {
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None => error.to_string(),
    };
    let mut cause = if error.as_db_error().is_some() { None } else { error.source() };
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
