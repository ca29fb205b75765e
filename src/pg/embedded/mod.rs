//! The embedded default: a PostgreSQL that ingestd starts and supervises itself when `DATABASE_URL` is unset.
//!
//! [`Embedded::start`] reads like its steps: claim the data folder (`place`), find server programs (`binaries`)
//! for its user (`account`), see out what a killed ingestd left (`previous`), make and configure the data
//! (`cluster`), run PostgreSQL (`keeper`), wait for it, make the database.
//!
//! Invariants: one ingestd a data folder; data are complete or not there; PostgreSQL never runs as root, is
//! reached through a socket that only its user (and root) can open, does not outlive ingestd, and is never
//! restarted by anyone but its keeper. Every wait is bounded.
//!
//! Absent on purpose: upgrades between major versions (data keep the major version that made them), and any
//! access from other hosts; who needs those runs a PostgreSQL of their own.

mod account;
mod binaries;
mod cluster;
mod error;
mod keeper;
mod place;
mod previous;
mod running;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::{Client, NoTls};
use rustix::process::Signal;

pub use binaries::{Version, find_bin_dir};
pub use error::EmbeddedError;
pub use place::may_hold_data;
pub use running::running;

use self::binaries::Server;
use self::cluster::Contents;
use self::error::{log_quote, on_one_line};
use self::keeper::{Ending, Keeper, Launch};
use self::place::{Place, SocketDir};
use crate::limits::{
    POSTGRES_ANSWER_WAIT_MAX, POSTGRES_FAST_STOP_WAIT_MAX, POSTGRES_IMMEDIATE_STOP_WAIT_MAX,
    POSTGRES_MAJOR_RECOMMENDED, POSTGRES_POLL_PAUSE, POSTGRES_RECOVERY_WAIT_MAX, POSTGRES_START_REPORTED_AFTER,
};

/// The role that ingestd connects as; it owns everything.
const SUPERUSER: &str = "ingestd";
/// The database that ingestd uses.
const DATABASE: &str = "ingestd";
/// Names the socket where no loopback port is asked for; nothing listens on it.
const SOCKET_PORT: u16 = 5432;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The data folder, `data/postgres` by default; made on the first start.
    pub data_dir: PathBuf,
    /// `INGESTD_PG_BIN`: the folder of the server programs; `None` looks for one, see [`find_bin_dir`].
    pub bin_dir: Option<PathBuf>,
    /// Listen on 127.0.0.1 too.
    pub loopback: Option<Loopback>,
    /// More settings of PostgreSQL, which win over ingestd's.
    pub settings: Vec<(String, String)>,
}

/// A TCP port beside the socket, for programs that cannot use the socket.
#[derive(Clone, Debug)]
pub struct Loopback {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// What connections through the port have to present (SCRAM).
    pub password: String,
}

impl EmbeddedOptions {
    /// A server on `data_dir` with nothing else said.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), bin_dir: None, loopback: None, settings: Vec::new() }
    }
}

/// A running PostgreSQL of this process's own. Dropping it stops it, as [`Embedded::stop`] does.
#[derive(Debug)]
pub struct Embedded {
    keeper: Keeper,
    server: Server,
    port: u16,
    // Dropped after PostgreSQL was stopped, in this order.
    socket_dir: SocketDir,
    place: Arc<Place>,
}

impl Embedded {
    /// Starts PostgreSQL as `options` say; returns when it takes connections and its database exists.
    pub fn start(options: &EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let place = Arc::new(Place::claim(&options.data_dir)?);
        let contents = cluster::contents(&place)?;
        let data_major = match contents {
            Contents::Data { major } => Some(major),
            Contents::Nothing => None,
        };
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let server = binaries::choose(options.bin_dir.as_deref(), &here, data_major)?;
        let server = binaries::runnable_by(&place.account, server)?;
        if server.version.major < POSTGRES_MAJOR_RECOMMENDED {
            tracing::warn!(version = %server.version,
                "embedded PostgreSQL is older than recommended; use PostgreSQL {POSTGRES_MAJOR_RECOMMENDED}");
        }
        previous::see_out(&place.data_dir)?;
        if contents == Contents::Nothing {
            cluster::create(&place, &server)?;
        }
        let socket_dir = place.socket_dir()?;
        let port = options.loopback.as_ref().map_or(SOCKET_PORT, |loopback| loopback.port);
        cluster::write_settings(&place, options, &socket_dir.path, port)?;

        let log_before = cluster::log_bytes(&place);
        let keeper = Keeper::start(launch(Arc::clone(&place), server.clone()))
            .map_err(|source| EmbeddedError::io("start a thread for", &place.data_dir, source))?;
        // From here on an early return drops `running`, which stops PostgreSQL.
        let running = Self { keeper, server, port, socket_dir, place };
        running.wait_until_it_answers(log_before)?;
        running.prepare_database(options.loopback.as_ref()).map_err(EmbeddedError::Prepare)?;
        running.keeper.allow_restarts();
        tracing::info!(version = %running.version(), pid = running.pid(), log = %running.place.log_path.display(),
            "embedded PostgreSQL is running; inspect it with: {}", running.psql_command());
        Ok(running)
    }

    /// How to connect to the database, through the socket.
    pub fn config(&self) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host_path(&self.socket_dir.path).port(self.port).user(SUPERUSER).dbname(DATABASE);
        config
    }

    /// The same as a URL, understood by libpq and by the `postgres` crate; `database` instead of ingestd's own.
    pub fn url(&self, database: Option<&str>) -> String {
        let host = self.socket_dir.path.to_string_lossy();
        let host = percent_encoding::utf8_percent_encode(&host, percent_encoding::NON_ALPHANUMERIC);
        format!("postgresql://{SUPERUSER}@{host}:{}/{}", self.port, database.unwrap_or(DATABASE))
    }

    /// A line to paste into a shell that opens psql on the database.
    pub fn psql_command(&self) -> String {
        let psql = self.server.bin_dir.join("psql");
        let psql = if psql.exists() { psql } else { PathBuf::from("psql") };
        let (psql, host) = (for_shell(&psql), for_shell(&self.socket_dir.path));
        format!("{psql} -h {host} -p {} -U {SUPERUSER} {DATABASE}", self.port)
    }

    /// The server's version.
    pub fn version(&self) -> Version {
        self.server.version
    }

    /// The folder of the server's programs, where its user can run them.
    pub fn bin_dir(&self) -> &Path {
        &self.server.bin_dir
    }

    /// Where the data really lie.
    pub fn data_dir(&self) -> &Path {
        &self.place.data_dir
    }

    /// Where PostgreSQL's log is.
    pub fn log_path(&self) -> &Path {
        &self.place.log_path
    }

    /// The postmaster's process number, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.keeper.pid().map(|pid| pid.as_raw_pid().unsigned_abs())
    }

    /// False while PostgreSQL is down, even if it is about to be started again.
    pub fn is_running(&self) -> bool {
        self.keeper.pid().is_some()
    }

    /// Stops PostgreSQL: sessions are ended and everything is written out; harsher where that takes too long.
    pub fn stop(mut self) -> Result<(), EmbeddedError> {
        self.end(&[
            (Signal::INT, POSTGRES_FAST_STOP_WAIT_MAX),
            (Signal::QUIT, POSTGRES_IMMEDIATE_STOP_WAIT_MAX),
            (Signal::KILL, POSTGRES_IMMEDIATE_STOP_WAIT_MAX),
        ])
    }

    /// Ends PostgreSQL as a crash would, with nothing written out, and starts nothing again: for crash tests.
    pub fn crash(mut self) -> Result<(), EmbeddedError> {
        self.end(&[(Signal::KILL, POSTGRES_IMMEDIATE_STOP_WAIT_MAX)])
    }

    fn end(&mut self, signals: &[(Signal, Duration)]) -> Result<(), EmbeddedError> {
        for (signal, wait_max) in signals {
            if self.keeper.stop(*signal, *wait_max) {
                return Ok(());
            }
            tracing::warn!(?signal, waited_s = wait_max.as_secs(), "embedded PostgreSQL has not exited yet");
        }
        Err(EmbeddedError::StopFailed { pid: self.pid().unwrap_or_default() })
    }

    /// Waits until a connection succeeds, for as long as PostgreSQL makes progress within the limits.
    fn wait_until_it_answers(&self, log_before: u64) -> Result<(), EmbeddedError> {
        let began = Instant::now();
        let log = self.place.log_path.clone();
        let mut config = self.config();
        config.dbname("postgres").connect_timeout(POSTGRES_ANSWER_WAIT_MAX);
        let mut reported = false;
        loop {
            let error = match config.connect(NoTls) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Some(ending) = self.keeper.ended() {
                let quote = match &ending {
                    Ending::Exited(_) => log_quote(&log, log_before),
                    Ending::NotStarted(_) => "the program could not be run".into(),
                };
                return Err(EmbeddedError::StartFailed { ending: ending.to_string(), quote, log });
            }
            let answered = error.code() == Some(&SqlState::CANNOT_CONNECT_NOW);
            let waited = began.elapsed();
            if answered && !reported && waited > POSTGRES_START_REPORTED_AFTER {
                reported = true;
                tracing::info!("embedded PostgreSQL is still starting up, as it does after a crash; waiting for it");
            }
            if waited > if answered { POSTGRES_RECOVERY_WAIT_MAX } else { POSTGRES_ANSWER_WAIT_MAX } {
                return Err(EmbeddedError::NoAnswer { waited, reason: on_one_line(&error.to_string()), log });
            }
            thread::sleep(POSTGRES_POLL_PAUSE);
        }
    }

    /// Makes the database unless it exists, and sets the password that the loopback port asks for.
    fn prepare_database(&self, loopback: Option<&Loopback>) -> Result<(), postgres::Error> {
        let mut client: Client = self.config().dbname("postgres").connect(NoTls)?;
        if client.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&DATABASE])?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}"))?;
        }
        if let Some(loopback) = loopback {
            let password = loopback.password.replace('\'', "''");
            client.batch_execute(&format!(
                "SET standard_conforming_strings = on; ALTER ROLE {SUPERUSER} PASSWORD '{password}'"
            ))?;
        }
        Ok(())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let signals = [(Signal::INT, POSTGRES_FAST_STOP_WAIT_MAX), (Signal::KILL, POSTGRES_IMMEDIATE_STOP_WAIT_MAX)];
        if let Err(error) = self.end(&signals) {
            tracing::error!(%error, "embedded PostgreSQL could not be stopped and is still running");
        }
    }
}

/// What the keeper does before every run: see out what is left of the last one, then the command.
fn launch(place: Arc<Place>, server: Server) -> Launch {
    Box::new(move || {
        previous::see_out(&place.data_dir)?;
        let mut command = cluster::program(&place, &server, "postgres")?;
        let settings = place.data_dir.join(cluster::SETTINGS_FILE);
        command.arg("-D").arg(&place.data_dir).arg("-c").arg(format!("config_file={}", settings.display()));
        Ok(command)
    })
}

/// `path` as one word of a shell.
fn for_shell(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
