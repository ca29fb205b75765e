//! Sets a segment aside by hand: saves what can be read of it, then moves it out of the way.
//!
//! For a journal that does not open, because a segment was written by a newer version, was copied, or cannot be read;
//! and for damaged segments that recovery has kept (`….quarantined`). Recovery never does this by itself: it would
//! have to decide that the rest is not wanted.
//!
//! ```text
//!  lock ─▶ read the segment ─▶ set-aside/N.ndjson, synced ─▶ absent: its sequences ─▶ move it to set-aside/
//! ```
//!
//! A line of the NDJSON is a batch as a client would send it, with its id: sent again, it lands once. What the journal
//! knows to be committed is left out. A crash in between leaves the segment where it was, or its lines twice on disk;
//! never neither.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::absent::Absent;
use super::disk::DiskStorage;
use super::frame::{Found, FrameKind, FrameScan};
use super::recovery::OpenError;
use super::segment::{FileKind, SEGMENT_HEADER_BYTES, SegmentHeader, quarantined_name, segment_name};
use super::storage::Storage;
use crate::encode::block::BlockHeader;
use crate::encode::tuple::tuples;
use crate::types::Sequence;

/// The folder in the journal's directory that takes what was set aside.
const FOLDER: &str = "set-aside";

/// What [`set_aside`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where the segment is now.
    pub segment: PathBuf,
    /// The batches that were saved; `None` when there was none to save.
    pub saved: Option<PathBuf>,
    /// How many.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// Places in the segment that could not be read.
    pub unreadable: u64,
}

/// Sets segment `id` of the journal in `dir` aside. No server may run on it.
pub fn set_aside(dir: &Path, id: u64) -> Result<SetAside, OpenError> {
    let storage = DiskStorage::existing(dir).map_err(|error| OpenError::Io { file: dir.to_owned(), source: error })?;
    let at = |file: &str| {
        let file = dir.join(file);
        move |source: io::Error| OpenError::Io { file: file.clone(), source }
    };
    let _lock = storage.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { dir: dir.to_owned(), holder: error.to_string() },
        _ => at(super::storage::LOCK_NAME)(error),
    })?;
    let name = [segment_name(id), quarantined_name(id)].into_iter().find(|name| dir.join(name).is_file());
    let name = name.ok_or_else(|| at(&segment_name(id))(io::ErrorKind::NotFound.into()))?;
    let bytes = fs::read(dir.join(&name)).map_err(at(&name))?;
    let committed_below = committed_below(&storage).map_err(at(""))?;

    let folder = dir.join(FOLDER);
    fs::create_dir_all(&folder).map_err(at(FOLDER))?;
    let saved_path = folder.join(format!("{name}.ndjson"));
    let mut done = SetAside { segment: folder.join(&name), saved: None, batches: 0, events: 0, unreadable: 0 };
    // A damaged list is replaced: what it said was unreadable anyway.
    let mut absent = Absent::load(&storage).map_err(at(super::absent::ABSENT_NAME))?.unwrap_or_default();
    if !is_copy(dir, &bytes, id) {
        let wanted = |sequence| sequence >= committed_below && !absent.contains(sequence);
        let sequences = save(&bytes, id, wanted, &saved_path, &mut done).map_err(at(FOLDER))?;
        if let Some((first, last)) = sequences {
            absent.insert(first, last);
            absent.save(&storage).map_err(at(super::absent::ABSENT_NAME))?;
        }
    }
    fs::rename(dir.join(&name), &done.segment)
        .and_then(|()| File::open(&folder)?.sync_all())
        .and_then(|()| storage.sync_dir())
        .map_err(at(&name))?;
    Ok(done)
}

/// True when the file of segment `id` holds another segment, which is there under its own name: then its blocks are
/// neither saved nor recorded as gone.
fn is_copy(dir: &Path, bytes: &[u8], id: u64) -> bool {
    let named = SegmentHeader::decode(bytes).map_or(id, |header| header.segment);
    named != id && dir.join(segment_name(named)).is_file()
}

/// Writes the `wanted` batches of the segment `bytes` to `path`; the sequences of all its sound blocks.
fn save(
    bytes: &[u8],
    id: u64,
    wanted: impl Fn(Sequence) -> bool,
    path: &Path,
    done: &mut SetAside,
) -> io::Result<Option<(Sequence, Sequence)>> {
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut sequences: Option<(Sequence, Sequence)> = None;
    // A file that was copied holds the frames of the segment that its header names.
    let id = SegmentHeader::decode(bytes).map_or(id, |header| header.segment);
    for found in FrameScan::new(bytes, id, SEGMENT_HEADER_BYTES) {
        let Found::Frame { header, payload, .. } = found else {
            done.unreadable += 1;
            continue;
        };
        if header.kind != FrameKind::Block {
            continue;
        }
        let (first, last) = sequences.unwrap_or((header.sequence, header.sequence));
        sequences = Some((first.min(header.sequence), last.max(header.sequence)));
        if wanted(header.sequence) {
            match batch_json(payload) {
                Some((line, events)) => {
                    writeln!(out, "{line}")?;
                    done.batches += 1;
                    done.events += events;
                }
                None => done.unreadable += 1,
            }
        }
    }
    out.sync_all()?;
    if done.batches == 0 {
        fs::remove_file(path)?;
    } else {
        done.saved = Some(path.to_owned());
    }
    Ok(sequences)
}

/// The batch of a block as a client would send it, and its events; `None` when this version cannot read it.
fn batch_json(payload: &[u8]) -> Option<(String, u64)> {
    let (header, tuples_at) = BlockHeader::parse(payload).ok()?;
    // A valid batch id needs no escaping.
    let mut line = format!("{{\"batch_id\":\"{}\",\"priority\":{},\"events\":[", header.key.id, header.priority);
    let mut events = 0;
    for tuple in tuples(&payload[tuples_at..]) {
        let (_, event) = tuple.ok()?;
        if events > 0 {
            line.push(',');
        }
        event.to_json(&mut line);
        events += 1;
    }
    line.push_str("]}");
    // White space between tokens of a payload may hold line breaks.
    Some((line.replace(['\n', '\r'], " "), events))
}

/// The greatest `committed_below` that any readable frame or header of the journal tells.
fn committed_below(storage: &DiskStorage) -> io::Result<Sequence> {
    let mut below = Sequence(0);
    for entry in storage.list()? {
        let FileKind::Segment(id) = FileKind::of(&entry.name) else { continue };
        // A file that cannot be read tells nothing.
        let Ok(bytes) = fs::read(storage.dir().join(&entry.name)) else { continue };
        if let Ok(header) = SegmentHeader::decode(&bytes) {
            below = below.max(header.committed_below);
        }
        for found in FrameScan::new(&bytes, id, SEGMENT_HEADER_BYTES) {
            if let Found::Frame { header, .. } = found {
                below = below.max(header.committed_below);
            }
        }
    }
    Ok(below)
}
