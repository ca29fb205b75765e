//! What a flusher does with batches that did not land: it acts on [`decide`].

use std::time::Instant;

use postgres::error::SqlState;
use r2d2::PooledConnection;

use super::Flusher;
use crate::flush::attempt::{Failure, InHand};
use crate::flush::culprit::{Action, Evidence, Kind, decide};
use crate::limits::POSTPONED_REPORTED_AT;
use crate::metrics::SqlstateClass;
use crate::pg::pool::{Session, SessionManager};
use crate::pg::sqlstate::Fault;
use crate::sharding::{IngestShard, Sharding};
use crate::status::model::Phase;

/// A cut on its way into PostgreSQL.
pub(super) struct Go {
    pub taken_at: Instant,
    /// Its parts that are still to land, the next one last.
    pub to_land: Vec<Vec<InHand>>,
    /// Batches that PostgreSQL refused by themselves before anything had landed, and why.
    pub suspects: Vec<(InHand, Fault)>,
    /// How often another transaction was in the way.
    pub collisions: u32,
}

impl Flusher {
    /// Acts on what kept `part` from landing; what is left of the cut goes on, or nothing does because of the fault that is
    /// returned.
    pub(super) fn blame(
        &mut self,
        session: &mut Session,
        go: &mut Go,
        mut part: Vec<InHand>,
        failure: Failure,
    ) -> Option<Fault> {
        let (kind, fault) = failure.into_parts();
        if kind == Kind::Refused && session.sharding() == Sharding::Citus {
            // A worker may be away: that is its shards' alone, which `give_up` holds.
            go.to_land.push(part);
            return Some(fault);
        }
        if kind == Kind::Session || fault.sqlstate == SqlState::QUERY_CANCELED.code() {
            self.target.gave_up();
        }
        let evidence = Evidence {
            batches: part.len(),
            collisions: go.collisions,
            others_landed: self.tools.health.has_landed_since(go.taken_at),
            suspects: go.suspects.len(),
            known: part.iter().any(|in_hand| in_hand.item.value.postponed_times > 0),
            sessions_lost: part.iter().map(|in_hand| in_hand.item.value.sessions_lost).min().unwrap_or(0),
        };
        let action = decide(kind, evidence);
        tracing::debug!(%fault, ?action, batches = part.len(), "a COPY did not land");
        match action {
            Action::Again => {
                go.collisions += 1;
                self.count(&fault);
                go.to_land.push(part);
            }
            Action::Halve => {
                let second = part.split_off(part.len() / 2);
                go.to_land.extend([second, part]);
            }
            Action::Postpone => {
                if kind == Kind::Batches {
                    self.postgres_works();
                }
                self.postpone(part, &fault);
                session.discard();
                return (kind == Kind::Session && !go.to_land.is_empty()).then_some(fault);
            }
            Action::Suspect => go.suspects.extend(part.pop().map(|in_hand| (in_hand, fault))),
            Action::OtherSession | Action::Wait => {
                if let (Kind::Session, [alone]) = (kind, &mut part[..]) {
                    alone.item.value.sessions_lost += 1;
                }
                go.to_land.push(part);
                return Some(fault);
            }
        }
        None
    }

    /// Nothing else of a cut is left but batches that PostgreSQL refused by themselves before anything had landed: at most one,
    /// unless others of the cut landed after it.
    pub(super) fn judge_suspects(&mut self, session: PooledConnection<SessionManager>, go: Go) {
        let others_landed = self.tools.health.has_landed_since(go.taken_at);
        for (in_hand, fault) in go.suspects {
            if others_landed {
                self.postpone(vec![in_hand], &fault);
                continue;
            }
            // Those that wait behind it show whether it is the only one; where none waits, it is tried again.
            if self.queue.has_work(self.seat.role) {
                let item = in_hand.into_item(&self.tools.blocks);
                item.value.batch.set_phase(Phase::Queued);
                self.queue.suspect(item, &fault.message);
            } else {
                self.put_back(vec![in_hand.into_item(&self.tools.blocks)]);
            }
            return self.let_go(session, &fault);
        }
    }

    /// Everything that is left of a cut goes back to where it was, in its order.
    pub(super) fn give_up(&mut self, mut session: PooledConnection<SessionManager>, go: Go, fault: &Fault) {
        let suspects = go.suspects.into_iter().map(|(in_hand, _)| in_hand);
        let left: Vec<InHand> = suspects.chain(go.to_land.into_iter().rev().flatten()).collect();
        let shard = left.first().map(|in_hand| in_hand.item.shard);
        self.put_back(left.into_iter().map(|in_hand| in_hand.into_item(&self.tools.blocks)).collect());
        match shard.filter(|_| session.sharding() == Sharding::Citus && !session.client().is_closed()) {
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

    /// Puts batches aside for a while that cannot land, so that they do not hold up the others.
    pub(super) fn postpone(&mut self, in_hand: Vec<InHand>, fault: &Fault) {
        self.count(fault);
        for in_hand in in_hand {
            let item = in_hand.into_item(&self.tools.blocks);
            let batch = &item.value.batch;
            if item.value.postponed_times == POSTPONED_REPORTED_AT {
                tracing::error!(batch = %batch.key, request_id = batch.request_id(), trace_id = batch.trace_id(), reason = fault.message,
                    "PostgreSQL accepts other batches but not this one; it stays in the journal and will be retried");
            }
            batch.set_phase(Phase::Queued);
            self.queue.postpone(item, &fault.message);
        }
    }

    pub(super) fn count(&self, fault: &Fault) {
        self.tools.metrics.db_errors.add(SqlstateClass::of(Some(&fault.sqlstate)), 1);
    }
}
