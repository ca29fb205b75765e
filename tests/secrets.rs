//! Promise: passwords come from files, the environment or flags, and are seen nowhere: not in logs, answers, errors,
//! `print-config`, nor on the command line.

mod support;

use std::fs;
use std::path::Path;

use support::contract::{accept, batch, wait_until_completed};
use support::postgres::{PASSWORD, TestDatabase, shared};
use support::redis::TestRedis;
use support::server::{Builder, Finished, Ingestd, get_with};
use support::{WAIT_MAX, wait_until};

/// What must not be seen.
const SECRET: &str = "Zanzibar-7f3a91";

/// How a URL is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Environment,
    File,
    /// `--database-url URL`.
    Flag,
    /// `--database-url=URL`.
    FlagWithEquals,
}

const ALL: [Given; 4] = [Given::Environment, Given::File, Given::Flag, Given::FlagWithEquals];

/// A role of the test's own whose password is [`SECRET`]; the URL to reach `database` as it. The role goes with the server.
fn url_with_secret(database: &TestDatabase) -> String {
    let role = format!("role_of_{}", database.name);
    let sql = format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{SECRET}'");
    database.connect().batch_execute(&sql).expect("a role");
    database.url.replace(&format!("ingestd:{PASSWORD}@"), &format!("{role}:{SECRET}@"))
}

/// A Redis that asks for [`SECRET`].
fn redis_with_secret() -> (TestRedis, String) {
    let redis = TestRedis::start();
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg("requirepass").arg(SECRET).exec(&mut redis.connect()).expect("Redis answers");
    let url = format!("redis://:{SECRET}@127.0.0.1:{}/", redis.port());
    (redis, url)
}

/// The arguments and variables that give `urls` (by flag's name) in one way. Files are made in `folder`.
fn given(way: Given, folder: &Path, urls: &[(&str, &str)]) -> (Vec<String>, Vec<(String, String)>) {
    let (mut arguments, mut variables) = (Vec::new(), Vec::new());
    for (flag, url) in urls {
        let variable = flag.to_uppercase().replace('-', "_");
        match way {
            Given::Environment => variables.push((variable, (*url).to_owned())),
            Given::File => {
                let path = folder.join(flag);
                fs::write(&path, format!("{url}\n")).expect("the folder is ours");
                variables.push((format!("{variable}_FILE"), path.display().to_string()));
            }
            Given::Flag => arguments.extend([format!("--{flag}"), (*url).to_owned()]),
            Given::FlagWithEquals => arguments.push(format!("--{flag}={url}")),
        }
    }
    (arguments, variables)
}

fn builder(way: Given, folder: &Path, urls: &[(&str, &str)]) -> Builder {
    let (arguments, variables) = given(way, folder, urls);
    let builder = arguments.iter().fold(Ingestd::builder(), |builder, argument| builder.arg(argument));
    variables.iter().fold(builder, |builder, (name, value)| builder.env(name, value))
}

fn run(command: &str, way: Given, urls: &[(&str, &str)]) -> Finished {
    let folder = support::folder();
    let (mut arguments, variables) = given(way, folder.path(), urls);
    arguments.insert(0, command.to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
    Ingestd::run_to_exit_in(folder.path(), &arguments, &variables)
}

fn assert_hidden(place: &str, text: &str) {
    assert!(!text.contains(SECRET), "{place} shows the secret:\n{text}");
}

/// All that another user of the machine, or of the API, gets to see of `server`.
fn assert_hidden_by(server: &Ingestd) {
    let command_line = fs::read(format!("/proc/{}/cmdline", server.pid())).expect("it runs");
    let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
    assert!(command_line.contains("serve"), "{command_line}");
    assert_hidden("the command line", &command_line);
    for path in ["/v1/health", "/v1/metrics", "/v1/metrics?format=json", "/readyz", "/v1/batch/b/status"] {
        let reply = get_with(&server.url(path), &[]);
        assert_hidden(path, &format!("{:?} {}", reply.headers, reply.text()));
    }
    assert_hidden("the log", &server.log());
}

fn health(server: &Ingestd, check: &str) -> String {
    get_with(&server.url("/v1/health"), &[]).json()["checks"][check]["status"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_server_shows_its_passwords_nowhere_however_they_are_given_and_whatever_fails() {
    for way in ALL {
        let (database, folder) = (shared().create_database(), support::folder());
        let (mut redis, redis_url) = redis_with_secret();
        let url = url_with_secret(&database);
        let urls = [("database-url", &*url), ("redis-url", &*redis_url)];
        let server = builder(way, folder.path(), &urls).env("LOG_LEVEL", "trace").start();
        wait_until("Redis works", WAIT_MAX, || health(&server, "redis") == "ok");
        accept(&server, "", &batch("b", 1));
        wait_until_completed(&server, "b");
        assert_hidden_by(&server);
        redis.stop();
        wait_until("Redis fails", WAIT_MAX, || health(&server, "redis") == "failing");
        let role = format!("role_of_{}", database.name);
        let refuse = format!(
            "ALTER ROLE {role} PASSWORD 'another'; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        );
        database.connect().batch_execute(&refuse).expect("changed");
        accept(&server, "", &batch("c", 1));
        wait_until("PostgreSQL refuses the password", WAIT_MAX, || health(&server, "database") != "ok");
        assert_hidden_by(&server);
    }
}

#[test]
fn errors_and_reports_never_show_a_password() {
    let closed = support::ClosedPort::take();
    let right = shared().url("postgres");
    let wrong = right.replace(PASSWORD, SECRET);
    let unreachable = format!("postgresql://u:{SECRET}@{}/d", closed.address());
    let broken = format!("postgresql://u:{SECRET}@:1/d");
    let redis = format!("redis://:{SECRET}@{}/", closed.address());
    for way in ALL {
        for (command, url, code) in [
            ("migrate", &wrong, 2),
            ("migrate", &unreachable, 1),
            ("serve", &wrong, 2),
            ("serve", &broken, 2),
            ("print-config", &wrong, 0),
            ("print-config", &broken, 2),
            ("check-config", &wrong, 0),
        ] {
            let both = [("database-url", &**url), ("redis-url", &*redis)];
            let urls = if command == "migrate" { &both[..1] } else { &both };
            let finished = run(command, way, urls);
            let said = format!("{}{}", finished.stdout, finished.stderr);
            assert_eq!(finished.code, Some(code), "{way:?} {command}: {said}");
            assert_hidden(command, &said);
            if command == "print-config" {
                assert!(said.contains(":***@"), "{said}");
            }
        }
    }
}

#[test]
fn a_flag_that_has_left_the_command_line_is_still_a_flag_that_beats_the_environment() {
    let (flag, variable) = ("redis://:one@flag.example/", "redis://:two@variable.example/");
    let arguments = ["print-config", "--redis-url", flag, "--batch-size", "7"];
    let finished = Ingestd::run_to_exit(&arguments, &[("REDIS_URL", variable), ("BATCH_SIZE", "8")]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let line = |name: &str| finished.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let columns = line("REDIS_URL ");
    assert!(columns.contains("redis://:***@flag.example/") && columns.ends_with("flag"), "{columns}");
    assert!(line("BATCH_SIZE").ends_with("flag") && line("BATCH_SIZE").contains(" 7 "), "{}", finished.stdout);
    // What the command line cannot mean is still told as such.
    let url = format!("postgresql://u:{SECRET}@h/d");
    for arguments in [
        &["serve", "--embedded", "--database-url", &*url][..],
        &["serve", "--database-url", &url, "--database-url", &url],
        &["serve", "--database-url", &url, "--batch-size", "0"],
    ] {
        let finished = Ingestd::run_to_exit(arguments, &[]);
        assert_eq!((finished.code, finished.stderr.lines().count()), (Some(2), 1), "{}", finished.stderr);
        assert_hidden("the refusal", &finished.stderr);
    }
}

#[test]
fn a_file_with_a_url_is_read_without_its_line_break_and_shown_by_its_path() {
    let folder = support::folder();
    let path = folder.path().join("url");
    fs::write(&path, format!("postgresql://u:{SECRET}@db.example/d?sslmode=verify-full\r\n")).expect("ours");
    let path = path.to_str().expect("UTF-8");
    let finished = Ingestd::run_to_exit(&["print-config"], &[("DATABASE_URL_FILE", path)]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let line = |name: &str| {
        let line = finished.stdout.lines().find(|line| line.split(' ').next() == Some(name)).expect("it is printed");
        line.split("  ").map(str::trim).filter(|column| !column.is_empty()).map(Into::into).collect::<Vec<String>>()
    };
    let shown = "postgresql://u:***@db.example/d?sslmode=verify-full";
    assert_eq!(line("DATABASE_URL"), ["DATABASE_URL", shown, &format!("file {path}")]);
    assert_eq!(line("DATABASE_URL_FILE"), ["DATABASE_URL_FILE", path, "environment"]);
    // The embedded database needs no URL, so nobody reads it.
    let variables = [("DATABASE_URL_FILE", "/nowhere")];
    let finished = Ingestd::run_to_exit(&["check-config", "--embedded"], &variables);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stdout.contains("DATABASE_URL_FILE, given by environment, is ignored"), "{}", finished.stdout);
}

#[test]
fn a_file_that_holds_no_url_is_refused_in_one_line_that_does_not_show_it() {
    let folder = support::folder();
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("ours");
        path.to_str().expect("UTF-8").to_owned()
    };
    let url = format!("postgresql://u:{SECRET}@h/d\n");
    let no_url = write("no-url", SECRET.as_bytes());
    for (path, why) in [
        (write("empty", b"\n"), "is empty"),
        (write("several", format!("{url}{url}").as_bytes()), "has several lines"),
        (write("binary", &[SECRET.as_bytes(), &[0xff, 0xfe]].concat()), "cannot be read"),
        (folder.path().to_str().expect("UTF-8").to_owned(), "cannot be read"),
        ("/nowhere/at-all".to_owned(), "cannot be read"),
        ("/dev/zero".to_owned(), "is longer than"),
        (no_url.clone(), "must start with postgres://"),
    ] {
        for command in ["serve", "check-config", "migrate"] {
            let finished = Ingestd::run_to_exit(&[command], &[("DATABASE_URL_FILE", &path)]);
            assert_eq!(finished.code, Some(2), "{path}: {}", finished.stderr);
            assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
            assert!(finished.stderr.contains(&path) && finished.stderr.contains(why), "{}", finished.stderr);
            assert_hidden("the refusal", &finished.stderr);
        }
    }
    let both = [("REDIS_URL", "redis://h"), ("REDIS_URL_FILE", no_url.as_str())];
    let finished = Ingestd::run_to_exit(&["check-config"], &both);
    assert_eq!(
        (finished.code, &*finished.stderr),
        (
            Some(2),
            "ingestd: REDIS_URL (environment) and REDIS_URL_FILE (environment) are both set: unset one of them\n"
        )
    );
}
