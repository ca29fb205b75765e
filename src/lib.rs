//! ingestd takes batches of JSON events over HTTP and lands them, durably and exactly once, in
//! monthly-partitioned PostgreSQL tables by binary COPY.
//!
//! The map of the code is `docs/architecture.md`: files, threads, locks, invariants, and where a change goes. The path
//! of an event, by modules:
//!
//! ```text
//!  socket ─▶ http        one worker per core, pinned, reads the body
//!            auth        decides who sends, and whether they may
//!            json        validates the body and finds spans, copying nothing
//!            encode      writes binary COPY tuples into one block per batch
//!         ─▶ ring        hands the block to the journal thread
//!            server      has that thread (`group_commit`): one group, one fsync, then the ack
//!            journal     is what it writes
//!         ─▶ ring        has the lanes to the flushers
//!            flush       merges by priority and cuts COPYs
//!            pg          lands them with their ledger rows in one transaction
//!         ─▶ status, metrics, telemetry
//! ```
//!
//! Imports go down only (`docs/architecture.md#layers`; `tests/layers.rs` holds it):
//!
//! ```text
//!  0  types, limits, sharding, state_log, auth::rate, config
//!  1  sys, ring, metrics, auth
//!  2  json, encode, journal::frame, flush::{merge, group, cut, admission, culprit}, pg::sqlstate      (pure)
//!  3  journal, pg, status
//!  4  telemetry
//!  5  http, flush
//!  6  server
//!  7  cli, and above it main
//! ```
//!
//! Invariants that no station may break: an acknowledged batch is in the journal (or in PostgreSQL) until its
//! transaction has committed (with `ack=memory`, as far as no crash came before the journal's write); the ledger alone
//! decides whether a batch's events are copied; every queue is bounded. `docs/architecture.md#invariants` has all of
//! them, and the file that upholds each.
//!
//! Absent on purpose: a cluster protocol, a query interface, transformation of payloads.

pub mod config;
pub mod limits;
pub mod sharding;
pub mod state_log;
pub mod types;

pub mod auth;
pub mod encode;
pub mod flush;
pub mod http;
pub mod journal;
pub mod json;
pub mod metrics;
pub mod pg;
pub mod ring;
pub mod status;
pub mod sys;
pub mod telemetry;

pub mod cli;
pub mod server;
