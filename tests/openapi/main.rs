//! Promise: `/openapi.json` describes the server as it is: every request that it allows is taken, every one that it does
//! not is refused, and every answer is one that it has.
//!
//! Schemathesis makes the requests and compares the answers; `hooks.py` tells it what no schema can say. Its run is
//! bounded by [`EXAMPLES_MAX`]; it begins with a seed that is printed, and that `OPENAPI_SEED` changes. What follows depends
//! a little on the answers too.

#[path = "../support/mod.rs"]
mod support;

mod described;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use support::contract::batch;
use support::postgres;
use support::server::{Ingestd, get, post_json};
use support::{WAIT_MAX, checkout, python, wait_until};

/// Generated requests of each operation at most, over those that walk along the edges of its schemas.
const EXAMPLES_MAX: u32 = 20;
/// What the seed is unless `OPENAPI_SEED` gives another one.
const SEED: &str = "20261126";

/// The document of `server`.
fn document(server: &Ingestd) -> Value {
    let reply = get(&server.url("/openapi.json"));
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"));
    reply.json()
}

/// Runs schemathesis against `server` with `arguments`; panics with
/// what it says when it finds anything.
fn compare(server: &Ingestd, arguments: &[&str]) -> String {
    // Whose document it fetches itself it leaves out of the comparison.
    let file = server.folder().join("openapi.json");
    fs::write(&file, document(server).to_string()).expect("the folder is ours");
    let seed = std::env::var("OPENAPI_SEED").unwrap_or_else(|_| SEED.to_owned());
    let (brought, here) = (checkout().join(".setup/schemathesis"), checkout().join("tests/openapi"));
    let mut command = python(&brought, server.folder());
    command.arg(brought.join("bin/schemathesis")).arg("--config-file").arg(here.join("schemathesis.toml"));
    command.args(["run", "--no-color", "--continue-on-failure", "--seed", &seed]);
    command.args(["--max-examples", &EXAMPLES_MAX.to_string(), "--url", &server.url("")]).args(arguments).arg(&file);
    command.env("SCHEMATHESIS_HOOKS", here.join("hooks.py"));
    let done = command.output().expect("python3: run `make setup`");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "seed {seed}:\n{said}\n--- the server ---\n{}", server.log());
    println!("seed {seed}:\n{said}");
    said.into_owned()
}

/// The number of test cases that schemathesis says it made.
fn cases(said: &str) -> u32 {
    let line = said.lines().find(|line| line.contains(" generated, ")).expect("it counts its test cases");
    line.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
}

/// A batch that cannot be committed, so that lists of waiting ones are not empty.
fn keep_one_stuck(server: &Ingestd, database: &postgres::TestDatabase) {
    database.connect().batch_execute("CREATE TABLE events_2024_03 (elsewhere int)").expect("made");
    let mut body = batch("stuck", 1);
    body["events"][0]["timestamp"] = "2024-03-03T03:03:03Z".into();
    assert_eq!(post_json(&server.url("/v1/ingest/batch"), &body).status, 202);
    assert_eq!(post_json(&server.url("/v1/ingest/batch?ack=commit"), &batch("good", 1)).status, 200);
    wait_until("it is stuck", WAIT_MAX, || get(&server.url("/v1/batches?stuck=true")).json()["stuck"] == 1);
}

#[test]
fn schemathesis_finds_nothing() {
    let database = postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    keep_one_stuck(&server, &database);
    let said = compare(&server, &[]);
    assert!(said.contains("10 selected / 10 total"), "every operation is tried");
    assert!(cases(&said) > 300, "it tried");
}

/// A file with a key for everything but administration; the file and the key's token.
fn keys(folder: &Path) -> (PathBuf, String) {
    let path = folder.join("keys.toml");
    let scopes = ["--scope", "ingest,read,metrics", "--name", "test", "--api-keys-file", path.to_str().expect("UTF-8")];
    let done = Ingestd::run_to_exit_in(folder, &[&["keys", "new"][..], &scopes].concat(), &[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    (path, done.stdout.trim().to_owned())
}

#[test]
fn schemathesis_finds_nothing_where_keys_are_asked_for() {
    let folder = support::folder();
    let (file, token) = keys(folder.path());
    let database = postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).env("API_KEYS_FILE", file.display()).start();
    // By a header, not as its own authentication: then it tries without, and with wrong keys.
    // The edges of the schemas are walked along without keys.
    let phases = ["--phases", "examples,fuzzing,stateful"];
    let said = compare(&server, &[&phases[..], &["--header", &format!("Authorization: Bearer {token}")]].concat());
    assert!(cases(&said) > 80, "it tried");
}

#[test]
fn the_document_is_openapi_3_1() {
    let database = postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let document = document(&server);
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")));
    let file = server.folder().join("openapi.json");
    fs::write(&file, document.to_string()).expect("the folder is ours");
    let brought = checkout().join(".setup/schemathesis");
    let mut command = python(&brought, server.folder());
    command.arg(checkout().join("tests/openapi/validate.py")).arg(&file);
    let done = command.output().expect("python3: run `make setup`");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}
