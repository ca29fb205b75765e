//! Promise: `ingestd load` keeps its schedule, tells what it measured, and finds what is lost.

mod support;

use serde_json::Value;

use support::postgres::TestDatabase;
use support::server::{Finished, Ingestd};
use support::tls::Certificates;

/// Runs a load of 2000 events against `server`, checked in the tables of `database` or by status; the JSON report, too.
fn load(server: &Ingestd, database: &TestDatabase, options: &[&str]) -> (Finished, Value) {
    let file = server.folder().join("report.json");
    let (url, file_name) = (server.url(""), file.display().to_string());
    let mut arguments =
        vec!["load", "--url", &url, "--rate", "2000", "--duration", "1s", "--batch", "50", "--json", &file_name];
    arguments.extend(options);
    let finished = Ingestd::run_to_exit(&arguments, &[("DATABASE_URL", &database.url)]);
    let report = std::fs::read_to_string(&file).expect("the report was written");
    (finished, serde_json::from_str(&report).expect("JSON"))
}

#[test]
fn every_accepted_event_is_found_by_status_and_in_the_table() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    for (number, check) in [(1, "status"), (2, "table")] {
        let (finished, report) = load(&server, &database, &["--check", check, "--ack", "commit"]);
        assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
        assert_eq!(report["requests"]["accepted"], 40, "{report}");
        let found = &report["loss_check"];
        assert_eq!((&found["expected"], &found["inserted"], &found["lost"]), (&2000.into(), &2000.into(), &0.into()));
        let latency = &report["latency_ms"];
        assert_eq!(latency["all"]["count"], 40);
        assert!(latency["priority_8_and_above"]["count"].as_u64() >= Some(8), "priorities are mixed: {report}");
        assert!(report["seconds"].as_f64() >= Some(0.97), "a schedule is not hurried: {report}");
        assert!(finished.stdout.contains("p99.9") && finished.stdout.contains("0 lost"), "{}", finished.stdout);
        let count = database.connect().query_one("SELECT count(*) FROM events", &[]).expect("a count");
        assert_eq!(count.get::<_, i64>(0), number * 2000, "ids of another run are other ids");
    }
}

#[test]
fn a_key_is_read_from_a_file() {
    let database = support::postgres::shared().create_database();
    let folder = support::folder();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (keys, key) = (file("keys.toml"), file("key"));
    let made = Ingestd::run_to_exit(
        &["keys", "new", "--api-keys-file", &keys, "--name", "load", "--scope", "ingest,read"],
        &[],
    );
    std::fs::write(&key, made.stdout).expect("written");
    let server = Ingestd::builder().database(&database).env("API_KEYS_FILE", &keys).start();
    let (finished, report) = load(&server, &database, &["--api-key-file", &key]);
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    assert_eq!(report["loss_check"]["inserted"], 2000, "{report}");
    let (finished, _) = load(&server, &database, &["--check", "none"]);
    assert_eq!(finished.code, Some(1), "without the key nothing is accepted");
}

#[test]
fn a_server_of_https_is_verified() {
    let database = support::postgres::shared().create_database();
    let certificates = Certificates::signed("localhost");
    let server = Ingestd::builder()
        .database(&database)
        .env("TLS_CERT_FILE", certificates.path("server.pem").display())
        .env("TLS_KEY_FILE", certificates.path("server-key.pem").display())
        .start();
    let url = server.url("").replace("127.0.0.1", "localhost");
    let load = |authorities: &str| {
        let authorities = certificates.path(authorities).display().to_string();
        let arguments = ["load", "--url", &url, "--rate", "500", "--duration", "1s", "--batch", "50"];
        Ingestd::run_to_exit(&arguments, &[("SSL_CERT_FILE", &authorities)])
    };
    let verified = load("ca.pem");
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    let unknown = load("other.pem");
    assert!(unknown.code == Some(1) && unknown.stderr.contains("certificate"), "{}{}", unknown.stdout, unknown.stderr);
}

#[test]
fn rows_that_went_away_are_lost_and_the_exit_code_says_so() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let swallow = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN DELETE FROM events WHERE event_id LIKE '%7'; RETURN NULL; END $$;
                   CREATE TRIGGER swallow AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION swallow()";
    database.connect().batch_execute(swallow).expect("a trigger");
    // All is committed before the check begins.
    let (finished, report) = load(&server, &database, &["--ack", "commit", "--check", "table", "--check-wait", "3s"]);
    assert_eq!(finished.code, Some(1), "{}", finished.stdout);
    assert_eq!(report["loss_check"]["lost"], 200, "{report}");
    assert!(finished.stderr.contains("200 accepted events are lost"), "{}", finished.stderr);
}

#[test]
fn a_server_that_is_not_there_fails_every_request_and_nothing_is_unknown() {
    let database = support::postgres::shared().create_database();
    let mut server = Ingestd::builder().database(&database).start();
    server.kill9();
    let (finished, report) = load(&server, &database, &[]);
    assert_eq!(finished.code, Some(1));
    assert_eq!((&report["requests"]["failed"], &report["events"]["unknown"]), (&40.into(), &0.into()));
    assert!(finished.stderr.contains("cannot connect"), "{}", finished.stderr);
}
