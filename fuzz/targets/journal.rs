//! A journal whose files were damaged, and one that was forged: opening it hands out what is whole, tells what is lost,
//! and does both again the next time.
#![no_main]

#[path = "../../tests/support/faulty_storage.rs"]
mod faulty_storage;
#[path = "../../tests/support/journal_driver.rs"]
mod journal_driver;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use faulty_storage::FaultyStorage;
use ingestd::journal::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use ingestd::journal::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};
use ingestd::journal::{Location, OpenError};
use ingestd::types::{Sequence, UnixMicros};
use journal_driver::{Opened, append_synced, open, payload, release, try_open};
use libfuzzer_sys::fuzz_target;

type Files = BTreeMap<String, Vec<u8>>;

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((mode, edits)) if mode % 2 == 0 => damaged(edits),
    Some((_, records)) => forged(records),
    None => {}
});

/// Segments 1–3 with three blocks each, as a third kill leaves them.
struct Written {
    files: Files,
    blocks: Vec<Location>,
}

fn written() -> &'static Written {
    static WRITTEN: OnceLock<Written> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        let (storage, mut blocks) = (FaultyStorage::default(), Vec::new());
        for segment in 0..3 {
            let mut journal = open(storage.clone()).journal;
            for seed in 3 * segment..3 * segment + 3 {
                blocks.extend(append_synced(&mut journal, seed..seed + 1, bytes_of(seed)));
            }
            if segment < 2 {
                journal.mark(true).expect("marks");
            }
        }
        let mut files = storage.files();
        // Of the room behind the last block a little is enough.
        files.get_mut(&segment_name(3)).expect("is there").truncate(2 * SEGMENT_HEADER_BYTES);
        Written { files, blocks }
    })
}

fn bytes_of(seed: u64) -> usize {
    100 + 9 * seed as usize
}

/// Four bytes an edit: which segment, where, and what to flip there; nothing to flip cuts the file.
fn damaged(edits: &[u8]) {
    let mut files = written().files.clone();
    for &[segment, low, high, flip] in edits.as_chunks().0 {
        let bytes = files.get_mut(&segment_name(u64::from(segment % 3) + 1)).expect("is there");
        let at = usize::from(u16::from_le_bytes([low, high])) % bytes.len().max(1);
        match flip {
            0 => bytes.truncate(at),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= flip),
        }
    }
    let (whole, lost): (Vec<&Location>, Vec<&Location>) =
        written().blocks.iter().partition(|block| is_whole(&files, block));
    let whole: Vec<u64> = whole.iter().map(|block| block.sequence.0).collect();
    let storage = FaultyStorage::with_files(&files);
    let opened = open(storage.clone());
    assert_eq!(opened.sequences(), whole, "{:?}", opened.recovery);
    for handed in &opened.handed {
        let seed = handed.location.sequence.0 - 1;
        assert_eq!(handed.payload, payload(seed, bytes_of(seed)));
    }
    // Something sound in the last segment says what was in the others.
    let lost = lost.iter().filter(|block| block.segment < 3).count() as u64;
    if is_last_sound(&files, &whole) && lost > 0 {
        let told: Option<u64> = opened.recovery.damage.iter().map(|damage| damage.frames_lost_max).sum();
        assert!(told.is_none_or(|told| told >= lost), "{lost} lost: {:?}", opened.recovery);
        assert!(opened.recovery.is_degraded());
    }
    drop(opened);
    let again = open(storage.clone());
    assert_eq!(again.sequences(), whole);
    goes_on(storage, again, true);
}

fn is_whole(files: &Files, block: &Location) -> bool {
    let name = segment_name(block.segment);
    let bytes = block.offset as usize..block.offset as usize + FRAME_HEADER_BYTES + block.payload_bytes as usize;
    files[&name].get(bytes.clone()) == written().files[&name].get(bytes)
}

fn is_last_sound(files: &Files, whole: &[u64]) -> bool {
    let header = |files: &Files| files[&segment_name(3)].get(..SEGMENT_HEADER_BYTES).map(<[u8]>::to_vec);
    header(files) == header(&written().files) || whole.iter().any(|&sequence| sequence > 6)
}

/// The next start finds the same blocks as `again` did, and what was written meanwhile, less what was released; unless
/// `exactly`, others may come back.
fn goes_on(storage: FaultyStorage, mut again: Opened, exactly: bool) {
    let sequences = again.sequences();
    let new = append_synced(&mut again.journal, 100..101, 50)[0];
    assert!(sequences.iter().all(|&sequence| sequence < new.sequence.0));
    let released = again.handed.first().map(|handed| handed.location);
    release(&mut again.journal, released.as_slice());
    drop(again);
    let found = open(storage).sequences();
    let mut expected = sequences.clone();
    expected.push(new.sequence.0);
    // A release is on record with the next frame only.
    let unreleased = &expected[released.iter().len()..];
    let is_right = match exactly {
        true => found == expected || found == unreleased,
        false => unreleased.iter().all(|sequence| found.contains(sequence)),
    };
    assert!(is_right, "{found:?} of {expected:?}");
}

/// Eight bytes a frame with sound checksums, whatever it says; some are broken, some begin a segment.
fn forged(records: &[u8]) {
    let mut segments = vec![header(1, 1)];
    for &[flags, low, high, group, committed, synced, length, at] in records.as_chunks().0 {
        let sequence = u64::from(u16::from_le_bytes([low, high]));
        if flags & 1 != 0 && segments.len() < 8 {
            segments.push(header(segments.len() as u64 + 1, sequence.max(1)));
        }
        let group_first = sequence.saturating_sub(group.into());
        let is_mark = flags & 2 != 0;
        let payload = payload(sequence, if is_mark { 0 } else { length.into() });
        let frame = FrameHeader {
            kind: if is_mark { FrameKind::Mark } else { FrameKind::Block },
            payload_bytes: payload.len() as u32,
            payload_crc32c: crc32c::crc32c(&payload),
            segment: segments.len() as u64 - u64::from(flags & 4 != 0),
            sequence: Sequence(sequence),
            group_first: Sequence(group_first),
            committed_below: Sequence(group_first.saturating_sub(committed.into())),
            synced_below: Sequence(group_first.saturating_sub(synced.into())),
        };
        let mut bytes = [&frame.encode()[..], &payload].concat();
        bytes.resize(bytes.len().next_multiple_of(FRAME_ALIGN), 0);
        if flags & 8 != 0 {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= flags | 1;
        }
        segments.last_mut().expect("there is one").extend_from_slice(&bytes);
    }
    let files = segments.into_iter().enumerate().map(|(at, bytes)| (segment_name(at as u64 + 1), bytes)).collect();
    open_forged(&files);
}

fn header(segment: u64, first_sequence: u64) -> Vec<u8> {
    let header = SegmentHeader {
        segment,
        node_id: "node".to_owned(),
        created_at: UnixMicros(0),
        first_sequence: Sequence(first_sequence),
        committed_below: Sequence(1),
    };
    header.encode().to_vec()
}

fn open_forged(files: &Files) {
    let storage = FaultyStorage::with_files(files);
    let opened = match try_open(storage.clone()) {
        Ok(opened) => opened,
        Err(OpenError::Newer { .. } | OpenError::Misnamed { .. }) => return assert_eq!(storage.files(), *files),
        Err(error) => panic!("{error}"),
    };
    let sequences = opened.sequences();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    for handed in &opened.handed {
        assert_eq!(handed.payload, payload(handed.location.sequence.0, handed.payload.len()));
    }
    drop(opened);
    let again = open(storage.clone());
    // Where a forged frame alone said that a block is committed, and left with its segment, the block comes back: the
    // ledger knows it. None may go.
    let found = again.sequences();
    assert!(sequences.iter().all(|sequence| found.contains(sequence)), "{found:?} of {sequences:?}");
    goes_on(storage, again, false);
}
