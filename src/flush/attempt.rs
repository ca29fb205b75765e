//! One attempt to land batches: the way that PostgreSQL's answers lead to, and whose fault it is when there is none.
//!
//! ```text
//!  plain ─ duplicates ─▶ staged ─ a row refused ─▶ quarantine        (see `crate::pg::land` for the ways)
//!    │ ▲                   │ ▲                        │
//!    └─┴ no partition: make it, the same way again ┴──┘
//! ```
//!
//! On a Citus cluster a worker's refusal of a COPY says nothing about its reason: the same way once more, in case it was the
//! worker's state, then staged, whose INSERT tells.
//!
//! What is left belongs to the narrowest thing that explains it, see [`Failure`]. Which of several batches it is finds
//! [`crate::flush::culprit`].

use std::sync::Arc;

use crate::encode::block::Block;
use crate::encode::pool::BlockPool;
use crate::encode::tuple::tuples;
use crate::flush::culprit::Kind;
use crate::flush::queue::Waiting;
use crate::limits::{PARTITION_ATTEMPTS_MAX, REMOTE_FAULTS_MAX, STAGED_COPIES_AFTER_DUPLICATE};
use crate::metrics::{Metrics, SqlstateClass};
use crate::pg::land::{Done, Landed, Landing, Way, land};
use crate::pg::partitions::{self, Month};
use crate::pg::pool::Session;
use crate::pg::sqlstate::{Fault, Verdict};
use crate::pg::wal::Commit;
use crate::sharding::Sharding;

/// A batch in hand: its bytes are in memory.
pub(super) struct InHand {
    pub item: Waiting,
    pub block: Block,
    /// False when the bytes were read back for this attempt only.
    pub resident: bool,
}

/// Why nothing landed: the narrowest thing that explains it. docs/faults.md#whose-fault-it-is has the table.
pub(super) enum Failure {
    /// This session broke: the same batches again over another one.
    Session(Fault),
    /// This transaction met another one (deadlock, serialization): the same batches again, at once.
    Transaction(Fault),
    /// PostgreSQL answered, and does not take these batches as they are; others it may.
    Refused(Fault),
    /// One of the batches at least, for certain: PostgreSQL itself works.
    Batches(Fault),
}

impl Failure {
    /// What kind it is, and what PostgreSQL said.
    pub fn into_parts(self) -> (Kind, Fault) {
        match self {
            Self::Session(fault) => (Kind::Session, fault),
            Self::Transaction(fault) => (Kind::Transaction, fault),
            Self::Refused(fault) => (Kind::Refused, fault),
            Self::Batches(fault) => (Kind::Batches, fault),
        }
    }

    /// `fault` as it was met over `session`.
    fn of(fault: Fault, session: &mut Session) -> Self {
        // PostgreSQL documentation, appendix A: class 40 is "transaction rollback", and 08 is ours for a broken socket.
        match &fault.sqlstate[..2] {
            _ if session.client().is_closed() => Self::Session(fault),
            "08" => Self::Session(fault),
            "40" => Self::Transaction(fault),
            _ => Self::Refused(fault),
        }
    }
}

/// What a flusher remembers from one attempt to the next.
pub(super) struct Attempt {
    metrics: Arc<Metrics>,
    node: Arc<str>,
    /// COPYs that still go through the staging table, because duplicates were seen lately.
    staged_left: u32,
}

impl Attempt {
    pub fn new(metrics: Arc<Metrics>, node: Arc<str>) -> Self {
        Self { metrics, node, staged_left: 0 }
    }

    /// Lands `in_hand` in one transaction, changing the way as PostgreSQL demands.
    pub fn land(&mut self, session: &mut Session, in_hand: &[InHand], commit: Commit) -> Result<Done, Failure> {
        let _waiting = session.wait();
        let landings: Vec<Landing<'_>> = in_hand.iter().map(InHand::landing).collect();
        let mut way = if self.staged_left > 0 { Way::Staged } else { Way::Plain };
        let (mut partition_attempts, mut remote_faults) = (0, 0);
        let sharding = session.sharding();
        loop {
            let fault = match land(session, &landings, way, commit, &self.node) {
                Ok(done) => {
                    self.remember_duplicates(way, &done.landed);
                    return Ok(done);
                }
                Err(fault) => fault,
            };
            way = match (fault.verdict_on(sharding), way) {
                (Verdict::Duplicates, Way::Plain) => Way::Staged,
                (Verdict::RowFault, Way::Plain | Way::Staged) => {
                    if sharding == Sharding::Citus {
                        // There, quarantine takes a missing partition for a row's fault.
                        make_partitions(session, &landings)?;
                    }
                    Way::Quarantine
                }
                // Its partition is there by now: a worker does not name the constraint that a row breaks.
                (Verdict::MissingPartition, Way::Staged) if sharding == Sharding::Citus && partition_attempts > 0 => {
                    Way::Quarantine
                }
                (Verdict::MissingPartition, _) if partition_attempts < PARTITION_ATTEMPTS_MAX => {
                    partition_attempts += 1;
                    make_partitions(session, &landings)?;
                    way
                }
                (Verdict::Remote, Way::Plain) if remote_faults >= REMOTE_FAULTS_MAX => Way::Staged,
                (Verdict::Remote, _) if remote_faults < REMOTE_FAULTS_MAX && !session.client().is_closed() => {
                    remote_faults += 1;
                    way
                }
                (Verdict::Duplicates | Verdict::RowFault | Verdict::MissingPartition | Verdict::Remote, _) => {
                    return Err(Failure::Batches(fault));
                }
                (Verdict::Retry | Verdict::Schema, _) => return Err(Failure::of(fault, session)),
            };
            self.metrics.db_errors.add(SqlstateClass::of(Some(&fault.sqlstate)), 1);
            tracing::debug!(%fault, ?way, "retrying the same batches with another insert method");
        }
    }

    fn remember_duplicates(&mut self, way: Way, landed: &[Landed]) {
        let duplicates = landed.iter().any(|landed| matches!(landed, Landed::Now(counts) if counts.duplicates > 0));
        self.staged_left = match way {
            _ if duplicates => STAGED_COPIES_AFTER_DUPLICATE,
            Way::Plain => 0,
            Way::Staged | Way::Quarantine => self.staged_left.saturating_sub(1),
        };
    }
}

/// Whatever keeps a month from being made concerns the batches with events of it, unless the session broke.
fn make_partitions(session: &mut Session, landings: &[Landing<'_>]) -> Result<(), Failure> {
    let Err(error) = partitions::ensure(session.client(), &months_of(landings)) else { return Ok(()) };
    let is_of_one_month = error.is_of_one_month();
    let fault = error.into_fault();
    Err(match () {
        () if session.client().is_closed() => Failure::Session(fault),
        () if is_of_one_month => Failure::Batches(fault),
        () => Failure::Refused(fault),
    })
}

/// The months that the rows of `landings` fall into.
fn months_of(landings: &[Landing<'_>]) -> Vec<Month> {
    let mut months: Vec<Month> = landings
        .iter()
        .flat_map(|batch| tuples(batch.tuples))
        .filter_map(Result::ok)
        .map(|(_, tuple)| Month::of(tuple.timestamp))
        .collect();
    months.sort_unstable();
    months.dedup();
    months
}

impl InHand {
    /// The item as it was queued, with its bytes if memory held them; `blocks` gets their buffer if not.
    pub fn into_item(self, blocks: &BlockPool) -> Waiting {
        let mut item = self.item;
        if self.resident {
            item.value.block = Some(self.block);
        } else {
            blocks.give_back(self.block.into_buffer());
        }
        item
    }

    fn landing(&self) -> Landing<'_> {
        let batch = &self.item.value.batch;
        Landing {
            key: &batch.key,
            digest: batch.digest,
            priority: batch.priority,
            events: batch.events,
            received_at: batch.received_at,
            tuples: self.block.tuples(),
            shard: self.item.shard,
        }
    }
}
