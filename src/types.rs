//! The words of the product: identifiers and units that every station shares. No I/O.
//!
//! Index, count and bytes are `usize`/`u32`/`u64` where a name says which; what could be mixed up
//! (a priority, a sequence, an instant) is a type of its own.

use std::fmt;
use std::sync::Arc;

/// The highest priority; `0` is the lowest and the default (`docs/api.md#send-a-batch`).
pub const PRIORITY_MAX: u8 = 10;
/// How many priorities there are, and so how many lanes a core has.
pub const PRIORITY_COUNT: usize = PRIORITY_MAX as usize + 1;
/// Batches of this priority or above may use the reserved flusher (`docs/architecture.md#threads`).
pub const PRIORITY_RESERVED_MIN: Priority = Priority(8);

/// A batch's priority, `0..=10`, ten first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// Every priority, highest first.
    pub const ALL: [Self; PRIORITY_COUNT] = {
        let mut all = [Self(0); PRIORITY_COUNT];
        let mut lane = 0;
        while lane < PRIORITY_COUNT {
            all[lane] = Self(PRIORITY_MAX - lane as u8);
            lane += 1;
        }
        all
    };

    /// `None` when `value` is above [`PRIORITY_MAX`].
    pub const fn new(value: u8) -> Option<Self> {
        if value <= PRIORITY_MAX { Some(Self(value)) } else { None }
    }

    /// The number the client sent.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The lane of this priority, `0..PRIORITY_COUNT`.
    pub const fn lane(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Longest `batch_id`, in bytes (`docs/api.md#ids-and-retries`).
pub const BATCH_ID_BYTES_MAX: usize = 128;
/// Longest owner (an API key's id), in bytes; `""` means that the server runs without keys.
pub const OWNER_BYTES_MAX: usize = 64;

/// What a text must be to be a `batch_id`, for people.
pub const BATCH_ID_RULE: &str = "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -, and not '.' or '..'";
const _: () = assert!(BATCH_ID_BYTES_MAX == 128, "BATCH_ID_RULE names it");

/// True when `text` is a valid `batch_id`: 1–128 of `A–Z a–z 0–9 . _ : -`. Not `.` and `..`: clients and proxies remove such
/// segments from a path (RFC 3986, 5.2.4), so the batch would have no URL.
pub fn batch_id_is_valid(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    (1..=BATCH_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) && !matches!(text, "." | "..")
}

/// True when `text` may be an owner: an API key's id, or empty.
pub fn owner_is_valid(text: &str) -> bool {
    text.len() <= OWNER_BYTES_MAX && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A batch's identity: ids belong to their owner, so two owners may use the same `id`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchKey {
    /// The API key's id, `""` without keys.
    pub owner: Arc<str>,
    /// A valid batch id ([`batch_id_is_valid`]).
    pub id: Box<str>,
}

impl fmt::Display for BatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.owner.is_empty() { f.write_str(&self.id) } else { write!(f, "{}/{}", self.owner, self.id) }
    }
}

/// XXH3-128 of a request's decoded body: tells a retry (same digest) from a conflict. Ids are scoped to
/// their owner, so a collision can hurt only the one who made it; a cryptographic hash is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BodyDigest(pub [u8; 16]);

impl BodyDigest {
    /// The digest of `body`, the bytes after any content decoding.
    pub fn of(body: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(body).to_be_bytes())
    }
}

/// The digest of a body that comes in pieces: the same as [`BodyDigest::of`] of them all.
#[derive(Default)]
pub struct BodyDigester(xxhash_rust::xxh3::Xxh3Default);

impl BodyDigester {
    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of the pieces so far.
    pub fn digest(&self) -> BodyDigest {
        BodyDigest(self.0.digest128().to_be_bytes())
    }
}

/// A frame's number in the journal of one node: 1, 2, 3 … without gaps, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// Microseconds since 1970-01-01T00:00:00Z; negative before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMicros(pub i64);

/// When an ingest request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckLevel {
    /// Once the batch is queued: lost by a crash.
    Memory,
    /// Once an fsync made it survive power loss.
    Journal,
    /// Once PostgreSQL has committed it.
    Commit,
}

impl AckLevel {
    /// The level named `text`, exactly as in `docs/api.md#ack-levels`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "memory" => Some(Self::Memory),
            "journal" => Some(Self::Journal),
            "commit" => Some(Self::Commit),
            _ => None,
        }
    }

    /// The name of the level in requests and settings (`docs/api.md#ack-levels`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Journal => "journal",
            Self::Commit => "commit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_ids_follow_the_contract() {
        assert!(batch_id_is_valid("my_batch_001"));
        assert!(batch_id_is_valid("A.z:0-_"));
        assert!(batch_id_is_valid(&"x".repeat(128)));
        for bad in ["", "a b", "a/b", "ä", "a\n", &"x".repeat(129)] {
            assert!(!batch_id_is_valid(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_id_that_a_path_would_lose_is_none() {
        for (text, is_valid) in [(".", false), ("..", false), ("...", true), (".a", true), ("..-", true), (":", true)] {
            assert_eq!(batch_id_is_valid(text), is_valid, "{text:?}");
        }
    }

    #[test]
    fn owners_are_ids_of_keys_or_nobody() {
        for (text, is_valid) in
            [("", true), ("e215b5e1ee79", true), ("shop-1", true), ("Shop", false), ("a\0", false), ("a b", false)]
        {
            assert_eq!(owner_is_valid(text), is_valid, "{text:?}");
        }
        assert!(owner_is_valid(&"a".repeat(64)) && !owner_is_valid(&"a".repeat(65)));
    }

    #[test]
    fn a_digest_is_the_same_however_the_body_comes() {
        let body: Vec<u8> = (0..3000u32).flat_map(u32::to_le_bytes).collect();
        for bytes in [1, 7, 1024, 5000, 12_000] {
            let mut digester = BodyDigester::default();
            body.chunks(bytes).for_each(|piece| digester.update(piece));
            assert_eq!(digester.digest(), BodyDigest::of(&body));
        }
        assert_eq!(BodyDigester::default().digest(), BodyDigest::of(b""));
    }

    #[test]
    fn priorities_end_at_ten() {
        assert_eq!(Priority::new(10).map(Priority::get), Some(10));
        assert_eq!(Priority::new(11), None);
    }
}
