//! Batches whose transactions have committed, but not yet to PostgreSQL's disk (`SYNCHRONOUS_COMMIT=off`), or not for certain
//! to its synchronous standby, as somebody has cancelled the wait for that.
//!
//! Nobody is told of them and the journal keeps them, until a later COMMIT has flushed. A flusher makes its last one do
//! that before it rests, so nothing here waits for PostgreSQL's own timers.

use std::time::Instant;

use crate::flush::queue::Waiting;
use crate::limits::UNFLUSHED_FOR_MAX;
use crate::pg::land::Landed;
use crate::pg::wal::Run;

/// A batch and what became of it.
pub(super) type Outcome = (Waiting, Landed);

/// One flusher's unflushed batches, in the order of their commits.
pub(super) struct Unflushed {
    bytes_max: u64,
    bytes: u64,
    commits: Vec<(Run, Vec<Outcome>)>,
    since: Option<Instant>,
}

/// What a flush has decided.
#[derive(Default)]
pub(super) struct Decided {
    /// On PostgreSQL's disk.
    pub flushed: Vec<Outcome>,
    /// PostgreSQL has crashed since: each is on its disk or nowhere. The ledger knows when they are sent again.
    pub doubtful: Vec<Waiting>,
}

impl Unflushed {
    /// Room for `bytes_max` bytes of rows; 0 where nothing may be unflushed.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, commits: Vec::new(), since: None }
    }

    pub fn is_empty(&self) -> bool {
        self.commits.is_empty()
    }

    /// True when a commit of `bytes` more may do without a flush.
    pub fn has_room(&self, bytes: u64, now: Instant) -> bool {
        self.bytes + bytes <= self.bytes_max && self.since.is_none_or(|since| now - since < UNFLUSHED_FOR_MAX)
    }

    /// Adds what a transaction committed in `run` of PostgreSQL.
    pub fn put(&mut self, run: Run, batches: Vec<Outcome>, now: Instant) {
        self.bytes += batches.iter().map(|(item, _)| item.bytes).sum::<u64>();
        self.since.get_or_insert(now);
        self.commits.push((run, batches));
    }

    /// Everything, now that `run` has flushed what it committed; `None`: nobody knows what became of it.
    pub fn decide(&mut self, run: Option<Run>) -> Decided {
        let mut decided = Decided::default();
        (self.bytes, self.since) = (0, None);
        for (committed_in, batches) in self.commits.drain(..) {
            if Some(committed_in) == run {
                decided.flushed.extend(batches);
            } else {
                decided.doubtful.extend(batches.into_iter().map(|(item, _)| item));
            }
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::flush::merge::Item;
    use crate::flush::queue::{Queued, Trouble};
    use crate::sharding::IngestShard;
    use crate::status::model::{Batch, Counts};
    use crate::types::{BatchKey, BodyDigest, Priority, UnixMicros};

    const BYTES: u64 = 100;

    fn run(number: u64) -> Run {
        Run::of_start(SystemTime::UNIX_EPOCH + Duration::from_secs(number))
    }

    fn outcome(id: &str) -> Outcome {
        let key = BatchKey { owner: Arc::from(""), id: id.into() };
        let priority = Priority::default();
        let now = Instant::now();
        let batch = Arc::new(Batch::new(key, BodyDigest::of(b"body"), priority, 1, UnixMicros(0)));
        let (block, location, on_commit) = (None, None, None);
        let value = Queued {
            batch,
            block,
            location,
            memory_bytes: 0,
            accepted_at: now,
            on_commit,
            trouble: Trouble::default(),
        };
        let item = Item { priority, rows: 1, bytes: BYTES, shard: IngestShard::default(), queued_at: now, value };
        (Box::new(item), Landed::Now(Counts::default()))
    }

    fn ids(decided: &Decided) -> (Vec<&str>, Vec<&str>) {
        (
            decided.flushed.iter().map(|(item, _)| &*item.value.batch.key.id).collect(),
            decided.doubtful.iter().map(|item| &*item.value.batch.key.id).collect(),
        )
    }

    #[test]
    fn only_commits_of_the_run_that_flushed_are_certain() {
        let mut unflushed = Unflushed::new(u64::MAX);
        let now = Instant::now();
        unflushed.put(run(1), vec![outcome("before the crash")], now);
        unflushed.put(run(2), vec![outcome("a"), outcome("b")], now);
        let decided = unflushed.decide(Some(run(2)));
        assert_eq!(ids(&decided), (vec!["a", "b"], vec!["before the crash"]));
        assert!(unflushed.is_empty());

        unflushed.put(run(2), vec![outcome("c")], now);
        assert_eq!(ids(&unflushed.decide(None)), (vec![], vec!["c"]));
    }

    #[test]
    fn what_is_unflushed_is_bounded_in_bytes_and_time() {
        let mut unflushed = Unflushed::new(3 * BYTES);
        let now = Instant::now();
        unflushed.put(run(1), vec![outcome("a"), outcome("b")], now);
        assert!(unflushed.has_room(BYTES, now));
        assert!(!unflushed.has_room(BYTES + 1, now));
        assert!(!unflushed.has_room(BYTES, now + UNFLUSHED_FOR_MAX));
        unflushed.decide(Some(run(1)));
        assert!(unflushed.has_room(3 * BYTES, now + UNFLUSHED_FOR_MAX), "it begins anew");
        assert!(!Unflushed::new(0).has_room(1, now), "SYNCHRONOUS_COMMIT=on");
    }
}
