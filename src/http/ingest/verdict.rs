//! What a client is told of its batch: that it is taken, or what is wrong with it.

use std::borrow::Cow;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HeaderValue, LOCATION};
use hyper::{Response, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::problem::{ErrorItem, Problem};
use crate::http::query::Invalid;
use crate::http::route::json;
use crate::http::worker::Worker;
use crate::json::{BodyError, Reason, Reject};
use crate::limits::{ERRORS_LISTED_MAX, RETRY_AFTER_JOURNAL_SECONDS};
use crate::status::model::{Batch, Counts};

/// The outcome of a batch.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Accepted<'a> {
    /// The batch's id: from the client, or generated.
    #[schema(min_length = 1, max_length = 128, pattern = "^(\\.{0,2}[A-Za-z0-9_:-]|\\.{3})[A-Za-z0-9._:-]*$")]
    batch_id: &'a str,
    /// The batch's status.
    #[schema(pattern = "^(queued|processing|completed|partial|failed)$")]
    status: &'a str,
    /// Events accepted.
    accepted: u32,
    /// Invalid events that were skipped, with `?invalid=skip`.
    rejected: usize,
    /// A verdict on each skipped event.
    errors: &'a [ErrorItem],
    /// True when the batch was already known; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
}

/// 409: another body has the id.
pub(super) fn conflict() -> Problem {
    let detail = "this batch_id was already used with a different body; send the same body again or choose another id";
    Problem::new(StatusCode::CONFLICT, "batch_id_conflict", detail)
}

/// 503: nobody knows whether the batch is taken, because of `why`; sent again under its id it is stored once.
pub(super) fn outcome_unknown(batch: &Batch, why: &str) -> Problem {
    let detail = format!(
        "{why}: it may have been taken, or not; send the same body again with this batch_id, and it is stored once"
    );
    let problem = Problem::unavailable("outcome_unknown", detail, RETRY_AFTER_JOURNAL_SECONDS);
    let problem = problem.of_batch(&batch.key.id);
    match location(&batch.key.id) {
        Some(location) => problem.with_header(LOCATION, location),
        None => problem,
    }
}

/// Where the status of a batch is. A valid batch id needs no escaping in a path.
fn location(batch_id: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("/v1/batch/{batch_id}/status")).ok()
}

/// The answer to a batch that is taken, or was before.
pub(super) fn accepted(
    code: StatusCode,
    batch: &Batch,
    status: &str,
    events: u32,
    verdicts: &Verdicts,
    duplicate: bool,
    counts: Option<Counts>,
) -> Response<Full<Bytes>> {
    let batch_id = &*batch.key.id;
    let (rejected, errors) = verdicts.told(events);
    let document = Accepted { batch_id, status, accepted: events, rejected, errors: &errors, duplicate, counts };
    let mut response = json(code, &document);
    if let Some(location) = location(batch_id) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Why the whole body is refused.
pub(super) fn refuse_body(worker: &Worker, error: BodyError) -> Problem {
    let rejected = &worker.app.metrics.events_rejected;
    match error {
        BodyError::Syntax { offset, message } => {
            rejected.add("not_json", 1);
            let detail = format!("the body is not JSON: {message} at byte {offset}");
            Problem::new(StatusCode::BAD_REQUEST, "not_json", detail).at_byte(offset)
        }
        BodyError::TooManyEvents { events_max } => {
            rejected.add("too_many_events", 1);
            let detail =
                format!("the batch has more than {events_max} events (MAX_EVENTS_PER_BATCH); send smaller batches");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_events", detail)
        }
        BodyError::Envelope(reason) => {
            rejected.add(reason.code(), 1);
            let item = ErrorItem {
                index: None,
                event_id: None,
                pointer: reason.pointer().to_owned(),
                code: reason.code(),
                detail: reason.to_string(),
            };
            let detail = item.detail.clone();
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_batch", detail).with_errors(vec![item], 1)
        }
    }
}

/// The verdicts on the bad events of one batch.
#[derive(Default)]
pub(super) struct Verdicts {
    /// Those that are listed.
    pub errors: Vec<ErrorItem>,
    /// How many there are.
    pub total: usize,
    /// How many events are good.
    pub good: usize,
    /// How many of them are about services that the caller may not send events of.
    foreign: usize,
    /// How many of them are about lines that are not JSON.
    not_json: usize,
    /// Where in the body the first such line is wrong.
    byte_offset: Option<usize>,
}

impl Verdicts {
    /// Adds those of `rejects` on events in `source`, which lies at byte `offset` of the body; lists them up to
    /// `listed_max`.
    pub fn add(&mut self, worker: &Worker, source: &[u8], offset: usize, rejects: &[Reject], listed_max: usize) {
        for reject in rejects {
            worker.app.metrics.events_rejected.add(reject.code(), 1);
            self.total += 1;
            match reject.reason {
                Reason::ServiceNotAllowed => self.foreign += 1,
                Reason::Syntax(_) => {
                    self.not_json += 1;
                    self.byte_offset.get_or_insert(offset + reject.offset());
                }
                _ => {}
            }
            if self.errors.len() < listed_max {
                self.errors.push(error_item(source, reject));
            }
        }
    }

    /// Events that were judged.
    pub fn events(&self) -> usize {
        self.good + self.total
    }

    /// Whether the whole batch is refused for them.
    pub fn refuse_all(&self, invalid: Invalid) -> bool {
        self.total > 0 && (invalid == Invalid::Reject || self.good == 0)
    }

    /// What is told where `accepted` events of the batch were accepted: how many were not, and the verdicts on those.
    ///
    /// Of a batch that comes again, other events may be bad now than were at first. Listed is then what was bad whenever it came.
    pub fn told(&self, accepted: u32) -> (usize, Cow<'_, [ErrorItem]>) {
        let rejected = self.events().saturating_sub(accepted as usize);
        if rejected == self.total {
            return (rejected, Cow::Borrowed(&self.errors));
        }
        let lasting = |item: &&ErrorItem| !Reason::PASSING.contains(&item.code);
        (rejected, self.errors.iter().filter(lasting).take(rejected).cloned().collect())
    }

    /// Why the batch is refused for its bad events.
    pub fn refuse(mut self) -> Problem {
        let (bad, events) = (self.total, self.events());
        let problem = if bad == self.foreign {
            let detail = format!(
                "the API key is not allowed to send {bad} of {events} events, because of their service_name; \
                    nothing in this request was accepted"
            );
            Problem::new(StatusCode::FORBIDDEN, "service_not_allowed", detail)
        } else if let (Some(offset), true) = (self.byte_offset, self.not_json == events) {
            let detail = format!("no line of the body is JSON, from byte {offset} on");
            Problem::new(StatusCode::BAD_REQUEST, "not_json", detail).at_byte(offset)
        } else {
            let detail = format!("{bad} of {events} events are invalid; nothing in this request was accepted");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_events", detail)
        };
        self.errors.truncate(ERRORS_LISTED_MAX);
        problem.with_errors(self.errors, bad)
    }
}

fn error_item(body: &[u8], reject: &Reject) -> ErrorItem {
    ErrorItem {
        index: Some(reject.index),
        event_id: reject.event_id(body).map(|id| id.into_owned()),
        pointer: reject.pointer(body),
        code: reject.code(),
        detail: reject.detail(),
    }
}
