//! What a flusher records: its histogram shards and the counters of committed batches.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{BatchOutcome, Metrics, Recorder, Recorders, Statement};
use crate::pg::land::Timings;
use crate::status::model::{Batch, Phase};

/// One flusher's recorders.
pub struct FlushRecorders {
    metrics: Arc<Metrics>,
    /// Accepted to COPY begins.
    pub queue_latency: Recorder,
    copy_latency: Recorder,
    batch_latency: Recorder,
    copy_rows: Recorder,
    queries: Recorders<Statement>,
}

impl FlushRecorders {
    /// Shards of their own in `metrics`.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            queue_latency: metrics.queue_latency.recorder(),
            copy_latency: metrics.copy_latency.recorder(),
            batch_latency: metrics.batch_latency.recorder(),
            copy_rows: metrics.copy_rows.recorder(),
            queries: metrics.db_query.recorder(),
        }
    }

    /// Records a committed COPY.
    pub fn copy(&self, rows: u32, timings: &Timings) {
        self.copy_rows.record(u64::from(rows));
        self.copy_latency.record_elapsed(timings.claim + timings.copy + timings.commit);
        self.queries.record_elapsed(Statement::LedgerInsert, timings.claim);
        let copy = if timings.staged { Statement::Staging } else { Statement::Copy };
        self.queries.record_elapsed(copy, timings.copy);
        self.queries.record_elapsed(Statement::Commit, timings.commit);
    }

    /// Records a batch that is committed; `before` when another transaction had committed it.
    pub fn batch(&self, batch: &Batch, before: bool, latency: Duration) {
        let counts = batch.counts();
        if before {
            self.metrics.batches_before.add(1);
            self.metrics.events_before.add(u64::from(batch.events));
        } else {
            self.metrics.events_committed.add(u64::from(counts.inserted));
            self.metrics.events_duplicate.add(u64::from(counts.duplicates));
            self.metrics.events_dead_lettered.add(u64::from(counts.dead_lettered));
        }
        let outcome = match batch.phase() {
            Phase::Failed => BatchOutcome::Failed,
            Phase::Partial => BatchOutcome::Partial,
            _ => BatchOutcome::Completed,
        };
        self.metrics.batches.add(outcome, 1);
        self.batch_latency.record_elapsed(latency);
    }
}
