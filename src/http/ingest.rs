//! `POST /v1/ingest/batch`: body → inflate → scan → block → ring → acknowledgement.
//!
//! Between decompressing the body and handing the block to the ring nothing is awaited but the question whether a
//! client's own batch id is known elsewhere. The scanner's memory is used in one synchronous stretch.

use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::oneshot;
use uuid::{Timestamp, Uuid};

use crate::auth::gate::Caller;
use crate::auth::rate::Unit;
use crate::encode::block::{BLOCK_HEADER_BYTES_MAX, Block, BlockBuilder, BlockHeader};
use crate::encode::tuple::{RowContext, append_tuple};
use crate::http::access;
use crate::http::body::{BodyBytes, Reader};
use crate::http::inflate::Coding;
use crate::http::problem::{ErrorItem, Problem};
use crate::http::query::{IngestQuery, Invalid};
use crate::http::route::{Reply, json};
use crate::http::submission::{Refused, Submission};
use crate::http::worker::Worker;
use crate::journal::SpaceError;
use crate::json::peek::{PeekedPriority, peek_body, peek_head};
use crate::json::{BodyError, Reason, Reject, ScanLimits, Scratch, scan_body};
use crate::limits::{
    ADMITTING_POLL, COMMIT_ACK_WAIT_MAX, ERRORS_LISTED_MAX, LOOKUP_INGEST_WAIT_MAX, OVERLOAD_POLL, OVERLOAD_WAIT_MAX,
    RETRY_AFTER_BUSY_SECONDS, RETRY_AFTER_JOURNAL_SECONDS, RETRY_AFTER_OVERLOAD_SECONDS_MAX,
};
use crate::status::lookup::Answer;
use crate::status::memory::Admission;
use crate::status::model::{Batch, Counts, Phase};
use crate::sys::clock::wall_now;
use crate::types::{AckLevel, BatchKey, BodyDigest, Priority, batch_id_is_valid};

/// The body of a 202 or 200.
#[derive(Serialize)]
struct Accepted<'a> {
    batch_id: &'a str,
    status: &'a str,
    accepted: u32,
    rejected: usize,
    errors: &'a [ErrorItem],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
}

/// A body that was understood: its block and what is told about its bad events.
struct Encoded {
    block: Block,
    header: BlockHeader,
    /// The client chose the id, so somebody may have used it before.
    id_is_clients: bool,
    errors: Vec<ErrorItem>,
}

/// Takes a batch.
pub async fn post(worker: &Worker, caller: &Caller, request: Request<Incoming>) -> Reply {
    let accepted_at = Instant::now();
    refuse_early(worker)?;
    let (head, incoming) = request.into_parts();
    let coding = Coding::of(&head.headers).map_err(Problem::and_close)?;
    require_json(&head.headers)?;
    let query = IngestQuery::parse(head.uri.query()).map_err(Problem::and_close)?;
    let id = chosen_id(&head.headers, &query).map_err(Problem::and_close)?;
    // Nothing of it is needed while the body comes, and HTTP/2 has many requests a connection, each with one.
    drop(head);
    let settings = &worker.app.settings;
    let budget = &worker.app.request_bytes;
    let reader = Reader::begin(incoming, settings.body_limits, &worker.buffers, budget).await?;
    // What a compressed body gives itself for a priority is told once it is decompressed.
    let peek = || if coding.is_none() { peek_head(reader.head()) } else { PeekedPriority::Unknown };
    if let Err(problem) = wait_for_room_if_known(worker, peek, &query).await {
        return Err(reader.refuse(problem).await);
    }
    let mut body = reader.finish().await?;
    if let Some(coding) = coding {
        let inflated = BodyBytes::empty(&worker.buffers, budget);
        body = worker.inflater.inflate(coding, body.as_slice(), inflated, settings.body_limits.bytes_max).await?;
    }
    wait_for_room_if_known(worker, || peek_body(body.as_slice()), &query).await?;
    let encoded = encode(worker, caller, body.as_slice(), &query, id)?;
    body.exchange_for(encoded.block.memory_bytes() as u64);
    let level = query.ack.unwrap_or(settings.ack);
    let reply = take(worker, caller, encoded, body, level, accepted_at).await;
    if reply.is_ok() {
        worker.ack_latency.record_elapsed(accepted_at.elapsed());
    }
    reply
}

/// What can be refused before the body is read.
fn refuse_early(worker: &Worker) -> Result<(), Problem> {
    match worker.app.unready_reason() {
        None => Ok(()),
        Some(reason) => {
            let code = if worker.app.is_draining() { "draining" } else { "journal_unavailable" };
            Err(Problem::unavailable(code, reason, RETRY_AFTER_JOURNAL_SECONDS).and_close())
        }
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    // Without a Content-Type the body is taken for JSON: the scanner tells if it is not.
    let Some(content_type) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let media_type = content_type.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = format!("Content-Type {content_type:?} is not accepted; send application/json");
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail).and_close())
}

/// The id that header and query give, if they do; they must agree.
fn chosen_id(headers: &HeaderMap, query: &IngestQuery) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(query.batch_id.clone()) };
    let text = value.to_str().unwrap_or("").trim();
    // The header's draft standard makes it a quoted string; many clients send it bare.
    let id = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if !batch_id_is_valid(id) {
        let detail = "Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 . _ : -";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_batch_id", detail));
    }
    agree(Some(id), query.batch_id.as_deref())
}

fn agree(one: Option<&str>, other: Option<&str>) -> Result<Option<String>, Problem> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => {
            let detail = "batch_id, Idempotency-Key and ?batch_id= name different batches; send one";
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "batch_id_mismatch", detail))
        }
        (one, other) => Ok(one.or(other).map(str::to_owned)),
    }
}

/// Scans `body` and encodes its good events into a block.
fn encode(
    worker: &Worker,
    caller: &Caller,
    body: &[u8],
    query: &IngestQuery,
    id: Option<String>,
) -> Result<Encoded, Problem> {
    let received_at = wall_now();
    let settings = &worker.app.settings;
    let timestamps = settings.timestamps(received_at);
    let limits = ScanLimits {
        events_max: settings.events_max,
        timestamp_min: *timestamps.start(),
        timestamp_max: *timestamps.end(),
    };
    let scratch = &mut *worker.scratch.borrow_mut();
    scan_body(body, &limits, scratch).map_err(|error| refuse_body(worker, error))?;
    if let Some(services) = caller.services() {
        scratch.refuse_services(body, |service| services.allow(service));
    }
    let id = agree(scratch.batch_id(), id.as_deref())?;
    let (taken, rejected) = (scratch.events().len(), scratch.rejects().len());
    count_rejects(worker, scratch.rejects());
    if rejected > 0 && (query.invalid == Invalid::Reject || taken == 0) {
        return Err(refuse_events(body, scratch.rejects(), taken));
    }
    let id_is_clients = id.is_some();
    let header = BlockHeader {
        key: BatchKey { owner: Arc::clone(caller.owner()), id: id.unwrap_or_else(|| new_id(worker)).into_boxed_str() },
        priority: scratch.priority().or(query.priority).unwrap_or_default(),
        events: u32::try_from(taken).unwrap_or(u32::MAX),
        received_at,
        digest: BodyDigest::of(body),
    };
    let errors = scratch.rejects().iter().map(|reject| error_item(body, reject)).collect();
    Ok(Encoded { block: build_block(worker, body, scratch, &header), header, id_is_clients, errors })
}

/// An id for a batch that came without.
fn new_id(worker: &Worker) -> String {
    Uuid::new_v7(Timestamp::now(&worker.ids)).to_string()
}

fn build_block(worker: &Worker, body: &[u8], scratch: &Scratch, header: &BlockHeader) -> Block {
    let events = scratch.events();
    let row = RowContext::new(&header.key.id, header.priority, header.received_at);
    let bytes = BLOCK_HEADER_BYTES_MAX + row.tuple_bytes_max(body.len(), events.len());
    let mut builder = BlockBuilder::new(worker.app.blocks.take(bytes), header);
    for event in events {
        append_tuple(builder.tuples(), body, event, &row);
    }
    builder.finish(header.events)
}

fn refuse_body(worker: &Worker, error: BodyError) -> Problem {
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

fn refuse_events(body: &[u8], rejects: &[Reject], good: usize) -> Problem {
    let errors = rejects.iter().take(ERRORS_LISTED_MAX).map(|reject| error_item(body, reject)).collect();
    let events = rejects.len() + good;
    let problem = if rejects.iter().all(|reject| reject.reason == Reason::ServiceNotAllowed) {
        let detail = format!(
            "{} of {events} events are of services that the API key does not have; nothing was taken",
            rejects.len()
        );
        Problem::new(StatusCode::FORBIDDEN, "service_not_allowed", detail)
    } else {
        let detail = format!("{} of {events} events are invalid; nothing was taken", rejects.len());
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_events", detail)
    };
    problem.with_errors(errors, rejects.len())
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

fn count_rejects(worker: &Worker, rejects: &[Reject]) {
    for reject in rejects {
        worker.app.metrics.events_rejected.add(reject.code(), 1);
    }
}

/// Frees the id of a batch that did not reach the ring: refused, or its client gone.
struct Admitted<'a> {
    worker: &'a Worker,
    batch: Arc<Batch>,
    submitted: bool,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.submitted {
            self.batch.set_phase(Phase::Refused);
            self.worker.app.batches.remove(&self.batch);
        }
    }
}

/// Takes the batch's id, hands its block to the journal thread and waits as `level` demands. `held` counts
/// the block as long as it waits here.
async fn take(
    worker: &Worker,
    caller: &Caller,
    encoded: Encoded,
    held: BodyBytes<'_>,
    level: AckLevel,
    accepted_at: Instant,
) -> Reply {
    let Encoded { block, header, id_is_clients, errors } = encoded;
    let batch = Arc::new(Batch::new(header.key, header.digest, header.priority, header.events, header.received_at));
    while let Admission::Known(known) = worker.app.batches.admit(&batch) {
        match answer_known(&batch, &known, level, &errors).await {
            Some(reply) => return reply,
            None => continue,
        }
    }
    let mut admitted = Admitted { worker, batch: Arc::clone(&batch), submitted: false };
    if id_is_clients
        && let Answer::Known(known) = worker.app.lookup.find_for_good(&batch.key, LOOKUP_INGEST_WAIT_MAX).await
    {
        if known.digest != batch.digest {
            return Err(conflict());
        }
        let document = known.document;
        let counts = document.completed_at.is_some().then_some(document.counts);
        return Ok(accepted(StatusCode::OK, &batch, &document.status, document.events, &errors, true, counts));
    }
    wait_for_room(worker, batch.priority).await?;
    caller.take(Unit::Events, batch.events).map_err(access::problem)?;
    drop(held);
    let (durable, committed) = submit(worker, block, &batch, level, accepted_at)?;
    admitted.submitted = true;
    let queued = || accepted(StatusCode::ACCEPTED, &batch, "queued", batch.events, &errors, false, None);
    if level == AckLevel::Memory {
        return Ok(queued());
    }
    if durable.await != Ok(Ok(())) {
        let detail = "the journal cannot be written; nothing of the batch was taken";
        return Err(Problem::unavailable("journal_unavailable", detail, RETRY_AFTER_JOURNAL_SECONDS));
    }
    if level == AckLevel::Journal {
        return Ok(queued());
    }
    match tokio::time::timeout(COMMIT_ACK_WAIT_MAX, committed).await {
        Ok(Ok(())) => {
            let (status, counts) = (batch.phase().name(), Some(batch.counts()));
            Ok(accepted(StatusCode::OK, &batch, status, batch.events, &errors, false, counts))
        }
        // Safe in the journal, and PostgreSQL is away or slow: not an error.
        Ok(Err(_)) | Err(_) => Ok(queued()),
    }
}

/// Holds a request back while PostgreSQL has more to commit than it can in time: clients that wait for their answers
/// then send as fast as it commits, and neither they nor the server spend anything on refusals. Others are refused
/// after a while.
async fn wait_for_room(worker: &Worker, priority: Priority) -> Result<(), Problem> {
    let arrived = Instant::now();
    while let Some(over) = worker.app.overload(priority) {
        let now = Instant::now();
        worker.app.queue.admission.turned_away(priority, now);
        if now - arrived >= OVERLOAD_WAIT_MAX || worker.app.is_draining() {
            let detail = "PostgreSQL has more to commit than it can in time; nothing was taken from this request";
            let seconds = over.as_secs().clamp(1, RETRY_AFTER_OVERLOAD_SECONDS_MAX);
            return Err(Problem::unavailable("overloaded", detail, seconds as u32));
        }
        tokio::time::sleep(OVERLOAD_POLL).await;
    }
    Ok(())
}

/// The same before the body is scanned, or received at all, when an overload makes it worth a look whose turn it is.
async fn wait_for_room_if_known(
    worker: &Worker,
    peek: impl Fn() -> PeekedPriority,
    query: &IngestQuery,
) -> Result<(), Problem> {
    if worker.app.overload(Priority::default()).is_none() {
        return Ok(());
    }
    match peek() {
        PeekedPriority::Given(priority) => wait_for_room(worker, priority).await,
        PeekedPriority::Absent => wait_for_room(worker, query.priority.unwrap_or_default()).await,
        PeekedPriority::Unknown => Ok(()),
    }
}

fn no_room(refusal: SpaceError) -> Problem {
    match refusal {
        SpaceError::Full => {
            let detail = "the journal is full until PostgreSQL has caught up; nothing of the batch was taken";
            Problem::unavailable("journal_full", detail, RETRY_AFTER_JOURNAL_SECONDS)
        }
        SpaceError::NeverFits => {
            let detail = "the batch is larger than the journal may ever hold (JOURNAL_MAX_MB); send smaller batches";
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_too_large", detail)
        }
    }
}

type Waits = (oneshot::Receiver<Result<(), Refused>>, oneshot::Receiver<()>);

/// Takes room in queue, journal and ring, all or nothing, and pushes.
fn submit(
    worker: &Worker,
    block: Block,
    batch: &Arc<Batch>,
    level: AckLevel,
    accepted_at: Instant,
) -> Result<Waits, Problem> {
    let app = &worker.app;
    let block_bytes = block.bytes().len();
    if !app.queue.budgets.batches.try_take(1) {
        let detail = "too many batches wait for PostgreSQL (MEMORY_LIMIT_MB); nothing of the batch was taken, larger batches \
                      take less room";
        return Err(Problem::unavailable("queue_full", detail, RETRY_AFTER_JOURNAL_SECONDS));
    }
    if let Err(refusal) = app.space.try_reserve(block_bytes) {
        app.queue.budgets.batches.give_back(1);
        return Err(no_room(refusal));
    }
    let (on_durable, durable) = oneshot::channel();
    let (on_commit, committed) = oneshot::channel();
    let submission = Submission {
        block,
        batch: Arc::clone(batch),
        level,
        accepted_at,
        on_durable: (level != AckLevel::Memory).then_some(on_durable),
        on_commit: (level == AckLevel::Commit).then_some(on_commit),
    };
    if app.rings[worker.index].push(block_bytes as u64, submission).is_err() {
        app.space.release_reservation(block_bytes);
        app.queue.budgets.batches.give_back(1);
        let detail = "this node's queue is full; nothing of the batch was taken";
        return Err(Problem::unavailable("queue_full", detail, RETRY_AFTER_BUSY_SECONDS));
    }
    app.queue.admission.joined(batch.priority, batch.events);
    app.journal.unpark();
    Ok((durable, committed))
}

/// Answers a request for a batch that this process knows; `None` when that one was refused after all.
async fn answer_known(batch: &Batch, known: &Batch, level: AckLevel, errors: &[ErrorItem]) -> Option<Reply> {
    if known.digest != batch.digest {
        return Some(Err(conflict()));
    }
    let deadline = Instant::now() + COMMIT_ACK_WAIT_MAX;
    loop {
        let phase = known.phase();
        let waits = match level {
            // The first request's promise is not given yet, so neither is this one's.
            AckLevel::Memory | AckLevel::Journal => phase == Phase::Admitting,
            AckLevel::Commit => !phase.is_final() && phase != Phase::Refused,
        };
        if phase == Phase::Refused {
            return None;
        }
        if !waits || Instant::now() >= deadline {
            let counts = phase.is_final().then(|| known.counts());
            return Some(Ok(accepted(StatusCode::OK, known, phase.name(), known.events, errors, true, counts)));
        }
        tokio::time::sleep(ADMITTING_POLL).await;
    }
}

fn conflict() -> Problem {
    let detail = "this batch_id was used before with a different body; send the same body again or choose another id";
    Problem::new(StatusCode::CONFLICT, "batch_id_conflict", detail)
}

fn accepted(
    code: StatusCode,
    batch: &Batch,
    status: &str,
    events: u32,
    errors: &[ErrorItem],
    duplicate: bool,
    counts: Option<Counts>,
) -> Response<http_body_util::Full<hyper::body::Bytes>> {
    let batch_id = &*batch.key.id;
    let document = Accepted { batch_id, status, accepted: events, rejected: errors.len(), errors, duplicate, counts };
    let mut response = json(code, &document);
    // A valid batch id needs no escaping in a path.
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/batch/{batch_id}/status")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
