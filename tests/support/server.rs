//! The real `ingestd` binary under test, and a small HTTP client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ingestd::sys::child;
use parking_lot::{Condvar, Mutex};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::WAIT_MAX;
use super::postgres::TestDatabase;
use super::redis::TestRedis;

/// The user that owns nothing.
const NOBODY: u32 = 65534;
/// What the server logs once it takes connections; scheme and address follow.
const LISTENING: &str = "listening on ";
/// What a server under test inherits; the settings of whoever runs the tests are not among it.
const INHERITED: [&str; 6] = ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE", "RUST_BACKTRACE"];

/// What a server under test is started with.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    settings: BTreeMap<String, String>,
    arguments: Vec<String>,
    open_files: Option<u64>,
}

impl Builder {
    /// Sets the variable `name`, over the defaults too.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.insert(name.into(), value.to_string());
        self
    }

    /// Uses `database` instead of an embedded one.
    pub fn database(self, database: &TestDatabase) -> Self {
        self.env("DATABASE_URL", &database.url)
    }

    /// Keeps the batches' status in `redis`.
    pub fn redis(self, redis: &TestRedis) -> Self {
        self.env("REDIS_URL", redis.url())
    }

    /// Allows it so many open files, and no more.
    pub fn open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Adds an argument after `serve`.
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts the server; returns when it is ready.
    pub fn start(self) -> Ingestd {
        let folder = super::folder();
        let process = launch(&self, &folder);
        let mut server = Ingestd { process, builder: self, folder };
        server.wait_until_ready();
        server
    }
}

/// One run of the binary.
#[derive(Debug)]
struct Process {
    child: Child,
    log: Arc<Log>,
    scheme: String,
    address: String,
}

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct Ingestd {
    process: Process,
    builder: Builder,
    folder: TempDir,
}

impl Ingestd {
    /// A server with the defaults, in a folder of its own, on a free port.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The URL of `path` (which begins with `/`) on this server.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.process.scheme, self.process.address)
    }

    /// The address that it listens on, `127.0.0.1:PORT`; another one after a restart.
    pub fn address(&self) -> &str {
        &self.process.address
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// The folder that it runs in; the journal is in `journal`, embedded data in `data`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What this run has said so far, stdout and stderr.
    pub fn log(&self) -> String {
        self.process.log.text.lock().clone()
    }

    /// Waits until this run has said `text`.
    pub fn wait_for_log(&self, text: &str, wait_max: Duration) {
        let found = self.process.log.wait_for(wait_max, |log| log.contains(text).then_some(()));
        assert!(found.is_some(), "the server never said {text:?}:\n{}", self.log());
    }

    /// Sends `signal` to the server.
    pub fn signal(&self, signal: Signal) {
        kill_process(child::pid_of(&self.process.child), signal).expect("the server is our child");
    }

    /// Kills the server with -9 and waits for its end.
    pub fn kill9(&mut self) {
        // Both are fine when it has ended already.
        let _ = self.process.child.kill();
        self.process.child.wait().expect("the server is our child");
    }

    /// Asks the server to end (SIGTERM); its exit status. Panics when it takes too long.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_exit(WAIT_MAX)
    }

    /// Waits for the server to end by itself.
    pub fn wait_for_exit(&mut self, wait_max: Duration) -> ExitStatus {
        let status = child::wait_at_most(&mut self.process.child, wait_max).expect("the server is our child");
        status.unwrap_or_else(|| panic!("the server did not end within {wait_max:?}:\n{}", self.log()))
    }

    /// How the server ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.child.try_wait().expect("the server is our child")
    }

    /// Starts the server again in the same folder with the same settings; kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill9();
        self.process = launch(&self.builder, &self.folder);
        self.wait_until_ready();
    }

    /// Starts the server again and returns at once, see [`Self::wait_until_ready`]; kills it first if it runs.
    pub fn begin_restart(&mut self) {
        self.kill9();
        self.process = launch(&self.builder, &self.folder);
    }

    /// Changes a setting for the next [`Self::restart`].
    pub fn set_env(&mut self, name: &str, value: impl ToString) {
        self.builder.settings.insert(name.into(), value.to_string());
    }

    /// Runs the binary with `arguments` and the variables `settings`, until it exits.
    pub fn run_to_exit(arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
        let folder = super::folder();
        Self::run_to_exit_in(folder.path(), arguments, settings)
    }

    /// As [`Self::run_to_exit`], in `folder`.
    pub fn run_to_exit_in(folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
        Self::finish(command(folder), arguments, settings)
    }

    /// As [`Self::run_to_exit`], with so many open files and no more.
    pub fn run_to_exit_with_open_files(limit: u64, arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
        let folder = super::folder();
        Self::finish(command_with_open_files(limit, folder.path()), arguments, settings)
    }

    /// As [`Self::run_to_exit_in`], by a user whom permissions bind: another one when the tests run as root.
    pub fn run_to_exit_unprivileged(folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
        let mut command = command(folder);
        if rustix::process::geteuid().is_root() {
            // The binary may lie where only root may go.
            let copy = folder.join("ingestd-copy");
            std::fs::copy(env!("CARGO_BIN_EXE_ingestd"), &copy).expect("a copy of the binary");
            command = command_of(&copy, folder);
            command.gid(NOBODY).uid(NOBODY);
        }
        Self::finish(command, arguments, settings)
    }

    fn finish(mut command: Command, arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
        command.args(arguments).envs(settings.iter().copied());
        let mut child = super::spawn(command).expect("the binary runs");
        let stdout = read_all(child.stdout.take().expect("it is a pipe"));
        let stderr = read_all(child.stderr.take().expect("it is a pipe"));
        let status = child::wait_at_most(&mut child, WAIT_MAX).expect("it is our child");
        if status.is_none() {
            child.kill().and_then(|()| child.wait()).expect("it is our child");
        }
        let text = |reader: thread::JoinHandle<String>| reader.join().expect("the reader does not panic");
        let (stdout, stderr) = (text(stdout), text(stderr));
        let status = status.unwrap_or_else(|| panic!("ingestd {arguments:?} did not exit:\n{stdout}{stderr}"));
        Finished { code: status.code(), stdout, stderr }
    }

    /// Waits for the address in the log, then for `/readyz`; where that takes HTTPS, the log is enough.
    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            // Short waits, so that a server that ends at once is noticed at once.
            let found = self.process.log.wait_for(Duration::from_millis(50), address_in);
            if let Some((scheme, address)) = found {
                self.process.scheme = scheme;
                self.process.address = address;
                break;
            }
            self.assert_alive(deadline, "listening");
        }
        let ready = self.url("/readyz");
        while self.process.scheme == "http" && try_get(&ready).is_none_or(|reply| reply.status != 200) {
            self.assert_alive(deadline, "ready");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn assert_alive(&mut self, deadline: Instant, goal: &str) {
        let ended = self.process.child.try_wait().expect("the server is our child");
        assert!(ended.is_none(), "the server ended ({ended:?}) before it was {goal}:\n{}", self.log());
        assert!(Instant::now() < deadline, "the server was not {goal} within {WAIT_MAX:?}:\n{}", self.log());
    }
}

impl Drop for Ingestd {
    fn drop(&mut self) {
        self.kill9();
        if thread::panicking() {
            eprintln!("--- log of the server ---\n{}", self.log());
        }
    }
}

/// A command that has exited.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// The binary, in `folder`, with nothing of the caller's settings, its output in pipes.
fn command(folder: &Path) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_ingestd")), folder)
}

fn command_of(binary: &Path, folder: &Path) -> Command {
    prepared(Command::new(binary), folder)
}

/// The same with so many open files and no more; a shell sets that and becomes the binary.
fn command_with_open_files(limit: u64, folder: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_ingestd"));
    prepared(shell, folder)
}

fn prepared(mut command: Command, folder: &Path) -> Command {
    command.current_dir(folder).env_clear();
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.env("INGESTD_PG_BIN", super::postgres::bin_dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn launch(builder: &Builder, folder: &TempDir) -> Process {
    let mut command = match builder.open_files {
        Some(limit) => command_with_open_files(limit, folder.path()),
        None => command(folder.path()),
    };
    command.arg("serve").args(&builder.arguments);
    command.env("LISTEN_ADDR", "127.0.0.1:0").env("JOURNAL_DIR", folder.path().join("journal"));
    command.envs(&builder.settings);
    let mut child = super::spawn(command).expect("the binary runs");
    let log = Arc::new(Log::default());
    Log::follow(&log, child.stdout.take().expect("it is a pipe"));
    Log::follow(&log, child.stderr.take().expect("it is a pipe"));
    Process { child, log, scheme: String::new(), address: String::new() }
}

/// What a server says, line by line.
#[derive(Debug, Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

impl Log {
    /// Reads `output` to its end on a thread, which a full pipe would otherwise hold up the server for.
    fn follow(log: &Arc<Self>, output: impl Read + Send + 'static) {
        let log = Arc::clone(log);
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                log.text.lock().push_str(&String::from_utf8_lossy(&line));
                log.grown.notify_all();
                line.clear();
            }
        });
    }

    /// Waits until `look` finds something in the text.
    fn wait_for<T>(&self, wait_max: Duration, look: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + wait_max;
        let mut text = self.text.lock();
        loop {
            if let Some(found) = look(&text) {
                return Some(found);
            }
            if self.grown.wait_until(&mut text, deadline).timed_out() {
                return look(&text);
            }
        }
    }
}

/// Scheme and address after [`LISTENING`], once all of the line is there.
fn address_in(log: &str) -> Option<(String, String)> {
    let line = log.split_inclusive('\n').find(|line| line.contains(LISTENING)).filter(|line| line.ends_with('\n'))?;
    let (scheme, rest) = line.split_once(LISTENING)?.1.split_once("://")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).unwrap_or(rest.len());
    Some((scheme.to_string(), rest[..end].to_string()))
}

fn read_all(mut output: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before a broken pipe is still worth showing.
        let _ = output.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

// --- HTTP ---

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: ureq::http::HeaderMap,
    /// All of the body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as JSON; panics with the body when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The header `name`, `""` when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// GET `url`; panics when there is no answer.
pub fn get(url: &str) -> Reply {
    get_with(url, &[])
}

/// GET `url` with headers.
pub fn get_with(url: &str, headers: &[(&str, &str)]) -> Reply {
    try_get_with(url, headers).unwrap_or_else(|error| panic!("GET {url}: {error}"))
}

/// GET `url`; `None` when there is no answer, as from a server that is down.
pub fn try_get(url: &str) -> Option<Reply> {
    try_get_with(url, &[]).ok()
}

/// POST `body` as JSON; panics when there is no answer.
pub fn post_json(url: &str, body: &Value) -> Reply {
    post(url, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

/// POST `body` with headers; panics when there is no answer.
pub fn post(url: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    try_post(url, headers, body).unwrap_or_else(|error| panic!("POST {url}: {error}"))
}

/// POST `body` with headers; an error when the connection fails, as on a server that is killed meanwhile.
pub fn try_post(url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, ureq::Error> {
    let mut request = agent().post(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    reply(request.send(body)?)
}

fn try_get_with(url: &str, headers: &[(&str, &str)]) -> Result<Reply, ureq::Error> {
    let mut request = agent().get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    reply(request.call()?)
}

/// One client a thread keeps connections apart and alive. It takes every status for an answer and uses no proxy.
fn agent() -> ureq::Agent {
    thread_local! {
        static AGENT: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(WAIT_MAX))
            .proxy(None)
            .build()
            .into();
    }
    AGENT.with(Clone::clone)
}

fn reply(response: ureq::http::Response<ureq::Body>) -> Result<Reply, ureq::Error> {
    let (parts, mut body) = response.into_parts();
    let body = body.with_config().limit(u64::MAX).read_to_vec()?;
    Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
}
