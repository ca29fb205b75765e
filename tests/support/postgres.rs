//! A real PostgreSQL for tests, run by ingestd's own embedded mode.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, OnceLock};

use ingestd::limits::POSTGRES_MAJOR_RECOMMENDED;
use ingestd::pg::embedded::{self, Embedded, EmbeddedOptions, Loopback};
use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::measure;

/// How often a start is tried again because another program took the port that was free.
const PORT_TRIES: usize = 5;
/// What the loopback port asks for.
pub const PASSWORD: &str = "test-only";
/// Settings of every test server: parallel tests open many connections, and no test cuts the power (a killed
/// PostgreSQL loses nothing without fsync, because the system keeps its writes).
const SETTINGS: [(&str, &str); 3] = [("max_connections", "300"), ("fsync", "off"), ("shared_buffers", "64MB")];

/// Settings of a test server whose speed is measured: those of the embedded mode again.
pub const AS_EMBEDDED: [(&str, &str); 2] = [("fsync", "on"), ("shared_buffers", "256MB")];

/// The one PostgreSQL that the tests of this process share; started on first use.
pub fn shared() -> &'static TestPostgres {
    static SHARED: OnceLock<TestPostgres> = OnceLock::new();
    SHARED.get_or_init(|| TestPostgres::start_private(&[]))
}

/// The server programs that tests use; announced once.
pub fn bin_dir() -> PathBuf {
    static BIN_DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        let explicit = std::env::var_os("INGESTD_PG_BIN").map(PathBuf::from);
        let found = embedded::find_bin_dir(explicit.as_deref(), super::checkout());
        let (bin_dir, version) = found.unwrap_or_else(|error| panic!("{error}"));
        super::announce(&format!("tests run on PostgreSQL {version} ({})", bin_dir.display()));
        if version.major < POSTGRES_MAJOR_RECOMMENDED {
            super::announce(&format!(
                "NOTE: these tests run on PostgreSQL {version}, less than the recommended {POSTGRES_MAJOR_RECOMMENDED}"
            ));
        }
        bin_dir
    });
    BIN_DIR.clone()
}

/// The psql beside the server's programs, or else an installed one.
pub fn psql() -> PathBuf {
    let beside = bin_dir().join("psql");
    if beside.exists() { beside } else { Path::new("psql").to_path_buf() }
}

/// A PostgreSQL with a socket and a port on 127.0.0.1, which stays the same over restarts.
#[derive(Debug)]
pub struct TestPostgres {
    // Dropped first: PostgreSQL ends before its folder goes.
    running: Option<Embedded>,
    options: EmbeddedOptions,
    port: u16,
    folder: TempDir,
}

impl TestPostgres {
    /// A PostgreSQL for one test, which may stop, kill and pause it. `settings` are PostgreSQL's own and win.
    pub fn start_private(settings: &[(&str, &str)]) -> Self {
        let folder = super::folder();
        let data = folder.path().join("postgres");
        Self::start_on(folder, data, settings)
    }

    /// As [`Self::start_private`], of the programs in `bin_dir`.
    pub fn start_private_of(bin_dir: &Path, settings: &[(&str, &str)]) -> Self {
        let folder = super::folder();
        let data = folder.path().join("postgres");
        Self::start_by(bin_dir.to_owned(), folder, data, settings)
    }

    /// As [`Self::start_private`], with its data below `place`.
    pub fn start_private_in(place: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_on(super::folder(), place.join("postgres"), settings)
    }

    fn start_on(folder: TempDir, data: PathBuf, settings: &[(&str, &str)]) -> Self {
        Self::start_by(bin_dir(), folder, data, settings)
    }

    fn start_by(bin_dir: PathBuf, folder: TempDir, data: PathBuf, settings: &[(&str, &str)]) -> Self {
        let mut options = EmbeddedOptions::new(data);
        options.bin_dir = Some(bin_dir);
        let all = SETTINGS.iter().chain(settings);
        options.settings = all.map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let mut last_error = None;
        for _ in 0..PORT_TRIES {
            let port = super::free_port();
            options.loopback = Some(Loopback { port, password: PASSWORD.into() });
            match Embedded::start(&options) {
                Ok(running) => return Self { running: Some(running), options, port, folder },
                Err(error) => last_error = Some(error),
            }
        }
        panic!("no PostgreSQL for tests: {}", last_error.map(|error| error.to_string()).unwrap_or_default());
    }

    /// Ends PostgreSQL in good order; it stays down until [`Self::start`].
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().expect("PostgreSQL stops");
        }
    }

    /// Kills PostgreSQL with -9; it stays down until [`Self::start`].
    pub fn kill9(&mut self) {
        if let Some(running) = self.running.take() {
            running.crash().expect("PostgreSQL dies");
        }
    }

    /// Starts PostgreSQL again on the same data and port.
    pub fn start(&mut self) {
        if self.running.is_none() {
            self.running = Some(Embedded::start(&self.options).expect("PostgreSQL starts again"));
        }
    }

    /// Freezes PostgreSQL and its sessions: connections stay open, nothing answers, until the value is dropped.
    pub fn pause(&self) -> Paused<'_> {
        self.signal_all(Signal::STOP);
        Paused { postgres: self }
    }

    /// CPU seconds that it has used since it was started, all of its processes together.
    pub fn cpu_seconds(&self) -> f64 {
        self.processes().into_iter().map(measure::cpu_seconds).sum()
    }

    /// The running server.
    pub fn embedded(&self) -> &Embedded {
        self.running.as_ref().expect("PostgreSQL was stopped by this test")
    }

    /// The port on 127.0.0.1, for a proxy to forward to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A URL through the port, of the server's own database or of `database`.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://ingestd:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// A fresh, empty database, dropped with the value.
    pub fn create_database(&self) -> TestDatabase {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        // The number only has to differ; it orders nothing.
        let name = format!("test_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let server_url = self.embedded().url(None);
        connect(&server_url).batch_execute(&format!("CREATE DATABASE {name}")).expect("a database for a test");
        let socket_url = self.embedded().url(Some(&name));
        TestDatabase { url: self.url(&name), socket_url, name, server_urls: vec![server_url] }
    }

    /// The postmaster first: once it stands still it starts no process that this would miss.
    fn signal_all(&self, signal: Signal) {
        let send = |pid: u32| {
            let pid = Pid::from_raw(pid.cast_signed()).expect("a process number");
            // A session may just have ended.
            let _ = kill_process(pid, signal);
        };
        let postmaster = self.embedded().pid().expect("PostgreSQL runs");
        send(postmaster);
        if signal == Signal::STOP {
            let stands = || {
                let stat = std::fs::read_to_string(format!("/proc/{postmaster}/stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            };
            super::wait_until("the postmaster stands still", super::WAIT_MAX, stands);
        }
        self.processes().into_iter().skip(1).for_each(send);
    }

    /// Postmaster first.
    fn processes(&self) -> Vec<u32> {
        let postmaster = self.embedded().pid().expect("PostgreSQL runs");
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        let children = children.unwrap_or_default();
        std::iter::once(postmaster).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }
}

/// A PostgreSQL that is frozen; dropping this lets it go on. Declared after a [`TestDatabase`], it is dropped
/// before it: a frozen server drops no database.
#[must_use = "it goes on at once when this is dropped"]
#[derive(Debug)]
pub struct Paused<'a> {
    postgres: &'a TestPostgres,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.postgres.signal_all(Signal::CONT);
    }
}

/// A database of one test.
#[derive(Debug)]
pub struct TestDatabase {
    /// How to reach it through the port, as a user would write `DATABASE_URL`.
    pub url: String,
    /// How to reach it through the socket.
    pub socket_url: String,
    /// Its name.
    pub name: String,
    /// Where it is to be dropped.
    server_urls: Vec<String>,
}

impl TestDatabase {
    /// The database `name` on several servers, reached by `url`.
    pub fn on_servers(name: String, url: String, server_urls: Vec<String>) -> Self {
        Self { socket_url: url.clone(), url, name, server_urls }
    }

    /// [`Self::url`] with another port, such as a proxy's.
    pub fn url_through(&self, port: u16) -> String {
        let (before, after) = self.url.rsplit_once(':').expect("it has a port");
        let (_, name) = after.split_once('/').expect("it has a name");
        format!("{before}:{port}/{name}")
    }

    /// A connection of the test's own.
    pub fn connect(&self) -> Client {
        connect(&self.socket_url)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // The server may be down, which is what some tests are about: then its folder goes anyway.
        for server_url in &self.server_urls {
            if let Ok(mut client) = Client::connect(server_url, NoTls) {
                let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
            }
        }
    }
}

/// Empties ingestd's tables, with nothing of it left for a checkpoint to come.
pub fn empty_tables(client: &mut Client) {
    client.batch_execute("TRUNCATE events, ingest_batches, dead_letter_events").expect("the tables are there");
    client.batch_execute("CHECKPOINT").expect("the user may");
}

/// A connection to `url`; panics when there is none.
pub fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap_or_else(|error| panic!("no connection to {url}: {error}"))
}
