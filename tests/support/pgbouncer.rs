//! A real PgBouncer between ingestd and PostgreSQL.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use postgres::{Client, Config, NoTls};
use tempfile::TempDir;

use super::postgres::{TestDatabase, TestPostgres};

/// How often a start is tried again because another program took the port that was free.
const PORT_TRIES: usize = 5;
/// PgBouncer refuses to run as root, and becomes this user then.
const USER: &str = "nobody";

/// A running PgBouncer, killed when dropped.
pub struct PgBouncer {
    child: Child,
    program: PathBuf,
    folder: TempDir,
    port: u16,
}

impl PgBouncer {
    /// One before `postgres`, with `settings` over these: transaction mode, three backends a database. `None`, and said, on
    /// machines that have none.
    pub fn start(postgres: &TestPostgres, settings: &[(&str, &str)]) -> Option<Self> {
        let Some(program) = program() else {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            super::not_run(
                &format!("pgbouncer::{test}"),
                "there is no pgbouncer here, and the setup could not bring it",
            );
            return None;
        };
        let started = (0..PORT_TRIES).find_map(|_| Self::start_on(&program, super::free_port(), postgres, settings));
        Some(started.expect("PgBouncer starts on one of the ports that were free"))
    }

    /// `None` when it ends instead, as on a port that another program has taken.
    fn start_on(program: &Path, port: u16, postgres: &TestPostgres, settings: &[(&str, &str)]) -> Option<Self> {
        let folder = super::folder();
        let config: Config = postgres.url("postgres").parse().expect("a URL");
        let password = String::from_utf8_lossy(config.get_password().expect("a password")).into_owned();
        let server = postgres.port();
        let mut text = format!(
            "[databases]\n* = host=127.0.0.1 port={server} user=ingestd password={password}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\nserver_login_retry = 1\n"
        );
        if rustix::process::geteuid().is_root() {
            text += &format!("user = {USER}\n");
        }
        for (name, value) in settings {
            text += &format!("{name} = {value}\n"); // the last one counts
        }
        let file = folder.path().join("pgbouncer.ini");
        fs::File::create(&file).and_then(|mut out| out.write_all(text.as_bytes())).expect("ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("ours");
        let child = launch(program, &folder);
        let mut bouncer = Self { child, program: program.to_owned(), folder, port };
        bouncer.is_listening().then_some(bouncer)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `database` by way of this.
    pub fn url(&self, database: &TestDatabase) -> String {
        database.url_through(self.port)
    }

    /// A session of the test's own by way of this, which looks like one of ingestd's to PostgreSQL.
    pub fn connect(&self, database: &TestDatabase) -> Client {
        let url = format!("{}?application_name=ingestd", self.url(database));
        Client::connect(&url, NoTls).unwrap_or_else(|error| panic!("no connection to {url}: {error}"))
    }

    /// Kills it with -9.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("it is our child");
    }

    /// Starts it again on the same port.
    pub fn restart(&mut self) {
        self.kill9();
        self.child = launch(&self.program, &self.folder);
        assert!(self.is_listening(), "PgBouncer ended, see {}", self.folder.path().join("log").display());
    }

    /// Waits until it listens; false when it ends instead.
    fn is_listening(&mut self) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let (log, mut has_ended) = (self.folder.path().join("log"), false);
        super::wait_until(&format!("PgBouncer listens, see {}", log.display()), super::WAIT_MAX, || {
            has_ended = self.child.try_wait().expect("it is our child").is_some();
            has_ended || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        });
        !has_ended
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The program: the machine's, or the one that `deploy/setup.sh` has unpacked.
fn program() -> Option<PathBuf> {
    let brought = super::checkout().join(".setup/pgbouncer/usr/sbin");
    static ANNOUNCED: Once = Once::new();
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&folders).chain([PathBuf::from("/usr/sbin"), brought]);
    let (program, version) = folders
        .map(|folder| folder.join("pgbouncer"))
        .find_map(|program| Some((program.clone(), version(&program)?)))?;
    ANNOUNCED.call_once(|| super::announce(&format!("tests run on {version} ({})", program.display())));
    Some(program)
}

fn version(program: &Path) -> Option<String> {
    let output = command(program).arg("--version").output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

/// Finds the libraries that were unpacked beside it.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(root) = program.ancestors().nth(3).filter(|root| root.ends_with(".setup/pgbouncer")) {
        let libraries = fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten().map(|entry| entry.path());
        command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("plain paths"));
    }
    command
}

fn launch(program: &Path, folder: &TempDir) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.path().join("log")).expect("ours");
    let mut command = command(program);
    command.current_dir("/").arg(folder.path().join("pgbouncer.ini")).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a handle")).stderr(log);
    super::spawn(command).expect("PgBouncer runs")
}
