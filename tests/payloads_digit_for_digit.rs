//! Promise: what is stored is what PostgreSQL itself makes of the sent text, digit for digit; and what it
//! accepts within the limits, the server accepts.

mod support;

#[path = "support/awkward.rs"]
mod awkward;
#[path = "support/json_text.rs"]
mod json_text;

use postgres::Client;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use support::contract::send;
use support::postgres::TestDatabase;
use support::server::Ingestd;
use support::{WAIT_MAX, wait_until};

/// Documents generated, besides the awkward ones.
const GENERATED: usize = 2000;
/// The generator's seed; a failing run's seed goes into the variable.
const SEED_VARIABLE: &str = "INGESTD_TEST_SEED";
/// Why the server may refuse what PostgreSQL takes.
const LIMITS: [&str; 3] = ["nesting_too_deep", "number_too_many_digits", "number_exponent_too_large"];

/// A server that takes timestamps of a hundred years back and ten ahead.
fn start() -> (TestDatabase, Ingestd) {
    let database = support::postgres::shared().create_database();
    let builder = Ingestd::builder().database(&database);
    let server = builder.env("EVENT_MAX_AGE_DAYS", 36_500).env("EVENT_MAX_FUTURE_HOURS", 87_600).start();
    (database, server)
}

/// The runner that documents come from; says its seed.
fn runner() -> TestRunner {
    let given = std::env::var(SEED_VARIABLE).ok().map(|text| text.parse().expect("a seed is a whole number"));
    let seed: u64 = given.unwrap_or_else(|| std::process::id().into());
    println!("{SEED_VARIABLE}={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Well-formed objects, a quarter of them with one byte changed.
fn generated() -> Vec<Vec<u8>> {
    let damage = prop::option::weighted(0.25, (any::<prop::sample::Index>(), any::<u8>()));
    let document = (json_text::object(), damage).prop_map(|(text, damage)| {
        let mut bytes = text.into_bytes();
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    });
    let mut runner = runner();
    let mut one = || document.new_tree(&mut runner).expect("a document").current();
    (0..GENERATED).map(|_| one()).collect()
}

/// True when `text`, which is JSON, keeps to the limits of docs/api.md#send-a-batch. Written to be obvious, not fast.
fn is_within_limits(text: &str) -> bool {
    let (mut depth, mut depth_max, mut in_string, mut escaped) = (0, 0, false, false);
    let mut outside = String::new();
    for character in text.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        depth_max = depth_max.max(depth);
        outside.push(if in_string { ' ' } else { character });
    }
    let in_number = |character: char| character.is_ascii_digit() || "+-.eE".contains(character);
    let numbers =
        outside.split(|character| !in_number(character)).filter(|word| word.contains(|c: char| c.is_ascii_digit()));
    depth_max <= 128
        && numbers.into_iter().all(|number| {
            let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
            let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
            digits <= 400 && exponent.parse().is_ok_and(|exponent: i64| exponent.abs() <= 400)
        })
}

/// What PostgreSQL makes of `document`: the type of the jsonb, or `None` when its cast refuses it.
fn cast(client: &mut Client, document: &[u8]) -> Option<String> {
    let row = client.query_one("SELECT jsonb_typeof(convert_from($1, 'UTF8')::jsonb)", &[&document]);
    row.ok().map(|row| row.get(0))
}

/// Sends `document` as payload and metadata of one event; `None` when it was accepted, else the code.
fn offer(server: &Ingestd, number: usize, document: &[u8]) -> Option<String> {
    let head = format!(r#"[{{"event_id":"{number}","service_name":"s","event_type":"t","payload":"#);
    let body = [head.as_bytes(), document, br#","metadata":"#, document, b"}]"].concat();
    let reply = send(server, "ack=memory", &body);
    let answer = reply.json();
    match reply.status {
        202 => None,
        400 => Some("not_json".to_owned()),
        422 => Some(answer["errors"][0]["code"].as_str().expect("a code").to_owned()),
        other => panic!("{other}: {answer}"),
    }
}

#[test]
fn documents_are_accepted_and_stored_as_postgresqls_own_cast_has_it() {
    let (database, server) = start();
    let mut client = database.connect();
    let mut documents: Vec<Vec<u8>> = awkward::documents().into_iter().map(|(_, document, _)| document).collect();
    documents.extend(generated());
    let (mut numbers, mut accepted) = (Vec::new(), Vec::new());
    for (number, document) in documents.iter().enumerate() {
        let shown = String::from_utf8_lossy(&document[..document.len().min(2000)]);
        let (refusal, kind) = (offer(&server, number, document), cast(&mut client, document));
        let is_object = kind.as_deref() == Some("object");
        match refusal {
            None => {
                assert!(is_object, "accepted, but PostgreSQL says {kind:?} to {shown}");
                numbers.push(number.to_string());
                accepted.push(document.as_slice());
            }
            Some(code) => {
                let text = std::str::from_utf8(document).unwrap_or_default();
                assert!(!is_object || !is_within_limits(text), "refused ({code}), but PostgreSQL takes {shown}");
                assert!(!is_object || LIMITS.contains(&&*code), "{code} is no limit: {shown}");
            }
        }
    }
    let refused = documents.len() - accepted.len();
    assert!(accepted.len().min(refused) > GENERATED / 10, "{refused} refused: a lopsided generator");
    assert_stored(&mut client, &numbers, &accepted);
}

/// Waits for the events called `numbers`; their payload and metadata must equal the casts of `documents`, as
/// values and as text.
fn assert_stored(client: &mut Client, numbers: &[String], documents: &[&[u8]]) {
    let mut count = |query: &str| client.query_one(query, &[]).expect("a count").get::<_, i64>(0);
    let expected = numbers.len() as i64;
    wait_until("all documents have landed", WAIT_MAX, || {
        count("SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letter_events)") == expected
    });
    assert_eq!(count("SELECT count(*) FROM dead_letter_events"), 0, "PostgreSQL took them all");
    let different = "
        SELECT number FROM unnest($1::text[], $2::bytea[]) AS sent (number, document)
        CROSS JOIN LATERAL (SELECT convert_from(document, 'UTF8')::jsonb) AS own (cast_of_it)
        LEFT JOIN events ON event_id = number
        WHERE NOT coalesce(payload = cast_of_it AND payload::text = cast_of_it::text
                           AND metadata = cast_of_it AND metadata::text = cast_of_it::text, false)";
    let rows = client.query(different, &[&numbers, &documents]).expect("PostgreSQL casts them all");
    let different: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let first = different.first().and_then(|number| numbers.iter().position(|sent| sent == number));
    let shown = first.map(|at| String::from_utf8_lossy(documents[at]));
    assert!(different.is_empty(), "{} documents are stored differently, such as {shown:?}", different.len());
}

/// RFC 3339 texts at the edges.
fn timestamps() -> Vec<String> {
    let mut texts: Vec<String> = [
        "2024-02-29T00:00:00Z",
        "2000-02-29T23:59:59.999999Z",
        "2023-02-28T23:59:59.9999999Z",
        "2024-02-28T23:30:00-01:00",
        "2023-12-31T23:59:59.9999994Z",
        "2023-12-31T23:59:59.9999995Z",
        "2023-12-31T23:59:59.9999996Z",
        "2023-12-31T23:59:59.99999999999999999999999999999Z",
        "2016-12-31T23:59:60Z",
        "2017-01-01T00:59:60.75+01:00",
        "2015-06-30T23:59:60+00:00",
        "2024-01-01T00:00:00+14:00",
        "2024-01-01T00:00:00-12:00",
        "2024-01-01T00:00:00+15:59",
        "2024-01-01T00:00:00-15:59",
        "2024-01-01T05:45:00+05:45",
        "2024-01-01T00:00:00-00:00",
        "2024-01-01t00:00:00z",
        "2024-01-01 00:00:00Z",
        "1969-12-31T23:59:59.9999999Z",
        "1970-01-01T00:00:00.000001Z",
        "1969-12-31T23:59:59.0000005Z",
    ]
    .map(str::to_owned)
    .to_vec();
    // Fractions of every length, many of them ties and next to ties; one month, so one partition.
    let fractions =
        prop_oneof!["[0-9]{1,40}", "[0-9]{6}5", "[0-9]{6}50{1,20}", "[0-9]{6}50{1,20}1", "[0-9]{6}49{1,30}"];
    let mut runner = runner();
    texts.extend((0..1000).map(|number| {
        let fraction = fractions.new_tree(&mut runner).expect("a fraction").current();
        format!(
            "2024-03-{:02}T{:02}:{:02}:{:02}.{fraction}Z",
            number % 28 + 1,
            number % 24,
            number % 60,
            number * 7 % 60
        )
    }));
    texts
}

#[test]
fn timestamps_are_stored_as_postgresqls_own_cast_has_them() {
    let (database, server) = start();
    let texts = timestamps();
    let event = |(number, text)| json!({"event_id": format!("{number}"), "service_name": "s", "event_type": "t", "payload": {}, "timestamp": text});
    let events: Vec<Value> = texts.iter().enumerate().map(event).collect();
    let reply = send(&server, "ack=commit", json!(events).to_string().as_bytes());
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &json!(texts.len())), "{}", reply.text());
    let numbers: Vec<String> = (0..texts.len()).map(|number| number.to_string()).collect();
    let different = r#"
        SELECT sent.text, "timestamp"::text, sent.text::timestamptz::text
        FROM unnest($1::text[], $2::text[]) AS sent (number, text) LEFT JOIN events ON event_id = number
        WHERE "timestamp" IS DISTINCT FROM sent.text::timestamptz"#;
    let rows = database.connect().query(different, &[&numbers, &texts]).expect("PostgreSQL casts them all");
    for row in &rows {
        let [sent, stored, own]: [Option<&str>; 3] = [row.get(0), row.get(1), row.get(2)];
        println!("sent {sent:?}, stored {stored:?}, PostgreSQL's own {own:?}");
    }
    assert!(rows.is_empty(), "{} timestamps are stored differently", rows.len());
}

#[test]
fn what_only_rfc_3339_allows_is_computed_the_same_way() {
    // PostgreSQL knows no offset of 16 hours and no fraction of a leap second at the end of a day.
    let known = [
        ("2024-01-01T00:00:00-23:59", "2024-01-01T23:59:00Z"),
        ("2024-01-01T23:59:00+23:59", "2024-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.75Z", "2017-01-01T00:00:00.75Z"),
    ];
    let (database, server) = start();
    for (sent, meant) in known {
        let event = json!({"event_id": sent, "service_name": "s", "event_type": "t", "payload": {}, "timestamp": sent});
        assert_eq!(send(&server, "ack=commit", json!([event]).to_string().as_bytes()).status, 200, "{sent}");
        let query = r#"SELECT "timestamp" = $2::text::timestamptz FROM events WHERE event_id = $1"#;
        let row = database.connect().query_one(query, &[&sent, &meant]).expect("the row");
        assert!(row.get::<_, bool>(0), "{sent} is {meant}");
    }
}

#[test]
fn texts_are_stored_exactly() {
    let longest = "é".repeat(64);
    let escaped_longest = "\\u00e9".repeat(64);
    let texts: Vec<(String, String)> = [
        ("plain", "plain"),
        (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r"\u0001\u001f\u007f", "\u{1}\u{1f}\u{7f}"),
        (r"\ud83d\ude00", "😀"),
        ("😀👩‍👩‍👧", "😀👩‍👩‍👧"),
        ("e\u{301}", "e\u{301}"),
        (r"e\u0301", "e\u{301}"),
        ("\u{e9}", "\u{e9}"),
        ("\u{feff}\u{200d}\u{2028}", "\u{feff}\u{200d}\u{2028}"),
        (r"\uffff\ufffe\ufdd0", "\u{ffff}\u{fffe}\u{fdd0}"),
        ("\u{10ffff}", "\u{10ffff}"),
        ("  two blanks, both sides  ", "  two blanks, both sides  "),
        (r"\\N", "\\N"),
        (r"\\.", "\\."),
        (r"\\u0041", "\\u0041"),
        ("'; DROP TABLE events; --", "'; DROP TABLE events; --"),
        ("%s {} $1", "%s {} $1"),
        (&longest, &longest),
        (&escaped_longest, &longest),
    ]
    .map(|(sent, meant)| (sent.to_owned(), meant.to_owned()))
    .to_vec();
    let (database, server) = start();
    let events: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(number, (sent, _))| {
            format!(
                r#"{{"event_id":"{sent}","service_name":"{sent}","event_type":"{sent}","payload":{{"n":{number}}}}}"#
            )
        })
        .collect();
    // Each in a batch of its own: some of them are the same text, and so the same event.
    for event in &events {
        assert_eq!(send(&server, "ack=commit", format!("[{event}]").as_bytes()).status, 200, "{event}");
    }
    let mut client = database.connect();
    for (number, (sent, meant)) in texts.iter().enumerate() {
        let query =
            "SELECT event_id, service_name, event_type FROM events WHERE payload = jsonb_build_object('n', $1::int)";
        let row = client.query_one(query, &[&(number as i32)]).expect("the row");
        for column in 0..3 {
            assert_eq!(row.get::<_, &str>(column), meant, "{sent}");
        }
    }
}
