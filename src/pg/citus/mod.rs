//! The tables spread over a Citus cluster (`SHARDING=citus`): PostgreSQL's own tables, by PostgreSQL's own protocol, with
//! one column more. [`layout`] makes and recognises them, [`cluster`] tells how coordinator and workers are.
//!
//! What else is different there stands where it is done: COPY in [`crate::pg::copy`], the statements of ledger, stage and
//! dead letters beside their plain forms, the meaning of errors in [`crate::pg::sqlstate`], partitions in
//! [`crate::pg::partitions`], waiting in [`crate::pg::watch`].
//!
//! Facts that this rests on were measured with Citus 14.0.1 on PostgreSQL 18: a table may be partitioned and distributed;
//! a two-phase COMMIT leaves neither half batches nor duplicates when workers or coordinator are killed; the coordinator
//! reports what a worker said to a COPY as XX000; `lock_timeout` does not end a wait for a worker, `statement_timeout`
//! does.
//!
//! Absent on purpose: moving shards, adding workers, anything that Citus's own functions do.

pub mod cluster;
pub mod layout;
