//! One attempt to land batches: the way that PostgreSQL's answers lead to, and whose fault it is when there is none.
//!
//! ```text
//!  plain ─ duplicates ─▶ staged ─ a row refused ─▶ quarantine        (see `crate::pg::land` for the ways; quarantine only
//!    │ ▲                   │ ▲                        │               where the plan allows it)
//!    └─┴ no partition: make it, the same way again ┴──┘
//! ```
//!
//! A duplicate is only what the key of `events` refuses. Staged, the INSERT names that key, so whatever unique index refuses a row
//! then is another one, and that row's fault.
//!
//! On a Citus cluster a worker's refusal of a COPY says nothing about its reason: the same way once more, in case it was the
//! worker's state, then staged, whose INSERT tells.
//!
//! What is left belongs to the narrowest thing that explains it, see [`Failure`]. Which of several batches it is finds
//! [`crate::flush::culprit`].

use std::sync::Arc;
use std::time::Duration;

use postgres::error::SqlState;

use crate::encode::block::Block;
use crate::encode::pool::BlockPool;
use crate::encode::tuple::tuples;
use crate::flush::culprit::Kind;
use crate::flush::cut::Patience;
use crate::flush::queue::Waiting;
use crate::limits::{
    COPY_LOCK_WAIT_MAX, DUPLICATE_RACES_MAX, KEY_CHANGES_MAX, PARTITION_ATTEMPTS_MAX, REMOTE_FAULTS_MAX,
    SHARDED_PARTITION_WAIT_MAX, STAGED_COPIES_AFTER_DUPLICATE,
};
use crate::metrics::{Metrics, SqlstateClass};
use crate::pg::connect::one_line;
use crate::pg::event_key;
use crate::pg::land::{Done, Landed, Landing, Terms, Way, land};
use crate::pg::locks::{self, Blocked, Obstacle};
use crate::pg::partitions::{self, Month, NotMade};
use crate::pg::pool::Session;
use crate::pg::quarantine::GivenUp;
use crate::pg::sqlstate::{Fault, Verdict};
use crate::pg::time_limits::TimeLimits;
use crate::pg::wal::Commit;
use crate::sharding::Sharding;

/// A batch in hand: its bytes are in memory.
pub(super) struct InHand {
    pub item: Waiting,
    pub block: Block,
    /// False when the bytes were read back for this attempt only.
    pub resident: bool,
}

/// Why nothing landed: the narrowest thing that explains it. docs/operations.md#whose-fault-it-is has the table.
pub(super) struct Failure {
    pub kind: Kind,
    /// What PostgreSQL said.
    pub fault: Fault,
    /// Rows that cannot land because of it, where that is known.
    pub blocked: Vec<Blocked>,
}

impl Failure {
    fn new(kind: Kind, fault: Fault) -> Self {
        Self { kind, fault, blocked: Vec::new() }
    }

    /// `fault` as it was met over `session`.
    fn of(fault: Fault, session: &mut Session) -> Self {
        if !fault.ends_session
            && let Err(lost) = session.renew()
        {
            return Self::new(Kind::Session, lost);
        }
        Self::met(fault, session)
    }

    /// As [`Self::of`], over a session that has been renewed since where the fault has left one.
    fn met(fault: Fault, session: &mut Session) -> Self {
        if fault.ends_session {
            return Self::new(Kind::Session, fault);
        }
        let kind = match &fault.sqlstate[..2] {
            // PostgreSQL documentation, appendix A: "transaction rollback".
            "40" => Kind::Transaction,
            // Ended unseen: see `crate::pg::copy::copy_rows`.
            _ if fault.sqlstate == SqlState::IN_FAILED_SQL_TRANSACTION.code() => Kind::Transaction,
            // Of a schema that does not fit the coordinator and its workers say the same; the rest may be a worker's alone.
            _ if session.sharding() == Sharding::Citus && !fault.is_of_schema() => Kind::Shard,
            _ if fault.sqlstate == SqlState::LOCK_NOT_AVAILABLE.code() => return Self::of_lock(fault, session),
            _ if fault.sqlstate == SqlState::QUERY_CANCELED.code() => Kind::Slow,
            _ => Kind::Refused,
        };
        Self::new(kind, fault)
    }

    /// Some lock was awaited for too long: whose it is, and what else it keeps from landing.
    fn of_lock(mut fault: Fault, session: &mut Session) -> Self {
        // Nobody is found when it has ended meanwhile, and where it is a row's and no table's.
        let obstacles = locks::obstacles(session.client()).unwrap_or_else(|error| {
            tracing::debug!(reason = one_line(&error), "could not ask who holds a lock");
            Vec::new()
        });
        if let Some(reason) = obstacles.iter().find_map(Obstacle::of_all_tables) {
            reason.clone_into(&mut fault.message);
            return Self::new(Kind::Locked, fault);
        }
        let blocked = obstacles.into_iter().filter_map(Obstacle::into_blocked).collect();
        Self { kind: Kind::Slow, fault, blocked }
    }
}

/// How one attempt goes about it.
pub(super) struct Plan {
    pub commit: Commit,
    pub patience: Patience,
    pub limits: TimeLimits,
    /// The way to begin with; [`Way::Plain`] may become [`Way::Staged`].
    pub begin: Way,
    /// Refused rows are looked for, which takes long.
    pub may_quarantine: bool,
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
    pub fn land(&mut self, session: &mut Session, in_hand: &[InHand], plan: &Plan) -> Result<Done, Failure> {
        let mut waiting = session.wait();
        let landings: Vec<Landing<'_>> = in_hand.iter().map(InHand::landing).collect();
        let mut way = if self.staged_left > 0 && plan.begin == Way::Plain { Way::Staged } else { plan.begin };
        let (mut partition_attempts, mut remote_faults, mut races, mut key_changes) = (0, 0, 0, 0);
        let sharding = session.sharding();
        let terms = Terms { commit: plan.commit, limits: plan.limits, given_up: given_up(session, in_hand, plan)? };
        loop {
            let fault = match land(session, &landings, way, &terms, &self.node) {
                Ok(done) => {
                    self.remember_duplicates(way, &done.landed);
                    return Ok(done);
                }
                Err(fault) => fault,
            };
            if !fault.ends_session {
                // Whatever comes next over this session, here or of other batches, gets its own answers.
                drop(waiting);
                session.renew().map_err(|lost| Failure::new(Kind::Session, lost))?;
                waiting = session.wait();
            }
            way = match (fault.verdict_on(sharding), way) {
                (Verdict::KeyChanged, _) if key_changes < KEY_CHANGES_MAX => {
                    key_changes += 1;
                    session.forget_statements();
                    way
                }
                (_, Way::RowByRow | Way::Buried) => return Err(Failure::met(fault, session)),
                (Verdict::Duplicates, Way::Plain) => Way::Staged,
                (Verdict::Duplicates, Way::Staged) if is_of_key(session, &fault)? => {
                    races += 1;
                    if races > DUPLICATE_RACES_MAX {
                        return Err(Failure::new(Kind::Transaction, fault));
                    }
                    way
                }
                (Verdict::Duplicates | Verdict::RowFault, Way::Plain | Way::Staged) if !plan.may_quarantine => {
                    return Err(Failure::new(Kind::Rows, fault));
                }
                (Verdict::Duplicates | Verdict::RowFault, Way::Plain | Way::Staged) => {
                    if sharding == Sharding::Citus {
                        // There, quarantine takes a missing partition for a row's fault.
                        make_partitions(session, &landings)?;
                    }
                    Way::Quarantine
                }
                // Its partition is there by now: a worker does not name the constraint that a row breaks.
                (Verdict::MissingPartition, Way::Staged) if sharding == Sharding::Citus && partition_attempts > 0 => {
                    if !plan.may_quarantine {
                        return Err(Failure::new(Kind::Rows, fault));
                    }
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
                    return Err(Failure::new(Kind::Batches, fault));
                }
                (Verdict::Retry | Verdict::Schema | Verdict::KeyChanged, _) => {
                    return Err(Failure::met(fault, session));
                }
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
            Way::Staged | Way::Quarantine | Way::RowByRow | Way::Buried => self.staged_left.saturating_sub(1),
        };
    }
}

/// True when the row that `fault` is about is in the table by now: see [`event_key::is_violated`].
fn is_of_key(session: &mut Session, fault: &Fault) -> Result<bool, Failure> {
    let sharding = session.sharding();
    event_key::is_violated(session.client(), sharding, fault).map_err(|error| Failure::of(Fault::from(error), session))
}

/// How long making a partition may wait for a lock.
fn partition_wait(sharding: Sharding) -> Duration {
    match sharding {
        Sharding::None => COPY_LOCK_WAIT_MAX,
        Sharding::Citus => SHARDED_PARTITION_WAIT_MAX,
    }
}

/// Whatever keeps a month from being made concerns the batches with events of it, unless the session broke.
fn make_partitions(session: &mut Session, landings: &[Landing<'_>]) -> Result<(), Failure> {
    let sharding = session.sharding();
    let made = partitions::ensure_within(session.client(), &months_of(landings), partition_wait(sharding));
    let Err(NotMade { month, error }) = made else { return Ok(()) };
    let is_of_one_month = error.is_of_one_month();
    let fault = error.into_fault();
    let kind = match () {
        () if fault.ends_session => Kind::Session,
        // A partition needs all workers; rows of months that are there need their own.
        () if is_of_one_month || sharding == Sharding::Citus => Kind::Batches,
        () => Kind::Refused,
    };
    let blocked = month.map(|month| Blocked::month(month, &fault.message)).into_iter().collect();
    Err(Failure { kind, fault, blocked })
}

/// What is not tried: with [`Way::RowByRow`] the rows of months that cannot be made.
fn given_up(session: &mut Session, in_hand: &[InHand], plan: &Plan) -> Result<GivenUp, Failure> {
    let mut given_up = GivenUp::default();
    match plan.begin {
        Way::Plain | Way::Staged | Way::Quarantine => {}
        Way::Buried => {
            given_up.all = in_hand.first().map(|InHand { item, .. }| {
                Fault::given_up(item.value.trouble.is_given_up, item.value.batch.last_refusal())
            });
        }
        Way::RowByRow => {
            let landings: Vec<Landing<'_>> = in_hand.iter().map(InHand::landing).collect();
            let lock_wait = partition_wait(session.sharding());
            for month in months_of(&landings) {
                let made = partitions::ensure_within(session.client(), &[month], lock_wait);
                let Err(not_made) = made else { continue };
                let fault = not_made.error.into_fault();
                if fault.ends_session {
                    return Err(Failure::new(Kind::Session, fault));
                }
                given_up.months.insert(month, fault);
            }
        }
    }
    Ok(given_up)
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
