//! What the integration tests share: a real PostgreSQL, a real Redis, the real binary, and bounded waits.
//!
//! Every child ends with the test process, however that ends, and every wait has a bound. Nothing here
//! imitates a server.
// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

pub mod citus;
pub mod clock;
pub mod cluster_database;
pub mod collector;
pub mod contract;
pub mod deployed;
pub mod disk;
pub mod flood;
pub mod histories;
pub mod load;
pub mod measure;
pub mod nginx;
pub mod older_key;
pub mod pgbouncer;
pub mod postgres;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod server;
pub mod syscalls;
pub mod tls;
pub mod urgent;

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ingestd::pg::embedded;
use ingestd::sys::child;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::Signal;
use tempfile::TempDir;

/// How the folders of a test process are called; its process number follows.
const FOLDER_PREFIX: &str = "ingestd-test-";

/// How long anything may take that a test waits for. The one bound of all tests: long enough for a machine that does much
/// else at the same time, so that whatever takes longer counts as what never comes.
pub const WAIT_MAX: Duration = Duration::from_secs(240);
/// Names the file that [`not_run`] adds to.
const NOT_RUN_VARIABLE: &str = "INGESTD_NOT_RUN";

/// Waits until `condition` holds; panics with `what` after `wait_max`.
pub fn wait_until(what: &str, wait_max: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + wait_max;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {wait_max:?} in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Does its work when it goes, whichever way: what has to be told to end before a scope of threads can end.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Spawns `command` so that the child is killed when this process ends, and not earlier: the parent-death
/// signal belongs to the spawning thread, and a test's own thread ends with the test.
pub fn spawn(command: Command) -> io::Result<Child> {
    spawn_to_end_by(command, Signal::KILL)
}

/// The same for a child that must end children of its own: it gets `signal` instead of being killed.
pub fn spawn_to_end_by(mut command: Command, signal: Signal) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        thread::spawn(move || {
            while let Ok((mut command, answer)) = taken.recv() {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    child::end_with_thread(&mut command, signal);
    let (answer, answered) = mpsc::channel();
    SPAWNER.send((command, answer)).map_err(io::Error::other)?;
    answered.recv().map_err(io::Error::other)?
}

/// Builds `tests/support/{name}.c` as a library in `folder`, for a server to be started with (`LD_PRELOAD`).
pub fn build_library(folder: &Path, name: &str) {
    let source = checkout().join("tests/support").join(name).with_extension("c");
    let library = folder.join(name).with_extension("so");
    let mut compiler = std::process::Command::new("cc");
    let built = compiler.args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).args([&library, &source]).output();
    let built = built.expect("a C compiler");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// A fresh folder that is removed when dropped, or by a later test process when this one was killed. The user
/// that PostgreSQL runs as can enter it, also when the tests run as root.
pub fn folder() -> TempDir {
    static BASE: LazyLock<PathBuf> = LazyLock::new(|| {
        let ours = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let base = if embedded::may_hold_data(ours) { ours.to_path_buf() } else { std::env::temp_dir() };
        remove_stale_folders(&base);
        base
    });
    let prefix = format!("{FOLDER_PREFIX}{}-", std::process::id());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(&*BASE).expect("a folder for a test");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    folder
}

/// Removes what test processes left that were killed, unless a PostgreSQL is still ending there.
fn remove_stale_folders(base: &Path) {
    let alive = |number: &str| Path::new("/proc").join(number).exists();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(FOLDER_PREFIX)) else { continue };
        let owner = rest.split('-').next().unwrap_or_default();
        let lock_file = fs::read_to_string(entry.path().join("postgres/postmaster.pid")).unwrap_or_default();
        let in_use = lock_file.lines().next().is_some_and(|number| alive(number.trim()));
        if !owner.is_empty() && !alive(owner) && !in_use {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A port on 127.0.0.1 that was free a moment ago, below those that the system gives to outgoing connections. Another
/// program can still take it first: a test that starts a server on it tries again with another one.
pub fn free_port() -> u16 {
    deployed::lasting_port()
}

/// A port on 127.0.0.1 where nobody listens, and nobody can while the value lives.
#[derive(Debug)]
pub struct ClosedPort(OwnedFd);

impl ClosedPort {
    /// Takes a free port, and never listens on it.
    pub fn take() -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port on 127.0.0.1");
        Self(socket)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        rustix::net::getsockname(&self.0).ok().and_then(|name| name.try_into().ok()).expect("it is bound")
    }
}

/// The checkout, where `deploy/setup.sh` puts what it brings.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A python3 that finds what was brought, and leaves nothing behind but in `folder`.
pub fn python(brought: &Path, folder: &Path) -> Command {
    let mut command = Command::new("python3");
    command.current_dir(folder).stdin(Stdio::null());
    command.env("PYTHONPATH", brought).env("PYTHONNOUSERSITE", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Reports that `test` (or a part of it, by name) was not run for `reason`, which is something that this machine lacks.
/// Says so on stderr, and adds the line `test: reason` to the file that `INGESTD_NOT_RUN` names by its whole path, so
/// that `make test` can end with a list: a test that returned early counts as passed, and nobody reads thousands of lines.
pub fn not_run(test: &str, reason: &str) {
    announce(&format!("NOT RUN: {test}: {reason}"));
    let Some(path) = std::env::var_os(NOT_RUN_VARIABLE).filter(|path| !path.is_empty()) else { return };
    // One write: tests of several processes may add at the same time.
    let added = fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{test}: {reason}\n").as_bytes()));
    added.unwrap_or_else(|error| panic!("{NOT_RUN_VARIABLE}={}: {error}", path.display()));
}

/// Says `line` on stderr also when the test harness captures output.
pub fn announce(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
