//! What the page shows.

use hyper::Request;
use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Serialize;

use super::concerns::{self, Concern};
use crate::auth::gate::Caller;
use crate::auth::scope::Scope;
use crate::http::app::App;
use crate::http::health::Health;
use crate::http::query::parameter;
use crate::http::route::{Reply, json};
use crate::http::worker::Worker;
use crate::metrics::history::Sample;
use crate::metrics::report::Report;
use crate::status::model::{Batch, StatusDocument, rfc3339};
use crate::sys::clock::wall_now;

#[derive(Serialize)]
struct Data {
    /// The server's clock, in milliseconds since 1970.
    now_ms: i64,
    /// What is wrong, the worst first.
    concerns: Vec<Concern>,
    health: Health,
    metrics: Report,
    /// Samples that the caller has not seen.
    history: Vec<Sample>,
    /// What `?since=` should be next time.
    history_next: u64,
    batches: Vec<StatusDocument>,
    troubled_batches: Vec<StatusDocument>,
    dead_letters: Vec<DeadLetters>,
    /// True when the caller may see everybody's batches, and PostgreSQL's own words.
    sees_all: bool,
}

/// Events that PostgreSQL refused for one reason.
#[derive(Serialize)]
struct DeadLetters {
    sqlstate: String,
    /// PostgreSQL's message, which may hold parts of the event: `None` for those who may not see everybody's.
    message: Option<String>,
    events: u64,
    last_at: String,
}

/// The page's data; history from `?since=` on.
pub fn get(worker: &Worker, caller: &Caller, request: &Request<Incoming>) -> Reply {
    let since = parameter(request.uri().query(), "since")?.and_then(|since| since.parse().ok()).unwrap_or(0);
    let app = &worker.app;
    app.read_gauges();
    let (metrics, health) = (Report::of(&app.metrics), Health::of(app));
    let sees_all = caller.may(Scope::Admin);
    let (history, history_next) = app.metrics.history(since);
    let concerns = concerns::of(app, &health, &metrics, &app.metrics.history(0).0);
    let is_shown = |batch: &Batch| sees_all || caller.may(Scope::Read) && batch.key.owner == *caller.owner();
    let document = |batch: std::sync::Arc<Batch>| batch.document(&app.node);
    let data = Data {
        now_ms: wall_now().0 / 1000,
        concerns,
        health,
        metrics,
        history,
        history_next,
        batches: app.recent.batches(is_shown).into_iter().map(document).collect(),
        troubled_batches: app.recent.troubled_batches(is_shown).into_iter().map(document).collect(),
        dead_letters: dead_letters(app, sees_all),
        sees_all,
    };
    Ok(json(StatusCode::OK, &data))
}

fn dead_letters(app: &App, sees_all: bool) -> Vec<DeadLetters> {
    let shown = |dated: crate::status::recent::DatedReason| DeadLetters {
        sqlstate: dated.reason.sqlstate,
        message: sees_all.then_some(dated.reason.message),
        events: dated.reason.events,
        last_at: rfc3339(dated.at),
    };
    app.recent.reasons().into_iter().map(shown).collect()
}
