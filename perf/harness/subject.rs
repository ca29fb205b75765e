//! Servers under load: ingestd, and another that serves the same API.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ingestd::sys::child;
use rustix::process::Signal;
use serde_json::Value;

use crate::Failure;
use crate::database::with_host_parameter;

const START_WAIT_MAX: Duration = Duration::from_secs(120);
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(180);
const DRAIN_POLL: Duration = Duration::from_millis(100);
const STOP_WAIT_MAX: Duration = Duration::from_secs(60);

/// A server that can be measured.
pub trait Subject {
    /// How the table calls it.
    fn name(&self) -> String;
    /// The database that it uses.
    fn database(&self) -> &'static str;
    /// The query of its requests.
    fn query(&self) -> String;
    /// Starts it on `database_url` and waits until it is healthy.
    fn start(&self, database_url: &str) -> Result<Running, Failure>;
}

/// Events so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Taken.
    pub accepted: u64,
    /// Of these, in the table.
    pub committed: u64,
}

/// A server that runs.
pub struct Running {
    child: Child,
    others: Vec<Child>,
    url: String,
    metrics: String,
    counts: fn(&Value) -> Option<Counts>,
    batch_ms: fn(&Value) -> Option<[f64; 3]>,
}

impl Running {
    /// All that it tells of itself.
    pub fn metrics(&self) -> Result<Value, Failure> {
        let text = ureq::get(&self.metrics).call()?.body_mut().read_to_string()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its counts now.
    pub fn counts(&self) -> Result<Counts, Failure> {
        let metrics = self.metrics()?;
        (self.counts)(&metrics).ok_or_else(|| format!("no counts in {metrics}").into())
    }

    /// P50, P95 and P99 from accepted to committed.
    pub fn batch_ms(&self) -> Result<Option<[f64; 3]>, Failure> {
        Ok((self.batch_ms)(&self.metrics()?))
    }

    /// Waits until everything that was accepted is committed, and shows the counts meanwhile.
    pub fn drain(&self, mut seen: impl FnMut(Counts)) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let counts = self.counts()?;
            seen(counts);
            if counts.committed == counts.accepted {
                return Ok(());
            }
            if begun.elapsed() > DRAIN_WAIT_MAX {
                return Err(format!("{} of {} events are committed", counts.committed, counts.accepted).into());
            }
            std::thread::sleep(DRAIN_POLL);
        }
    }

    /// Ends it, and what it needed.
    pub fn stop(mut self) -> Result<(), Failure> {
        terminate(&mut self.child)?;
        self.others.iter_mut().try_for_each(terminate)
    }

    fn wait_until_healthy(self, log: &Path) -> Result<Self, Failure> {
        let begun = Instant::now();
        let health = format!("{}/v1/health", self.url);
        while ureq::get(&health).call().is_err() {
            if begun.elapsed() > START_WAIT_MAX {
                return Err(format!("no answer from {health}: see {}", log.display()).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(self)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in std::iter::once(&mut self.child).chain(&mut self.others) {
            if child.try_wait().is_ok_and(|status| status.is_none()) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Asks `child` to end and waits until it has; fine when it has ended already.
pub fn terminate(child: &mut Child) -> Result<(), Failure> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, Signal::TERM)?;
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > STOP_WAIT_MAX {
            return Err(format!("process {} does not end", child.id()).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn quantiles(of: &Value) -> Option<[f64; 3]> {
    let at = |name: &str| of[name].as_f64();
    Some([at("p50")?, at("p95")?, at("p99")?])
}

/// ingestd at one ack level.
pub struct Ingestd {
    program: PathBuf,
    folder: PathBuf,
    ack: &'static str,
    settings: Vec<(&'static str, &'static str)>,
}

impl Ingestd {
    /// `program` with its journal under `folder`.
    pub fn new(program: &Path, folder: &Path, ack: &'static str) -> Self {
        Self { program: program.to_owned(), folder: folder.to_owned(), ack, settings: Vec::new() }
    }

    /// The same with one more setting.
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.settings.push((name, value));
        self
    }
}

impl Subject for Ingestd {
    fn name(&self) -> String {
        format!("ingestd, ack={}", self.ack)
    }

    fn database(&self) -> &'static str {
        "ingestd"
    }

    fn query(&self) -> String {
        format!("ack={}", self.ack)
    }

    fn start(&self, database_url: &str) -> Result<Running, Failure> {
        let (port, journal) = (free_port()?, self.folder.join("journal"));
        if journal.exists() {
            std::fs::remove_dir_all(&journal)?;
        }
        let log = self.folder.join("ingestd.log");
        let mut command = Command::new(&self.program);
        // Only the main thread starts servers: it lives as long as the program.
        child::end_with_thread(&mut command, Signal::TERM);
        let child = command
            .arg("serve")
            .env("LISTEN_ADDR", format!("127.0.0.1:{port}"))
            .env("JOURNAL_DIR", &journal)
            .env("DATABASE_URL", database_url)
            .envs(self.settings.iter().copied())
            .stderr(File::create(&log)?)
            .spawn()?;
        let url = format!("http://127.0.0.1:{port}");
        let counts = |metrics: &Value| {
            let events = &metrics["events"];
            Some(Counts { accepted: events["accepted"].as_u64()?, committed: events["committed"].as_u64()? })
        };
        let metrics = format!("{url}/v1/metrics?format=json");
        let batch_ms = |metrics: &Value| quantiles(&metrics["latency_ms"]["batch"]);
        Running { child, others: Vec::new(), url, metrics, counts, batch_ms }.wait_until_healthy(&log)
    }
}

/// A server with the same API in the folder `BASELINE`: `run.sh` there starts it on `PORT` with `DATABASE_URL`,
/// `REDIS_URL` and `ACK`.
pub struct Baseline {
    baseline: PathBuf,
    folder: PathBuf,
}

impl Baseline {
    /// The baseline in `baseline`, with its log under `folder`.
    pub fn new(baseline: &Path, folder: &Path) -> Self {
        Self { baseline: baseline.to_owned(), folder: folder.to_owned() }
    }
}

impl Subject for Baseline {
    fn name(&self) -> String {
        "baseline, ack=commit".to_owned()
    }

    fn database(&self) -> &'static str {
        "baseline"
    }

    fn query(&self) -> String {
        String::new()
    }

    fn start(&self, database_url: &str) -> Result<Running, Failure> {
        let (port, redis_port) = (free_port()?, free_port()?);
        let redis = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &redis_port.to_string()])
            .current_dir(&self.folder)
            .stdout(Stdio::null())
            .spawn()?;
        let log = self.folder.join("baseline.log");
        let child = Command::new(self.baseline.join("run.sh"))
            .env("DATABASE_URL", with_host_parameter(database_url)?)
            .env("REDIS_URL", format!("redis://127.0.0.1:{redis_port}/0"))
            .env("PORT", port.to_string())
            .env("ACK", "commit")
            .stderr(File::create(&log)?)
            .spawn()?;
        let url = format!("http://127.0.0.1:{port}");
        let counts = |metrics: &Value| {
            let count = |name: &str| metrics[name].as_u64();
            // Without a load there are no counts yet.
            let done = count("events_committed")? + count("events_duplicate")? + count("events_failed")?;
            Some(Counts { accepted: count("events_accepted")?, committed: done })
        };
        let metrics = format!("{url}/v1/metrics");
        let batch_ms = |metrics: &Value| quantiles(&metrics["this_worker"]["batch_latency_ms"]);
        Running { child, others: vec![redis], url, metrics, counts, batch_ms }.wait_until_healthy(&log)
    }
}
