//! Promise: `ingestd journal inspect` tells what is in a journal, beside a running server or without one, and changes
//! nothing.

#[path = "support/faulty_storage.rs"]
mod faulty_storage;
#[path = "support/journal_driver.rs"]
mod journal_driver;

use std::sync::Arc;

use faulty_storage::FaultyStorage;
use ingestd::encode::block::{BlockBuilder, BlockHeader};
use ingestd::journal::inspect::{Uncommitted, inspect_storage};
use ingestd::journal::segment::segment_name;
use ingestd::journal::{DiskStorage, inspect};
use ingestd::types::{BatchKey, BodyDigest, Priority, UnixMicros};
use journal_driver::{append, append_synced, open, release};

fn block(events: u32) -> Vec<u8> {
    let header = BlockHeader {
        key: BatchKey { owner: Arc::from("key-1"), id: Box::from("batch") },
        priority: Priority::default(),
        events,
        received_at: UnixMicros(1),
        digest: BodyDigest::of(b"body"),
    };
    let mut builder = BlockBuilder::new(Vec::new(), &header);
    builder.tuples().extend_from_slice(&[7; 1000]);
    builder.finish(events).bytes().to_vec()
}

#[test]
fn a_live_journal_shows_what_is_not_committed_and_nothing_after_a_mark() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut journal = open(DiskStorage::create(dir.path()).expect("opens")).journal;
    let blocks = [block(10), block(20), b"not a block".to_vec()];
    let bytes = blocks.iter().map(|block| block.len() as u64).sum();
    let locations = append(&mut journal, &blocks, true).expect("appends");
    let report = inspect(dir.path()).expect("inspects");
    let expected = Uncommitted { frames: 3, bytes, events: 30, frames_of_unknown_events: 1 };
    assert_eq!((report.uncommitted, report.damage.len(), report.torn_tail), (expected, 0, None));
    assert_eq!(report.segments[0].sequences.map(|(first, last)| (first.0, last.0)), Some((1, 3)));
    let table = report.to_string();
    assert!(table.contains("not yet committed: 3 batches, 30 events"), "{table}");
    assert!(table.contains("damage: none"), "{table}");

    release(&mut journal, &locations);
    journal.mark(false).expect("marks");
    let report = inspect(dir.path()).expect("inspects");
    assert_eq!(report.uncommitted, Uncommitted::default());
    assert_eq!((report.committed_below.0, report.next_sequence.0), (4, 4));
    journal.close().expect("closes");
    assert_eq!(inspect(dir.path()).expect("inspects").uncommitted, Uncommitted::default());
}

#[test]
fn a_damaged_journal_shows_where_and_stays_as_it_is() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let locations = append_synced(&mut journal, 0..3, 500);
    journal.mark(true).expect("marks");
    drop(journal);
    let mut files = storage.files();
    files.get_mut(&segment_name(1)).expect("is there")[locations[1].offset as usize + 100] ^= 1;
    let storage = FaultyStorage::with_files(&files);
    let report = inspect_storage(&storage).expect("inspects");
    assert_eq!(report.uncommitted.frames, 2);
    let table = report.to_string();
    let place = format!("damage: segment 1, offset {}: payload checksum mismatch", locations[1].offset);
    assert!(table.contains(&place), "{table}");
    assert_eq!(storage.files(), files);
}

#[test]
fn a_missing_directory_is_an_error_that_names_it() {
    let error = inspect(std::path::Path::new("no/such/journal")).expect_err("is missing");
    assert!(error.to_string().contains("no/such/journal"), "{error}");
}
