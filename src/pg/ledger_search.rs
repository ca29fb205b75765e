//! What the ledger has of batches that somebody asks for: from one PostgreSQL, or node by node from a Citus cluster, so that a
//! worker that is away leaves only the batches on it without an answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use postgres::{Client, GenericClient};

use super::citus::layout;
use super::ledger::{self, LedgerRow};
use super::sqlstate::Fault;
use super::wal;
use crate::limits::{LOOKUP_NODE_LIMITS, LOOKUP_NODE_REST};
use crate::sharding::{IngestShard, NodeGroup, Sharding};
use crate::types::BatchKey;

/// A batch that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Which one.
    pub key: &'a BatchKey,
    /// The answer will be a promise: its row has to be on PostgreSQL's disk.
    pub is_firm: bool,
}

/// What the ledger has.
#[derive(Debug, Default)]
pub struct Found {
    /// The rows of those that it has, in any order.
    pub rows: Vec<LedgerRow>,
    /// The batches that could be asked for: one without a row is not in the ledger.
    pub asked: HashSet<BatchKey>,
}

/// Finds `wanted` in one PostgreSQL.
///
/// # Errors
/// Nobody was asked.
pub fn find(client: &mut Client, wanted: &[Wanted<'_>]) -> Result<Found, Fault> {
    let keys: Vec<&BatchKey> = wanted.iter().map(|wanted| wanted.key).collect();
    let mut rows = ledger::find(client, Sharding::None, &keys)?;
    if has_firm(&rows, wanted) {
        // Both in one transaction, so that no crash is between them. A retry of what was committed is rare.
        let mut transaction = client.transaction()?;
        rows = find_firm(&mut transaction, Sharding::None, wanted)?;
        transaction.commit()?;
    }
    Ok(Found { rows, asked: keys.into_iter().cloned().collect() })
}

fn find_firm(
    client: &mut impl GenericClient,
    sharding: Sharding,
    wanted: &[Wanted<'_>],
) -> Result<Vec<LedgerRow>, Fault> {
    let keys: Vec<&BatchKey> = wanted.iter().map(|wanted| wanted.key).collect();
    let rows = ledger::find(client, sharding, &keys)?;
    if has_firm(&rows, wanted) {
        wal::flush(client)?;
    }
    Ok(rows)
}

fn has_firm(rows: &[LedgerRow], wanted: &[Wanted<'_>]) -> bool {
    let firm: HashSet<&BatchKey> = wanted.iter().filter(|wanted| wanted.is_firm).map(|wanted| wanted.key).collect();
    rows.iter().any(|row| firm.contains(&row.key))
}

/// The nodes of a Citus cluster that did not answer lately: they are not asked for a while, as each may take its time not to.
#[derive(Debug, Default)]
pub struct Nodes {
    silent_until: HashMap<NodeGroup, Instant>,
}

impl Nodes {
    /// Finds `wanted` in a Citus cluster, one query for each node that has some of them.
    ///
    /// # Errors
    /// The coordinator could not be asked, or no session is left to ask over.
    pub fn find(&mut self, client: &mut Client, wanted: &[Wanted<'_>], now: Instant) -> Result<Found, Fault> {
        let shards = layout::shard_map(client)?;
        let mut by_node: BTreeMap<NodeGroup, Vec<Wanted<'_>>> = BTreeMap::new();
        for &wanted in wanted {
            let node = shards.node_of(shards.shard_of(IngestShard::of(&wanted.key.id)));
            by_node.entry(node).or_default().push(wanted);
        }
        self.silent_until.retain(|_, until| *until > now);
        by_node.retain(|node, _| !self.silent_until.contains_key(node));
        let mut found = Found::default();
        for (node, wanted) in by_node {
            match find_on_node(client, &wanted) {
                Ok(rows) => {
                    found.rows.extend(rows);
                    found.asked.extend(wanted.iter().map(|wanted| wanted.key.clone()));
                }
                Err(fault) if client.is_closed() => return Err(fault),
                Err(fault) => {
                    tracing::debug!(%fault, node = node.0, "ledger lookup failed on one node");
                    self.silent_until.insert(node, Instant::now() + LOOKUP_NODE_REST);
                }
            }
        }
        Ok(found)
    }
}

fn find_on_node(client: &mut Client, wanted: &[Wanted<'_>]) -> Result<Vec<LedgerRow>, Fault> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(LOOKUP_NODE_LIMITS)?;
    let rows = find_firm(&mut transaction, Sharding::Citus, wanted)?;
    transaction.commit()?;
    Ok(rows)
}
