//! The write-ahead journal: what makes an ack durable. The third station of an event's path, between the rings and
//! the lanes.
//!
//! ```text
//!  HTTP workers ── try_reserve ──▶ JournalSpace                       (any thread, one atomic addition)
//!  journal thread ─ append_group, sync, mark, reclaim ─▶ Journal ──▶ segments on disk
//!  flusher threads ─ read ──▶ JournalReader      flusher threads ─ release ──▶ Releaser ─▶ next reclaim
//! ```
//!
//! | file | is |
//! |---|---|
//! | [`frame`] | one block or mark as bytes, and the walk over a segment's frames; pure |
//! | [`segment`] | a segment's header and file names; pure |
//! | [`storage`] | the seam to the file system |
//! | `disk`, `append`, `aligned` | the real one, past the page cache |
//! | [`damage`] | what can be wrong, in words |
//! | `survey` | what is on disk, judged by decision tables; read-only |
//! | [`recovery`] | opening |
//! | [`writer`] | [`Journal`]: appending, syncing, letting go |
//! | [`fault`] | what a failed call means: it passes, or the journal has failed |
//! | `segments`, `outstanding`, `absent` | its parts: the files, the low-water mark, the record of gaps that are no loss |
//! | `relocation` | which segment is held by few blocks, that are better written again; pure |
//! | [`space`] | admission under the cap, figures |
//! | [`reader`] | reading blocks back |
//! | [`inspect`](mod@inspect) | a report for a person |
//! | [`set_aside`](mod@set_aside) | a segment out of the way, by a person's will |
//!
//! The life of a segment, as files:
//!
//! ```text
//!   N.new ──header synced──▶ N.journal (active) ──full──▶ N.journal (sealed) ──all committed──┬─▶ removed
//!     ▲                                                                                       ├─▶ N.spare
//!     │ made                          N.spare ──new header synced──▶ M.journal                └─▶ N.quarantined
//! ```
//!
//! Invariants:
//! * A block that [`Journal::append_group`] synced is handed out by every later [`Journal::open`] until it is released,
//!   or is reported as damage: never silently gone.
//! * Blocks are numbered 1, 2, 3 … over the life of the journal; no sequence is used twice. Torn ones leave a hole,
//!   which the `absent` file records.
//! * Only the last segment may hold blocks that no fsync covered.
//! * Files never exceed the cap, and every block that holds a reservation fits.
//! * The first error of writing or syncing blocks is final; [`fault`] has the others.
//!
//! Absent on purpose: the thread that drains the rings and sends acks; what a payload means (only [`inspect`](mod@inspect)
//! looks, to count events); compression; repair (damage is told and kept, a person decides); noticing that somebody
//! deleted the *newest* segments by hand, of which nothing on disk would tell.

pub mod damage;
pub mod fault;
pub mod frame;
pub mod health;
pub mod inspect;
pub mod reader;
pub mod recovery;
pub mod segment;
pub mod set_aside;
pub mod space;
pub mod storage;
pub mod writer;

mod absent;
mod aligned;
mod append;
mod disk;
mod outstanding;
mod relocation;
mod segments;
mod survey;

pub use damage::{Damage, DamageKind, TornTail};
pub use disk::DiskStorage;
pub use fault::{Failure, Operation, Refusal, WriteError};
pub use health::JournalHealth;
pub use inspect::{Report, inspect, inspect_telling};
pub use reader::{JournalReader, ReadError};
pub use recovery::{OpenError, Recovery};
pub use relocation::{Occasion, Pinned};
pub use set_aside::set_aside;
pub use space::{Claim, JournalSpace, JournalStats, SpaceError};
pub use writer::{FrameToWrite, Journal, Reclaimed, Releaser};

use crate::types::Sequence;

/// Where a block is. Small and `Copy`: lanes keep it in place of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// Id of its segment.
    pub segment: u64,
    /// Where its frame begins in the segment's file.
    pub offset: u64,
    /// Length of its payload.
    pub payload_bytes: u32,
    /// Its number.
    pub sequence: Sequence,
}

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// This node, recorded in segment headers.
    pub node_id: String,
    /// Cap on the bytes of all files in the directory.
    pub bytes_max: u64,
    /// Length of a segment; a block that does not fit gets a longer one to itself.
    pub segment_bytes: u64,
}

impl JournalOptions {
    /// Options for a cap of `bytes_max`, with the segment size that suits it.
    pub fn new(node_id: impl Into<String>, bytes_max: u64) -> Self {
        Self { node_id: node_id.into(), bytes_max, segment_bytes: crate::limits::segment_bytes(bytes_max) }
    }
}

/// Takes a recovered block: its location and its payload, which is verified. An error ends the opening.
pub type OnFrame<'a> = dyn FnMut(Location, &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Is told how many bytes are read, and of how many; once reading has begun, `of` may grow, but it stays above what is
/// read until all of it is.
pub type OnRead<'a> = dyn FnMut(u64, u64) + 'a;
