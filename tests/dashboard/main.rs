//! Promise: who opens `/` sees in any theme and on any screen what the server does, what is wrong and what to do, and the
//! page asks nobody else for anything.
//!
//! `page.py` looks at it in a real Chromium; the pictures are left in `target/tmp/dashboard`.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use support::contract::event;
use support::load::{Load, LoadOptions, seed, wait_until_committed};
use support::postgres::{TestPostgres, shared};
use support::server::{Ingestd, get, get_with, post_json};
use support::{WAIT_MAX, checkout, python};

/// The browser: the machine's, or the one that `deploy/setup.sh` brought.
fn chromium() -> PathBuf {
    let brought = checkout().join(".setup/chromium/chromium");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = ["chromium", "chromium-browser", "google-chrome"].into_iter();
    let mut candidates = installed.flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)));
    candidates.find(|candidate| support::deployed::runs(candidate, "--version")).unwrap_or(brought)
}

/// Where pictures are left, for people.
fn pictures() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
        fs::create_dir_all(&folder).expect("the folder is ours");
        folder
    });
    &FOLDER
}

/// `page.py` with `arguments` after the server's address and the folder for pictures.
fn look(server: &Ingestd, check: &str, arguments: &[&str]) -> Command {
    let mut command = python(&checkout().join(".setup/playwright"), server.folder());
    command.arg(checkout().join("tests/dashboard/page.py")).args([check, &server.url("/")]);
    command.arg(pictures()).args(arguments).env("CHROMIUM", chromium());
    command.env("FONTCONFIG_PATH", checkout().join(".setup/chromium/fonts"));
    if !checkout().join(".setup/chromium").exists() {
        command.env_remove("FONTCONFIG_PATH");
    }
    command
}

fn assert_looks(server: &Ingestd, check: &str, arguments: &[&str]) {
    let done = look(server, check, arguments).output().expect("python3: run `make setup`");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{check}: {said}\n--- the server ---\n{}", server.log());
}

fn load_of(server: &Ingestd, test: &str) -> Load {
    let options = LoadOptions {
        clients: 1,
        events: 10_000_000,
        seed: seed(test),
        priority_max: 10,
        pause: Duration::from_millis(50),
    };
    Load::start(server, options)
}

#[test]
fn the_page_shows_a_server_under_load_on_every_screen_and_by_keyboard() {
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let load = load_of(&server, "the_page_shows_a_server_under_load");
    load.wait_for_acked(1_000, WAIT_MAX);
    assert_looks(&server, "steady", &[]);
    assert_looks(&server, "keyboard", &[]);
    load.stop();
}

#[test]
fn an_outage_of_postgresql_is_told_in_words_and_forgotten_when_it_is_over() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    let load = load_of(&server, "an_outage_of_postgresql_is_told");
    load.wait_for_acked(1_000, WAIT_MAX);
    postgres.kill9();
    assert_looks(&server, "outage", &[]);
    load.stop();
    postgres.start();
    wait_until_committed(&server, WAIT_MAX);
    assert_looks(&server, "well", &[]);
}

#[test]
fn reasons_of_dead_letters_are_text_whatever_is_in_them() {
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let message = "<img src=/x onerror=alert(1)><b>no</b>";
    let refuse = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{message}'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.event_id = 'bad') EXECUTE FUNCTION refuse()"
    );
    database.connect().batch_execute(&refuse).expect("a trigger");
    let mixed = json!({ "batch_id": "mixed", "events": [event("bad"), event("good")] });
    assert_eq!(post_json(&server.url("/v1/ingest/batch?ack=commit"), &mixed).json()["dead_lettered"], 1);
    // Ids are held to a few characters, so that this one is refused; event ids are not shown.
    let wrong = post_json(&server.url("/v1/ingest/batch"), &json!({ "batch_id": message, "events": [] }));
    assert_eq!(wrong.status, 422);
    assert_looks(&server, "refused", &[message]);
}

#[test]
fn a_server_with_keys_shows_a_key_its_own_batches_only() {
    let folder = support::folder();
    let file = folder.path().join("keys.toml");
    let key = |scope: &str| {
        let file = file.to_str().expect("UTF-8");
        let arguments = ["keys", "new", "--name", "test", "--scope", scope, "--api-keys-file", file];
        let done = Ingestd::run_to_exit_in(folder.path(), &arguments, &[]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done.stdout.trim().to_owned()
    };
    let (mine, other, metrics) = (key("ingest,read,metrics"), key("ingest"), key("metrics"));
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).env("API_KEYS_FILE", file.display()).start();
    for (token, id) in [(&mine, "mine"), (&other, "somebody-elses")] {
        let body = json!({ "batch_id": id, "events": [event(id)] }).to_string();
        let headers = [("Content-Type", "application/json"), ("X-API-Key", token.as_str())];
        let reply = support::server::post(&server.url("/v1/ingest/batch?ack=commit"), &headers, body.as_bytes());
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert_looks(&server, "key", &[&mine, "somebody-elses"]);
    let data = |token: &str| get_with(&server.url("/dashboard/data"), &[("X-API-Key", token)]);
    assert_eq!((data(&other).status, get(&server.url("/dashboard/data")).status), (403, 401));
    let seen = data(&metrics).json();
    assert_eq!((seen["batches"].as_array().map(Vec::len), &seen["sees_all"]), (Some(0), &json!(false)));
}

#[test]
fn the_page_says_when_its_server_does_not_answer_and_goes_on_when_it_does() {
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut command = look(&server, "gone", &[]);
    command.stdout(Stdio::piped());
    let mut child = support::spawn(command).expect("python3: run `make setup`");
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        match line.expect("text").as_str() {
            "stop it" => server.signal(Signal::STOP),
            "continue it" => server.signal(Signal::CONT),
            line => panic!("{line}"),
        }
    }
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn the_pages_files_forbid_the_browser_everything_else() {
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    for path in ["/", "/assets/page.js", "/assets/uplot/uPlot.js"] {
        let reply = get(&server.url(path));
        let policy = reply.header("content-security-policy");
        assert_eq!(reply.status, 200, "{path}");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        let again = get_with(&server.url(path), &[("If-None-Match", reply.header("etag"))]);
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
    }
    let licence = get(&server.url("/assets/uplot/LICENSE")).text();
    assert!(licence.contains("MIT") && licence.contains("Leon Sorokin"), "{licence}");
    assert_eq!(get(&server.url("/assets/no-such-file")).status, 404);
}
