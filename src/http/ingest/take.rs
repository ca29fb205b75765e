//! A batch that was understood on its way to the ring, and the wait for its acknowledgement.
//!
//! A batch that comes again is answered as its own level demands, not as the first one's did. Whether it is committed only
//! the ledger says: Redis may be older than a database that was restored, and so may what this process remembers.
//!
//! | the batch is | `memory` | `journal` | `commit` |
//! |---|---|---|---|
//! | on its way here | its status | its status, once a sync covers it | its counts, once committed |
//! | in the ledger | its counts | its counts | its counts |
//! | on its way elsewhere, as Redis says | its status | taken here | taken here |
//! | not in the ledger, whoever says that it is committed | taken here | taken here | taken here |
//! | perhaps in the ledger, which does not answer | taken here | taken here | taken here |
//!
//! To take it again is safe: the ledger lets one of them land. Another body under the same id is refused wherever that is
//! known.

use std::sync::Arc;
use std::time::Instant;

use hyper::StatusCode;
use tokio::sync::oneshot;

use super::encoded::{Encoded, NowBad};
use super::room::wait_for_room;
use super::verdict::{Verdicts, accepted, conflict, outcome_unknown};
use crate::auth::gate::Caller;
use crate::auth::rate::Unit;
use crate::encode::block::Block;
use crate::http::access;
use crate::http::body::BodyBytes;
use crate::http::problem::Problem;
use crate::http::route::Reply;
use crate::http::submission::{Refused, Submission};
use crate::http::worker::Worker;
use crate::journal::{Claim, SpaceError};
use crate::limits::{
    COMMIT_ACK_WAIT_MAX, LOOKUP_INGEST_WAIT_MAX, LOOKUP_STATUS_WAIT_MAX, RETRY_AFTER_BUSY_SECONDS,
    RETRY_AFTER_JOURNAL_SECONDS,
};
use crate::status::lookup::{Answer, Known};
use crate::status::memory::Admission;
use crate::status::model::{Batch, Phase};
use crate::status::origin::Origin;
use crate::types::AckLevel;

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
pub(super) async fn take(
    worker: &Worker,
    caller: &Caller,
    origin: &Origin,
    encoded: Encoded,
    held: BodyBytes<'_>,
    (level, accepted_at): (AckLevel, Instant),
) -> Reply {
    let Encoded { block, header, id_is_clients, verdicts } = encoded;
    let batch = Arc::new(Batch::of_block(header).come_with(origin.clone()));
    origin.brings(&batch.key, batch.events, level);
    let mut admitted = match take_id(worker, &batch, id_is_clients, level, &verdicts).await {
        Ok(admitted) => admitted,
        Err(answered) => return answered,
    };
    wait_for_room(worker, batch.priority).await?;
    if level == AckLevel::Memory && worker.app.journal_health.is_refusing() {
        return Err(not_taken()); // what the journal does not have stays in memory, and that has an end
    }
    caller.take(Unit::Events, batch.events).map_err(|denied| access::counted(worker, denied))?;
    drop(held);
    let (durable, committed) = submit(worker, block, &batch, level, accepted_at)?;
    admitted.submitted = true;
    tracing::debug!(batch = %batch.key, request_id = %origin.request_id, trace_id = batch.trace_id(),
        events = batch.events, rejected = verdicts.total, priority = batch.priority.get(), "accepted");
    let queued = || accepted(StatusCode::ACCEPTED, &batch, "queued", batch.events, &verdicts, false, None);
    if level == AckLevel::Memory {
        return Ok(queued());
    }
    match durable.await {
        Ok(Ok(())) => {}
        Ok(Err(Refused::NotTaken)) => return Err(not_taken()),
        Ok(Err(Refused::Unknown)) | Err(_) => return Err(outcome_unknown(&batch, FAILED)),
    }
    if level == AckLevel::Journal {
        return Ok(queued());
    }
    match tokio::time::timeout(COMMIT_ACK_WAIT_MAX, committed).await {
        Ok(Ok(())) => {
            let (status, counts) = (batch.phase().name(), Some(batch.counts()));
            Ok(accepted(StatusCode::OK, &batch, status, batch.events, &verdicts, false, counts))
        }
        // Safe in the journal, and PostgreSQL is away or slow: not an error.
        Ok(Err(_)) | Err(_) => Ok(queued()),
    }
}

const FAILED: &str = "the journal failed while it wrote this batch";

/// 503: the journal refused the batch before it wrote a byte of it.
fn not_taken() -> Problem {
    let detail = "the journal cannot be written at present; nothing in this batch was accepted";
    Problem::unavailable("journal_unavailable", detail, RETRY_AFTER_JOURNAL_SECONDS)
}

fn no_room(refusal: SpaceError) -> Problem {
    match refusal {
        SpaceError::Full => {
            let detail = "the journal is full for batches of this priority until PostgreSQL has caught up; nothing in this \
                batch was accepted";
            Problem::unavailable("journal_full", detail, RETRY_AFTER_JOURNAL_SECONDS)
        }
        SpaceError::NeverFits => {
            let detail = "the batch is larger than the whole journal may be (JOURNAL_MAX_MB); send smaller batches";
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
        let detail = "too many batches are waiting for PostgreSQL (MEMORY_LIMIT_MB); nothing in this batch was \
            accepted; fewer, larger batches need less memory";
        return Err(Problem::unavailable("queue_full", detail, RETRY_AFTER_JOURNAL_SECONDS));
    }
    if let Err(refusal) = app.space.try_reserve(block_bytes, Claim::of(batch.priority)) {
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
        let detail = "this node's queue is full; nothing in this batch was accepted";
        return Err(Problem::unavailable("queue_full", detail, RETRY_AFTER_BUSY_SECONDS));
    }
    app.queue.admission.joined(batch.priority, batch.events);
    app.recent.accepted(worker.index, batch);
    app.journal.unpark();
    Ok((durable, committed))
}

/// Takes the id for `batch`, or answers for the batch that has it.
async fn take_id<'a>(
    worker: &'a Worker,
    batch: &Arc<Batch>,
    is_clients: bool,
    level: AckLevel,
    verdicts: &Verdicts,
) -> Result<Admitted<'a>, Reply> {
    while let Admission::Known(known) = worker.app.batches.admit(batch) {
        let answered = if known.phase().is_final() {
            answer_finished(worker, batch, &known, verdicts).await
        } else {
            answer_on_its_way(worker, batch, &known, level, verdicts).await
        };
        if let Some(reply) = answered {
            return Err(reply);
        }
    }
    let admitted = Admitted { worker, batch: Arc::clone(batch), submitted: false };
    if !is_clients {
        return Ok(admitted);
    }
    match worker.app.lookup.find_for_good(&batch.key, LOOKUP_INGEST_WAIT_MAX).await {
        Answer::Committed(known) => Err(answer_known(batch, &known, verdicts)),
        Answer::Hint(hint) if hint.digest != batch.digest => Err(Err(conflict())),
        Answer::Hint(hint) if answers_for(&hint, level) => Err(answer_known(batch, &hint, verdicts)),
        Answer::Hint(_) | Answer::Unknown | Answer::Unavailable => Ok(admitted),
    }
}

/// True when it is enough that Redis has a batch: another node has it on its way, and more is not promised.
fn answers_for(hint: &Known, level: AckLevel) -> bool {
    level == AckLevel::Memory && !hint.document.is_committed()
}

/// The answer for what the ledger, or Redis, has under the id of `batch`.
fn answer_known(batch: &Batch, known: &Known, verdicts: &Verdicts) -> Reply {
    if known.digest != batch.digest {
        return Err(conflict());
    }
    let document = &known.document;
    let counts = document.is_committed().then_some(document.counts);
    Ok(accepted(StatusCode::OK, batch, &document.status, document.events, verdicts, true, counts))
}

/// Answers for `finished`, which this process has committed, as the ledger knows it. `None`: its id is free, as the ledger does not
/// have it or does not answer.
async fn answer_finished(worker: &Worker, batch: &Batch, finished: &Arc<Batch>, verdicts: &Verdicts) -> Option<Reply> {
    // It is a repeat for certain: as long as for a status.
    match worker.app.lookup.find_in_ledger(&batch.key, true, LOOKUP_STATUS_WAIT_MAX).await {
        Answer::Committed(known) => return Some(answer_known(batch, &known, verdicts)),
        Answer::Unavailable | Answer::Hint(_) if finished.digest != batch.digest => return Some(Err(conflict())),
        Answer::Unavailable | Answer::Hint(_) | Answer::Unknown => {}
    }
    worker.app.batches.remove(finished);
    None
}

/// Answers for `known`, which is on its way here, as `level` demands; `None` when that one was refused after all.
async fn answer_on_its_way(
    worker: &Worker,
    batch: &Batch,
    known: &Batch,
    level: AckLevel,
    verdicts: &Verdicts,
) -> Option<Reply> {
    if known.digest != batch.digest {
        return Some(Err(conflict()));
    }
    let kept = match tokio::time::timeout(COMMIT_ACK_WAIT_MAX, once_kept(worker, known, level)).await {
        Ok(kept) => kept,
        // It is safe in the journal, and PostgreSQL is away or slow: not an error.
        Err(_) if level == AckLevel::Commit && is_durable(worker, known) => Kept::AsAsked,
        Err(_) => Kept::Unknown,
    };
    match (kept, known.phase()) {
        // Refused by a failure of the journal, which says nothing of what the next start finds.
        (Kept::Not, _) | (_, Phase::Refused) if worker.app.journal_health.has_failed() => {
            Some(Err(outcome_unknown(known, FAILED)))
        }
        (Kept::Not, _) | (_, Phase::Refused) => None,
        (Kept::Unknown, _) | (_, Phase::Admitting) => Some(Err(outcome_unknown(
            known,
            "the batch was sent before, and it is not certain that the journal has it",
        ))),
        // It has the id no more: what has it is another body.
        (Kept::AsAsked, _) if known.lost_its_id() => Some(Err(conflict())),
        (Kept::AsAsked, phase) => {
            let counts = phase.is_final().then(|| known.counts());
            Some(Ok(accepted(StatusCode::OK, known, phase.name(), known.events, verdicts, true, counts)))
        }
    }
}

/// Answers for a batch with bad events under its client's id: as for any repeat, if it was accepted when they were good.
pub(super) async fn answer_now_bad(worker: &Worker, now_bad: NowBad, level: AckLevel) -> Reply {
    let NowBad { header, verdicts } = now_bad;
    let batch = Batch::of_block(header);
    let app = &worker.app;
    if let Some(known) = app.batches.get(&batch.key)
        && known.digest == batch.digest
        && !known.phase().is_final()
        && let Some(reply) = answer_on_its_way(worker, &batch, &known, level, &verdicts).await
    {
        return reply;
    }
    match app.lookup.find_for_good(&batch.key, LOOKUP_INGEST_WAIT_MAX).await {
        Answer::Committed(known) | Answer::Hint(known) if known.digest != batch.digest => Err(verdicts.refuse()),
        Answer::Committed(known) => answer_known(&batch, &known, &verdicts),
        Answer::Hint(hint) if answers_for(&hint, level) => {
            answer_known(&batch, &hint, &verdicts)
        }
        Answer::Unknown => Err(verdicts.refuse()),
        // It cannot be taken here, as one that is good would be.
        Answer::Hint(_) | Answer::Unavailable => Err(verdicts.refuse().adding(
            "whether the batch was accepted before, when they were valid, cannot be looked up now: its status says so later",
        )),
    }
}

/// How well a batch is kept that was sent before.
enum Kept {
    /// As the level of the request demands.
    AsAsked,
    /// It was refused.
    Not,
    /// It was taken, and nobody knows whether the journal has it for good.
    Unknown,
}

/// Waits until `known` is kept as `level` demands, or cannot be.
async fn once_kept(worker: &Worker, known: &Batch, level: AckLevel) -> Kept {
    // The first request's promise is not given yet, so neither is this one's.
    if known.once_past(|phase| phase == Phase::Admitting).await == Phase::Refused {
        return Kept::Not;
    }
    if level == AckLevel::Memory {
        return Kept::AsAsked;
    }
    let app = &worker.app;
    if let Some(sequence) = known.sequence() {
        let synced = app.durable.once_covers(sequence, || app.journal.unpark()).await;
        match level {
            AckLevel::Journal if synced.is_ok() || known.phase().is_final() => return Kept::AsAsked,
            AckLevel::Journal => return Kept::Unknown,
            AckLevel::Memory | AckLevel::Commit => {}
        }
    }
    // What the journal does not have is kept once it is committed.
    known.once_past(|phase| !phase.is_final()).await;
    Kept::AsAsked
}

fn is_durable(worker: &Worker, known: &Batch) -> bool {
    known.sequence().is_some_and(|sequence| worker.app.durable.covers(sequence))
}
