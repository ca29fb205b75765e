//! Paths, methods and the form of every refusal.

use super::service;
use super::support::contract::assert_problem;
use super::support::raw::Raw;
use super::support::server::{Reply, get};

/// One request without a body.
fn request(method: &str, path: &str) -> Reply {
    let mut raw = Raw::connect(&service().server);
    raw.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
    raw.answer()
}

#[test]
fn unknown_paths_are_answered_404() {
    for path in [
        "/v1",
        "/v1/ingest",
        "/v1/ingest/batch/",
        "/v1/ingest/batch/x",
        "/v1/batch//status",
        "/v1/batch/a/b/status",
        "/metrics",
        "/V1/health",
    ] {
        assert_problem(&get(&service().server.url(path)), 404, "not_found");
    }
}

#[test]
fn batches_that_nobody_knows_are_answered_404_whatever_their_name() {
    for id in ["never-sent", "a%20b", "%ff", "..%2f..%2fetc", &"x".repeat(200), "'%20OR%201=1"] {
        assert_problem(&get(&service().server.url(&format!("/v1/batch/{id}/status"))), 404, "batch_unknown");
    }
}

#[test]
fn other_methods_are_answered_405_with_those_that_are_allowed() {
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let reply = request(method, "/v1/ingest/batch");
        assert_problem(&reply, 405, "method_not_allowed");
        assert_eq!(reply.header("allow"), "POST", "{method}");
    }
    for path in ["/v1/health", "/v1/metrics", "/livez", "/readyz", "/v1/batch/x/status"] {
        let reply = request("POST", path);
        assert_problem(&reply, 405, "method_not_allowed");
        assert_eq!(reply.header("allow"), "GET, HEAD", "{path}");
    }
}

#[test]
fn head_is_answered_as_get_without_a_body() {
    for path in ["/v1/health", "/v1/metrics", "/livez", "/readyz", "/nowhere", "/v1/ingest/batch"] {
        let mut raw = Raw::connect(&service().server);
        raw.send(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let head = raw.head();
        let same = get(&service().server.url(path));
        assert_eq!((head.status, head.header("content-type")), (same.status, same.header("content-type")), "{path}");
        // The connection goes on with the next answer: nothing of a body was sent.
        raw.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(raw.answer().text(), "alive\n", "{path}");
    }
}
