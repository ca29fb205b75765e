//! Promise: the first write or fsync error is final, a full device or cap is told before anything is written, and a
//! second server is kept out.

#[path = "support/faulty_storage.rs"]
mod faulty_storage;
#[path = "support/journal_driver.rs"]
mod journal_driver;

use std::io::ErrorKind;
use std::sync::Arc;

use faulty_storage::{Call, FaultyStorage, Random};
use ingestd::journal::{Claim, DiskStorage, FrameToWrite, Journal, OpenError, ReadError, SpaceError, WriteError};
use journal_driver::{
    BYTES_MAX, Refusal, SEGMENT_BYTES, append, append_synced, open, options, payload, release, try_open,
};

fn fails_for_good(call: Call) {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..3, 1000);
    storage.fail(call, 0, ErrorKind::Other);
    let refusal = append(&mut journal, &[payload(3, 1000)], true).expect_err("fails");
    assert!(matches!(&refusal, Refusal::Write(WriteError::Failed(_))), "{refusal:?}");
    assert!(journal.failed().is_some() && journal.stats().failed);

    storage.heal();
    for result in [
        append(&mut journal, &[payload(4, 10)], false).map(drop),
        journal.sync().map_err(Refusal::Write),
        journal.mark(false).map(drop).map_err(Refusal::Write),
        journal.reclaim().map(drop).map_err(Refusal::Write),
    ] {
        assert_eq!(format!("{result:?}"), format!("{:?}", Err::<(), _>(&refusal)), "the first error, every time");
    }
    assert!(journal.close().is_err());
    storage.lose_power(7);
    let sequences = open(storage).sequences();
    assert!(sequences.starts_with(&[1, 2, 3]) && sequences.len() <= 4, "{sequences:?}");
}

#[test]
fn a_failed_write_is_final() {
    fails_for_good(Call::Write);
}

#[test]
fn a_failed_fsync_is_final() {
    fails_for_good(Call::Sync);
}

#[test]
fn short_writes_are_continued() {
    let storage = FaultyStorage::default();
    storage.set_write_bytes_max(777);
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..50, 501);
    drop(journal);
    let opened = open(storage);
    assert!(opened.handed.iter().zip(0..).all(|(handed, seed)| handed.payload == payload(seed, 501)));
    assert_eq!(opened.handed.len(), 50);
}

#[test]
fn a_full_device_refuses_the_group_and_takes_later_ones() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..6, 10_000);
    storage.set_capacity(70_000);
    let error = append(&mut journal, &[payload(6, 10_000)], true).expect_err("is full");
    let Refusal::Write(error @ WriteError::NoSpace { .. }) = error else { panic!("{error:?}") };
    assert!(error.to_string().starts_with("no space on the device for a journal segment of 65536 bytes"), "{error}");
    assert!(journal.failed().is_none());
    assert!(storage.files().keys().all(|name| !name.ends_with(".new")), "nothing is left of the attempt");

    storage.heal();
    let locations = append_synced(&mut journal, 6..7, 10_000);
    assert_eq!(locations[0].sequence.0, 7);
    drop(journal);
    assert_eq!(open(storage).sequences(), [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_device_that_fills_in_the_middle_of_a_group_fails_the_journal() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    storage.set_capacity(70_000);
    let payloads: Vec<_> = (0..10).map(|seed| payload(seed, 10_000)).collect();
    let refusal = append(&mut journal, &payloads, true).expect_err("is full");
    assert!(matches!(refusal, Refusal::Write(WriteError::Failed(_))), "half of the group is on disk: {refusal:?}");
}

#[test]
fn a_full_device_at_start_is_told() {
    let storage = FaultyStorage::default();
    storage.set_capacity(1000);
    let error = try_open(storage).err().expect("is refused");
    assert!(matches!(error, OpenError::Write(WriteError::NoSpace { .. })), "{error}");
}

#[test]
fn files_never_exceed_the_cap_and_room_comes_back() {
    let seed = 20_261_101;
    println!("seed {seed}");
    let mut random = Random(seed);
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let (mut waiting, mut full, mut appended_bytes) = (Vec::new(), 0, 0);
    for round in 0..3000 {
        let bytes = match random.below(10) {
            0 => random.below(70_000),
            1..4 => random.below(20_000),
            _ => random.below(2000),
        };
        match append(&mut journal, &[payload(round, bytes as usize)], random.below(2) == 0) {
            Ok(locations) => {
                waiting.extend(locations);
                appended_bytes += bytes;
            }
            Err(Refusal::Space(SpaceError::Full)) => {
                full += 1;
                let count = 1 + random.below(waiting.len() as u64) as usize;
                let released: Vec<_> = if random.below(2) == 0 {
                    waiting.drain(..count).collect()
                } else {
                    (0..count).map(|_| waiting.swap_remove(random.below(waiting.len() as u64) as usize)).collect()
                };
                release(&mut journal, &released);
            }
            Err(refusal) => panic!("a reserved block always fits: {refusal:?}"),
        }
        let (bytes, peak) = storage.bytes_and_peak();
        assert!(peak <= BYTES_MAX, "{peak}");
        let stats = journal.stats();
        assert!(stats.files_bytes <= bytes && bytes - stats.files_bytes < 16 * 1024, "{bytes} {stats:?}");
        assert_eq!(stats.live_frames, waiting.len() as u64);
        assert_eq!(stats.oldest_uncommitted, waiting.iter().map(|location| location.sequence).min());
    }
    assert!(full > 10 && appended_bytes > 5 * BYTES_MAX, "the cap was met {full} times in {appended_bytes} bytes");
    release(&mut journal, &waiting);
    assert!(journal.stats().charged_bytes < 70_000, "all room came back: {:?}", journal.stats());
}

#[test]
fn a_full_journal_holds_most_of_its_cap() {
    let mut journal = open(FaultyStorage::default()).journal;
    let mut count = 0;
    while append(&mut journal, &[payload(count, 4000)], false).is_ok() {
        count += 1;
    }
    let live = journal.stats().live_bytes;
    assert!(live > BYTES_MAX * 3 / 4, "{live} of {BYTES_MAX}");
}

#[test]
fn a_block_that_can_never_fit_is_told_apart_from_a_full_journal() {
    let mut journal = open(FaultyStorage::default()).journal;
    let refusal = append(&mut journal, &[payload(0, BYTES_MAX as usize)], false).expect_err("does not fit");
    assert!(matches!(refusal, Refusal::Space(SpaceError::NeverFits)), "{refusal:?}");
    // Longer than a segment is no obstacle.
    append_synced(&mut journal, 0..2, 200_000);
}

#[test]
fn the_cap_holds_against_a_caller_that_does_not_reserve() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let payload = payload(0, 60_000);
    let frame = FrameToWrite { payload: &payload, crc32c: crc32c::crc32c(&payload) };
    let space = journal.space();
    let mut out = Vec::new();
    let error = loop {
        // As much as it takes to keep the account whole, and no heed to the answer.
        if space.try_reserve(payload.len(), Claim::Urgent).is_err() {
            break journal.append_group(&[frame; 12], false, &mut out).expect_err("is at the cap");
        }
        journal.append_group(&[frame], false, &mut out).expect("fits");
    };
    assert!(storage.bytes_and_peak().1 <= BYTES_MAX, "{error}");
}

#[test]
fn a_cap_too_small_for_its_segments_is_refused() {
    let options = ingestd::journal::JournalOptions { bytes_max: 200_000, ..options() };
    let error = Journal::open(Arc::new(FaultyStorage::default()), &options, &mut |_, _| Ok(()));
    assert!(matches!(error, Err(OpenError::CapTooSmall { bytes_max: 200_000, .. })));
}

#[test]
fn a_second_server_is_kept_out_and_told_the_directory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let storage = || DiskStorage::create(dir.path()).expect("opens");
    let first = open(storage());
    let error = try_open(storage()).err().expect("is refused");
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");
    drop(first);
    try_open(storage()).expect("is free");
}

#[test]
fn a_receiver_that_refuses_a_block_stops_the_opening_before_anything_is_touched() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..3, 1000);
    drop(journal);
    let before = storage.files();
    let result = Journal::open(Arc::new(storage.clone()), &options(), &mut |location, _| match location.sequence.0 {
        2 => Err("unreadable".into()),
        _ => Ok(()),
    });
    let error = result.err().expect("is refused");
    assert!(matches!(&error, OpenError::Rejected { location, .. } if location.sequence.0 == 2), "{error}");
    assert_eq!(storage.files(), before);
}

#[test]
fn blocks_are_read_back_from_other_threads_while_the_writer_goes_on() {
    let mut journal = open(FaultyStorage::default()).journal;
    let first = append_synced(&mut journal, 0..20, 3000);
    let mut reader = journal.reader();
    let releaser = journal.releaser();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = Vec::new();
            for (location, seed) in first.iter().zip(0..) {
                reader.read(location, &mut bytes).expect("reads");
                assert_eq!(bytes, payload(seed, 3000));
                releaser.release(*location);
                releaser.release(*location); // a second time is ignored
            }
        });
        for seed in 20..100 {
            append_synced(&mut journal, seed..seed + 1, 3000);
            journal.reclaim().expect("reclaims");
        }
    });
    journal.reclaim().expect("reclaims");
    assert_eq!(journal.stats().live_frames, 80);
    assert!(matches!(reader.read(&first[0], &mut Vec::new()), Err(ReadError::Gone(_))), "its segment left");
}

#[test]
fn segments_are_recycled_while_all_is_committed_soon() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let mut commit_soon = |seeds: std::ops::Range<u64>| {
        for seed in seeds {
            let locations = append_synced(&mut journal, 40 * seed..40 * (seed + 1), 1_000);
            release(&mut journal, &locations);
        }
    };
    commit_soon(0..4);
    storage.fail(Call::Create, 0, ErrorKind::Other);
    commit_soon(4..40);
    let names: Vec<_> = storage.files().into_keys().collect();
    let is_segment = |name: &&String| name.ends_with(".journal") || name.ends_with(".spare");
    assert_eq!(names.iter().filter(is_segment).count(), 2, "{names:?}");
}

#[test]
fn a_segment_that_cannot_leave_gives_back_its_rest() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..1, 60_000);
    let locations = append_synced(&mut journal, 1..41, 1_000);
    let (files_bytes, _) = storage.bytes_and_peak();
    // Room for a segment, and none for the record of the one that is to leave.
    storage.fail(Call::Create, 1, ErrorKind::StorageFull);
    release(&mut journal, &locations);
    let (with_new, _) = storage.bytes_and_peak();
    assert!(with_new < files_bytes + SEGMENT_BYTES, "{with_new} bytes, {files_bytes} before");
    assert_eq!(journal.stats().files_bytes, with_new, "and is charged for what it has");
    storage.heal();
    release(&mut journal, &[]);
    assert_eq!(journal.stats().segments, 2, "it leaves when it can");
}
