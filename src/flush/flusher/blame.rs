//! What a flusher does with batches that did not land: it acts on [`decide`].

use std::sync::Arc;
use std::time::Instant;

use postgres::error::SqlState;
use r2d2::PooledConnection;

use super::Flusher;
use crate::flush::attempt::{Failure, InHand};
use crate::flush::culprit::{Action, Evidence, Kind, decide};
use crate::flush::held::{odd_months, only_month};
use crate::flush::merge::Role;
use crate::flush::queue::Waiting;
use crate::limits::{NOT_HASTY_FOR, ROWS_LOCKED_FOR};
use crate::metrics::SqlstateClass;
use crate::pg::locks::Blocked;
use crate::pg::month::Month;
use crate::pg::pool::{Session, SessionManager};
use crate::pg::sqlstate::Fault;
use crate::sharding::IngestShard;
use crate::status::model::Phase;

/// A cut on its way into PostgreSQL.
pub(super) struct Go {
    pub taken_at: Instant,
    /// Its parts that are still to land, the next one last.
    pub to_land: Vec<Vec<InHand>>,
    /// Its batches and rows.
    pub batches: usize,
    pub rows: u64,
    /// A batch that PostgreSQL refused by itself before anything had landed, and why.
    pub suspect: Option<(InHand, Fault)>,
    /// How often another transaction was in the way.
    pub collisions: u32,
    /// This flusher has the turn for postponed batches.
    pub has_turn: bool,
    /// What it was for has landed.
    pub turn_landed: bool,
    /// It took longer than expected before.
    pub is_patient: bool,
    /// What ended it is its shard's.
    pub holds: bool,
}

/// The turn for postponed batches, if a flusher has it, and whether what it was for has landed.
pub(super) type Turn = Option<bool>;

impl Go {
    pub(super) fn turn(&self) -> Turn {
        self.has_turn.then_some(self.turn_landed)
    }
}

impl Flusher {
    /// Gives the turn up once each batch is back where it waits: in between nobody would know that one is stuck.
    pub(super) fn end_turn(&self, turn: Turn) {
        if let Some(has_landed) = turn {
            self.queue.tried(has_landed);
        }
    }

    /// Acts on what kept `part` from landing; what is left of the cut goes on, or nothing does because of the fault that is
    /// returned.
    pub(super) fn blame(
        &mut self,
        session: &mut Session,
        go: &mut Go,
        mut part: Vec<InHand>,
        failure: Failure,
    ) -> Option<Fault> {
        let Failure { kind, fault, blocked } = failure;
        let is_cancelled = fault.sqlstate == SqlState::QUERY_CANCELED.code();
        if kind == Kind::Slow && is_cancelled && part.len() > 1 && !std::mem::replace(&mut go.is_patient, true) {
            self.suspect_odd_months(go, part, &fault);
            return None;
        }
        if kind == Kind::Session || is_cancelled {
            self.target.gave_up();
        }
        if matches!(kind, Kind::Slow | Kind::Batches) && !blocked.is_empty() {
            self.queue.hold_rows(blocked.clone(), &fault.sqlstate);
            let whole = part.len();
            part = self.put_held_aside(part);
            if part.len() < whole {
                session.discard();
                go.to_land.extend((!part.is_empty()).then_some(part));
                return None;
            }
        }
        if kind == Kind::Slow && !is_cancelled && blocked.is_empty() {
            self.rows_locked_until = Some(Instant::now() + ROWS_LOCKED_FOR);
        }
        if let (Kind::Session, [alone]) = (kind, &mut part[..]) {
            alone.item.value.trouble.sessions_lost += 1;
        }
        let evidence = Evidence {
            batches: part.len(),
            collisions: go.collisions,
            others_landed: self.others_landed(&part, go.taken_at),
            has_suspect: go.suspect.is_some(),
            known: part.iter().any(|in_hand| in_hand.item.value.trouble.postponed_times > 0),
            sessions_lost: part.iter().map(|in_hand| in_hand.item.value.trouble.sessions_lost).min().unwrap_or(0),
            reconnected: kind == Kind::Session && session.renew().is_ok(),
        };
        let action = decide(kind, evidence);
        tracing::debug!(%fault, ?kind, ?action, batches = part.len(), "a COPY did not land");
        match action {
            Action::Again => {
                go.collisions += u32::from(kind == Kind::Transaction);
                self.count(&fault);
                go.to_land.push(part);
            }
            Action::Halve => {
                let second = part.split_off(part.len() / 2);
                go.to_land.extend([second, part]);
            }
            Action::Quarantine => {
                self.count(&fault);
                self.quarantine(go, part, &fault);
            }
            Action::Postpone => {
                if kind == Kind::Batches {
                    self.postgres_works();
                }
                self.queue.hold_rows(blocked, &fault.sqlstate);
                self.postpone(part, kind, &fault);
                session.discard();
            }
            Action::Suspect => {
                go.suspect = part.pop().map(|mut in_hand| {
                    in_hand.item.value.trouble.suspected_since.get_or_insert(go.taken_at);
                    (in_hand, fault)
                });
            }
            Action::Hold => {
                go.holds = true;
                go.to_land.push(part);
                return Some(fault);
            }
            Action::Wait => {
                self.tables_are_locked = kind == Kind::Locked;
                go.to_land.push(part);
                return Some(fault);
            }
        }
        None
    }

    /// True when anything has landed since the cut was taken that `part` is of, or since one of `part` was suspected before.
    fn others_landed(&self, part: &[InHand], taken_at: Instant) -> bool {
        let suspected = part.iter().filter_map(|in_hand| in_hand.item.value.trouble.suspected_since);
        self.tools.health.has_landed_since(suspected.fold(taken_at, Instant::min))
    }

    /// `part` took longer than expected. If it has rows of other months than most, those are put aside, and tell by themselves
    /// whether they are slow; the others are tried again.
    fn suspect_odd_months(&mut self, go: &mut Go, part: Vec<InHand>, fault: &Fault) {
        let odd = odd_months(part.iter().map(|in_hand| in_hand.block.tuples()));
        if odd.is_empty() {
            self.patient_until = Some(Instant::now() + NOT_HASTY_FOR);
            return go.to_land.push(part);
        }
        let reason = |month: &Month| format!("rows for {} may take long: {}", month.partition_name(), fault.message);
        let blocked = odd.iter().map(|month| Blocked::month(*month, &reason(month))).collect();
        self.queue.hold_rows(blocked, &fault.sqlstate);
        let part = self.put_held_aside(part);
        go.to_land.extend((!part.is_empty()).then_some(part));
    }

    /// Puts those of `part` aside that have rows which cannot land at present; gives the others.
    pub(super) fn put_held_aside(&mut self, part: Vec<InHand>) -> Vec<InHand> {
        let mut free = Vec::with_capacity(part.len());
        for in_hand in part {
            match self.queue.held(in_hand.block.tuples()) {
                None => free.push(in_hand),
                Some(held) => self.put_aside(in_hand, &held.sqlstate, &held.reason),
            }
        }
        free
    }

    /// Refused rows of a batch are looked for by one flusher at a time, after everything else of its cut, and never by the one
    /// that is kept for what is urgent.
    fn quarantine(&mut self, go: &mut Go, part: Vec<InHand>, fault: &Fault) {
        let may_look = self.seat.role == Role::General && (go.has_turn || self.queue.take_turn());
        for mut in_hand in part {
            in_hand.item.value.trouble.has_refused_rows = true;
            if may_look {
                go.has_turn = true;
                go.to_land.insert(0, vec![in_hand]);
                continue;
            }
            self.queue.quarantine(self.out_of_hand(in_hand), &fault.sqlstate, &fault.message);
        }
    }

    /// Nothing else of a cut is left but a batch that PostgreSQL refused by itself before anything had landed.
    pub(super) fn judge_suspect(
        &mut self,
        session: PooledConnection<SessionManager>,
        taken_at: Instant,
        (in_hand, fault): (InHand, Fault),
        turn: Turn,
    ) {
        if self.others_landed(std::slice::from_ref(&in_hand), taken_at) {
            self.postpone(vec![in_hand], Kind::Refused, &fault);
            return self.end_turn(turn);
        }
        let item = self.out_of_hand(in_hand);
        // Those that wait behind it show whether it is the only one; where none waits, it is tried again.
        if self.queue.has_work(self.seat.role) {
            self.queue.suspect(item, &fault.sqlstate, &fault.message);
        } else {
            self.put_back(vec![item]);
        }
        self.end_turn(turn);
        self.let_go(session, &fault);
    }

    /// Everything that is left of a cut goes back to where it was, in its order.
    pub(super) fn give_up(&mut self, session: PooledConnection<SessionManager>, go: Go, fault: &Fault) {
        let turn = go.turn();
        let suspect = go.suspect.into_iter().map(|(in_hand, _)| in_hand);
        let left: Vec<InHand> = suspect.chain(go.to_land.into_iter().rev().flatten()).collect();
        let shard = left.first().map(|in_hand| in_hand.item.shard).filter(|_| go.holds);
        let (known, left): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|in_hand| in_hand.item.value.trouble.postponed_times > 0);
        for in_hand in known {
            self.put_aside(in_hand, &fault.sqlstate, &fault.message);
        }
        self.put_back(left.into_iter().map(|in_hand| in_hand.into_item(&self.tools.blocks)).collect());
        self.end_turn(turn);
        match shard {
            Some(shard) => self.hold(session, shard, fault),
            None => self.let_go(session, fault),
        }
    }

    /// The coordinator answers, but a worker may be away: only its shards wait.
    pub(super) fn hold(&mut self, mut session: PooledConnection<SessionManager>, shard: IngestShard, fault: &Fault) {
        self.queue.hold(shard, &fault.message);
        self.count(fault);
        session.discard();
    }

    /// Puts batches aside for a while that PostgreSQL has refused by themselves.
    pub(super) fn postpone(&mut self, in_hand: Vec<InHand>, kind: Kind, fault: &Fault) {
        self.count(fault);
        for mut in_hand in in_hand {
            let trouble = &mut in_hand.item.value.trouble;
            trouble.is_slow |= matches!(kind, Kind::Slow | Kind::Session);
            // Otherwise it would have been put aside with the rows of the partition that is locked.
            trouble.waits_for_a_row = kind == Kind::Slow && fault.sqlstate == SqlState::LOCK_NOT_AVAILABLE.code();
            if matches!(kind, Kind::Refused | Kind::Batches)
                && let Some(month) = only_month(in_hand.block.tuples())
            {
                self.queue.refused_of_month(month, &fault.sqlstate, &fault.message);
            }
            self.put_aside(in_hand, &fault.sqlstate, &fault.message);
        }
    }

    /// A batch that waits again.
    fn out_of_hand(&self, in_hand: InHand) -> Waiting {
        let item = in_hand.into_item(&self.tools.blocks);
        item.value.batch.set_phase(Phase::Queued);
        item
    }

    /// Puts a batch aside, so that it does not hold up the others.
    fn put_aside(&self, in_hand: InHand, sqlstate: &str, reason: &str) {
        let item = self.out_of_hand(in_hand);
        let batch = Arc::clone(&item.value.batch);
        let is_new = item.value.trouble.postponed_times == 0;
        let is_to_be_told = self.queue.postpone(item, sqlstate, reason);
        if let Some(feed) = self.tools.feed.as_ref().filter(|_| is_new) {
            feed.publish(&batch);
        }
        if is_to_be_told {
            tracing::error!(batch = %batch.key, request_id = batch.request_id(), trace_id = batch.trace_id(), reason,
                "PostgreSQL accepts other batches but not this one; it stays in the journal and will be retried; list such \
                 batches with 'ingestd batches list --stuck'");
        }
    }

    pub(super) fn count(&self, fault: &Fault) {
        self.tools.metrics.db_errors.add(SqlstateClass::of(Some(&fault.sqlstate)), 1);
    }
}
