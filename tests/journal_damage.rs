//! Promise: damage is reported with segment and offset, what is readable is recovered all the same, and no synced
//! block is ever silently gone.

#[path = "support/faulty_storage.rs"]
mod faulty_storage;
#[path = "support/journal_driver.rs"]
mod journal_driver;

use std::collections::BTreeMap;

use faulty_storage::FaultyStorage;
use ingestd::journal::segment::{SEGMENT_HEADER_BYTES, quarantined_name, segment_name};
use ingestd::journal::{DamageKind, Location, OpenError, Recovery};
use journal_driver::{Opened, append_synced, open, payload, release, try_open};

type Files = BTreeMap<String, Vec<u8>>;

/// Blocks 1–9 in segments 1–3, three a segment and each a group, blocks 1 and 2 committed and marked so; no mark
/// follows block 9. The server was killed three times.
fn three_segments() -> (Files, Vec<Location>) {
    let storage = FaultyStorage::default();
    let mut locations = Vec::new();
    for segment in 0..3u64 {
        let mut journal = open(storage.clone()).journal;
        for block in 0..3 {
            let seed = segment * 3 + block;
            locations.extend(append_synced(&mut journal, seed..seed + 1, 100 + 9 * seed as usize));
        }
        if segment == 0 {
            release(&mut journal, &locations[..2]);
        }
        if segment < 2 {
            journal.mark(true).expect("marks");
        }
    }
    drop(open(storage.clone())); // cuts segment 3 to its end
    let mut files = storage.files();
    files.remove(&segment_name(4)).expect("the open made it"); // as if it had not come that far
    assert_eq!(files.keys().cloned().collect::<Vec<_>>(), [segment_name(1), segment_name(2), segment_name(3)]);
    (files, locations)
}

/// Holds what came back against blocks 3–9: each is there with its bytes, or is told as lost. Returns the missing.
fn missing(opened: &Opened) -> Vec<u64> {
    for handed in &opened.handed {
        let sequence = handed.location.sequence.0;
        assert_eq!(handed.payload, payload(sequence - 1, 100 + 9 * (sequence as usize - 1)));
    }
    let sequences = opened.sequences();
    assert!(sequences.is_sorted_by(|a, b| a < b));
    (3..=9).filter(|sequence| !sequences.contains(sequence)).collect()
}

fn lost_max(recovery: &Recovery) -> u64 {
    recovery.damage.iter().map(|damage| damage.frames_lost_max.expect("is known")).sum()
}

#[test]
fn every_flipped_byte_is_harmless_or_told_with_segment_and_offset() {
    let (files, _) = three_segments();
    for (id, name) in (1..=3).map(|id| (id, segment_name(id))) {
        for at in 0..files[&name].len() {
            let mut flipped = files.clone();
            flipped.get_mut(&name).expect("is there")[at] ^= 0x20;
            let opened = open(FaultyStorage::with_files(&flipped));
            let recovery = &opened.recovery;
            let missing = missing(&opened);
            let context = format!("segment {id}, byte {at}, missing {missing:?}, {recovery:?}");
            assert!(missing.len() <= 1, "{context}");
            match missing[..] {
                [] => assert!(!recovery.is_degraded(), "{context}"),
                [9] => {
                    // The last group, and nothing after it says that it was synced.
                    let torn = recovery.torn_tail.expect("is told");
                    assert!(torn.segment == 3 && torn.offset as usize <= at, "{context}");
                }
                _ => {
                    let [damage] = &recovery.damage[..] else { panic!("{context}") };
                    assert_eq!((damage.segment, damage.frames_lost_max), (id, Some(1)), "{context}");
                    assert!((damage.offset as usize..damage.offset as usize + 300).contains(&at), "{context}");
                }
            }
            if at < SEGMENT_HEADER_BYTES {
                assert_eq!(recovery.damage[0].kind, DamageKind::Header, "{context}");
            }
        }
    }
}

#[test]
fn cut_at_every_length_whole_frames_remain_and_the_rest_is_told() {
    let (files, _) = three_segments();
    for (id, name) in (1..=3).map(|id| (id, segment_name(id))) {
        for length in 0..files[&name].len() {
            let mut cut = files.clone();
            cut.get_mut(&name).expect("is there").truncate(length);
            let opened = open(FaultyStorage::with_files(&cut));
            let missing = missing(&opened);
            let context = format!("segment {id}, length {length}, missing {missing:?}, {:?}", opened.recovery);
            if id < 3 {
                assert_eq!(lost_max(&opened.recovery), missing.len() as u64, "{context}");
                assert!(opened.recovery.damage.iter().all(|damage| damage.segment == id), "{context}");
            } else {
                // Nothing after the last segment says what it held; what is there comes back.
                assert!(missing.iter().all(|sequence| *sequence >= 7), "{context}");
            }
        }
    }
}

#[test]
fn a_mark_turns_a_broken_last_group_into_damage() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let locations = append_synced(&mut journal, 0..2, 100);
    assert!(journal.mark(false).expect("marks"), "the sync is news");
    assert!(!journal.mark(false).expect("marks"), "nothing is");
    drop(journal);
    let mut files = storage.files();
    files.get_mut(&segment_name(1)).expect("is there")[locations[1].offset as usize + 70] ^= 1;
    let opened = open(FaultyStorage::with_files(&files));
    assert_eq!(opened.sequences(), [1]);
    assert_eq!(opened.recovery.torn_tail, None);
    let [damage] = &opened.recovery.damage[..] else { panic!("{:?}", opened.recovery) };
    assert_eq!((damage.segment, damage.offset, damage.frames_lost_max), (1, locations[1].offset, Some(1)));
}

#[test]
fn a_torn_group_gives_back_its_sound_frames_and_leaves_no_damage_behind() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..2, 100);
    let group = append_synced(&mut journal, 2..6, 100);
    drop(journal);
    let mut files = storage.files();
    files.get_mut(&segment_name(1)).expect("is there")[group[1].offset as usize + 8..][..64].fill(0xAA);
    let storage = FaultyStorage::with_files(&files);
    let opened = open(storage.clone());
    assert_eq!(opened.sequences(), [1, 2, 3, 5, 6]);
    let torn = opened.recovery.torn_tail.expect("is told");
    assert_eq!((torn.segment, torn.offset, torn.frames_torn, torn.frames_salvaged), (1, group[1].offset, 1, 2));
    assert!(opened.recovery.damage.is_empty());

    // Later starts, whatever was committed meanwhile, know of the hole.
    for released in [&opened.handed[..0], &opened.handed[3..]] {
        let mut again = open(FaultyStorage::with_files(&storage.files()));
        release(&mut again.journal, &released.iter().map(|handed| handed.location).collect::<Vec<_>>());
        assert!(again.recovery.damage.is_empty() && again.recovery.torn_tail.is_none(), "{:?}", again.recovery);
        assert_eq!(again.recovery.next_sequence.0, 7);
    }
}

#[test]
fn a_damaged_segment_is_read_again_until_it_is_committed_and_then_put_aside() {
    let (mut files, locations) = three_segments();
    files.get_mut(&segment_name(2)).expect("is there")[locations[4].offset as usize] ^= 1;
    let damaged = files[&segment_name(2)].clone();
    let storage = FaultyStorage::with_files(&files);
    for _ in 0..2 {
        let opened = open(storage.clone());
        assert_eq!(opened.sequences(), [3, 4, 6, 7, 8, 9]);
        assert!(opened.recovery.is_degraded());
    }
    let mut opened = open(storage.clone());
    let handed: Vec<_> = opened.handed.iter().map(|handed| handed.location).collect();
    release(&mut opened.journal, &handed[2..]); // 3 and 4 wait: segment 2 stays under its name
    assert!(storage.files().contains_key(&segment_name(2)));
    release(&mut opened.journal, &handed[..2]);
    assert_eq!(storage.files()[&quarantined_name(2)], damaged);
    opened.journal.close().expect("closes");

    let again = open(storage.clone());
    assert!(again.handed.is_empty() && again.recovery.damage.is_empty());
    assert_eq!(again.recovery.quarantined, [quarantined_name(2)]);
    assert!(again.recovery.is_degraded(), "until somebody looked at the file");
}

#[test]
fn a_missing_segment_is_told_unless_all_of_it_was_committed() {
    for (id, lost) in [(1u64, 1), (2, 3)] {
        let (mut files, _) = three_segments();
        files.remove(&segment_name(id));
        let opened = open(FaultyStorage::with_files(&files));
        let [damage] = &opened.recovery.damage[..] else { panic!("{:?}", opened.recovery) };
        assert_eq!((damage.segment, damage.kind), (id, DamageKind::MissingThrough(id)));
        assert_eq!((damage.frames_lost_max, missing(&opened).len()), (Some(lost), lost as usize));
    }
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let first = append_synced(&mut journal, 0..3, 100);
    drop(journal);
    let mut journal = open(storage.clone()).journal;
    release(&mut journal, &first);
    append_synced(&mut journal, 3..4, 100);
    assert!(!storage.files().contains_key(&segment_name(1)), "it left, as all of it was committed");
    drop(journal);
    let opened = open(storage);
    assert_eq!((opened.sequences(), opened.recovery.damage), (vec![4], vec![]));
}

#[test]
fn swapped_or_copied_segments_are_refused_and_nothing_is_touched() {
    let (files, _) = three_segments();
    let mut swapped = files.clone();
    swapped.insert(segment_name(1), files[&segment_name(2)].clone());
    swapped.insert(segment_name(2), files[&segment_name(1)].clone());
    let mut copied = files.clone();
    copied.insert(segment_name(9), files[&segment_name(2)].clone());
    for files in [swapped, copied] {
        let storage = FaultyStorage::with_files(&files);
        let error = try_open(storage.clone()).err().expect("is refused");
        assert!(matches!(error, OpenError::Misnamed { segment: 1 | 2, .. }), "{error}");
        assert_eq!(storage.files(), files);
    }
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_touched() {
    let (mut files, _) = three_segments();
    let bytes = files.get_mut(&segment_name(2)).expect("is there");
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
    bytes[SEGMENT_HEADER_BYTES - 4..SEGMENT_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    let storage = FaultyStorage::with_files(&files);
    let error = try_open(storage.clone()).err().expect("is refused");
    assert!(matches!(&error, OpenError::Newer { version: 2, .. }), "{error}");
    assert!(error.to_string().contains(&segment_name(2)), "{error}");
    assert_eq!(storage.files(), files);
}

#[test]
fn what_a_crash_while_creating_leaves_is_removed() {
    let (files, _) = three_segments();
    for blank in [vec![], vec![0; 10], vec![0; 65536]] {
        let mut with_blank = files.clone();
        with_blank.insert(segment_name(4), blank);
        with_blank.insert("00000000000000000005.new".to_owned(), vec![7; 5000]);
        with_blank.insert("00000000000000000004.spare".to_owned(), vec![7; 5000]);
        let storage = FaultyStorage::with_files(&with_blank);
        let opened = open(storage.clone());
        assert!(missing(&opened).is_empty() && !opened.recovery.is_degraded(), "{:?}", opened.recovery);
        assert_eq!(storage.files().len(), 4, "{:?}", storage.files().keys());
    }
}

#[test]
fn a_lost_record_of_absent_blocks_is_told_not_ignored() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let first = append_synced(&mut journal, 0..1, 100);
    drop(journal);
    let mut journal = open(storage.clone()).journal;
    let second = append_synced(&mut journal, 1..4, 100);
    drop(journal);
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 4..5, 100);
    release(&mut journal, &second); // the segment leaves before the older block 1 is committed
    drop(journal);
    let files = storage.files();
    assert!(!files.contains_key(&segment_name(second[0].segment)));
    let opened = open(FaultyStorage::with_files(&files));
    assert_eq!((opened.sequences(), opened.recovery.damage), (vec![first[0].sequence.0, 5], vec![]));

    let mut flipped = files;
    flipped.get_mut("absent").expect("was written")[30] ^= 1;
    let opened = open(FaultyStorage::with_files(&flipped));
    let kinds: Vec<_> = opened.recovery.damage.iter().map(|damage| damage.kind).collect();
    assert_eq!(kinds, [DamageKind::AbsentList, DamageKind::MissingThrough(2)]);
    assert_eq!(lost_max(&opened.recovery), 3);
}

#[test]
fn unreadable_sectors_are_damage_and_the_rest_is_recovered() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    append_synced(&mut journal, 0..10, 3000);
    journal.mark(true).expect("marks");
    drop(journal);
    storage.make_unreadable(&segment_name(1), 12_288..16_384); // blocks 3 and 4, and the header of 5
    let opened = open(storage);
    assert_eq!(opened.sequences(), [1, 2, 6, 7, 8, 9, 10]);
    let lost: Vec<_> = opened.recovery.damage.iter().map(|damage| damage.frames_lost_max).collect();
    assert_eq!(lost, [Some(3)], "{:?}", opened.recovery);
}

#[test]
fn a_device_that_reads_nothing_stops_the_opening_and_nothing_is_touched() {
    let (files, _) = three_segments();
    let storage = FaultyStorage::with_files(&files);
    storage.make_unreadable(&segment_name(3), 0..u64::MAX);
    let error = try_open(storage.clone()).err().expect("is refused");
    assert!(error.to_string().contains(&segment_name(3)), "{error}");
    assert_eq!(storage.files(), files);
}

#[test]
fn a_segment_of_garbage_is_kept_and_told_with_or_without_a_count() {
    for (id, lost) in [(2, Some(3)), (3, None)] {
        let (mut files, _) = three_segments();
        files.get_mut(&segment_name(id)).expect("is there").fill(0xBD);
        let storage = FaultyStorage::with_files(&files);
        let opened = open(storage.clone());
        let [damage] = &opened.recovery.damage[..] else { panic!("{:?}", opened.recovery) };
        assert_eq!((damage.segment, damage.kind, damage.frames_lost_max), (id, DamageKind::Header, lost));
        assert_eq!(missing(&opened).len(), 3);
        assert_eq!(storage.files()[&quarantined_name(id)], files[&segment_name(id)]);
    }
}

#[test]
fn frames_that_a_recycled_file_held_never_come_back() {
    let storage = FaultyStorage::default();
    let mut journal = open(storage.clone()).journal;
    let mut recycled = 0;
    for round in 0..12 {
        let locations = append_synced(&mut journal, round * 10..round * 10 + 10, 6000);
        release(&mut journal, &locations);
        recycled += storage.files().keys().filter(|name| name.ends_with(".spare")).count();
    }
    assert!(recycled > 0, "files were recycled");
    let last = append_synced(&mut journal, 120..122, 40);
    drop(journal);
    let opened = open(storage);
    assert!(opened.sequences().ends_with(&[last[0].sequence.0, last[1].sequence.0]), "{:?}", opened.sequences());
    assert!(opened.sequences().len() <= 12 && opened.recovery.damage.is_empty(), "{:?}", opened.recovery);
}

#[test]
fn another_nodes_journal_is_taken_over_and_told() {
    let (files, _) = three_segments();
    let storage = std::sync::Arc::new(FaultyStorage::with_files(&files));
    let options = ingestd::journal::JournalOptions { node_id: "other".to_owned(), ..journal_driver::options() };
    let (_journal, recovery) = ingestd::journal::Journal::open(storage, &options, &mut |_, _| Ok(())).expect("opens");
    assert_eq!(recovery.foreign_nodes, ["node"]);
    assert_eq!(recovery.frames_recovered, 7);
}
