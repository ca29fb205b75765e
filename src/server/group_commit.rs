//! The journal thread: drain all rings ▸ one vectored write ▸ one fdatasync ▸ acknowledge ▸ lanes.
//!
//! Between groups it relocates ([`super::relocator`]). While one group is being synced the next gathers in the rings, so the
//! group's size adapts to the disk by itself. A group that finds no file to be written to is refused, and the next one tries
//! again, or this thread while none comes. The first error of writing or syncing blocks is final: what is in hand and all
//! that comes later is refused, and the process ends once what was queued before has reached PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam::channel::Sender;
use crossbeam::sync::Parker;

use crate::flush::queue::{FlushQueue, Queued, Trouble};
use crate::http::app::App;
use crate::http::submission::{Refused, Submission};
use crate::journal::{FrameToWrite, Journal, JournalHealth, Location, WriteError};
use crate::limits::{
    JOURNAL_GROUP_BYTES_MAX, JOURNAL_GROUP_FRAMES_MAX, JOURNAL_IDLE_BEFORE_MARK, JOURNAL_RELOCATION_IDLE_POLL,
    QUEUED_BATCH_BYTES,
};
use crate::metrics::{BatchOutcome, Recorder};
use crate::ring::ring::Ring;
use crate::server::journal_state::JournalState;
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
    state: JournalState,
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
    /// A thread body over `journal`; `parker` is the one whose unparker the workers and flushers have. `on_failure` is
    /// told when the journal has failed.
    pub fn new(
        app: Arc<App>,
        journal: Journal,
        feed: Option<StatusFeed>,
        parker: Parker,
        stopping: Arc<AtomicBool>,
        on_failure: Sender<()>,
    ) -> Self {
        let (queue, health) = (Arc::clone(&app.queue), Arc::clone(&app.journal_health));
        let state = JournalState::new(Arc::clone(&health), on_failure);
        let fsync = app.metrics.journal_fsync.recorder();
        // What recovery found is synced.
        app.durable.reached(journal.synced_below());
        let relocator = Relocator::new(Arc::clone(&queue), Arc::clone(&app.metrics), &journal);
        Self {
            app,
            queue,
            journal,
            health,
            state,
            feed,
            parker,
            stopping,
            fsync,
            first_ring: 0,
            mark_is_due: true,
            relocator,
        }
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
        if let Some(due) = [self.relocator.due(), self.state.retry_at()].into_iter().flatten().min() {
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
            match self.journal.mark(false) {
                Err(error) if !error.is_passing() => self.met(&error),
                _ => {}
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
        let sync = must_sync(group.iter().map(|gathered| gathered.submission.level));
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
        self.app.durable.reached(self.journal.synced_below());
        // Without locations: the rest of a group for which no segment could be begun, or all of one.
        let mut urgent = written.is_err();
        for (gathered, location) in group.drain(..locations.len()).zip(locations.iter()) {
            urgent |= gathered.submission.batch.priority >= PRIORITY_RESERVED_MIN;
            self.accept(gathered, Some(*location));
        }
        if self.state.is_refusing() && !self.journal.wants_segment() {
            self.state.takes(Instant::now());
        }
        if let Err(error) = written {
            self.met(&error);
            let refused = match error {
                WriteError::Refused(_) | WriteError::Latched(_) => Refused::NotTaken,
                WriteError::Failed(_) => Refused::Unknown,
            };
            group.drain(..).for_each(|gathered| self.refuse(gathered, refused));
        }
        self.queue.wake(urgent);
        self.queue.relieve_memory();
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
    fn refuse(&self, gathered: Gathered, refused: Refused) {
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
            let _ = on_durable.send(Err(refused));
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
            Err(error) => self.met(&error),
        }
    }

    /// Tells of `error`; who waits for a sync that will not come hears of it, too.
    fn met(&mut self, error: &WriteError) {
        self.state.met(error, Instant::now());
        if self.health.has_failed() {
            self.app.durable.failed();
        }
    }

    /// Lets segments go, and tries again what failed and passes.
    fn reclaim(&mut self) {
        let now = Instant::now();
        if self.state.retry_at().is_some_and(|retry_at| now < retry_at) {
            return;
        }
        if self.state.is_refusing() {
            match self.journal.retry() {
                Ok(()) => self.state.takes(now),
                Err(error) => self.met(&error),
            }
        }
        match self.journal.reclaim() {
            Ok(_) => self.state.hindered(self.journal.hindrance(), now),
            Err(error) => self.met(&error),
        }
        self.app.metrics.journal_bytes.set(self.app.space.stats().files_bytes);
    }

    fn relocate(&mut self) {
        if self.health.has_failed() {
            return;
        }
        if let Err(error) = self.relocator.step(&mut self.journal, Instant::now()) {
            self.met(&error);
        }
    }
}

/// Whether a group of batches that are to be acknowledged at `levels` has to be synced: any of them waits for that.
fn must_sync(mut levels: impl Iterator<Item = AckLevel>) -> bool {
    levels.any(|level| level != AckLevel::Memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_synced_as_soon_as_one_of_it_is_to_survive() {
        use AckLevel::{Commit, Journal, Memory};
        let synced = |levels: &[AckLevel]| must_sync(levels.iter().copied());
        assert!(synced(&[Journal]) && synced(&[Commit]));
        assert!(synced(&[Memory, Journal]) && synced(&[Commit, Memory]) && synced(&[Memory, Memory, Journal]));
        assert!(!synced(&[Memory, Memory]));
    }
}
