//! Promise: a block that waits for long costs its own bytes. Written again, it lets its segment go; whatever fails or is
//! killed meanwhile, one of its two places is found; and where nothing would be won, nothing is written.

#[path = "support/faulty_storage.rs"]
mod faulty_storage;
#[path = "support/journal_driver.rs"]
mod journal_driver;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faulty_storage::{Call, FaultyStorage};
use ingestd::flush::cut::{CutSettings, Linger};
use ingestd::flush::queue::{FlushQueue, QueueBudgets, Queued, Trouble};
use ingestd::journal::{Journal, Location, Occasion, WriteError};
use ingestd::metrics::Metrics;
use ingestd::ring::budget::Budget;
use ingestd::server::relocator::Relocator;
use ingestd::sharding::Sharding;
use ingestd::status::model::Batch;
use ingestd::types::{BatchKey, BodyDigest, Priority, UnixMicros};
use journal_driver::{BYTES_MAX, SEGMENT_BYTES, append, append_synced, open, payload, release};

/// Bytes of a block that waits, and of those that are committed at once.
const WAITING_BYTES: usize = 300;
const OTHER_BYTES: usize = 7000;

/// A journal, the batches that wait, and the server's own relocation.
struct Site {
    journal: Journal,
    queue: Arc<FlushQueue>,
    metrics: Arc<Metrics>,
    relocator: Relocator,
    /// Later than anything has happened: everything has been quiet for long.
    now: Instant,
}

impl Site {
    fn on(storage: FaultyStorage) -> Self {
        let settings =
            CutSettings { rows_min: 1, bytes_max: 1 << 20, timeout: Duration::from_secs(30), linger: Linger::Adaptive };
        let budgets = QueueBudgets { batches: Budget::new(1000), memory_bytes: Budget::new(1 << 20) };
        let (queue, _seats) = FlushQueue::new(1, Sharding::None, settings, budgets, 1, false);
        let (journal, metrics) = (open(storage).journal, Metrics::new("n", &[]));
        let relocator = Relocator::new(Arc::clone(&queue), Arc::clone(&metrics), &journal);
        Self { journal, queue, metrics, relocator, now: Instant::now() + Duration::from_secs(30) }
    }

    /// One block of each of `segments` segments waits.
    fn with_waiting(storage: FaultyStorage, segments: u64) -> Self {
        let mut site = Self::on(storage);
        for seed in 0..segments {
            site.wait(seed);
            site.go_by(SEGMENT_BYTES / OTHER_BYTES as u64);
        }
        site
    }

    /// A batch whose bytes only the journal has, and that waits.
    fn wait(&mut self, seed: u64) {
        let location = append_synced(&mut self.journal, seed..seed + 1, WAITING_BYTES)[0];
        let key = BatchKey { owner: Arc::from(""), id: seed.to_string().into() };
        let batch = Batch::new(key, BodyDigest::of(b"body"), Priority::default(), 1, UnixMicros(0));
        let queued = Queued {
            batch: Arc::new(batch),
            block: None,
            location: Some(location),
            memory_bytes: 0,
            accepted_at: Instant::now(),
            on_commit: None,
            trouble: Trouble::default(),
        };
        self.queue.push(&self.metrics, 0, queued, 1);
    }

    /// Blocks are written and committed.
    fn go_by(&mut self, blocks: u64) {
        let locations = append_synced(&mut self.journal, 1000..1000 + blocks, OTHER_BYTES);
        release(&mut self.journal, &locations);
    }

    /// As the journal thread does it between two groups, until nothing is left to do.
    fn relocate(&mut self) -> Result<(), WriteError> {
        loop {
            self.now += Duration::from_secs(1);
            self.relocator.step(&mut self.journal, self.now)?;
            self.journal.reclaim()?;
            if self.relocator.due().is_none() {
                return Ok(());
            }
        }
    }

    fn relocated(&self) -> u64 {
        self.metrics.journal_relocated_batches.get()
    }
}

/// Which of the batches that wait a new start finds.
fn recovered(storage: FaultyStorage) -> BTreeSet<u64> {
    let opened = open(storage);
    assert!(!opened.recovery.is_degraded(), "{:?}", opened.recovery.damage);
    let is_handed = |seed: &u64| opened.handed.iter().any(|handed| handed.payload == payload(*seed, WAITING_BYTES));
    (0..100).filter(is_handed).collect()
}

#[test]
fn blocks_that_wait_never_fill_the_journal_whatever_goes_by() {
    let storage = FaultyStorage::default();
    let mut site = Site::on(storage.clone());
    for seed in 0..60 {
        site.wait(seed);
        for _ in 0..3 {
            site.go_by(10);
            site.relocate().expect("goes well");
        }
    }
    let stats = site.journal.stats();
    assert_eq!(stats.live_frames, 60);
    assert!(stats.charged_bytes < 3 * SEGMENT_BYTES, "{stats:?}");
    assert!(storage.bytes_and_peak().1 <= BYTES_MAX);
    drop(site);
    storage.lose_power(1);
    assert_eq!(recovered(storage), (0..60).collect());
}

#[test]
fn after_a_stop_only_what_waits_is_replayed() {
    let storage = FaultyStorage::default();
    let mut site = Site::with_waiting(storage.clone(), 5);
    site.relocator.finish(&mut site.journal, Instant::now()).expect("goes well");
    site.journal.close().expect("closes");
    assert_eq!(open(storage.clone()).handed.len(), 5, "of 50");
    assert_eq!(recovered(storage).len(), 5);
}

#[test]
fn blocks_of_the_active_segment_are_written_again_once() {
    let storage = FaultyStorage::default();
    let mut site = Site::on(storage.clone());
    site.wait(0);
    site.go_by(5);
    site.relocate().expect("goes well");
    assert_eq!(site.relocated(), 0, "it gives no room");
    for _ in 0..3 {
        site.now += Duration::from_secs(60);
        site.relocate().expect("goes well");
        assert_eq!(site.relocated(), 1);
    }
    assert!(site.journal.mark(true).expect("marks"), "as in a quiet moment");
    drop(site);
    assert_eq!(open(storage).handed.len(), 1, "nothing behind it is replayed");
}

#[test]
fn a_full_disk_under_relocation_does_not_fail_the_journal() {
    let storage = FaultyStorage::default();
    let mut site = Site::with_waiting(storage.clone(), 5);
    storage.set_capacity(0);
    for seed in 50..100 {
        // Until the active segment is full.
        match append(&mut site.journal, &[payload(seed, 3000)], true) {
            Ok(locations) => release(&mut site.journal, &locations),
            Err(_) => break,
        }
    }
    site.relocate().expect("is not a fault");
    assert!(site.journal.failed().is_none());
    storage.heal();
    site.relocate().expect("goes well");
    assert!(site.relocated() >= 4, "{}", site.relocated());
    drop(site);
    assert_eq!(recovered(storage), (0..5).collect());
}

#[test]
fn while_everything_waits_nothing_is_written_again() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let mut waiting = Vec::new();
    while let Ok(locations) = append(&mut journal, &[payload(waiting.len() as u64, OTHER_BYTES)], true) {
        waiting.extend(locations);
        let later = Instant::now() + Duration::from_secs(60);
        for occasion in [Occasion::Routine, Occasion::Interval, Occasion::Stop] {
            assert_eq!(journal.segment_to_relocate(occasion, later), None);
        }
    }
    assert!(waiting.len() > 100);
    // As it drains, the segment that is being emptied is left alone.
    for location in waiting {
        release(&mut journal, &[location]);
        assert_eq!(journal.segment_to_relocate(Occasion::Routine, Instant::now()), None);
    }
}

#[test]
fn whatever_fails_in_between_a_waiting_block_is_found() {
    let calls = [
        Call::Write,
        Call::Sync,
        Call::Create,
        Call::Open,
        Call::Rename,
        Call::SyncDir,
        Call::Remove,
        Call::SetBytes,
        Call::Read,
    ];
    let mut met = BTreeMap::new();
    for (call, successes) in calls.into_iter().flat_map(|call| (0..24).map(move |successes| (call, successes))) {
        let storage = FaultyStorage::default();
        let mut site = Site::with_waiting(storage.clone(), 5);
        let round = |site: &mut Site| -> Result<(), WriteError> {
            site.now += Duration::from_secs(1);
            site.relocator.step(&mut site.journal, site.now)?;
            site.journal.reclaim()?;
            // Traffic between the steps fills segments.
            let payloads: Vec<_> = (0..3).map(|seed| payload(seed, 5000)).collect();
            if let Ok(locations) = append(&mut site.journal, &payloads, false) {
                locations.iter().for_each(|&location: &Location| site.journal.releaser().release(location));
            }
            site.journal.reclaim().map(drop)
        };
        storage.fail(call, successes / 2, ErrorKind::Other);
        let failed = (0..10).any(|_| round(&mut site).is_err());
        assert!(!failed || matches!(call, Call::Write | Call::Sync), "{call:?} passes, after {successes}");
        *met.entry(format!("{call:?}")).or_insert(0) += storage.failures();
        drop(site);
        storage.heal();
        if successes.is_multiple_of(2) {
            storage.lose_power(successes);
        }
        assert_eq!(recovered(storage), (0..5).collect(), "{call:?} failed after {successes}");
    }
    assert!(met.values().filter(|&&times| times > 0).count() >= 6, "too few of the calls were met: {met:?}");
}

#[test]
fn a_spare_that_was_named_but_not_synced_does_not_come_back_under_its_old_name() {
    for seed in 0..40 {
        let storage = FaultyStorage::default();
        let mut journal = open(storage.clone()).journal;
        let locations = append_synced(&mut journal, 0..20, OTHER_BYTES);
        // The process ends between naming the spare and syncing the name.
        storage.fail(Call::SyncDir, 1, ErrorKind::Other);
        locations.iter().for_each(|&location| journal.releaser().release(location));
        let _ = journal.reclaim();
        drop(journal);
        storage.heal();
        assert!(storage.files().keys().any(|name| name.ends_with(".spare")), "{:?}", storage.files().keys());
        // The next one writes a header to it, and loses power before it is named.
        storage.fail(Call::Rename, 0, ErrorKind::Other);
        let error = journal_driver::try_open(storage.clone()).err().expect("does not open");
        storage.heal();
        storage.lose_power(seed);
        let opened = journal_driver::try_open(storage);
        assert!(opened.is_ok(), "seed {seed}, after {error}: {}", opened.err().expect("an error"));
    }
}
