//! Drives a journal for tests: opens, appends what it can name again, collects what recovery hands out.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use ingestd::journal::storage::Storage;
use ingestd::journal::{
    Claim, FrameToWrite, Journal, JournalOptions, Location, OpenError, Recovery, SpaceError, WriteError,
};

/// The smallest segments there are, so that few blocks fill them.
pub const SEGMENT_BYTES: u64 = 64 * 1024;
pub const BYTES_MAX: u64 = 1024 * 1024;

pub fn options() -> JournalOptions {
    JournalOptions { node_id: "node".to_owned(), bytes_max: BYTES_MAX, segment_bytes: SEGMENT_BYTES }
}

/// A block that recovery handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    pub location: Location,
    pub payload: Vec<u8>,
}

pub struct Opened {
    pub journal: Journal,
    pub recovery: Recovery,
    pub handed: Vec<Handed>,
}

impl Opened {
    /// The sequences handed out.
    pub fn sequences(&self) -> Vec<u64> {
        self.handed.iter().map(|handed| handed.location.sequence.0).collect()
    }
}

pub fn try_open(storage: impl Storage + 'static) -> Result<Opened, OpenError> {
    let mut handed = Vec::new();
    let (journal, recovery) = Journal::open(Arc::new(storage), &options(), &mut |location, payload| {
        handed.push(Handed { location, payload: payload.to_vec() });
        Ok(())
    })?;
    Ok(Opened { journal, recovery, handed })
}

pub fn open(storage: impl Storage + 'static) -> Opened {
    try_open(storage).unwrap_or_else(|error| panic!("opens: {error}"))
}

/// A payload of `bytes` that no other `seed` has, of bytes that look like frames as well as not.
pub fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    let pattern = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    pattern.iter().chain(&[0xF5, b'i', b'J', 0xFF]).copied().cycle().take(bytes).collect()
}

/// Why a group was not appended.
#[derive(Debug)]
pub enum Refusal {
    Space(SpaceError),
    Write(WriteError),
}

/// Reserves and appends; gives the reservations back on an error. What of the group was appended before it is not told.
pub fn append(journal: &mut Journal, payloads: &[Vec<u8>], sync: bool) -> Result<Vec<Location>, Refusal> {
    let space = journal.space();
    for (index, payload) in payloads.iter().enumerate() {
        if let Err(error) = space.try_reserve(payload.len(), Claim::Urgent) {
            payloads[..index].iter().for_each(|payload| space.release_reservation(payload.len()));
            return Err(Refusal::Space(error));
        }
    }
    let frames: Vec<_> =
        payloads.iter().map(|payload| FrameToWrite { payload, crc32c: crc32c::crc32c(payload) }).collect();
    let mut locations = Vec::new();
    match journal.append_group(&frames, sync, &mut locations) {
        Ok(()) => Ok(locations),
        Err(error) => {
            assert!(locations.is_empty() || error.is_passing(), "a failed group has no locations");
            payloads[locations.len()..].iter().for_each(|payload| space.release_reservation(payload.len()));
            Err(Refusal::Write(error))
        }
    }
}

/// Appends synced blocks of `bytes` each, one group.
pub fn append_synced(journal: &mut Journal, seeds: std::ops::Range<u64>, bytes: usize) -> Vec<Location> {
    let payloads: Vec<_> = seeds.map(|seed| payload(seed, bytes)).collect();
    append(journal, &payloads, true).unwrap_or_else(|error| panic!("appends: {error:?}"))
}

/// Releases and reclaims.
pub fn release(journal: &mut Journal, locations: &[Location]) {
    let releaser = journal.releaser();
    locations.iter().for_each(|&location| releaser.release(location));
    journal.reclaim().unwrap_or_else(|error| panic!("reclaims: {error}"));
}
