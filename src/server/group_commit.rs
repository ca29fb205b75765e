//! The journal thread: drain all rings ▸ one vectored write ▸ one fdatasync ▸ acknowledge ▸ lanes.
//!
//! Between groups it relocates ([`super::relocator`]). While one group is being synced the next gathers in the rings, so the
//! group's size adapts to the disk by itself. The first error latches: what is in hand and all that comes later is refused, and the process
//! stays up so that what was queued before still reaches PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam::sync::Parker;

use crate::flush::queue::{FlushQueue, Queued, Trouble};
use crate::http::app::App;
use crate::http::submission::{Refused, Submission};
use crate::journal::{FrameToWrite, Journal, JournalHealth, Location};
use crate::limits::{
    JOURNAL_GROUP_BYTES_MAX, JOURNAL_GROUP_FRAMES_MAX, JOURNAL_IDLE_BEFORE_MARK, JOURNAL_RELOCATION_IDLE_POLL,
    QUEUED_BATCH_BYTES,
};
use crate::metrics::{BatchOutcome, Recorder};
use crate::ring::ring::Ring;
use crate::server::relocator::Relocator;
use crate::status::model::Phase;
use crate::status::shared::StatusFeed;
use crate::types::{AckLevel, PRIORITY_RESERVED_MIN};

/// The journal thread's state.
pub struct GroupCommit {
    app: Arc<App>,
    queue: Arc<FlushQueue>,
    journal: Journal,
    health: Arc<JournalHealth>,
    feed: Option<StatusFeed>,
    parker: Parker,
    stopping: Arc<AtomicBool>,
    fsync: Recorder,
    /// The ring to begin with: each gets its turn to be first.
    first_ring: usize,
    /// Something has happened since the last mark.
    mark_is_due: bool,
    relocator: Relocator,
}

/// A submission with the core that it came from.
struct Gathered {
    core: usize,
    submission: Submission,
}

impl GroupCommit {
    /// A thread body over `journal`; `parker` is the one whose unparker the workers and flushers have.
    pub fn new(
        app: Arc<App>,
        journal: Journal,
        feed: Option<StatusFeed>,
        parker: Parker,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        let (queue, health) = (Arc::clone(&app.queue), Arc::clone(&app.journal_health));
        let fsync = app.metrics.journal_fsync.recorder();
        // What recovery found is synced.
        app.durable.reached(journal.synced_below());
        let relocator = Relocator::new(Arc::clone(&queue), Arc::clone(&app.metrics), &journal);
        Self { app, queue, journal, health, feed, parker, stopping, fsync, first_ring: 0, mark_is_due: true, relocator }
    }

    /// Runs until asked to stop and the rings are empty; then closes the journal.
    pub fn run(mut self) {
        let (mut group, mut locations) = (Vec::new(), Vec::new());
        loop {
            self.gather(&mut group);
            if !group.is_empty() {
                self.commit(&mut group, &mut locations);
                self.sync_as_asked();
                self.reclaim();
                self.relocate();
                continue;
            }
            self.sync_as_asked();
            self.reclaim();
            self.relocate();
            // Acquire: partner of the Release store in the server's shutdown, after the workers have ended.
            if self.stopping.load(Ordering::Acquire) {
                break;
            }
            self.rest();
        }
        // A journal that has failed was logged when it did.
        let finished = self.relocator.finish(&mut self.journal, Instant::now());
        if let Err(error) = finished.and_then(|()| self.journal.close())
            && !self.health.has_failed()
        {
            tracing::error!(%error, "could not close the journal cleanly; the next start replays it");
        }
    }

    /// Waits for work. A moment of quiet is used to note in the journal what is committed.
    fn rest(&mut self) {
        if self.health.has_failed() {
            return self.parker.park();
        }
        if let Some(due) = self.relocator.due() {
            return self.parker.park_deadline(due);
        }
        if !self.mark_is_due {
            if self.journal.has_committed_behind() {
                self.parker.park_timeout(JOURNAL_RELOCATION_IDLE_POLL);
            } else {
                self.parker.park();
            }
            self.mark_is_due = true;
            return;
        }
        let quiet_at = Instant::now() + JOURNAL_IDLE_BEFORE_MARK;
        self.parker.park_deadline(quiet_at);
        if Instant::now() >= quiet_at && self.app.rings.iter().all(Ring::is_empty) {
            self.mark_is_due = false;
            if let Err(error) = self.journal.mark(false) {
                self.fail(&error.to_string());
            }
        }
    }

    /// Takes what the rings hold, one of each in turn, up to the bounds of a group.
    fn gather(&mut self, group: &mut Vec<Gathered>) {
        let rings = self.app.rings.len();
        let mut bytes = 0;
        let mut found = true;
        while found {
            found = false;
            for turn in 0..rings {
                let core = (self.first_ring + turn) % rings;
                if group.len() >= JOURNAL_GROUP_FRAMES_MAX || bytes >= JOURNAL_GROUP_BYTES_MAX {
                    self.first_ring = core;
                    return;
                }
                if let Some(submission) = self.app.rings[core].pop() {
                    bytes += submission.block.bytes().len();
                    group.push(Gathered { core, submission });
                    found = true;
                }
            }
        }
    }

    /// Writes and syncs `group`, then tells everybody; empties it.
    fn commit(&mut self, group: &mut Vec<Gathered>, locations: &mut Vec<Location>) {
        locations.clear();
        let sync = group.iter().any(|gathered| gathered.submission.level != AckLevel::Memory);
        let frames: Vec<FrameToWrite<'_>> = group
            .iter()
            .map(|Gathered { submission, .. }| FrameToWrite {
                payload: submission.block.bytes(),
                crc32c: submission.block.crc32c(),
            })
            .collect();
        let started = Instant::now();
        let written = self.journal.append_group(&frames, sync, locations);
        drop(frames);
        if sync {
            self.fsync.record_elapsed(started.elapsed());
        }
        match written {
            Ok(()) => {
                self.app.durable.reached(self.journal.synced_below());
                let mut urgent = false;
                for (gathered, location) in group.drain(..).zip(locations.iter()) {
                    urgent |= gathered.submission.batch.priority >= PRIORITY_RESERVED_MIN;
                    self.accept(gathered, Some(*location));
                }
                self.queue.wake(urgent);
                self.queue.relieve_memory();
            }
            Err(error) => {
                self.fail(&error.to_string());
                group.drain(..).for_each(|gathered| self.refuse(gathered));
                self.queue.wake(true);
            }
        }
        self.app.metrics.journal_bytes.set(self.app.space.stats().files_bytes);
    }

    /// Acknowledges a durable batch and puts it on its lane.
    fn accept(&self, Gathered { core, submission }: Gathered, location: Option<Location>) {
        let Submission { block, batch, accepted_at, on_durable, on_commit, .. } = submission;
        if let Some(location) = location {
            batch.journaled_at(location.sequence);
        }
        batch.set_phase(Phase::Queued);
        // Counted here and not by the worker: its client may have gone, the batch is accepted all the same.
        self.app.metrics.events_accepted.add(u64::from(batch.events));
        self.app.metrics.batches.add(BatchOutcome::Queued, 1);
        if let Some(feed) = &self.feed {
            feed.publish(&batch);
        }
        if let Some(on_durable) = on_durable {
            let _ = on_durable.send(Ok(()));
        }
        let (tuple_bytes, block_bytes) = (block.tuples().len() as u64, block.memory_bytes() as u64);
        let memory = &self.queue.budgets.memory_bytes;
        // Over MEMORY_LIMIT_MB the journal alone keeps the rows, and the flusher reads them back; what the journal does
        // not have stays in memory.
        let (block, memory_bytes) = if memory.try_take(QUEUED_BATCH_BYTES + block_bytes) {
            (Some(block), QUEUED_BATCH_BYTES + block_bytes)
        } else {
            memory.take_over_limit(QUEUED_BATCH_BYTES);
            let block = if location.is_none() {
                Some(block)
            } else {
                self.app.blocks.give_back(block.into_buffer());
                None
            };
            (block, QUEUED_BATCH_BYTES)
        };
        let queued =
            Queued { batch, block, location, memory_bytes, accepted_at, on_commit, trouble: Trouble::default() };
        self.queue.push(&self.app.metrics, core, queued, tuple_bytes);
    }

    /// Turns a batch away that the journal could not take. `ack=memory` was answered already: such a batch goes
    /// to PostgreSQL without the journal.
    fn refuse(&self, gathered: Gathered) {
        let submission = gathered.submission;
        self.app.space.release_reservation(submission.block.bytes().len());
        if submission.level == AckLevel::Memory {
            let gathered = Gathered { core: gathered.core, submission };
            return self.accept(gathered, None);
        }
        let batch = submission.batch;
        batch.set_phase(Phase::Refused);
        self.app.batches.remove(&batch);
        self.queue.budgets.batches.give_back(1);
        self.queue.admission.left(batch.priority, batch.events);
        if let Some(on_durable) = submission.on_durable {
            let _ = on_durable.send(Err(Refused));
        }
    }

    /// Syncs what was written without, for those who sent a batch of it again and wait.
    fn sync_as_asked(&mut self) {
        if !self.app.durable.take_request() {
            return;
        }
        let started = Instant::now();
        let synced = self.journal.sync();
        self.fsync.record_elapsed(started.elapsed());
        match synced {
            Ok(()) => self.app.durable.reached(self.journal.synced_below()),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn reclaim(&mut self) {
        if let Err(error) = self.journal.reclaim() {
            self.fail(&error.to_string());
        }
        self.app.metrics.journal_bytes.set(self.app.space.stats().files_bytes);
    }

    fn relocate(&mut self) {
        if self.health.has_failed() {
            return;
        }
        if let Err(error) = self.relocator.step(&mut self.journal, Instant::now()) {
            self.fail(&error.to_string());
        }
    }

    fn fail(&self, message: &str) {
        if !self.health.has_failed() {
            tracing::error!(
                reason = message,
                "the journal cannot be written: no further batches are acknowledged and /readyz reports not ready; \
                 make room on the disk under JOURNAL_DIR or repair it, then restart ingestd (acknowledged batches are \
                 safe and will be replayed)"
            );
            self.health.fail(message.to_owned());
        }
        self.app.durable.failed();
    }
}
