//! The flusher threads: take what [`FlushQueue`] gives, land it through [`crate::pg::land`], tell everybody.
//!
//! ```text
//!  park ◀─ nothing due ─ take ─▶ attempt ─ committed ─▶ settle (status, journal release, acks) ─▶ take …
//!                         ▲         │
//!                         ├─ back ◀─┤ PostgreSQL's fault, or the session's: put back, wait, retry for ever
//!                         │         │ refused: each half by itself, down to the culprit (`culprit`)
//!                         └─ later ◀┴─ a single batch's own: postponed, the others go on
//! ```
//!
//! A flusher has its connection before it takes batches: when PostgreSQL comes back the first COPY is decided
//! then, not when the outage began. One flusher is reserved for priority 8 and above (unless the pool has a
//! single connection).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::sync::Unparker;
use postgres::error::SqlState;
use r2d2::PooledConnection;

use crate::encode::block::Block;
use crate::encode::pool::BlockPool;
use crate::flush::attempt::{Attempt, InHand, Plan};
use crate::flush::cut::{Patience, RowsTarget, Share, limits};
use crate::flush::held::{odd_months, only_month};
use crate::flush::merge::{Cut, Item, Moment, Next, Role};
use crate::flush::queue::{FlushQueue, Queued, Trouble, Waiting};
use crate::flush::record::FlushRecorders;
use crate::flush::sleepers::Seat;
use crate::flush::unflushed::{Outcome, Unflushed};
use crate::journal::{JournalHealth, JournalReader, ReadError, Releaser};
use crate::limits::{
    READ_BACK_TRIES_MAX, REFUSED_EVENTS_TOLD_EVERY, RETRY_WAIT_MAX, RETRY_WAIT_MIN, ROW_BY_ROW_ATTEMPTS_MAX,
};
use crate::metrics::Metrics;
use crate::pg::health::{DatabaseHealth, Witness};
use crate::pg::land::{Done, Landed, Timings, Way};
use crate::pg::pool::{Pool, Session, SessionManager};
use crate::pg::sqlstate::Fault;
use crate::pg::wal::{self, Commit, Run};
use crate::status::memory::BatchMap;
use crate::status::model::{Batch, Phase};
use crate::status::recent::{Reason, Recent};
use crate::status::shared::StatusFeed;
use crate::sys::clock::wall_now;
use crate::sys::paced::Paced;
use crate::telemetry::{Copied, Traces};
use crate::types::PRIORITY_RESERVED_MIN;

mod blame;

use blame::Go;

/// What flushers need besides the queue.
pub struct FlushTools {
    /// Connections.
    pub pool: Pool,
    /// Reads back what memory does not hold; each flusher clones it.
    pub reader: JournalReader,
    /// Tells the journal what is committed.
    pub releaser: Releaser,
    /// Verdict on PostgreSQL.
    pub health: Arc<DatabaseHealth>,
    /// Batches of this process.
    pub batches: Arc<BatchMap>,
    /// The latest of them.
    pub recent: Arc<Recent>,
    /// The way to Redis, if there is one.
    pub feed: Option<StatusFeed>,
    /// The registry.
    pub metrics: Arc<Metrics>,
    /// Where spans of sampled requests go; `None`: nowhere.
    pub traces: Option<Arc<Traces>>,
    /// `NODE_ID`.
    pub node: Arc<str>,
    /// Where buffers of committed blocks go.
    pub blocks: Arc<BlockPool>,
    /// Where journal damage is noted.
    pub journal_health: Arc<JournalHealth>,
    /// `BATCH_SIZE`.
    pub batch_size: u32,
    /// `STUCK_BATCH_MINUTES`.
    pub stuck_after: Duration,
    /// Bytes of rows that one flusher may have committed without a flush (`SYNCHRONOUS_COMMIT=off`), else 0.
    pub unflushed_bytes_max: u64,
    /// Wakes the journal thread, which reclaims what was released.
    pub journal: Unparker,
}

/// One flusher thread.
pub struct Flusher {
    queue: Arc<FlushQueue>,
    tools: Arc<FlushTools>,
    seat: Seat,
    reader: JournalReader,
    target: RowsTarget,
    metrics: FlushRecorders,
    attempt: Attempt,
    unflushed: Unflushed,
    /// The last COPY had to wait for a lock that all have to wait for.
    tables_are_locked: bool,
    /// Until then it is likely that somebody holds rows that a COPY meets.
    rows_locked_until: Option<Instant>,
    /// Until then a COPY may be slow at the first attempt.
    patient_until: Option<Instant>,
    retry_wait: Duration,
    /// When the last wait began; `None` once a COPY has landed after it.
    failed_at: Option<Instant>,
    /// When it is told that events are refused.
    refused_told: Paced,
    /// Why the last transaction refused rows; `None` when it did not.
    last_refusal: Option<String>,
}

/// Why a block is not in memory.
enum ReadBack {
    /// The device failed; trying again may help.
    Device(String),
    /// Other bytes than were written; the device, or the way to it, may give the right ones another time.
    Damaged(String),
    /// Trying again will not help.
    Lost(String),
}

impl Flusher {
    /// The flusher of `seat`.
    pub fn new(queue: Arc<FlushQueue>, tools: Arc<FlushTools>, seat: Seat) -> Self {
        let target = RowsTarget::new(tools.batch_size, queue.sharding());
        let metrics = FlushRecorders::new(&tools.metrics);
        let attempt = Attempt::new(Arc::clone(&tools.metrics), Arc::clone(&tools.node));
        let (reader, retry_wait) = (tools.reader.clone(), RETRY_WAIT_MIN);
        let unflushed = Unflushed::new(tools.unflushed_bytes_max);
        Self {
            queue,
            tools,
            seat,
            reader,
            target,
            metrics,
            attempt,
            unflushed,
            tables_are_locked: false,
            rows_locked_until: None,
            patient_until: None,
            retry_wait,
            failed_at: None,
            refused_told: Paced::new(REFUSED_EVENTS_TOLD_EVERY),
            last_refusal: None,
        }
    }

    /// Runs until [`FlushQueue::stop`].
    pub fn run(mut self) {
        while !self.queue.is_stopping() {
            self.queue.mark_sleeping(&self.seat, true);
            if self.unflushed.is_empty() && !self.queue.has_work(self.seat.role) {
                self.rest();
                continue;
            }
            let Some(session) = self.connect() else { continue };
            match self.queue.next(self.seat.role, &self.moment()) {
                Next::Copy(cut) => {
                    if !self.queue.mark_sleeping(&self.seat, false) {
                        // Somebody spent a wake-up on us while we were taking work: pass it on.
                        self.queue.wake_one(self.seat.role);
                    }
                    let rows = cut.items.iter().map(|item| u64::from(item.rows)).sum();
                    let node = cut.node;
                    self.queue.rows_under_way().fetch_add(rows, Ordering::SeqCst);
                    self.flush(session, cut);
                    self.queue.rows_under_way().fetch_sub(rows, Ordering::SeqCst);
                    self.queue.done(node);
                }
                Next::WaitUntil(_) | Next::Idle if !self.unflushed.is_empty() => self.flush_commits(session),
                Next::WaitUntil(at) => {
                    drop(session);
                    self.seat.parker.park_deadline(at);
                }
                Next::Idle => {
                    drop(session);
                    self.rest();
                }
            }
        }
    }

    /// Sleeps until somebody wakes this flusher, or a postponed batch is due that it may take.
    fn rest(&self) {
        match self.queue.postponed_until().filter(|_| self.seat.role == Role::General) {
            Some(due) => self.seat.parker.park_deadline(due),
            None => self.seat.parker.park(),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            now: Instant::now(),
            others_rows: self.queue.rows_under_way().load(Ordering::SeqCst),
            working_since: self.tools.health.since(),
            hurry: self.queue.in_hurry(),
            rows_target: self.target.rows(),
        }
    }

    /// A prepared connection, or `None` after a wait.
    fn connect(&mut self) -> Option<PooledConnection<SessionManager>> {
        let mut session = match self.tools.pool.get() {
            Ok(session) => session,
            Err(error) => {
                self.wait_after(&Fault::lost(error.to_string()));
                return None;
            }
        };
        match session.prepare() {
            Ok(()) => Some(session),
            Err(fault) => {
                self.let_go(session, &fault);
                None
            }
        }
    }

    /// Closes a session that met `fault`, and waits before the next attempt. A session from before the last wait
    /// tells nothing about PostgreSQL as it is now: the next one is tried at once, so that a pool full of them
    /// does not hold up the recovery. Each of them goes, so this ends.
    fn let_go(&mut self, mut session: PooledConnection<SessionManager>, fault: &Fault) {
        session.discard();
        let is_older = self.failed_at.is_some_and(|failed_at| session.opened_at() < failed_at);
        drop(session);
        if is_older {
            self.note(fault);
        } else {
            self.wait_after(fault);
        }
    }

    /// Records a fault that ended an attempt.
    fn note(&self, fault: &Fault) {
        self.count(fault);
        self.tools.health.fails(Witness::Copy, fault);
    }

    /// Records a fault, and waits before the next attempt: doubling, with an upper bound.
    fn wait_after(&mut self, fault: &Fault) {
        self.note(fault);
        self.failed_at = Some(Instant::now());
        let until = Instant::now() + self.retry_wait;
        self.retry_wait = (self.retry_wait * 2).min(RETRY_WAIT_MAX);
        while Instant::now() < until && !self.queue.is_stopping() {
            self.seat.parker.park_deadline(until);
        }
    }

    fn flush(&mut self, mut session: PooledConnection<SessionManager>, cut: Cut<Queued>) {
        let taken_at = Instant::now();
        let mut in_hand = self.take_in_hand(cut.items);
        if self.queue.holds_rows() && !cut.is_retry {
            in_hand = self.put_held_aside(in_hand);
        }
        let started = Instant::now();
        for batch in &in_hand {
            batch.item.value.batch.set_phase(Phase::Processing);
            self.metrics.queue_latency.record_elapsed(started - batch.item.value.accepted_at.min(started));
        }
        let (batches, rows) = (in_hand.len(), in_hand.iter().map(|batch| u64::from(batch.item.rows)).sum());
        let to_land = if in_hand.is_empty() { Vec::new() } else { vec![in_hand] };
        let mut go = Go {
            taken_at,
            to_land,
            batches,
            rows,
            suspect: None,
            collisions: 0,
            has_turn: cut.is_retry,
            turn_landed: false,
            is_patient: false,
            holds: false,
        };
        let ended_by = self.land_parts(&mut session, &mut go, cut.is_full);
        if let Some(fault) = ended_by {
            return self.give_up(session, go, &fault);
        }
        let turn = go.turn();
        let left =
            go.to_land.into_iter().rev().flatten().map(|in_hand| in_hand.into_item(&self.tools.blocks)).collect();
        self.put_back(left);
        match go.suspect {
            Some(suspect) => self.judge_suspect(session, taken_at, suspect, turn),
            None => self.end_turn(turn),
        }
    }

    /// Lands what is to land, one part after the other, until all has its place or a fault ends it.
    fn land_parts(&mut self, session: &mut Session, go: &mut Go, is_full: bool) -> Option<Fault> {
        while let Some(mut part) = go.to_land.pop() {
            let is_whole = part.len() == go.batches;
            if self.queue.is_stopping() && !is_whole {
                // The COPY in hand was the last; what is left of the cut stays in the journal.
                go.to_land.push(part);
                return None;
            }
            let plan = self.plan(go, &part);
            if let [alone] = &mut part[..] {
                let trouble = &mut alone.item.value.trouble;
                trouble.row_by_row += u32::from(plan.begin == Way::RowByRow);
                trouble.long_turns += u32::from(plan.patience == Patience::OwnLongTurn);
            }
            match self.attempt.land(session, &part, &plan) {
                Ok(done) => {
                    go.turn_landed |= go.has_turn && part.len() == 1;
                    self.record(&part, is_whole && is_full, &done.timings, go.taken_at.elapsed());
                    self.note_months(&part, &done.timings);
                    self.landed(part, done, plan.commit);
                }
                Err(failure) => {
                    if let Some(fault) = self.blame(session, go, part, failure) {
                        return Some(fault);
                    }
                }
            }
        }
        None
    }

    /// How `part` of a cut is landed, and how long that may take while others wait behind it.
    fn plan(&self, go: &Go, part: &[InHand]) -> Plan {
        let is_whole = part.len() == go.batches;
        let commit = if is_whole && !go.has_turn { self.commit_of(part) } else { Commit::Flushed };
        let rows = part.iter().map(|batch| u64::from(batch.item.rows)).sum();
        let share = Share { batches: part.len(), rows, of_batches: go.batches, of_rows: go.rows };
        let own_turn = go.has_turn && part.len() == 1;
        let may_wait = part.iter().all(|in_hand| in_hand.item.value.trouble.may_wait_for_long());
        let patience = match () {
            () if self.tables_are_locked => Patience::Locked,
            () if own_turn && may_wait && self.queue.may_be_patient() => Patience::OwnLongTurn,
            () if own_turn => Patience::OwnTurn,
            () if go.is_patient || self.patient_until.is_some_and(|until| Instant::now() < until) => Patience::Usual,
            () => Patience::Hasty { expected: self.target.expected(rows) },
        };
        let rows_are_locked = self.rows_locked_until.is_some_and(|until| Instant::now() < until);
        let limits = limits(share, self.seat.role, patience, rows_are_locked);
        let begin = match part {
            [alone] if own_turn => self.way_of(&alone.item.value.trouble),
            _ => Way::Plain,
        };
        Plan { commit, patience, limits, begin, may_quarantine: own_turn }
    }

    /// How a batch begins that is tried by itself.
    fn way_of(&self, trouble: &Trouble) -> Way {
        let is_stuck = trouble.stuck_since.is_some_and(|since| since.elapsed() >= self.tools.stuck_after);
        match trouble {
            _ if trouble.is_given_up || trouble.row_by_row >= ROW_BY_ROW_ATTEMPTS_MAX => Way::Buried,
            _ if is_stuck && self.others_land(trouble) => Way::RowByRow,
            _ if trouble.has_refused_rows => Way::Quarantine,
            // One statement that PostgreSQL has all rows of: it does not have to read while it is busy with them.
            _ if trouble.is_slow => Way::Staged,
            _ => Way::Plain,
        }
    }

    /// True when others landed while this one did not: then its rows may be judged one by one.
    fn others_land(&self, trouble: &Trouble) -> bool {
        trouble.stuck_since.is_some_and(|since| self.tools.health.has_landed_since(since))
    }

    /// Whether the next COMMIT has to flush: when somebody waits for one of its batches, when one is urgent, and when
    /// enough is unflushed.
    fn commit_of(&self, in_hand: &[InHand]) -> Commit {
        let bytes = in_hand.iter().map(|batch| batch.item.bytes).sum();
        let is_awaited =
            |batch: &InHand| batch.item.priority >= PRIORITY_RESERVED_MIN || batch.item.value.on_commit.is_some();
        let may_lag = self.unflushed.has_room(bytes, Instant::now()) && !in_hand.iter().any(is_awaited);
        if may_lag { Commit::Unflushed } else { Commit::Flushed }
    }

    fn landed(&mut self, in_hand: Vec<InHand>, done: Done, commit: Commit) {
        self.tools.health.landed_now();
        self.tables_are_locked = false;
        self.postgres_works();
        if let Some(first) = in_hand.first() {
            self.queue.release(first.item.shard);
        }
        self.trace_copy(&in_hand, &done);
        self.last_refusal = done.reasons.first().map(|reason| reason.message.clone());
        for reason in done.reasons {
            self.tools.recent.refused(reason, wall_now());
        }
        let items = in_hand.into_iter().map(|in_hand| in_hand.into_item(&self.tools.blocks));
        let outcomes: Vec<Outcome> = items.zip(done.landed).collect();
        if done.is_unconfirmed {
            tracing::warn!(
                batches = outcomes.len(),
                "the wait for a synchronous standby was cancelled; the journal keeps the batches until a later COMMIT has \
                 been confirmed"
            );
        }
        if commit == Commit::Unflushed || done.is_unconfirmed {
            return self.unflushed.put(done.run, outcomes, Instant::now());
        }
        self.flushed(Some(done.run));
        self.settle(outcomes);
    }

    /// Notes which months land as they should. Where some rows of `part` are far slower than others, those of months with few
    /// rows count as refused, so that they are not tried with others any more.
    fn note_months(&self, part: &[InHand], timings: &Timings) {
        let rows = part.iter().map(|in_hand| u64::from(in_hand.item.rows)).sum();
        let took = timings.claim + timings.copy;
        let tuples = || part.iter().map(|in_hand| in_hand.block.tuples());
        if !self.target.is_slow(rows, took) {
            if self.queue.holds_rows() {
                tuples().for_each(|tuples| self.queue.landed(tuples));
            }
            return;
        }
        let reason =
            format!("rows of it take long: a COPY of {rows} rows with some of them took {} ms", took.as_millis());
        let slow = match part {
            [alone] => only_month(alone.block.tuples()).filter(|_| self.queue.holds_rows()).into_iter().collect(),
            _ => odd_months(tuples()),
        };
        for month in slow {
            let reason = format!("{}: {reason}", month.partition_name());
            self.queue.refused_of_month(month, SqlState::QUERY_CANCELED.code(), &reason);
        }
    }

    /// Records the transaction in the traces of those of its batches that have one.
    fn trace_copy(&self, in_hand: &[InHand], done: &Done) {
        let Some(traces) = &self.tools.traces else { return };
        let inserted = |landed: &Landed| match landed {
            Landed::Now(counts) => u64::from(counts.inserted),
            Landed::Before(_) | Landed::Conflict => 0,
        };
        let copied = Copied {
            begun_at: done.begun_at,
            committed_at: done.committed_at,
            rows: done.landed.iter().map(inserted).sum(),
            batches: in_hand.len(),
        };
        for in_hand in in_hand {
            traces.copied(&in_hand.item.value.batch, &copied);
        }
    }

    /// Has PostgreSQL flush what it has committed for this flusher, and its synchronous standby, where there is one.
    fn flush_commits(&mut self, mut session: PooledConnection<SessionManager>) {
        let (waiting, pulse) = (session.wait(), session.pulse());
        let (flushed, is_unconfirmed) = pulse.committing(|| wal::flush(session.client()));
        drop(waiting);
        match flushed {
            // Cancelled once more: it is asked for again after a pause.
            Ok(_) if is_unconfirmed => self.wait_after(&Fault::unconfirmed()),
            Ok(run) => {
                self.postgres_works();
                self.flushed(Some(run));
            }
            Err(fault) => {
                self.flushed(None);
                self.let_go(session, &fault);
            }
        }
    }

    /// `run` has flushed everything that it committed, or nobody knows.
    fn flushed(&mut self, run: Option<Run>) {
        let decided = self.unflushed.decide(run);
        if !decided.doubtful.is_empty() {
            tracing::warn!(
                batches = decided.doubtful.len(),
                "PostgreSQL may have lost commits that were not flushed; resending their batches"
            );
            self.put_back(decided.doubtful);
        }
        self.settle(decided.flushed);
    }

    /// It has landed a batch, or said what is wrong with one.
    fn postgres_works(&mut self) {
        if self.tools.health.works(Witness::Copy) {
            self.queue.admission.excuse_all();
        }
        (self.retry_wait, self.failed_at) = (RETRY_WAIT_MIN, None);
    }

    /// Brings the bytes of `items` into memory. A second batch of an id that is in the cut already goes back:
    /// the two need transactions of their own.
    fn take_in_hand(&mut self, items: Vec<Waiting>) -> Vec<InHand> {
        let mut ids = HashSet::with_capacity(items.len());
        let (mut in_hand, mut back) = (Vec::with_capacity(items.len()), Vec::new());
        for mut item in items {
            if !ids.insert(item.value.batch.key.id.clone()) {
                back.push(item);
                continue;
            }
            match item.value.block.take() {
                Some(block) => in_hand.push(InHand { item, block, resident: true }),
                None => match self.read_back(&item) {
                    Ok(block) => in_hand.push(InHand { item, block, resident: false }),
                    Err(failure) => self.set_aside(item, failure),
                },
            }
        }
        if !back.is_empty() {
            self.queue.put_back(back);
        }
        in_hand
    }

    fn read_back(&mut self, item: &Item<Queued>) -> Result<Block, ReadBack> {
        let Some(location) = &item.value.location else {
            return Err(ReadBack::Lost("it is in neither memory nor the journal".to_owned()));
        };
        let mut bytes = self.tools.blocks.take(location.payload_bytes as usize);
        let crc32c = self.reader.read(location, &mut bytes).map_err(|error| match error {
            ReadError::Io { .. } => ReadBack::Device(error.to_string()),
            ReadError::Gone(_) | ReadError::Damaged { .. } => ReadBack::Damaged(error.to_string()),
        })?;
        Block::from_verified(bytes, crc32c).map_err(|error| ReadBack::Lost(error.to_string()))
    }

    /// The journal has not given back what it acknowledged. It is asked again later, past every cache: a reader reads again
    /// what was not as written. What stays damaged is left to the next start, its segment with it, for `journal
    /// inspect`; status and health say so.
    fn set_aside(&self, mut item: Waiting, failure: ReadBack) {
        let reason = match failure {
            ReadBack::Device(reason) => return self.postpone_unread(item, &reason),
            ReadBack::Damaged(reason) if item.value.trouble.unreadable_times < READ_BACK_TRIES_MAX => {
                item.value.trouble.unreadable_times += 1;
                return self.postpone_unread(item, &reason);
            }
            ReadBack::Damaged(reason) | ReadBack::Lost(reason) => reason,
        };
        let batch = &item.value.batch;
        batch.delayed_because(&format!(
            "it could not be read back from the journal; see 'ingestd journal inspect': {reason}"
        ));
        tracing::error!(batch = %batch.key, request_id = batch.request_id(), trace_id = batch.trace_id(), location = ?item.value.location, reason,
            "cannot read an accepted batch back from the journal; its segment is kept; run 'ingestd journal inspect'");
        self.tools.journal_health.note_damage(format!("batch {} could not be read back: {reason}", batch.key));
        self.queue.leave(&self.tools.metrics, &item);
    }

    fn postpone_unread(&self, item: Waiting, reason: &str) {
        self.queue.postpone(item, SqlState::IO_ERROR.code(), reason);
    }

    fn record(&mut self, in_hand: &[InHand], is_full: bool, timings: &Timings, took: Duration) {
        let rows = in_hand.iter().map(|batch| batch.item.rows).sum();
        if is_full {
            self.queue.admission.landed_full(self.seat.index, rows, took);
        }
        self.target.observe(is_full, timings.claim + timings.copy + timings.commit);
        self.metrics.copy(rows, timings);
    }

    /// Tells status, journal, clients and metrics what is committed and on PostgreSQL's disk.
    fn settle(&mut self, outcomes: Vec<Outcome>) {
        let (now, completed_at) = (Instant::now(), wall_now());
        for (mut item, landed) in outcomes {
            if let Some(block) = item.value.block.take() {
                self.tools.blocks.give_back(block.into_buffer());
            }
            let batch = Arc::clone(&item.value.batch);
            match landed {
                Landed::Now(counts) => batch.finish(counts, completed_at),
                Landed::Before(counts) => batch.finish(counts, completed_at),
                Landed::Conflict => {
                    tracing::warn!(batch = %batch.key, request_id = batch.request_id(), trace_id = batch.trace_id(), events = batch.events,
                        "batch_id was used with a different body on another node; the events are in \
                         dead_letter_events");
                    // Before anybody hears of it: from here on the id is the other batch's, which the ledger has.
                    self.tools.batches.remove(&batch);
                    batch.finish_without_id(completed_at);
                    let reason = Reason::of(&Fault::id_conflict(), batch.events.into());
                    self.tools.recent.refused(reason, completed_at);
                }
            }
            let before = matches!(landed, Landed::Before(_));
            let took = now - item.value.accepted_at.min(now);
            if batch.counts().dead_lettered > 0 {
                self.tools.recent.troubled(&batch);
                self.tell_refused(&batch, now);
            }
            tracing::debug!(batch = %batch.key, request_id = batch.request_id(), trace_id = batch.trace_id(),
                status = batch.phase().name(), before, took_ms = took.as_millis() as u64, "committed");
            self.metrics.batch(&batch, before, took);
            if let Some(traces) = &self.tools.traces {
                traces.flushed(&batch, item.queued_at, now);
            }
            if let Some(location) = item.value.location {
                self.tools.releaser.release(location);
            }
            if let Some(feed) = &self.tools.feed {
                feed.publish(&batch);
            }
            self.queue.leave(&self.tools.metrics, &item);
            // Told last: who knows of the commit finds it in status and metrics, too.
            if let Some(on_commit) = item.value.on_commit.take() {
                // The client may have gone; the batch is committed all the same.
                let _ = on_commit.send(());
            }
            self.tools.batches.finished(batch, now);
        }
        self.tools.journal.unpark();
    }

    /// Tells that PostgreSQL refused events of `batch`, now and then where that goes on.
    fn tell_refused(&mut self, batch: &Batch, now: Instant) {
        if !self.refused_told.is_due(now) {
            return;
        }
        tracing::warn!(batch = %batch.key, request_id = batch.request_id(), trace_id = batch.trace_id(),
            dead_lettered = batch.counts().dead_lettered, events = batch.events, reason = self.last_refusal,
            "PostgreSQL rejected events; list them with 'ingestd dead-letter list'");
    }

    fn put_back(&self, items: Vec<Waiting>) {
        for item in &items {
            item.value.batch.set_phase(Phase::Queued);
        }
        self.queue.put_back(items);
    }
}
