//! What an accepted batch is told, at every ack level.

use serde_json::{Value, json};

use super::service;
use super::support::contract::{accept, batch, event, ingest_url, rows_of, send, status_of, wait_until_completed};
use super::support::server::{get, post, post_json};
use ingestd::types::UnixMicros;

#[test]
fn an_accepted_batch_is_answered_202_with_its_status_url() {
    let server = &service().server;
    let reply = post_json(&ingest_url(server, ""), &batch("accepted", 3));
    assert_eq!(reply.status, 202, "{}", reply.text());
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("location"), "/v1/batch/accepted/status");
    let expected = json!({"batch_id": "accepted", "status": "queued", "accepted": 3, "rejected": 0, "errors": []});
    assert_eq!(reply.json(), expected, "these members and no others");
    assert_eq!(get(&server.url(reply.header("location"))).json()["batch_id"], "accepted");
    wait_until_completed(server, "accepted");
    assert_eq!(rows_of(&service().database, "accepted"), 3);
}

#[test]
fn an_event_of_years_ago_lands_in_a_partition_made_for_it() {
    let service = service();
    let mut body = batch("years-ago", 0);
    // Half a year apart, back to almost EVENT_MAX_AGE_DAYS by default: no month has a partition yet.
    body["events"] = (0..19)
        .map(|half| {
            let mut event = event(&format!("old-{half}"));
            event["timestamp"] = json!(days_ago(3640 - half * 183));
            event
        })
        .collect();
    let reply = post_json(&ingest_url(&service.server, "ack=commit"), &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["inserted"], 19, "{}", reply.text());
    assert_eq!(rows_of(&service.database, "years-ago"), 19);

    let mut older = batch("older", 0);
    older["events"] = json!([event("too-old")]);
    older["events"][0]["timestamp"] = json!(days_ago(3660));
    let reply = post_json(&ingest_url(&service.server, ""), &older);
    assert_eq!((reply.status, &reply.json()["errors"][0]["code"]), (422, &json!("timestamp_too_old")));
}

#[test]
fn a_batch_without_an_id_gets_a_uuid_of_its_own() {
    let server = &service().server;
    let body = json!({ "events": [event("anonymous")] });
    let ids: Vec<String> = (0..2).map(|_| accept(server, "", &body)["batch_id"].to_string()).collect();
    assert_ne!(ids[0], ids[1], "the same body twice is two batches");
    for id in ids {
        let id: uuid::Uuid = id.trim_matches('"').parse().expect("a UUID");
        assert_eq!(id.get_version_num(), 7);
        wait_until_completed(server, &id.to_string());
    }
}

#[test]
fn ack_commit_is_answered_200_when_the_rows_are_there() {
    let service = service();
    let reply = post_json(&ingest_url(&service.server, "ack=commit"), &batch("committed", 4));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(rows_of(&service.database, "committed"), 4, "no wait: the answer is the promise");
    assert_eq!(reply.header("location"), "/v1/batch/committed/status");
    let expected = json!({
        "batch_id": "committed", "status": "completed", "accepted": 4, "rejected": 0, "errors": [],
        "inserted": 4, "duplicates": 0, "dead_lettered": 0,
    });
    assert_eq!(reply.json(), expected);
}

#[test]
fn ack_commit_counts_events_that_were_there_before() {
    let server = &service().server;
    let mut first = batch("twins-1", 0);
    let mut second = batch("twins-2", 0);
    let at = |id: &str| {
        let mut event = event(id);
        event["timestamp"] = json!(now_rfc3339());
        event
    };
    let (old, new) = (at("twin-old"), at("twin-new"));
    first["events"] = json!([old]);
    second["events"] = json!([old, new, new]);
    let inserted = |query: &str, body: &Value| {
        let answer = send(server, query, body.to_string().as_bytes()).json();
        [&answer["inserted"], &answer["duplicates"], &answer["dead_lettered"]].map(|count| count.as_u64())
    };
    assert_eq!(inserted("ack=commit", &first), [Some(1), Some(0), Some(0)]);
    assert_eq!(inserted("ack=commit", &second), [Some(1), Some(2), Some(0)], "one from before, one within the batch");
    let status = status_of(server, "twins-2");
    assert_eq!((&status["status"], &status["duplicates"]), (&json!("completed"), &json!(2)));
}

#[test]
fn ack_memory_is_answered_202_and_the_batch_lands_too() {
    let server = &service().server;
    accept(server, "ack=memory", &batch("remembered", 2));
    let status = wait_until_completed(server, "remembered");
    assert_eq!(status["inserted"], 2);
}

#[test]
fn a_bare_array_is_a_batch_whose_id_and_priority_come_from_the_query() {
    let server = &service().server;
    let answer = accept(server, "priority=7&batch_id=bare%3Aarray", &json!([event("bare-1"), event("bare-2")]));
    assert_eq!((&answer["batch_id"], &answer["accepted"]), (&json!("bare:array"), &json!(2)));
    let status = wait_until_completed(server, "bare:array");
    assert_eq!(status["priority"], 7);
    let row = service()
        .database
        .connect()
        .query_one("SELECT count(*) FROM events WHERE batch_id = 'bare:array' AND priority = 7", &[]);
    assert_eq!(row.expect("a count").get::<_, i64>(0), 2);
}

#[test]
fn priority_in_the_envelope_is_stored_with_batch_and_rows() {
    let server = &service().server;
    let mut body = batch("urgent", 1);
    body["priority"] = json!(10);
    accept(server, "", &body);
    assert_eq!(wait_until_completed(server, "urgent")["priority"], 10);
}

#[test]
fn unknown_members_are_ignored_in_envelope_and_event() {
    let server = &service().server;
    let mut body = batch("unknown-members", 1);
    body["source"] = json!({"events": [1, 2]});
    body["events"][0]["trace"] = json!([null, {"event_id": "not this one"}]);
    let reply = send(server, "ack=commit&colour=red", body.to_string().as_bytes());
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &json!(1)));
}

#[test]
fn optional_members_may_be_null() {
    let service = service();
    let body = r#"{"batch_id": "nulls", "priority": null, "events":
        [{"event_id": "null", "service_name": "s", "event_type": "t", "payload": {}, "timestamp": null, "metadata": null}]}"#;
    assert_eq!(send(&service.server, "ack=commit", body.as_bytes()).status, 200);
    let query =
        "SELECT metadata IS NULL AND priority = 0 AND \"timestamp\" = ingested_at FROM events WHERE batch_id = 'nulls'";
    let row = service.database.connect().query_one(query, &[]).expect("the row");
    assert!(row.get::<_, bool>(0), "metadata is SQL's NULL, priority 0, timestamp the time of receipt");
    let anonymous =
        r#"{"batch_id": null, "events": [{"event_id":"n","service_name":"s","event_type":"t","payload":{}}]}"#;
    assert_eq!(send(&service.server, "", anonymous.as_bytes()).status, 202);
}

#[test]
fn json_without_a_content_type_and_with_parameters_is_taken() {
    let server = &service().server;
    let body = json!([event("typed")]).to_string();
    for headers in
        [&[][..], &[("Content-Type", "Application/JSON; charset=utf-8")], &[("Content-Encoding", "identity")]]
    {
        let reply = post(&ingest_url(server, ""), headers, body.as_bytes());
        assert_eq!(reply.status, 202, "{headers:?}: {}", reply.text());
    }
}

#[test]
fn batch_ids_of_every_allowed_character_and_length_are_taken() {
    let server = &service().server;
    for id in ["a", "Z", "0", ".a", "_", ":", "-", "...", "..a", &"x".repeat(128), "A.z_0:9-"] {
        let mut body = batch("", 1);
        body["batch_id"] = json!(id);
        assert_eq!(accept(server, "", &body)["batch_id"], id);
        wait_until_completed(server, id);
    }
}

/// This moment, as a client writes it.
pub(super) fn days_ago(days: u64) -> String {
    let now = ingestd::sys::clock::wall_now();
    ingestd::status::model::rfc3339(UnixMicros(now.0 - days as i64 * 86_400 * 1_000_000))
}

fn now_rfc3339() -> String {
    ingestd::status::model::rfc3339(ingestd::sys::clock::wall_now())
}
