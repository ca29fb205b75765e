//! Promise: every event is taken once or told about, against the real server, also through a kill -9 of it.

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ingestd_client::{
    Ack, BatchOptions, Client, Compression, Error, Event, Failed, Invalid, Phase, RetryPolicy, SenderOptions,
};
use serde_json::json;
use serde_json::value::RawValue;
use support::{Server, WAIT_MAX};

fn event(number: usize) -> Event {
    let payload = json!({ "number": number, "text": "x".repeat(100) });
    Event::new(format!("evt-{number}"), "client-test", "counted", &payload).expect("JSON")
}

fn commit() -> BatchOptions {
    BatchOptions { ack: Some(Ack::Commit), ..BatchOptions::default() }
}

/// Where failed events go, and a look at them.
fn failures() -> (impl FnMut(Failed) + Send + 'static, Arc<Mutex<Vec<Failed>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    (move |failed| kept.lock().expect("no panic").push(failed), seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_lands_once_though_the_server_is_killed_again_and_again() {
    const EVENTS: usize = 20_000;
    let mut server = Server::start(&[]);
    let client = Client::builder(server.url()).compression(Compression::Zstd).build().expect("a client");
    let (on_failure, failed) = failures();
    let options = SenderOptions { batch_events_max: 100, queue_events_max: 100, ..SenderOptions::default() };
    let sender = client.sender(options, on_failure);
    let killer = std::thread::spawn(move || {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(400));
            server.kill9();
            server.begin();
            server.wait_until_ready();
        }
        server
    });
    let mut number = 0;
    while number < EVENTS || !killer.is_finished() {
        sender.send(event(number)).await.expect("the sender runs");
        number += 1;
        if number % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let delivered = sender.close().await.expect("the sender runs");
    let server = killer.join().expect("the server starts again");
    assert_eq!((delivered.accepted, delivered.failed), (number as u64, 0), "{:?}", failed.lock().expect("no panic"));
    server.wait_for_count("SELECT count(DISTINCT event_id) FROM events", number as i64);
    assert_eq!(server.count("SELECT count(*) FROM events"), number as i64, "and none twice");
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_known_and_another_one_under_its_id_is_refused() {
    let server = Server::start(&[]);
    let client = Client::new(server.url()).expect("a client");
    let options = || BatchOptions { batch_id: Some("batch-1".into()), priority: 7, ..commit() };
    let events = [event(1), event(2)];
    let first = client.send_batch(&events, options()).await.expect("it is taken");
    assert_eq!((first.status, first.duplicate, first.inserted), (Phase::Completed, false, Some(2)));
    let again = client.send_batch(&events, options()).await.expect("it is known");
    assert_eq!((again.batch_id.as_str(), again.duplicate), ("batch-1", true));
    let error = client.send_batch(&events[..1], options()).await.expect_err("another body");
    assert_eq!(error.problem().map(|problem| problem.status), Some(409), "{error}");

    let status = client.wait_for_batch("batch-1", WAIT_MAX).await.expect("it is known");
    assert_eq!((status.status, status.priority, status.inserted), (Phase::Completed, 7, 2));
    assert_eq!(client.batch_status("batch-2").await.expect("an answer"), None);
    assert_eq!(client.batch_status("no/such id").await.expect("no question"), None);
    let unknown = client.wait_for_batch("batch-2", WAIT_MAX).await.expect_err("there is none");
    assert_eq!(unknown.problem().map(|problem| problem.status), Some(404));
    let given = client.send_batch(&events, BatchOptions::default()).await.expect("it is taken");
    assert_eq!(given.batch_id.as_bytes()[14], b'7', "a UUIDv7: {}", given.batch_id);
    client.wait_for_batch(&given.batch_id, WAIT_MAX).await.expect("it is committed");
}

#[tokio::test]
async fn numbers_arrive_digit_for_digit_however_they_are_compressed() {
    const PAYLOAD: &str = r#"{"a": 0.10000000000000000001, "b": 123456789012345678901234567890, "c": 1.50}"#;
    let server = Server::start(&[("EVENT_MAX_AGE_DAYS", "36500")]);
    for (number, compression) in [Compression::None, Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let client = Client::builder(server.url()).compression(compression).build().expect("a client");
        let payload = RawValue::from_string(PAYLOAD.to_owned()).expect("JSON");
        let sent = Event::new(format!("digits-{number}"), "client-test", "digits", &payload).expect("JSON");
        let sent = sent.at("2026-11-01T00:00:00Z").with_metadata(&json!({ "n": number })).expect("JSON");
        client.send_batch(&[sent], commit()).await.expect("it is taken");
    }
    let query = format!(
        "SELECT count(*) FROM events WHERE payload::text = '{PAYLOAD}'::jsonb::text AND metadata ? 'n'
         AND \"timestamp\" = '2026-11-01T00:00:00Z'"
    );
    assert_eq!(server.count(&query), 3);
}

#[tokio::test]
async fn refusals_carry_the_problem_and_a_sender_loses_only_the_bad_events() {
    let server = Server::start(&[]);
    let client = Client::new(server.url()).expect("a client");
    let bad = || Event::new("bad", "client-test", "", &json!({})).expect("JSON");
    let error = client.send_batch(&[event(1), bad()], commit()).await.expect_err("the type is empty");
    let problem = error.problem().expect("a document");
    assert_eq!((problem.status, problem.errors[0].index), (422, Some(1)), "{error}");
    assert!(!error.is_transient() && !problem.code.is_empty() && !problem.detail.is_empty());
    let skip = BatchOptions { invalid: Invalid::Skip, ..commit() };
    let reply = client.send_batch(&[event(1), bad()], skip).await.expect("one is good");
    assert_eq!((reply.accepted, reply.rejected, reply.errors.len()), (Some(1), 1, 1));

    let (on_failure, failed) = failures();
    let sender = client.sender(SenderOptions::default(), on_failure);
    for sent in [event(2), bad(), event(3)] {
        sender.send(sent).await.expect("the sender runs");
    }
    let delivered = sender.flush().await.expect("the sender runs");
    assert_eq!((delivered.accepted, delivered.failed), (2, 1));
    let failed = failed.lock().expect("no panic");
    assert_eq!((failed[0].events.len(), failed[0].events[0].event_id.as_str()), (1, "bad"));
    assert!(matches!(&failed[0].error, Error::EventsRefused(errors) if errors[0].index == Some(1)));
    server.wait_for_count("SELECT count(*) FROM events", 3);
}

#[tokio::test]
async fn a_limit_of_requests_is_waited_for_as_the_server_asks() {
    let server = Server::start(&[("RATE_LIMIT_REQUESTS_PER_SECOND", "1"), ("RATE_LIMIT_REQUESTS_BURST", "1")]);
    let once = Client::builder(server.url()).retry(RetryPolicy::none()).build().expect("a client");
    // Its own wait would be far too short for its second attempt, which is the last.
    let retry = RetryPolicy { attempts_max: 2, wait_first: Duration::from_millis(10), ..RetryPolicy::default() };
    let client = Client::builder(server.url()).retry(retry).build().expect("a client");
    // One that comes within a second of the one before it.
    let (mut number, deadline) = (0, Instant::now() + WAIT_MAX);
    let (refused, started) = loop {
        let started = Instant::now();
        once.send_batch(&[event(number)], BatchOptions::default()).await.expect("it has its turn");
        number += 1;
        if let Err(error) = once.send_batch(&[event(number)], BatchOptions::default()).await {
            break (error, started);
        }
        number += 1;
        assert!(Instant::now() < deadline, "nothing is refused");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let Error::GaveUp { attempts: 1, last, .. } = &refused else { panic!("{refused}") };
    let asked = last.problem().and_then(|problem| problem.retry_after).expect("Retry-After");
    client.send_batch(&[event(number)], commit()).await.expect("it waits its turn");
    assert!(asked >= Duration::from_secs(1) && started.elapsed() >= Duration::from_millis(900), "{asked:?}");
    server.wait_for_count("SELECT count(*) FROM events", number as i64 + 1);
}

#[tokio::test]
async fn without_a_server_attempts_and_time_are_bounded_and_the_id_is_told() {
    let retry = RetryPolicy { attempts_max: 3, wait_first: Duration::from_millis(10), ..RetryPolicy::default() };
    let client = Client::builder("http://127.0.0.1:9").retry(retry).build().expect("a client");
    let options = BatchOptions { batch_id: Some("mine".into()), ..BatchOptions::default() };
    let error = client.send_batch(&[event(1)], options).await.expect_err("nobody is there");
    let Error::GaveUp { batch_id, attempts, last } = &error else { panic!("{error}") };
    assert_eq!((batch_id.as_str(), *attempts), ("mine", 3));
    assert!(matches!(**last, Error::Connect(_)), "{last}");
    let (on_failure, failed) = failures();
    let sender = client.sender(SenderOptions::default(), on_failure);
    sender.send(event(1)).await.expect("the sender runs");
    assert_eq!(sender.close().await.expect("it runs").failed, 1);
    assert_eq!(failed.lock().expect("no panic")[0].events[0].event_id, "evt-1");
}

#[tokio::test]
async fn a_sender_whose_memory_is_full_makes_its_caller_wait() {
    let mut server = Server::start(&[]);
    let client = Client::new(server.url()).expect("a client");
    server.kill9();
    let (on_failure, _) = failures();
    let options =
        SenderOptions { memory_bytes_max: 10_000, age_max: Duration::from_millis(5), ..SenderOptions::default() };
    let sender = client.sender(options, on_failure);
    let mut taken = 0;
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match tokio::time::timeout(Duration::from_millis(500), sender.send(event(taken))).await {
            Ok(sent) => sent.expect("the sender runs"),
            // A machine that does much else may hold it up before its memory is full.
            Err(_) if taken > 20 => break,
            Err(_) => {
                assert!(Instant::now() < deadline, "10 kB hold more than {taken} events");
                continue;
            }
        }
        taken += 1;
        assert!(taken < 100, "10 kB hold no hundred events");
    }
    server.begin();
    server.wait_until_ready();
    sender.send(event(taken)).await.expect("there is room again");
    let delivered = sender.close().await.expect("the sender runs");
    assert_eq!((delivered.accepted, delivered.failed), (taken as u64 + 1, 0));
    server.wait_for_count("SELECT count(*) FROM events", taken as i64 + 1);
}
