//! Promise: the first error of writing or syncing blocks is final, everything else that fails passes and costs nothing, a
//! full device or cap is told before anything is written, and a second server is kept out.

#[path = "support/faulty_storage.rs"]
mod faulty_storage;
#[path = "support/journal_driver.rs"]
mod journal_driver;

use std::io::ErrorKind;
use std::sync::Arc;

use faulty_storage::{Call, FaultyStorage, Random};
use ingestd::journal::{
    Claim, DiskStorage, FrameToWrite, Journal, Location, OpenError, ReadError, Refusal as Passing, SpaceError,
    WriteError,
};
use journal_driver::{
    BYTES_MAX, Refusal, SEGMENT_BYTES, append, append_synced, open, options, payload, release, try_open,
};
use rustix::io::Errno;

fn fails_for_good(call: Call) {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..3, 1000);
    storage.fail(call, 0, ErrorKind::Other);
    let refusal = append(&mut journal, &[payload(3, 1000)], true).expect_err("fails");
    let Refusal::Write(WriteError::Failed(first)) = refusal else { panic!("{refusal:?}") };
    assert!(journal.failed().is_some() && journal.stats().failed);

    storage.heal();
    let appended = append(&mut journal, &[payload(4, 10)], false).map(drop);
    let Err(Refusal::Write(appended)) = appended else { panic!("{appended:?}") };
    let others = [journal.sync(), journal.mark(false).map(drop), journal.reclaim().map(drop), journal.retry()];
    for error in others.into_iter().map(|done| done.expect_err("it has failed")).chain([appended]) {
        let WriteError::Latched(latched) = error else { panic!("nothing of it was written: {error}") };
        assert_eq!(latched.to_string(), first.to_string(), "the first error, every time");
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
    let Refusal::Write(WriteError::Refused(error @ Passing::NoSpace { .. })) = error else { panic!("{error:?}") };
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
fn a_device_that_fills_in_the_middle_of_a_group_refuses_the_rest_and_keeps_what_it_took() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    storage.set_capacity(70_000);
    let payloads: Vec<_> = (0..10).map(|seed| payload(seed, 10_000)).collect();
    let space = journal.space();
    payloads.iter().for_each(|payload| space.try_reserve(payload.len(), Claim::Urgent).expect("room"));
    let frames: Vec<_> =
        payloads.iter().map(|payload| FrameToWrite { payload, crc32c: crc32c::crc32c(payload) }).collect();
    let mut locations = Vec::new();
    let error = journal.append_group(&frames, true, &mut locations).expect_err("is full");
    assert!(error.is_passing() && journal.failed().is_none(), "{error}");
    assert_eq!(locations.len(), 6, "as many as one segment holds");
    storage.lose_power(3);
    drop(journal);
    storage.heal();
    assert_eq!(open(storage).sequences(), [1, 2, 3, 4, 5, 6], "they were synced");
}

/// Blocks that were acknowledged, by their sequence and seed.
type Acked = Vec<(Location, u64)>;

/// A journal whose active segment has no room for another block of 10,000 bytes, all of it synced.
fn with_a_full_segment(storage: &FaultyStorage) -> (Journal, Acked) {
    let mut journal = open(storage.clone()).journal;
    let locations = append_synced(&mut journal, 0..6, 10_000);
    (journal, locations.into_iter().zip(0..).collect())
}

/// Bytes of all files but the record of absent blocks.
fn segments_bytes(storage: &FaultyStorage) -> u64 {
    let files = storage.files().into_iter().filter(|(name, _)| !name.starts_with("absent"));
    files.map(|(_, bytes)| bytes.len() as u64).sum()
}

fn assert_found_once(storage: FaultyStorage, acked: &Acked, what: &str) {
    let opened = open(storage);
    assert!(!opened.recovery.is_degraded(), "{what}: {:?}", opened.recovery.damage);
    for &(location, seed) in acked {
        let found: Vec<_> =
            opened.handed.iter().filter(|handed| handed.location.sequence == location.sequence).collect();
        assert!(matches!(found[..], [one] if one.payload == payload(seed, 10_000)), "{what}: block {seed}");
    }
}

const ERRNOS: [Errno; 8] =
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::ROFS, Errno::ACCESS];

#[test]
fn whatever_fails_while_the_next_segment_is_made_passes() {
    // The first write and sync are those of its header: all that was appended is synced already.
    let calls = [Call::Create, Call::Write, Call::Sync, Call::Rename, Call::SyncDir];
    for (call, errno, times) in
        calls.into_iter().flat_map(|call| ERRNOS.into_iter().flat_map(move |errno| [1, 2, 7].map(|n| (call, errno, n))))
    {
        let what = format!("{call:?} {errno} {times} times");
        let storage = FaultyStorage::default();
        let (mut journal, mut acked) = with_a_full_segment(&storage);
        let before = (journal.stats().charged_bytes, storage.files());
        storage.fail_times(call, 0, times, errno);
        let mut refused = 0;
        let location = loop {
            match append(&mut journal, &[payload(6, 10_000)], true) {
                Ok(locations) => break locations[0],
                Err(Refusal::Write(WriteError::Refused(_))) => refused += 1,
                Err(refusal) => panic!("{what}: {refusal:?}"),
            }
            assert_eq!(journal.stats().charged_bytes, before.0, "{what}: nothing is charged for it");
            assert!(journal.failed().is_none() && !journal.stats().failed && refused <= times, "{what}");
            let active = &before.1.keys().find(|name| name.ends_with(".journal")).expect("a segment");
            assert_eq!(storage.files()[*active], before.1[*active], "{what}: the old segment is as it was");
        };
        assert!(refused > 0, "{what}: it was met");
        acked.push((location, 6));
        assert_eq!(journal.stats().files_bytes, segments_bytes(&storage), "{what}: every file is counted, none twice");
        assert!(storage.files().keys().all(|name| !name.ends_with(".new")), "{what}: nothing is left of the attempts");
        drop(journal);
        storage.heal();
        storage.lose_power(times);
        assert_found_once(storage, &acked, &what);
    }
}

#[test]
fn no_block_follows_while_the_name_of_a_file_is_in_doubt() {
    for seed in 0..20 {
        let storage = FaultyStorage::default();
        let (mut journal, acked) = with_a_full_segment(&storage);
        // It gets its name; that this is so is not synced, and it cannot be removed.
        storage.fail_times(Call::SyncDir, 0, u64::MAX, Errno::IO);
        let refusal = append(&mut journal, &[payload(6, 10_000)], true).expect_err("the name is in doubt");
        assert!(matches!(refusal, Refusal::Write(WriteError::Refused(_))), "{refusal:?}");
        let small = append(&mut journal, &[payload(7, 10)], false).expect_err("it would fit");
        assert!(matches!(small, Refusal::Write(WriteError::Refused(_))), "{small:?}");
        assert!(!journal.mark(false).expect("is skipped"), "a mark, too");
        drop(journal);
        storage.lose_power(seed);
        storage.heal();
        assert_found_once(storage, &acked, &format!("seed {seed}"));
    }
}

#[test]
fn a_spare_that_cannot_be_opened_is_kept_for_want_of_descriptors_and_replaced_otherwise() {
    for (errno, is_kept) in [(Errno::MFILE, true), (Errno::NFILE, true), (Errno::IO, false)] {
        let storage = FaultyStorage::default();
        let (mut journal, acked) = with_a_full_segment(&storage);
        append_synced(&mut journal, 6..7, 10_000);
        let locations: Vec<_> = acked.iter().map(|&(location, _)| location).collect();
        release(&mut journal, &locations);
        let spares = || storage.files().keys().filter(|name| name.ends_with(".spare")).count();
        assert_eq!(spares(), 1);
        append_synced(&mut journal, 7..12, 10_000);
        storage.fail_times(Call::Open, 0, 1, errno);
        assert!(append(&mut journal, &[payload(12, 10_000)], true).is_err());
        assert_eq!(spares(), usize::from(is_kept), "{errno}");
        append_synced(&mut journal, 12..13, 10_000);
        assert_eq!((spares(), journal.stats().files_bytes), (0, segments_bytes(&storage)), "{errno}");
    }
}

#[test]
fn whatever_fails_while_segments_are_let_go_passes_and_their_room_comes_back() {
    let calls =
        [Call::Create, Call::Write, Call::Sync, Call::Rename, Call::Remove, Call::SyncDir, Call::SetBytes, Call::Open];
    let mut met = 0;
    for (call, errno, successes) in
        calls.into_iter().flat_map(|call| ERRNOS.into_iter().flat_map(move |errno| [0, 1, 3].map(|n| (call, errno, n))))
    {
        let what = format!("{call:?} {errno} after {successes}");
        let storage = FaultyStorage::default();
        let mut journal = open(storage.clone()).journal;
        // Eight segments; the first block waits, so that all others need a record of their absence.
        let groups = (0..8).map(|group| 6 * group..6 * group + 6);
        let locations: Vec<_> = groups.flat_map(|seeds| append_synced(&mut journal, seeds, 10_000)).collect();
        let acked: Acked = locations.iter().copied().zip(0..).collect();
        storage.fail_times(call, successes, 5, errno);
        locations[1..42].iter().for_each(|&location| journal.releaser().release(location));
        let hindered = (0..20)
            .filter(|_| {
                journal.reclaim().unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(
                    journal.stats().files_bytes,
                    segments_bytes(&storage),
                    "{what}: files are counted as they are"
                );
                journal.hindrance().is_some()
            })
            .count();
        met += usize::from(hindered > 0);
        assert_eq!((hindered > 0, journal.failed().is_none()), (storage.failures() > 0, true), "{what}");
        assert!(journal.hindrance().is_none(), "{what}: {:?}", journal.hindrance());
        let live = journal.stats();
        assert!(live.charged_bytes < 4 * SEGMENT_BYTES && live.live_frames == 7, "{what}: {live:?}");
        drop(journal);
        storage.heal();
        storage.lose_power(successes);
        let waiting = [&acked[..1], &acked[42..]].concat();
        assert_found_once(storage, &waiting, &what);
    }
    assert!(met > 60, "{met} faults were met");
}

#[test]
fn a_close_that_cannot_give_room_back_is_a_close() {
    for call in [Call::Create, Call::Rename, Call::SyncDir, Call::Remove, Call::SetBytes] {
        let storage = FaultyStorage::default();
        let (journal, acked) = with_a_full_segment(&storage);
        let locations: Vec<_> = acked.iter().map(|&(location, _)| location).collect();
        locations[1..].iter().for_each(|&location| journal.releaser().release(location));
        storage.fail_times(call, 0, u64::MAX, Errno::MFILE);
        journal.close().unwrap_or_else(|error| panic!("{call:?}: {error}"));
        storage.heal();
        storage.lose_power(1);
        assert_found_once(storage, &acked[..1].to_vec(), &format!("{call:?}"));
    }
}

#[test]
fn the_thread_that_has_no_group_can_try_again() {
    let storage = FaultyStorage::default();
    let (mut journal, _) = with_a_full_segment(&storage);
    storage.fail_times(Call::Create, 0, 3, Errno::MFILE);
    assert!(append(&mut journal, &[payload(6, 10_000)], true).is_err());
    assert!([journal.retry(), journal.retry()].iter().all(Result::is_err) && journal.wants_segment());
    journal.retry().expect("the cause is gone");
    assert!(!journal.wants_segment());
    journal.retry().expect("there is nothing to do");
    assert_eq!(journal.stats().segments, 2, "one more is enough");
    append_synced(&mut journal, 6..7, 10_000);
}

#[test]
fn a_full_device_at_start_is_told() {
    let storage = FaultyStorage::default();
    storage.set_capacity(1000);
    let error = try_open(storage).err().expect("is refused");
    let is_full = |source: &WriteError| matches!(source, WriteError::Refused(Passing::NoSpace { .. }));
    assert!(matches!(&error, OpenError::Write { source, .. } if is_full(source)), "{error}");
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
