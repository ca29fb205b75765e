//! `POST /v1/ingest/batch`: body → inflate → scan → block → ring → acknowledgement.
//!
//! ```text
//!  media     which format the body has
//!  encoded   a whole body, or lines as they come, as a block
//!  room      who waits, and who is refused, while PostgreSQL cannot keep up
//!  take      the id, the ring, the wait for the acknowledgement
//!  verdict   what the client is told
//! ```
//!
//! Between having the body and handing the block to the ring nothing is awaited but the question whether a client's own
//! batch id is known elsewhere. The scanner's memory is used in synchronous stretches.

mod encoded;
mod media;
mod room;
mod take;
mod verdict;

use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};

use self::encoded::{Encoded, Lines, Order, Unfit};
use self::media::Format;
use self::room::wait_for_room_if_known;
pub(super) use self::verdict::Accepted;
use crate::auth::gate::Caller;
use crate::http::body::{BodyBytes, Reader};
use crate::http::inflate::Coding;
use crate::http::problem::Problem;
use crate::http::query::{IngestQuery, other_batch};
use crate::http::route::Reply;
use crate::http::worker::Worker;
use crate::json::peek::{PeekedPriority, peek_body, peek_head};
use crate::limits::RETRY_AFTER_JOURNAL_SECONDS;
use crate::status::origin::Origin;
use crate::types::{BATCH_ID_RULE, batch_id_is_valid};

/// Takes a batch.
pub async fn post(worker: &Worker, caller: &Caller, origin: &Origin, request: Request<Incoming>) -> Reply {
    let accepted_at = Instant::now();
    refuse_early(worker)?;
    let (head, incoming) = request.into_parts();
    let coding = Coding::of(&head.headers).map_err(Problem::and_close)?;
    let format = Format::of(&head.headers).map_err(Problem::and_close)?;
    let query = IngestQuery::parse(head.uri.query()).map_err(Problem::and_close)?;
    let id = chosen_id(&head.headers, &query).map_err(Problem::and_close)?;
    // Nothing of it is needed while the body comes, and HTTP/2 has many requests a connection, each with one.
    drop(head);
    let order = Order { worker, caller, query: &query, id };
    let level = query.ack.unwrap_or(worker.app.settings.ack);
    let reply = match receive(order, incoming, coding, format).await {
        Ok((encoded, held)) => take::take(worker, caller, origin, encoded, held, (level, accepted_at)).await,
        Err(Unfit::NowBad(now_bad)) => take::answer_now_bad(worker, *now_bad, level).await,
        Err(Unfit::Refused(problem)) => Err(problem),
    };
    if reply.is_ok() {
        worker.ack_latency.record_elapsed(accepted_at.elapsed());
    }
    reply
}

/// Reads a body and encodes it; what is held stands for the block's memory.
async fn receive<'a>(
    order: Order<'a>,
    incoming: Incoming,
    coding: Option<Coding>,
    format: Format,
) -> Result<(Encoded, BodyBytes<'a>), Unfit> {
    let (worker, query) = (order.worker, order.query);
    let (limits, budget) = (worker.app.settings.body_limits, &worker.app.request_bytes);
    let reader = Reader::begin(incoming, limits, &worker.buffers, budget).await?;
    // What a compressed body gives itself for a priority is told once it is decompressed.
    let peek = || match (&format, coding) {
        (Format::Batch, None) => peek_head(reader.head()),
        (Format::Batch, Some(_)) => PeekedPriority::Unknown,
        _ => PeekedPriority::Absent,
    };
    if let Err(problem) = wait_for_room_if_known(worker, peek, query).await {
        return Err(reader.refuse(problem).await.into());
    }
    let (encoded, mut held) = match (coding, &format) {
        (None, Format::Lines) => {
            let mut lines = Lines::new(order, reader.declared());
            let held = reader.each(|data| lines.feed(data)).await?;
            (lines.finish()?, held)
        }
        _ => {
            let mut body = reader.finish().await?;
            if let Some(coding) = coding {
                let inflated = BodyBytes::empty(&worker.buffers, budget);
                body = worker.inflater.inflate(coding, body.as_slice(), inflated, limits.bytes_max).await?;
            }
            if format == Format::Batch {
                wait_for_room_if_known(worker, || peek_body(body.as_slice()), query).await?;
            }
            (order.encode(&format, body.as_slice())?, body)
        }
    };
    held.exchange_for(encoded.block.memory_bytes() as u64);
    Ok((encoded, held))
}

/// What can be refused before the body is read.
fn refuse_early(worker: &Worker) -> Result<(), Problem> {
    match worker.app.closed_reason() {
        None => Ok(()),
        Some(reason) => {
            let code = if worker.app.is_draining() { "draining" } else { "journal_unavailable" };
            Err(Problem::unavailable(code, reason, RETRY_AFTER_JOURNAL_SECONDS).and_close())
        }
    }
}

/// The id that header and query give, if they do; all must agree.
fn chosen_id(headers: &HeaderMap, query: &IngestQuery) -> Result<Option<String>, Problem> {
    let mut chosen = query.batch_id.clone();
    for value in headers.get_all("idempotency-key") {
        let text = value.to_str().unwrap_or("").trim();
        // The header's draft standard makes it a quoted string; many clients send it bare.
        let id = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        if !batch_id_is_valid(id) {
            let detail = format!("Idempotency-Key {BATCH_ID_RULE}");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_batch_id", detail));
        }
        chosen = agree(Some(id), chosen.as_deref())?;
    }
    Ok(chosen)
}

/// The id that both give, if either does.
fn agree(one: Option<&str>, other: Option<&str>) -> Result<Option<String>, Problem> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => Err(other_batch()),
        (one, other) => Ok(one.or(other).map(str::to_owned)),
    }
}
