//! Promise: every request is answered as docs/api.md says, and an answer says what became of the batch.

#[path = "../support/mod.rs"]
mod support;

mod acceptance;
mod refusals;
mod resources;
mod retries;
mod verdicts;

use std::sync::OnceLock;

use support::postgres::TestDatabase;
use support::server::Ingestd;

/// A server with its database.
struct Service {
    server: Ingestd,
    database: TestDatabase,
}

/// The server of all tests that change nothing about it but its batches. Small limits, so that a body over
/// them is soon sent.
fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let database = support::postgres::shared().create_database();
        let server =
            Ingestd::builder().database(&database).env("MAX_BODY_MB", 1).env("MAX_EVENTS_PER_BATCH", 500).start();
        Service { server, database }
    })
}
