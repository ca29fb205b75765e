//! What became of a batch: kept in process, shared over Redis where it is set, and kept for good in
//! PostgreSQL's ledger.
//!
//! [`memory`] holds every batch that is queued here and those finished lately; [`shared`] writes them to
//! Redis from one thread, never in the way of ingestion; [`lookup`] answers for batches that this process
//! does not know, from Redis and then from the ledger.
//!
//! [`waiters`] tells a request that waits for another request's batch of its end, [`durable`] one that waits for a sync of the
//! journal. [`origin`] is the request that a batch
//! came with; [`recent`] remembers the latest of them for the dashboard.
//!
//! Invariant: a batch is in [`memory`] from before it is offered to the journal until it is finished.
//! Absent on purpose: any decision about exactly-once. That is the ledger's alone.

pub mod durable;
pub mod lookup;
pub mod memory;
pub mod model;
pub mod origin;
pub mod recent;
pub mod shared;
pub mod waiters;
#[cfg(test)]
mod woken;
