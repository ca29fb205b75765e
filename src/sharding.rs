//! Where a batch's rows go when the tables are spread over a Citus cluster (`SHARDING=citus`).
//!
//! ```text
//!  batch_id ─ SHA-256 ─▶ ingest_shard, the distribution column ─ hashint4 ─▶ range of hashes ─▶ shard, on one worker
//! ```
//!
//! All rows of a batch, its ledger row and its dead letters have the same `ingest_shard`: they are on one worker, and a
//! batch that is sent again meets its own ledger row. The first step is the product's own, and is the same in
//! `sql/citus/distribute.sql`; the others are Citus's, repeated here so that a COPY can be cut to touch a single shard.
//! Where they say something else than Citus does, COPYs touch several shards: slower, and right all the same.

use sha2::{Digest, Sha256};

/// How the tables are laid out (`SHARDING`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharding {
    /// In one PostgreSQL.
    #[default]
    None,
    /// Distributed over a Citus cluster by [`IngestShard`].
    Citus,
}

impl Sharding {
    /// What narrows a statement down to the rows of `shard`, to be put behind its WHERE clause.
    pub fn and_shard(self, shard: IngestShard) -> String {
        match self {
            Self::None => String::new(),
            Self::Citus => format!(" AND ingest_shard = {}", shard.0),
        }
    }
}

/// The value of the distribution column `ingest_shard`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IngestShard(pub i32);

impl IngestShard {
    /// The one of batch `batch_id`: the first four bytes of the SHA-256 of its bytes, the first of them the highest. What
    /// follows a `#`, which no client can send, is the server's own and does not count.
    pub fn of(batch_id: &str) -> Self {
        let sent = batch_id.split('#').next().unwrap_or_default();
        let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(sent));
        Self(i32::from_be_bytes([a, b, c, d]))
    }

    /// What Citus finds its shard by: PostgreSQL's `hashint4`, which is `hash_bytes_uint32` of `src/common/hashfn.c`.
    fn hash(self) -> i32 {
        let seed = 0x9e37_79b9_u32.wrapping_add(4).wrapping_add(3_923_095);
        let (mut a, mut b, mut c) = (seed.wrapping_add(self.0.cast_unsigned()), seed, seed);
        let step = |target: &mut u32, by: u32, bits: u32| *target = (*target ^ by).wrapping_sub(by.rotate_left(bits));
        step(&mut c, b, 14);
        step(&mut a, c, 11);
        step(&mut b, a, 25);
        step(&mut c, b, 16);
        step(&mut a, c, 4);
        step(&mut b, a, 14);
        step(&mut c, b, 24);
        c.cast_signed()
    }
}

/// Which node of the cluster a shard is on: Citus's `groupid`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeGroup(pub i32);

/// The shards of a table as ranges of hashes, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    /// Where each range but the first begins, ascending. Ranges have no gaps.
    boundaries: Vec<i32>,
    /// By shard.
    nodes: Vec<NodeGroup>,
}

impl Default for ShardMap {
    /// A single shard on a single node.
    fn default() -> Self {
        Self { boundaries: Vec::new(), nodes: vec![NodeGroup::default()] }
    }
}

impl ShardMap {
    /// The shards whose ranges begin at these hashes and that are on these nodes, in any order; [`Self::default`] when there
    /// is none.
    pub fn from_starts(mut shards: Vec<(i32, NodeGroup)>) -> Self {
        shards.sort_unstable();
        shards.dedup_by_key(|(start, _)| *start);
        if shards.is_empty() {
            return Self::default();
        }
        let boundaries = shards.iter().skip(1).map(|(start, _)| *start).collect();
        Self { boundaries, nodes: shards.into_iter().map(|(_, node)| node).collect() }
    }

    /// Shards, at least 1.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The number of the shard that holds `value`, below [`Self::count`].
    pub fn shard_of(&self, value: IngestShard) -> usize {
        if self.boundaries.is_empty() {
            return 0;
        }
        let hash = value.hash();
        self.boundaries.partition_point(|&start| start <= hash)
    }

    /// The node that shard number `shard` is on.
    pub fn node_of(&self, shard: usize) -> NodeGroup {
        self.nodes[shard]
    }

    /// Shards are on more than one node.
    pub fn has_several_nodes(&self) -> bool {
        self.nodes.iter().any(|node| *node != self.nodes[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_of_a_batch_never_changes() {
        // The SHA-256 of "abc" is FIPS 180-4's own example.
        assert_eq!(IngestShard::of("abc"), IngestShard(0xba78_16bf_u32.cast_signed()));
        assert_eq!(IngestShard::of("abc#conflict:00"), IngestShard::of("abc"));
    }

    #[test]
    fn ranges_are_found_at_their_edges() {
        let value = IngestShard::of("a batch");
        let hash = value.hash();
        let map = |starts: &[i32]| ShardMap::from_starts(starts.iter().map(|start| (*start, NodeGroup(1))).collect());
        let of = |starts: &[i32]| map(starts).shard_of(value);
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[i32::MIN]), 0);
        assert_eq!(of(&[hash, i32::MIN]), 1, "a range begins with its start");
        assert_eq!(of(&[hash + 1, i32::MIN]), 0);
        assert_eq!(of(&[i32::MIN, hash - 1, hash + 1]), 1);
        assert_eq!(map(&[i32::MIN, 0, 0]).count(), 2);
    }

    #[test]
    fn batches_spread_evenly_over_shards() {
        let step = 1_i64 << 27;
        let starts = (0..32).map(|shard| ((i64::from(i32::MIN) + shard * step) as i32, NodeGroup(1))).collect();
        let map = ShardMap::from_starts(starts);
        let mut batches = vec![0; map.count()];
        for number in 0..32_000 {
            batches[map.shard_of(IngestShard::of(&format!("batch-{number}")))] += 1;
        }
        // 1000 each; six standard deviations are 190.
        assert!(batches.iter().all(|count| (810..1190).contains(count)), "{batches:?}");
    }
}
