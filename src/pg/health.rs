//! Whether PostgreSQL works, as the flushers and the probe last saw it.
//!
//! The two see different things: a PostgreSQL that answers the probe may still refuse every COPY (read-only,
//! a lock, a missing table). So a probe that succeeds takes back what a probe has said, and nothing else; a
//! COPY that succeeds takes back everything. A flusher that failed tries again until it succeeds, so its
//! verdict does not outlive the fault.
//!
//! One session's fault says nothing about PostgreSQL while others land: only when nothing has landed for
//! [`OUTAGE_AFTER`] it counts as an outage. A shorter one changes nothing for batches that wait: neither their ageing nor
//! who may join the queue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::citus::cluster::Cluster;
use super::sqlstate::{Fault, FaultKind};
use crate::limits::{OUTAGE_AFTER, OUTAGE_SETTLES};
use crate::state_log::StateLog;

/// Shared verdict on the database; written by flushers and the probe, read by health and look-ups.
pub struct DatabaseHealth {
    working: AtomicBool,
    /// A pooler lends the sessions their backends.
    pooled: AtomicBool,
    detail: Mutex<Detail>,
    made_at: Instant,
    /// When a flusher has last landed batches, in microseconds after `made_at`; 0: never.
    landed_us: AtomicU64,
    doubts: Mutex<[Doubted; Doubt::COUNT]>,
    cluster: Mutex<Option<Cluster>>,
}

/// The fault before anybody has tried.
const NOT_YET: &str = "not connected yet";

/// What may not be as it should be although PostgreSQL takes batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The database or the role lacks what ingestd requires: see [`super::requirements`].
    Requirements,
    /// A lock keeps COPYs waiting.
    Lock,
    /// The schema is a newer ingestd's.
    Schema,
    /// Workers of a Citus cluster are away, or transactions on them are undecided.
    Cluster,
    /// A chore fails: partitions ahead, retention of partitions or of the ledger.
    Maintenance,
    /// Something waits for `ingestd migrate`, and batches land without it.
    Migration,
}

impl Doubt {
    const COUNT: usize = Self::Migration as usize + 1;
    /// Those that are not about batches.
    const ASIDE: [Self; 2] = [Self::Maintenance, Self::Migration];
}

/// The reason for a doubt, while there is one.
#[derive(Default)]
struct Doubted {
    reason: Option<String>,
    log: StateLog,
}

/// Who has found a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// The upkeep thread, by asking; also the start.
    Probe,
    /// A flusher, by trying to land batches.
    Copy,
}

#[derive(Debug)]
struct Detail {
    since: Instant,
    /// Since when it worked before it failed.
    worked_since: Instant,
    /// What is wrong, by [`Witness`]; `None` when it has nothing to say.
    faults: [Option<String>; 2],
    log: StateLog,
}

impl DatabaseHealth {
    /// Not working until somebody has seen it work.
    pub fn new() -> Self {
        let now = Instant::now();
        // A PostgreSQL that was never there is told at once.
        let (faults, log) = ([Some(NOT_YET.to_owned()), None], StateLog::default());
        let detail = Detail { since: now, worked_since: now, faults, log };
        let (working, pooled) = (AtomicBool::new(false), AtomicBool::new(false));
        let (doubts, cluster) = (Mutex::default(), Mutex::default());
        let landed_us = AtomicU64::new(0);
        Self { working, pooled, detail: Mutex::new(detail), made_at: now, landed_us, doubts, cluster }
    }

    /// Notes whether a session was opened over a pooler. Logs what is new.
    pub fn reached_over(&self, a_pooler: bool) {
        if self.pooled.swap(a_pooler, Ordering::Relaxed) == a_pooler {
            return;
        }
        if a_pooler {
            tracing::info!("transaction pooling detected (e.g. PgBouncer): statements are prepared per transaction");
        } else {
            tracing::info!("direct PostgreSQL sessions again: no pooler detected");
        }
    }

    /// True when a pooler lends the sessions their backends.
    pub fn is_pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed)
    }

    /// True when the last word was success.
    pub fn is_working(&self) -> bool {
        // Relaxed: a hint; nobody reads other memory because of it.
        self.working.load(Ordering::Relaxed)
    }

    /// A flusher has landed batches.
    pub fn landed_now(&self) {
        // Relaxed, here and below: a figure; nobody reads other memory because of it.
        self.landed_us.store(self.micros(Instant::now()), Ordering::Relaxed);
    }

    /// True when any flusher has landed batches since `moment`.
    pub fn has_landed_since(&self, moment: Instant) -> bool {
        self.landed_us.load(Ordering::Relaxed) >= self.micros(moment)
    }

    /// At least 1.
    fn micros(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.made_at).as_micros() as u64 + 1
    }

    /// Records success; true when that ends an outage. Logs the end of what was logged.
    pub fn works(&self, witness: Witness) -> bool {
        if self.is_working() {
            return false;
        }
        let mut detail = self.detail.lock();
        let first_time = detail.faults[Witness::Probe as usize].as_deref() == Some(NOT_YET);
        detail.faults[witness as usize] = None;
        if witness == Witness::Copy {
            detail.faults[Witness::Probe as usize] = None;
        }
        let is_back = detail.faults.iter().all(Option::is_none) && !self.working.swap(true, Ordering::Relaxed);
        if !is_back {
            return false;
        }
        let away = detail.since.elapsed();
        let was_outage = first_time || away >= OUTAGE_AFTER;
        detail.since = if was_outage { Instant::now() } else { detail.worked_since };
        if let Some(away) = detail.log.ends(Instant::now()) {
            let away_ms = away.as_millis() as u64;
            tracing::info!(away_ms, "PostgreSQL is accepting batches again; queued batches are being committed");
        }
        if first_time {
            detail.log = StateLog::settling(OUTAGE_SETTLES);
        }
        was_outage
    }

    /// Records failure, unless batches have just landed: then it was one session's, or one chore's. Logs an
    /// outage as it begins, and once for each kind of fault in it.
    pub fn fails(&self, witness: Witness, fault: &Fault) {
        let now = Instant::now();
        if now.checked_sub(OUTAGE_AFTER).is_some_and(|before| self.has_landed_since(before)) {
            return;
        }
        let mut detail = self.detail.lock();
        let was_working = self.working.swap(false, Ordering::Relaxed);
        if let Some(begun) = detail.log.holds(fault.kind() as u8, now) {
            tracing::warn!(
                reason = fault.message,
                outages_unlogged = begun.unlogged,
                "PostgreSQL is not accepting batches; they remain in the journal and will be retried"
            );
        }
        if was_working {
            (detail.worked_since, detail.since) = (detail.since, now);
        }
        detail.faults[witness as usize] = Some(fault.message.clone());
    }

    /// Notes the reason for `doubt`, or that there is none; true when that ends it. Logs it as it begins, once for each kind of
    /// reason, and as it ends.
    pub fn doubt(&self, doubt: Doubt, reason: Option<String>) -> bool {
        let kind = reason.as_deref().and_then(FaultKind::quoted_in).unwrap_or(FaultKind::Other);
        self.doubt_for(doubt, reason, kind as u8)
    }

    fn doubt_for(&self, doubt: Doubt, reason: Option<String>, kind: u8) -> bool {
        let doubted = &mut self.doubts.lock()[doubt as usize];
        let now = Instant::now();
        match &reason {
            Some(reason) => {
                if let Some(begun) = doubted.log.holds(kind, now) {
                    tracing::warn!(reason, unlogged = begun.unlogged, "PostgreSQL is reachable but degraded");
                }
            }
            None => {
                if let Some(lasted) = doubted.log.ends(now) {
                    let (reason, lasted_ms) = (&doubted.reason, lasted.as_millis() as u64);
                    tracing::info!(reason, lasted_ms, "PostgreSQL is no longer degraded for this reason");
                }
            }
        }
        let ends = doubted.reason.is_some() && reason.is_none();
        doubted.reason = reason;
        ends
    }

    /// The reason for the first [`Doubt`] that there is about batches.
    pub fn doubtful(&self) -> Option<String> {
        let doubts = self.doubts.lock();
        let is_aside = |index: usize| Doubt::ASIDE.iter().any(|doubt| *doubt as usize == index);
        let about_batches = doubts.iter().enumerate().filter(|(index, _)| !is_aside(*index));
        about_batches.map(|(_, doubted)| doubted).find_map(|doubted| doubted.reason.clone())
    }

    /// The reason for `doubt`, while there is one.
    pub fn reason_of(&self, doubt: Doubt) -> Option<String> {
        self.doubts.lock()[doubt as usize].reason.clone()
    }

    /// Notes how the Citus cluster is, and what of that is not as it should be.
    pub fn note_cluster(&self, cluster: Cluster) {
        let kind = u8::from(cluster.workers.iter().all(|worker| worker.is_reachable));
        self.doubt_for(Doubt::Cluster, cluster.doubt(), kind);
        *self.cluster.lock() = Some(cluster);
    }

    /// The Citus cluster as it was last seen; `None` where there is none.
    pub fn cluster(&self) -> Option<Cluster> {
        self.cluster.lock().clone()
    }

    /// Since when it works, or fails.
    pub fn since(&self) -> Instant {
        self.detail.lock().since
    }

    /// Why it does not work; empty when it does.
    pub fn reason(&self) -> String {
        self.detail.lock().reason().to_owned()
    }
}

impl Detail {
    /// The fault to tell: what COPYs met says more than what the probe met.
    fn reason(&self) -> &str {
        let [probe, copy] = &self.faults;
        copy.as_ref().or(probe.as_ref()).map_or("", String::as_str)
    }
}

impl Default for DatabaseHealth {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_probe_does_not_hide_that_copies_are_refused() {
        let health = DatabaseHealth::new();
        assert!(!health.is_working());
        health.works(Witness::Probe);
        assert!(health.is_working());
        health.fails(Witness::Copy, &Fault::lost("read-only"));
        health.works(Witness::Probe);
        assert!(!health.is_working());
        assert_eq!(health.reason(), "read-only");
        health.works(Witness::Copy);
        assert!(health.is_working());
        assert_eq!(health.reason(), "");
    }

    #[test]
    fn a_copy_that_lands_proves_more_than_a_probe_that_failed() {
        let health = DatabaseHealth::new();
        health.works(Witness::Probe);
        health.fails(Witness::Probe, &Fault::lost("timeout"));
        health.works(Witness::Copy);
        assert!(health.is_working());
        health.fails(Witness::Probe, &Fault::lost("timeout"));
        health.works(Witness::Probe);
        assert!(health.is_working());
    }
}
