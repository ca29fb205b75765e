//! What follows from the settings: every queue, loop, retry and buffer has its limit here, by name.
//!
//! Settings as given live in [`crate::config`]; numbers that only the code needs live here, and
//! related ones are tied by `const` asserts.

use std::time::Duration;

/// One kibibyte.
pub const KIB: usize = 1024;
/// One mebibyte; settings in MB mean this.
pub const MIB: usize = 1024 * KIB;

// --- Events (contract) -------------------------------------------------------------------------

/// Longest `event_id`, in bytes after unescaping.
pub const EVENT_ID_BYTES_MAX: usize = 256;
/// Longest `service_name` and `event_type`, in bytes after unescaping.
pub const NAME_BYTES_MAX: usize = 128;
/// Deepest nesting of `payload` and `metadata`; the outermost object counts as one.
pub const JSON_DEPTH_MAX: usize = 128;
/// Most digits of one JSON number in `payload` and `metadata`.
pub const NUMBER_DIGITS_MAX: usize = 400;
/// Largest |exponent| of one JSON number in `payload` and `metadata`.
pub const NUMBER_EXPONENT_MAX: u32 = 400;
/// Most verdicts listed in a 422.
pub const ERRORS_LISTED_MAX: usize = 100;

// --- Journal -----------------------------------------------------------------------------------

/// Size of a journal segment; small caps use smaller ones, see [`segment_bytes`].
pub const SEGMENT_BYTES_MAX: u64 = 64 * MIB as u64;
/// Smallest segment.
pub const SEGMENT_BYTES_MIN: u64 = MIB as u64;
/// Share of the cap that one segment takes at most.
pub const SEGMENTS_PER_CAP: u64 = 16;
/// Bytes of frames written and synced as one group at most.
pub const JOURNAL_GROUP_BYTES_MAX: usize = 8 * MIB;
/// Frames of one group at most: the kernel takes 1024 slices per vectored write (`IOV_MAX`), two a frame.
pub const JOURNAL_GROUP_FRAMES_MAX: usize = 512;

/// Segment size for a journal capped at `journal_bytes_max`.
pub const fn segment_bytes(journal_bytes_max: u64) -> u64 {
    let share = journal_bytes_max / SEGMENTS_PER_CAP;
    if share > SEGMENT_BYTES_MAX {
        SEGMENT_BYTES_MAX
    } else if share < SEGMENT_BYTES_MIN {
        SEGMENT_BYTES_MIN
    } else {
        share
    }
}

const _: () = assert!(JOURNAL_GROUP_FRAMES_MAX * 2 <= 1024);
const _: () = assert!(SEGMENT_BYTES_MIN <= SEGMENT_BYTES_MAX);
const _: () = assert!(EVENT_ID_BYTES_MAX <= i32::MAX as usize && NAME_BYTES_MAX <= EVENT_ID_BYTES_MAX);

// --- Queues ------------------------------------------------------------------------------------

/// Batches in one core's ring at most; beyond it the request is answered 503.
pub const RING_BATCHES_MAX: usize = 1024;
/// Bytes in one core's ring at most.
pub const RING_BYTES_MAX: usize = 64 * MIB;
/// Batches queued over all lanes at most (each costs ~300 bytes of bookkeeping, also when its rows are on disk).
pub const QUEUE_BATCHES_MAX: usize = 1 << 20;

// --- Waiting -----------------------------------------------------------------------------------

/// How long `ack=commit` waits for PostgreSQL before it answers 202 (the batch is safe in the journal).
pub const COMMIT_ACK_WAIT_MAX: Duration = Duration::from_secs(30);
