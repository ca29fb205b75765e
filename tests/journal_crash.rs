//! Promise: whatever was synced and not released survives any crash, once, with its bytes; nothing else appears;
//! files never exceed the cap. Against a model, over random histories of appends, releases, crashes and power losses.

#[path = "support/faulty_storage.rs"]
mod faulty_storage;
#[path = "support/journal_driver.rs"]
mod journal_driver;

use std::collections::BTreeMap;

use faulty_storage::FaultyStorage;
use ingestd::journal::{DiskStorage, Journal, Location};
use journal_driver::{BYTES_MAX, Opened, Refusal, append, open, payload};
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
enum Step {
    Append { sizes: Vec<usize>, sync: bool },
    Release { picks: Vec<Index>, reclaim: bool },
    ReleaseOldest { count: usize },
    Mark { sync: bool },
    Kill,
    LosePower { seed: u64 },
    CloseAndOpen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![6 => 0usize..3000, 3 => 3000usize..40_000, 1 => 60_000usize..90_000];
    let step = prop_oneof![
        8 => (prop::collection::vec(size, 1..8), prop::bool::weighted(0.7))
            .prop_map(|(sizes, sync)| Step::Append { sizes, sync }),
        4 => (prop::collection::vec(any::<Index>(), 1..8), any::<bool>())
            .prop_map(|(picks, reclaim)| Step::Release { picks, reclaim }),
        3 => (1usize..20).prop_map(|count| Step::ReleaseOldest { count }),
        2 => any::<bool>().prop_map(|sync| Step::Mark { sync }),
        1 => Just(Step::Kill),
        2 => any::<u64>().prop_map(|seed| Step::LosePower { seed }),
        1 => Just(Step::CloseAndOpen),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Clone, Debug)]
struct Block {
    location: Location,
    payload: Vec<u8>,
    is_synced: bool,
    is_released: bool,
}

/// What the journal should hold, by sequence.
struct Model {
    storage: FaultyStorage,
    journal: Option<Journal>,
    blocks: BTreeMap<u64, Block>,
    seed: u64,
}

impl Model {
    fn new() -> Self {
        let storage = FaultyStorage::default();
        let journal = Some(open(storage.clone()).journal);
        Self { storage, journal, blocks: BTreeMap::new(), seed: 0 }
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().expect("open between steps")
    }

    fn append(&mut self, sizes: &[usize], sync: bool) {
        let first = self.seed;
        self.seed += sizes.len() as u64;
        let payloads: Vec<_> = sizes.iter().zip(first..).map(|(&bytes, seed)| payload(seed, bytes)).collect();
        let locations = match append(self.journal(), &payloads, sync) {
            Ok(locations) => locations,
            Err(Refusal::Space(_)) => return,
            Err(Refusal::Write(error)) => panic!("a reserved group fits: {error}"),
        };
        let segment = locations.last().map(|location| location.segment);
        for (location, payload) in locations.into_iter().zip(payloads) {
            let block = Block { location, payload, is_synced: sync, is_released: false };
            assert!(self.blocks.insert(location.sequence.0, block).is_none(), "sequences are never used twice");
        }
        // A later sync covers what was appended before; a new segment begins with one.
        for block in self.blocks.values_mut() {
            block.is_synced |= sync || Some(block.location.segment) < segment;
        }
    }

    fn release(&mut self, sequences: &[u64], reclaim: bool) {
        let releaser = self.journal().releaser();
        for sequence in sequences {
            let block = self.blocks.get_mut(sequence).expect("picked from the model");
            block.is_released = true;
            releaser.release(block.location);
        }
        if reclaim {
            self.journal().reclaim().expect("reclaims");
        }
    }

    fn live(&self) -> Vec<u64> {
        self.blocks.iter().filter(|(_, block)| !block.is_released).map(|(&sequence, _)| sequence).collect()
    }

    /// Opens again and holds what comes back against the model.
    fn reopen(&mut self) {
        let Opened { journal, recovery, handed } = open(self.storage.clone());
        assert!(!recovery.is_degraded(), "no damage without bit rot: {:?}", recovery.damage);
        let sequences: Vec<u64> = handed.iter().map(|handed| handed.location.sequence.0).collect();
        assert!(sequences.is_sorted_by(|a, b| a < b), "each once, rising: {sequences:?}");
        for handed in &handed {
            let block = self.blocks.get(&handed.location.sequence.0).expect("only what was appended");
            assert_eq!((block.location, &block.payload), (handed.location, &handed.payload));
        }
        for (sequence, block) in &self.blocks {
            if block.is_synced && !block.is_released {
                assert!(sequences.contains(sequence), "block {sequence} was synced, and is gone");
                assert!(recovery.next_sequence.0 > *sequence);
            }
        }
        self.blocks.retain(|sequence, _| sequences.contains(sequence));
        for block in self.blocks.values_mut() {
            (block.is_synced, block.is_released) = (true, false);
        }
        self.journal = Some(journal);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { sizes, sync } => self.append(sizes, *sync),
            Step::Release { picks, reclaim } => {
                let live = self.live();
                let mut picked: Vec<u64> =
                    picks.iter().filter(|_| !live.is_empty()).map(|pick| *pick.get(&live)).collect();
                picked.dedup();
                self.release(&picked, *reclaim);
            }
            Step::ReleaseOldest { count } => {
                let oldest: Vec<u64> = self.live().into_iter().take(*count).collect();
                self.release(&oldest, true);
            }
            Step::Mark { sync } => {
                self.journal().mark(*sync).expect("marks");
                self.blocks.values_mut().for_each(|block| block.is_synced |= sync);
            }
            Step::Kill => {
                self.journal = None;
                self.reopen();
            }
            Step::LosePower { seed } => {
                self.journal = None;
                self.storage.lose_power(*seed);
                self.reopen();
            }
            Step::CloseAndOpen => {
                self.journal.take().expect("open between steps").close().expect("closes");
                self.reopen();
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let (_, peak) = self.storage.bytes_and_peak();
        let files = || self.storage.files().into_iter().map(|(name, bytes)| (name, bytes.len())).collect::<Vec<_>>();
        assert!(peak <= BYTES_MAX, "{peak} bytes were on disk; now {:?}", files());
        let mut reader = self.journal().reader();
        let mut payload = Vec::new();
        for block in self.blocks.values().filter(|block| !block.is_released) {
            let checksum = reader.read(&block.location, &mut payload).expect("reads back");
            assert_eq!((&payload, checksum), (&block.payload, crc32c::crc32c(&block.payload)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn synced_blocks_survive_every_history_of_crashes(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        let live = model.live();
        model.release(&live, true);
        model.step(&Step::CloseAndOpen);
        prop_assert!(model.blocks.is_empty(), "all was released and closed");
    }
}

#[test]
fn a_journal_closed_with_all_committed_is_one_small_segment() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    for round in 0..20 {
        let locations = journal_driver::append_synced(&mut journal, round * 10..round * 10 + 10, 5000);
        journal_driver::release(&mut journal, &locations);
    }
    journal.close().expect("closes");
    let files = storage.files();
    assert_eq!(files.values().map(Vec::len).collect::<Vec<_>>(), [4096], "{:?}", files.keys());
    let opened = open(storage);
    assert_eq!((opened.sequences(), opened.recovery.next_sequence.0), (vec![], 201));
}

#[test]
fn the_real_file_system_gives_back_what_a_dropped_journal_held() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let storage = || DiskStorage::create(dir.path()).expect("opens");
    let mut journal = open(storage()).journal;
    let first = journal_driver::append_synced(&mut journal, 0..40, 5000);
    journal_driver::release(&mut journal, &first[..20]);
    let bytes = |journal: &Journal| -> (u64, u64) {
        let entries = std::fs::read_dir(dir.path()).expect("lists");
        let files = entries.map(|entry| entry.expect("is there").metadata().expect("has a length").len());
        (files.sum(), journal.stats().files_bytes)
    };
    let (on_disk, told) = bytes(&journal);
    assert!(told <= on_disk && on_disk < told + 1000, "{on_disk} bytes on disk, {told} told");
    drop(journal);

    let mut opened = open(storage());
    let sequences = opened.sequences();
    assert!(sequences.ends_with(&(21..=40).collect::<Vec<_>>()), "{sequences:?}");
    for handed in &opened.handed {
        assert_eq!(handed.payload, payload(handed.location.sequence.0 - 1, 5000));
    }
    let locations: Vec<_> = opened.handed.iter().map(|handed| handed.location).collect();
    journal_driver::release(&mut opened.journal, &locations);
    opened.journal.close().expect("closes");
    assert!(open(storage()).handed.is_empty());
}

#[test]
fn a_reader_sees_what_was_appended_after_it_last_read() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory");
    let mut journal = open(DiskStorage::create(dir.path()).expect("opens")).journal;
    let mut reader = journal.reader();
    let (mut bytes, mut all) = (Vec::new(), Vec::new());
    // Sizes that leave blocks half full, fill them, and pass what is read at once.
    for (size, seed) in [10, 500, 3000, 4096 - 64, 5, 40_000, 7, 300_000, 9].into_iter().cycle().take(60).zip(0u64..) {
        let appended = journal_driver::append_synced(&mut journal, seed..seed + 1, size);
        all.push((appended[0], seed, size));
        for &(location, seed, size) in all.iter().rev().take(3) {
            reader.read(&location, &mut bytes).unwrap_or_else(|error| panic!("block of {size} bytes: {error}"));
            assert_eq!(bytes, payload(seed, size));
        }
        if all.len() > 5 {
            let (oldest, ..) = all.remove(0);
            journal_driver::release(&mut journal, &[oldest]);
        }
    }
}
