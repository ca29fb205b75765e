//! Batches that this process does not know: asked of Redis, then of the ledger, by threads that may block.
//!
//! ```text
//!  worker ─▶ Redis's thread ─▶ ledger's threads ───▶ last word
//!                 └─ what Redis has, in case the ledger does not answer in time
//! ```
//!
//! The ledger decides: Redis may be older than a database that was restored, and then has batches as committed that are
//! nowhere. What it has is a hint.
//!
//! | ledger | Redis | answer |
//! |---|---|---|
//! | has the batch | anything | [`Answer::Committed`] |
//! | has it not | a batch on its way | [`Answer::Hint`] |
//! | has it not | a committed one, or none | [`Answer::Unknown`] |
//! | cannot be asked | any batch | [`Answer::Hint`] |
//! | cannot be asked | none | [`Answer::Unavailable`] |
//!
//! Each source has threads of its own, so that one which hangs takes nothing from the other. Look-ups are
//! gathered: one MGET and one SELECT answer many. Every wait is bounded on the asking side; when nobody can be
//! asked the answer is [`Answer::Unavailable`] at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::limits::{LOOKUP_THREADS, LOOKUPS_GROUP_MAX, LOOKUPS_WAITING_MAX};
use crate::metrics::{Metrics, Recorders, Statement};
use crate::pg::health::DatabaseHealth;
use crate::pg::ledger::LedgerRow;
use crate::pg::ledger_search::{Found, Nodes, Wanted, find};
use crate::pg::pool::Pool;
use crate::pg::sqlstate::Fault;
use crate::sharding::Sharding;
use crate::status::model::{StatusDocument, rfc3339};
use crate::status::shared::{SharedStatus, StatusReader};
use crate::sys::vital;
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
    /// The ledger has a batch of this id.
    Committed(Box<Known>),
    /// Redis has one, and the ledger does not say so.
    Hint(Box<Known>),
    /// Nobody has.
    Unknown,
    /// Nobody who could know was there to ask.
    Unavailable,
}

/// What a source tells the asker.
enum Word {
    /// What Redis has: it holds unless the ledger says more.
    SoFar(Box<Known>),
    /// The answer.
    Last(Answer),
}

/// A look-up under way. Dropped without a last word, it is answered with what was said so far.
struct Question {
    key: BatchKey,
    /// The answer will be a promise: a row of the ledger has to be on PostgreSQL's disk.
    is_firm: bool,
    /// What Redis has.
    so_far: Option<Box<Known>>,
    words: UnboundedSender<Word>,
}

impl Question {
    fn answer(self, answer: Answer) {
        // The asker may have stopped waiting; then nobody needs the answer.
        let _ = self.words.send(Word::Last(answer));
    }
}

/// Where workers ask.
#[derive(Clone)]
pub struct Lookup {
    /// Past Redis, where that is set.
    questions: Sender<Question>,
    for_ledger: Sender<Question>,
}

/// What the look-up threads ask.
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

/// Who asks the ledger.
struct Ledger {
    pool: Pool,
    health: Arc<DatabaseHealth>,
    queries: Recorders<Statement>,
    nodes: Nodes,
}

impl Lookup {
    /// Starts the look-up threads; they end when the last [`Lookup`] is dropped.
    pub fn start(sources: Sources) -> std::io::Result<Self> {
        let (for_ledger, questions) = bounded(LOOKUPS_WAITING_MAX);
        for number in 0..LOOKUP_THREADS {
            let questions = questions.clone();
            let mut ledger = Ledger {
                pool: sources.pool.clone(),
                health: Arc::clone(&sources.health),
                queries: sources.metrics.db_query.recorder(),
                nodes: Nodes::default(),
            };
            spawn(format!("lookup-ledger-{number}"), move || each_group(&questions, |group| ledger.answer(group)))?;
        }
        let Some(shared) = sources.shared else { return Ok(Self { questions: for_ledger.clone(), for_ledger }) };
        let (for_redis, questions) = bounded(LOOKUPS_WAITING_MAX);
        let past_redis = for_ledger.clone();
        spawn("lookup-redis".to_owned(), move || {
            each_group(&questions, |group| ask_redis(group, &shared, &past_redis))
        })?;
        Ok(Self { questions: for_redis, for_ledger })
    }

    /// Asks for `key`, waiting at most `wait_max`.
    pub async fn find(&self, key: &BatchKey, wait_max: Duration) -> Answer {
        Self::ask(&self.questions, key, false, wait_max).await
    }

    /// As [`Self::find`], for an answer that promises what it finds: a batch that was committed stays committed, also
    /// where another node did not wait for PostgreSQL's disk.
    pub async fn find_for_good(&self, key: &BatchKey, wait_max: Duration) -> Answer {
        Self::ask(&self.questions, key, true, wait_max).await
    }

    /// As [`Self::find`], or [`Self::find_for_good`] where `is_firm`, of the ledger alone.
    pub async fn find_in_ledger(&self, key: &BatchKey, is_firm: bool, wait_max: Duration) -> Answer {
        Self::ask(&self.for_ledger, key, is_firm, wait_max).await
    }

    async fn ask(questions: &Sender<Question>, key: &BatchKey, is_firm: bool, wait_max: Duration) -> Answer {
        let (words, mut heard) = unbounded_channel();
        let mut answer = Answer::Unavailable;
        if questions.try_send(Question { key: key.clone(), is_firm, so_far: None, words }).is_err() {
            return answer;
        }
        let listen = async {
            while let Some(word) = heard.recv().await {
                match word {
                    Word::SoFar(known) => answer = Answer::Hint(known),
                    Word::Last(last) => {
                        answer = last;
                        return;
                    }
                }
            }
        };
        // Out of time is no error: then the best that was heard is the answer.
        let _ = tokio::time::timeout(wait_max, listen).await;
        answer
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    vital::spawn(&name, body).map(drop)
}

/// Hands what waits to `ask`, group by group, until nobody can ask any more.
fn each_group(questions: &Receiver<Question>, mut ask: impl FnMut(Vec<Question>)) {
    while let Ok(first) = questions.recv() {
        let mut group = vec![first];
        group.extend(questions.try_iter().take(LOOKUPS_GROUP_MAX - 1));
        // Whoever gave up waiting is not worth asking for.
        group.retain(|question| !question.words.is_closed());
        if !group.is_empty() {
            ask(group);
        }
    }
}

/// Says what Redis has, and asks the ledger.
fn ask_redis(group: Vec<Question>, shared: &StatusReader, for_ledger: &Sender<Question>) {
    let keys: Vec<&BatchKey> = group.iter().map(|question| &question.key).collect();
    let found = shared.find(&keys).unwrap_or_else(|| vec![None; keys.len()]);
    for (mut question, found) in group.into_iter().zip(found) {
        if let Some(SharedStatus { document, digest }) = found {
            let known = Box::new(Known { document, digest });
            let _ = question.words.send(Word::SoFar(known.clone()));
            question.so_far = Some(known);
        }
        // A full queue drops the question, and so answers it with what Redis has.
        let _ = for_ledger.try_send(question);
    }
}

impl Ledger {
    fn answer(&mut self, group: Vec<Question>) {
        let found = match self.ask(&group) {
            Err(fault) if group.len() > 1 && is_about_one(&fault) => return self.answer_one_by_one(group),
            found => found.unwrap_or_default(),
        };
        let mut rows: HashMap<BatchKey, LedgerRow> = found.rows.into_iter().map(|row| (row.key.clone(), row)).collect();
        for mut question in group {
            let was_asked = found.asked.contains(&question.key);
            let answer = decide(rows.remove(&question.key).map(known), was_asked, question.so_far.take());
            question.answer(answer);
        }
    }

    /// One question that PostgreSQL cannot read is not to spoil the answers to the others.
    fn answer_one_by_one(&mut self, group: Vec<Question>) {
        group.into_iter().for_each(|question| self.answer(vec![question]));
    }

    fn ask(&mut self, group: &[Question]) -> Result<Found, Fault> {
        if !self.health.is_working() {
            return Err(Fault::lost("PostgreSQL is unavailable"));
        }
        let mut session = self.pool.get().map_err(|error| Fault::lost(error.to_string()))?;
        let started = Instant::now();
        let waiting = session.wait();
        let wanted: Vec<Wanted<'_>> =
            group.iter().map(|question| Wanted { key: &question.key, is_firm: question.is_firm }).collect();
        let pulse = session.pulse();
        let sharding = session.sharding();
        let (found, is_unconfirmed) = pulse.committing(|| match sharding {
            Sharding::None => find(session.client(), &wanted),
            Sharding::Citus => self.nodes.find(session.client(), &wanted, started),
        });
        drop(waiting);
        let found = if is_unconfirmed { Err(Fault::unconfirmed()) } else { found };
        self.queries.record_elapsed(Statement::Lookup, started.elapsed());
        found.inspect_err(|fault| {
            session.discard();
            tracing::debug!(%fault, "ledger lookup failed");
        })
    }
}

/// True when the fault may be in one question alone: its text cannot be read as text (class 22, data exception), or its bytes
/// are no message (08P01, protocol violation).
fn is_about_one(fault: &Fault) -> bool {
    fault.sqlstate.starts_with("22") || fault.sqlstate == "08P01"
}

/// The module's table: `so_far` is what Redis has.
fn decide(in_ledger: Option<Known>, was_asked: bool, so_far: Option<Box<Known>>) -> Answer {
    match (in_ledger, so_far) {
        (Some(known), _) => Answer::Committed(Box::new(known)),
        (None, Some(hint)) if !was_asked || !hint.document.is_committed() => Answer::Hint(hint),
        (None, _) if was_asked => Answer::Unknown,
        (None, _) => Answer::Unavailable,
    }
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
        reason: None,
    };
    Known { document, digest: row.digest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::model::Counts;

    fn batch(completed_at: Option<&str>) -> Known {
        let document = StatusDocument {
            batch_id: "b".to_owned(),
            status: "queued".to_owned(),
            priority: 0,
            events: 1,
            counts: Counts::default(),
            received_at: String::new(),
            completed_at: completed_at.map(str::to_owned),
            node: String::new(),
            reason: None,
        };
        Known { document, digest: BodyDigest::of(b"b") }
    }

    #[test]
    fn the_ledger_decides_and_redis_hints() {
        let committed = || batch(Some("2026-12-01T00:00:00Z"));
        let redis = [None, Some(batch(None)), Some(committed())];
        let word = |in_ledger: Option<Known>, was_asked| {
            redis.clone().map(|so_far| match decide(in_ledger.clone(), was_asked, so_far.map(Box::new)) {
                Answer::Committed(_) => "committed",
                Answer::Hint(_) => "hint",
                Answer::Unknown => "unknown",
                Answer::Unavailable => "unavailable",
            })
        };
        assert_eq!(word(Some(committed()), true), ["committed"; 3]);
        assert_eq!(word(None, true), ["unknown", "hint", "unknown"]);
        assert_eq!(word(None, false), ["unavailable", "hint", "hint"]);
    }

    #[test]
    fn a_fault_in_the_data_is_about_one_question_and_others_are_about_all() {
        for (code, is_one) in
            [("22021", true), ("22P02", true), ("08P01", true), ("08000", false), ("57014", false), ("42P01", false)]
        {
            assert_eq!(is_about_one(&Fault { sqlstate: code.to_owned(), ..Fault::lost("x") }), is_one, "{code}");
        }
    }
}
