//! Opens the journal and puts what it holds back on the lanes, as handles: the bytes are read when their turn
//! comes.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::encode::block::BlockHeader;
use crate::flush::queue::{FlushQueue, Queued, Trouble};
use crate::journal::{DiskStorage, Journal, JournalHealth, JournalOptions, Location, OnRead, Recovery};
use crate::limits::QUEUED_BATCH_BYTES;
use crate::metrics::Metrics;
use crate::server::ServeError;
use crate::status::memory::{Admission, BatchMap};
use crate::status::model::{Batch, Phase};

/// Where recovered batches go.
pub struct Lanes<'a> {
    /// Cores that have lanes.
    pub cores: usize,
    /// The lanes.
    pub queue: &'a FlushQueue,
    /// Their status.
    pub batches: &'a BatchMap,
    /// The figures.
    pub metrics: &'a Metrics,
}

/// A journal that is open, its batches on the lanes.
pub struct Recovered {
    /// To be written.
    pub journal: Journal,
    /// What was found.
    pub recovery: Recovery,
    /// Events of the batches that are on the lanes.
    pub events: u64,
}

/// The journal's folder, made where it is missing.
pub fn folder(dir: &Path) -> Result<DiskStorage, ServeError> {
    DiskStorage::create(dir).map_err(|error| {
        let advice = "make the directory writable for this user, or set JOURNAL_DIR to another";
        ServeError::Failed(format!("cannot use the journal directory {}: {error}; {advice}", dir.display()))
    })
}

/// Opens, verifies, recovers; tells `on_read` how far it is.
///
/// # Errors
/// A folder that cannot be written or is locked by another server; a journal of a newer version.
pub fn open(
    storage: DiskStorage,
    options: &JournalOptions,
    lanes: &Lanes<'_>,
    health: &JournalHealth,
    on_read: &mut OnRead<'_>,
) -> Result<Recovered, ServeError> {
    let Lanes { cores, queue, batches, metrics } = *lanes;
    let started = Instant::now();
    let (mut recovered_batches, mut recovered_events) = (0usize, 0u64);
    let mut repeated = Vec::new();
    let mut on_frame = |location: Location, payload: &[u8]| {
        let (header, tuples_at) = BlockHeader::parse(payload).map_err(Box::new)?;
        let batch = Batch::of_block(header);
        batch.journaled_at(location.sequence);
        batch.set_phase(Phase::Queued);
        let batch = Arc::new(batch);
        if let Admission::Known(known) = batches.admit(&batch)
            && known.digest == batch.digest
        {
            // Written again, by relocation or because its client came again, and the older one was not released.
            repeated.push(location);
            return Ok(());
        }
        recovered_events += u64::from(batch.events);
        queue.budgets.batches.take_over_limit(1);
        queue.budgets.memory_bytes.take_over_limit(QUEUED_BATCH_BYTES);
        queue.admission.joined(batch.priority, batch.events);
        let tuple_bytes = (payload.len() - tuples_at) as u64;
        let queued = Queued {
            batch,
            block: None,
            location: Some(location),
            memory_bytes: QUEUED_BATCH_BYTES,
            accepted_at: Instant::now(),
            on_commit: None,
            trouble: Trouble::default(),
        };
        queue.push(metrics, recovered_batches % cores, queued, tuple_bytes);
        recovered_batches += 1;
        Ok(())
    };
    let opened = Journal::open_telling(Arc::new(storage), options, &mut on_frame, on_read);
    let (journal, recovery) = opened.map_err(|error| ServeError::Failed(error.to_string()))?;
    let releaser = journal.releaser();
    repeated.iter().for_each(|&location| releaser.release(location));
    queue.admission.excuse_all();
    if recovered_batches > 0 {
        tracing::info!(
            batches = recovered_batches,
            repeated = repeated.len(),
            events = recovered_events,
            took_ms = started.elapsed().as_millis() as u64,
            "recovered batches from the journal that may not be committed yet; the ledger skips those that are"
        );
    }
    if recovery.is_degraded() {
        let damage: Vec<String> = recovery.damage.iter().map(ToString::to_string).collect();
        let damage =
            if damage.is_empty() { "damaged segments have been set aside".to_owned() } else { damage.join("; ") };
        health.note_damage(format!("{damage}; run 'ingestd journal inspect'"));
    }
    Ok(Recovered { journal, recovery, events: recovered_events })
}
