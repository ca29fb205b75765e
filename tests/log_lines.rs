//! Promise: what clients send cannot begin a line of the log, nor steer the terminal that shows it.

mod support;

use serde_json::{Value, json};

use support::WAIT_MAX;
use support::load::wait_until_committed;
use support::postgres::{TestDatabase, shared};
use support::raw::Raw;
use support::server::{Finished, Ingestd, get, post_json};

/// Breaks lines in every way, clears a terminal, and would pass for a line of the log.
const NASTY: &str = "x\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{7}\u{8}\u{7f}\u{9b}31m\u{85}\u{2028}\u{202e}y";

/// Refuses every event, with its id and payload in the message.
const REFUSE: &str = r#"
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'refused % and %', NEW.event_id, NEW.payload ->> 'text'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()"#;

fn server(database: &TestDatabase, format: &str) -> Ingestd {
    let builder = Ingestd::builder().database(database).env("LOG_FORMAT", format).env("LOG_LEVEL", "trace");
    let server = builder.start();
    database.connect().batch_execute(REFUSE).expect("a trigger");
    server
}

/// Sends what clients may choose, and what they may not, in every place.
fn provoke(server: &Ingestd) {
    let event = |number: usize| json!({ "event_id": format!("{number}{NASTY}"), "service_name": NASTY, "event_type": NASTY, "payload": { "text": NASTY } });
    // More than are refused in a row before that is told.
    let events: Vec<Value> = (0..40).map(event).collect();
    let reply = post_json(&server.url("/v1/ingest/batch"), &json!({ "batch_id": "nasty", "events": events }));
    assert_eq!(reply.status, 202, "{}", reply.text());
    let wrong = post_json(&server.url("/v1/ingest/batch"), &json!({ "batch_id": NASTY, "events": [event(0)] }));
    assert_eq!(wrong.status, 422, "{}", wrong.text());
    let encoded: String = NASTY.bytes().map(|byte| format!("%{byte:02x}")).collect();
    assert_ne!(get(&server.url(&format!("/v1/batch/{encoded}/status"))).status, 200);
    assert_eq!(get(&server.url(&format!("/{encoded}?{encoded}"))).status, 404);
    for request in [
        &b"POST /v1/ingest/batch HTTP/1.1\r\nHost: \x9b31m\r\nContent-Type: a/\x9b\xc2\x9b\r\nContent-Length: 0\r\n\r\n"[..],
        b"GET /\x1b[2J HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: \x1b[2J\r\n\r\n",
        b"\x1b[2J\n\n",
    ] {
        let mut raw = Raw::connect(server);
        raw.send(request);
        raw.finish_sending();
        assert!(raw.rest().contains("HTTP/1.1 4"));
    }
    wait_until_committed(server, WAIT_MAX);
    // What was refused is told after it is committed.
    server.wait_for_log("forged", WAIT_MAX);
}

fn is_unprintable(character: char) -> bool {
    character.is_control() || ['\u{2028}', '\u{202e}'].contains(&character)
}

fn assert_lines_are_clean(log: &str) {
    for line in log.lines() {
        assert!(!line.contains(is_unprintable), "{line:?}");
    }
    assert!(log.contains("[2J"), "the test provokes what it means to");
}

#[test]
fn every_line_of_the_text_log_begins_with_its_time() {
    let database = shared().create_database();
    let server = server(&database, "text");
    provoke(&server);
    let log = server.log();
    assert_lines_are_clean(&log);
    for line in log.lines() {
        let time = line.split(' ').next().unwrap_or_default();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() > 20, "{line:?}");
    }
}

#[test]
fn every_line_of_the_json_log_is_an_object() {
    let database = shared().create_database();
    let server = server(&database, "json");
    provoke(&server);
    let log = server.log();
    assert_lines_are_clean(&log);
    for line in log.lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(object["timestamp"].is_string() && object["level"].is_string(), "{line}");
    }
}

#[test]
fn commands_print_dead_letters_and_their_reasons_without_control_characters() {
    let database = shared().create_database();
    let server = server(&database, "text");
    provoke(&server);
    let run = |arguments: &[&str]| Ingestd::run_to_exit(arguments, &[("DATABASE_URL", &database.url)]);
    let assert_clean = |finished: &Finished, lines: usize| {
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!said.replace('\n', "").contains(is_unprintable), "{said:?}");
        assert_eq!(said.lines().count(), lines, "{said}");
        assert!(said.contains("forged"), "{said}");
    };
    assert_clean(&run(&["dead-letter", "list"]), 40);
    let replayed = run(&["dead-letter", "replay"]);
    assert_eq!(replayed.code, Some(1));
    assert_clean(&replayed, 41);
}
