//! Batches that this process does not know: asked of Redis, then of the ledger, by threads that may block.
//!
//! Look-ups are gathered: one MGET and one SELECT answer many. Every wait is bounded on the asking side;
//! when the queue is full or PostgreSQL is away the answer is [`Answer::Unavailable`] at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use crate::limits::{LOOKUP_THREADS, LOOKUPS_GROUP_MAX, LOOKUPS_WAITING_MAX};
use crate::metrics::{Metrics, Recorders, Statement};
use crate::pg::health::DatabaseHealth;
use crate::pg::ledger::{self, LedgerRow};
use crate::pg::pool::Pool;
use crate::pg::sqlstate::Fault;
use crate::status::model::{StatusDocument, rfc3339};
use crate::status::shared::{SharedStatus, StatusReader};
use crate::types::{BatchKey, BodyDigest};

/// What is known about a batch elsewhere.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its status.
    pub document: StatusDocument,
    /// Digest of the body that has the id.
    pub digest: BodyDigest,
}

/// The answer to a look-up.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Somebody has this id.
    Known(Box<Known>),
    /// Nobody has.
    Unknown,
    /// Nobody who could know was there to ask.
    Unavailable,
}

struct Question {
    key: BatchKey,
    answer: oneshot::Sender<Answer>,
}

/// Where workers ask.
#[derive(Clone)]
pub struct Lookup {
    questions: Sender<Question>,
}

/// What the look-up threads ask.
#[derive(Clone)]
pub struct Sources {
    /// The ledger's connections.
    pub pool: Pool,
    /// Whether asking the ledger makes sense.
    pub health: Arc<DatabaseHealth>,
    /// Where the time of a look-up in the ledger is recorded.
    pub metrics: Arc<Metrics>,
    /// Redis, where it is set.
    pub shared: Option<StatusReader>,
}

impl Lookup {
    /// Starts the look-up threads; they end when the last [`Lookup`] is dropped.
    pub fn start(sources: &Sources) -> std::io::Result<Self> {
        let (questions, receiver) = bounded(LOOKUPS_WAITING_MAX);
        for number in 0..LOOKUP_THREADS {
            let (receiver, sources) = (receiver.clone(), sources.clone());
            std::thread::Builder::new()
                .name(format!("lookup-{number}"))
                .spawn(move || answer_all(&receiver, &sources))?;
        }
        Ok(Self { questions })
    }

    /// Asks for `key`, waiting at most `wait_max`.
    pub async fn find(&self, key: &BatchKey, wait_max: Duration) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.questions.try_send(Question { key: key.clone(), answer }).is_err() {
            return Answer::Unavailable;
        }
        match tokio::time::timeout(wait_max, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Answer::Unavailable,
        }
    }
}

fn answer_all(receiver: &Receiver<Question>, sources: &Sources) {
    let queries = sources.metrics.db_query.recorder();
    while let Ok(first) = receiver.recv() {
        let mut questions = vec![first];
        questions.extend(receiver.try_iter().take(LOOKUPS_GROUP_MAX - 1));
        // Whoever gave up waiting is not worth asking for.
        questions.retain(|question| !question.answer.is_closed());
        if !questions.is_empty() {
            answer(questions, sources, &queries);
        }
    }
}

/// Redis first; what it has not, or has as not finished, is asked of the ledger: a queued status may be stale
/// where its node died after the commit.
fn answer(questions: Vec<Question>, sources: &Sources, queries: &Recorders<Statement>) {
    let keys: Vec<&BatchKey> = questions.iter().map(|question| &question.key).collect();
    let shared = sources.shared.as_ref().and_then(|shared| shared.find(&keys));
    let mut shared = shared.unwrap_or_else(|| vec![None; keys.len()]);
    let is_open =
        |status: &Option<SharedStatus>| status.as_ref().is_none_or(|status| status.document.completed_at.is_none());
    let open: Vec<&BatchKey> =
        keys.iter().zip(&shared).filter(|(_, status)| is_open(status)).map(|(key, _)| *key).collect();
    let rows = if open.is_empty() { Ok(Vec::new()) } else { ask_ledger(&open, sources, queries) };
    let ledger_answered = rows.is_ok();
    let mut rows: HashMap<BatchKey, LedgerRow> =
        rows.unwrap_or_default().into_iter().map(|row| (row.key.clone(), row)).collect();
    for (question, shared) in questions.into_iter().zip(shared.drain(..)) {
        let answer = match (rows.remove(&question.key), shared) {
            (Some(row), _) => Answer::Known(Box::new(known(row))),
            (None, Some(SharedStatus { document, digest })) => Answer::Known(Box::new(Known { document, digest })),
            (None, None) if ledger_answered => Answer::Unknown,
            (None, None) => Answer::Unavailable,
        };
        // The asker may have stopped waiting; then nobody needs the answer.
        let _ = question.answer.send(answer);
    }
}

fn ask_ledger(keys: &[&BatchKey], sources: &Sources, queries: &Recorders<Statement>) -> Result<Vec<LedgerRow>, Fault> {
    if !sources.health.is_working() {
        return Err(Fault::lost("PostgreSQL is away"));
    }
    let mut session = sources.pool.get().map_err(|error| Fault::lost(error.to_string()))?;
    let started = Instant::now();
    let found = ledger::find(session.client(), keys);
    queries.record_elapsed(Statement::Lookup, started.elapsed());
    found.map_err(|error| {
        session.discard();
        let fault = Fault::from(error);
        tracing::debug!(%fault, "look-up in the ledger failed");
        fault
    })
}

fn known(row: LedgerRow) -> Known {
    let document = StatusDocument {
        batch_id: row.key.id.to_string(),
        status: row.counts.phase(row.events).name().to_owned(),
        priority: row.priority,
        events: row.events,
        counts: row.counts,
        received_at: rfc3339(row.received_at),
        completed_at: Some(rfc3339(row.committed_at)),
        node: row.node,
    };
    Known { document, digest: row.digest }
}
