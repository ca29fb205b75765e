//! ingestd takes batches of JSON events over HTTP and lands them, durably and exactly once, in
//! monthly-partitioned PostgreSQL tables by binary COPY.
//!
//! This page is the map. The modules stand in the order in which an event meets them:
//!
//! ```text
//!  socket ─▶ http        one pinned worker a core reads the body
//!            auth        says who sends, and whether they may
//!            json        validates it and finds spans, copying nothing
//!            encode      writes binary COPY tuples into one block a batch
//!         ─▶ ring        hands the block to the journal thread
//!            journal     makes it durable; the ack goes out
//!         ─▶ flush       merges by priority and cuts COPYs
//!            pg          lands them with their ledger rows in one transaction
//!         ─▶ status, metrics, telemetry
//! ```
//!
//! Imports go down only: `types`, `limits`, `sharding`, `auth::rate` ← `sys`, `ring`, `metrics`, `auth` ← `json`, `encode`, `journal::frame`,
//! `flush::{merge, group, cut}`, `pg::sqlstate` (pure) ← `journal`, `pg`, `status` ← `telemetry` ← `http`, `flush::flusher` ←
//! `server`, `cli` ← `main`. A test holds this.
//!
//! Invariants that no station may break: an acknowledged batch is in the journal (or in PostgreSQL) until its
//! transaction has committed; the ledger alone decides whether a batch's events are copied; every queue is bounded.
//! Absent on purpose: a cluster protocol, a query interface, transformation of payloads.

pub mod config;
pub mod limits;
pub mod sharding;
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
