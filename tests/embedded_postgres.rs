//! Promise: without `DATABASE_URL` there is a PostgreSQL that starts, keeps its data, heals, and ends with ingestd.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use ingestd::pg::embedded::{Embedded, EmbeddedError, EmbeddedOptions, Loopback};
use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};
use support::{WAIT_MAX, wait_until};

/// Tells [`holds_postgresql_until_killed`] which data folder to run on.
const HOLD_VARIABLE: &str = "INGESTD_TEST_HOLD";

fn options(data_dir: &Path) -> EmbeddedOptions {
    let mut options = EmbeddedOptions::new(data_dir);
    options.bin_dir = Some(support::postgres::bin_dir());
    options
}

fn start(data_dir: &Path) -> Embedded {
    Embedded::start(&options(data_dir)).unwrap_or_else(|error| panic!("{error}"))
}

fn start_fails(options: &EmbeddedOptions) -> EmbeddedError {
    let error = Embedded::start(options).expect_err("this start cannot work");
    assert!(!error.to_string().contains('\n'), "an error is one line: {error}");
    error
}

fn connect(embedded: &Embedded) -> Client {
    embedded.config().connect(NoTls).expect("it takes connections")
}

fn show(client: &mut Client, setting: &str) -> String {
    client.query_one(&format!("SHOW {setting}"), &[]).expect("a setting").get(0)
}

/// False for a zombie too, which is what an orphan becomes where process 1 does not reap.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn kill9(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process number");
    kill_process(pid, Signal::KILL).expect("it runs");
}

#[test]
fn the_first_start_makes_a_database_with_the_documented_settings() {
    let folder = support::folder();
    let data_dir = folder.path().join("with 'quotes', and spaces/postgres");
    let embedded = start(&data_dir);
    let mut client = connect(&embedded);
    let expected = [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("TimeZone", "UTC"),
        ("shared_buffers", "256MB"),
        ("max_wal_size", "4GB"),
        ("wal_buffers", "16MB"),
        ("effective_io_concurrency", "200"),
    ];
    for (setting, value) in expected {
        assert_eq!(show(&mut client, setting), value, "{setting}");
    }
    let major = embedded.version().major;
    assert!(show(&mut client, "server_version").starts_with(&major.to_string()));
    let mode = fs::metadata(embedded.data_dir()).expect("it is there").mode();
    assert_eq!(mode & 0o077, 0, "only PostgreSQL's user may enter the data and the socket's folder");
    let owner = fs::metadata(format!("/proc/{}", embedded.pid().expect("it runs"))).expect("it runs").uid();
    assert_ne!(owner, 0, "PostgreSQL does not run as root");
    embedded.stop().expect("it stops");
}

#[test]
fn the_psql_line_can_be_pasted_and_the_url_works() {
    let folder = support::folder();
    let embedded = start(&folder.path().join("it's here/postgres"));
    let line = format!("{} -XAtc 'SELECT current_database()'", embedded.psql_command());
    let output = Command::new("sh").args(["-c", &line]).env("PGPORT", "1").output().expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ingestd", "{line}: {output:?}");
    let mut client = Client::connect(&embedded.url(Some("postgres")), NoTls).expect("the URL works");
    let name: String = client.query_one("SELECT current_database()::text", &[]).expect("a row").get(0);
    assert_eq!(name, "postgres");
}

#[test]
fn data_are_kept_over_a_stop_and_gone_with_their_folder() {
    let folder = support::folder();
    let data_dir = folder.path().join("data/postgres");
    let embedded = start(&data_dir);
    let pid = embedded.pid().expect("it runs");
    connect(&embedded).batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").expect("a table");
    embedded.stop().expect("it stops");
    assert!(!runs(pid), "nothing runs after a stop");

    let embedded = start(&data_dir);
    let kept: i32 = connect(&embedded).query_one("SELECT n FROM kept", &[]).expect("still there").get(0);
    assert_eq!(kept, 7);
    embedded.stop().expect("it stops");

    fs::remove_dir_all(folder.path().join("data")).expect("ours");
    let embedded = start(&data_dir);
    assert!(connect(&embedded).query("SELECT n FROM kept", &[]).is_err(), "a fresh start");
}

#[test]
fn a_killed_postgresql_is_started_again_with_what_it_had_committed() {
    let folder = support::folder();
    let embedded = start(&folder.path().join("postgres"));
    let mut client = connect(&embedded);
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").expect("a table");
    let first = embedded.pid().expect("it runs");
    kill9(first);
    wait_until("another postmaster", WAIT_MAX, || embedded.pid().is_some_and(|pid| pid != first));
    let mut config = embedded.config();
    config.connect_timeout(WAIT_MAX);
    wait_until("connections", WAIT_MAX, || {
        let row = config.connect(NoTls).and_then(|mut client| client.query_one("SELECT n FROM kept", &[]));
        row.is_ok_and(|row| row.get::<_, i32>(0) == 7)
    });
    embedded.stop().expect("it stops");
}

#[test]
fn one_data_folder_has_one_ingestd() {
    let folder = support::folder();
    let data_dir = folder.path().join("postgres");
    let embedded = start(&data_dir);
    let error = start_fails(&options(&data_dir));
    assert!(matches!(error, EmbeddedError::InUse { .. }), "{error}");
    assert!(connect(&embedded).query_one("SELECT 1", &[]).is_ok(), "the first one was not disturbed");
    assert!(embedded.is_running());
}

#[test]
#[ignore = "a part of `postgresql_ends_when_ingestd_is_killed_and_the_next_start_waits_for_it`"]
fn holds_postgresql_until_killed() {
    let Some(data_dir) = std::env::var_os(HOLD_VARIABLE) else { return };
    let embedded = start(Path::new(&data_dir));
    let mut client = connect(&embedded);
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").expect("a table");
    let pid_file = Path::new(&data_dir).with_extension("pid");
    fs::write(pid_file.with_extension("fresh"), embedded.pid().expect("it runs").to_string()).expect("ours");
    fs::rename(pid_file.with_extension("fresh"), &pid_file).expect("ours");
    // Also a session that is busy when the end comes.
    let _ = client.batch_execute("SELECT pg_sleep(600)");
}

#[test]
fn postgresql_ends_when_ingestd_is_killed_and_the_next_start_waits_for_it() {
    let folder = support::folder();
    let data_dir = folder.path().join("postgres");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "holds_postgresql_until_killed", "--ignored"]).env(HOLD_VARIABLE, &data_dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut holder = support::spawn(command).expect("this program runs");
    let pid_file = data_dir.with_extension("pid");
    wait_until("PostgreSQL of the other process", WAIT_MAX, || {
        assert_eq!(holder.try_wait().expect("our child"), None, "it ended too early");
        pid_file.exists()
    });
    let pid = fs::read_to_string(&pid_file).expect("written").parse().expect("a number");
    assert!(runs(pid));
    holder.kill().and_then(|()| holder.wait()).expect("our child");

    // At once: the old PostgreSQL may still be busy ending.
    let embedded = start(&data_dir);
    assert!(!runs(pid), "the orphan has ended");
    let kept: i32 = connect(&embedded).query_one("SELECT n FROM kept", &[]).expect("still there").get(0);
    assert_eq!(kept, 7);
}

#[test]
fn stale_lock_files_do_not_stop_a_start() {
    let folder = support::folder();
    let data_dir = folder.path().join("postgres");
    start(&data_dir).stop().expect("it stops");
    let lock_file = data_dir.join("postmaster.pid");

    let mut ended = Command::new("true").spawn().expect("it runs");
    ended.wait().expect("our child");
    fs::write(&lock_file, format!("{}\n{}\n", ended.id(), data_dir.display())).expect("ours");
    start(&data_dir).stop().expect("it stops");

    let mut other = Command::new("sleep").arg("600").spawn().expect("it runs");
    fs::write(&lock_file, format!("{}\n{}\n", other.id(), data_dir.display())).expect("ours");
    start(&data_dir).stop().expect("it stops");
    assert_eq!(other.try_wait().expect("our child"), None, "the other program was not touched");
    other.kill().and_then(|()| other.wait()).expect("our child");
}

#[test]
fn an_interrupted_initdb_is_done_again() {
    let folder = support::folder();
    let data_dir = folder.path().join("postgres");
    let partial = folder.path().join("postgres.partial");
    fs::create_dir_all(partial.join("base")).expect("ours");
    fs::write(partial.join("PG_VERSION"), "18\n").expect("ours");
    start(&data_dir).stop().expect("it stops");
    assert!(!partial.exists());
}

#[test]
fn a_folder_with_something_else_in_it_is_left_alone() {
    let folder = support::folder();
    let data_dir = folder.path().join("postgres");
    fs::create_dir(&data_dir).expect("ours");
    fs::write(data_dir.join("precious"), "precious").expect("ours");
    let error = start_fails(&options(&data_dir));
    assert!(matches!(error, EmbeddedError::NotData { .. }), "{error}");
    assert_eq!(fs::read_dir(&data_dir).expect("still there").count(), 1);
}

#[test]
fn data_of_another_major_version_are_refused_with_both_named() {
    let folder = support::folder();
    let data_dir = folder.path().join("postgres");
    fs::create_dir_all(data_dir.join("global")).expect("ours");
    fs::write(data_dir.join("PG_VERSION"), "9\n").expect("ours");
    fs::write(data_dir.join("global/pg_control"), "").expect("ours");
    let error = start_fails(&options(&data_dir));
    assert!(matches!(error, EmbeddedError::OtherMajor { data: 9, .. }), "{error}");
}

#[test]
fn a_failed_start_quotes_what_postgresql_said() {
    let folder = support::folder();
    let mut options = options(&folder.path().join("postgres"));
    options.settings.push(("shared_buffers".into(), "enormous".into()));
    let error = start_fails(&options).to_string();
    assert!(error.contains("shared_buffers") || error.contains("configuration file"), "{error}");
    assert!(error.contains("postgres.log"), "{error}");
    options.settings.clear();
    Embedded::start(&options).expect("the data are as good as new");
}

#[test]
fn the_loopback_port_asks_for_the_password() {
    let folder = support::folder();
    let mut options = options(&folder.path().join("postgres"));
    // Another program may take the port that was free.
    let start = || {
        let port = support::free_port();
        options.loopback = Some(Loopback { port, password: "it's secret".into() });
        Embedded::start(&options).map(|embedded| (embedded, port))
    };
    let mut started = std::iter::repeat_with(start).take(5);
    let (_embedded, port) = started.find_map(Result::ok).expect("it starts on one of five ports");
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(port).user("ingestd").dbname("ingestd").password("wrong");
    let refused = config.connect(NoTls).err().expect("a wrong password");
    assert_eq!(refused.code().map(|state| state.code()), Some("28P01"), "{refused}");
    config.password("it's secret").connect(NoTls).expect("the right password");
}

#[test]
fn a_checkout_that_only_root_may_enter_works_all_the_same() {
    if !rustix::process::geteuid().is_root() {
        let test = "embedded_postgres::a_checkout_that_only_root_may_enter_works_all_the_same";
        support::not_run(test, "only root meets directories that the PostgreSQL user cannot access");
        return;
    }
    let folder = support::folder();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).expect("ours");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("ours");
    let mut options = options(&closed.join("data/postgres"));
    options.bin_dir = Some(server_within(&closed));
    let copies_before = entries("/var/lib/ingestd");

    let embedded = Embedded::start(&options).unwrap_or_else(|error| panic!("{error}"));
    connect(&embedded).batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").expect("a table");
    let home = embedded.data_dir().parent().expect("it has one").to_path_buf();
    assert!(
        home.starts_with("/var/lib/ingestd") && fs::symlink_metadata(&options.data_dir).expect("a link").is_symlink()
    );
    assert!(!embedded.bin_dir().starts_with(&closed), "{}", embedded.bin_dir().display());
    embedded.stop().expect("it stops");

    let embedded = Embedded::start(&options).unwrap_or_else(|error| panic!("{error}"));
    let kept: i32 = connect(&embedded).query_one("SELECT n FROM kept", &[]).expect("still there").get(0);
    assert_eq!(kept, 7);
    embedded.stop().expect("it stops");

    fs::remove_dir_all(closed.join("data")).expect("ours");
    let embedded = Embedded::start(&options).unwrap_or_else(|error| panic!("{error}"));
    assert!(connect(&embedded).query("SELECT n FROM kept", &[]).is_err(), "removing data/ means a fresh start");
    embedded.stop().expect("it stops");
    for entry in entries("/var/lib/ingestd").into_iter().filter(|entry| !copies_before.contains(entry)) {
        fs::remove_dir_all(entry).expect("made by this test");
    }
    assert!(!home.exists());
    // Only when it is empty, that is, when nobody else uses it.
    let _ = fs::remove_dir("/var/lib/ingestd");
}

/// The server that tests use, copied into `closed` when it can be (an installed one cannot, and need not).
fn server_within(closed: &Path) -> std::path::PathBuf {
    let bin_dir = support::postgres::bin_dir();
    let below = Path::new("embedded_postgres/pginstall/bin");
    if !bin_dir.ends_with(below) {
        return bin_dir;
    }
    let top = bin_dir.ancestors().nth(3).expect("it ends with three names");
    let status = Command::new("cp").arg("-R").arg(top).arg(closed.join("server")).status().expect("cp runs");
    assert!(status.success());
    closed.join("server").join(below)
}

fn entries(folder: &str) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
