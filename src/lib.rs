//! ingestd takes batches of JSON events over HTTP and lands them, durably and exactly once, in
//! monthly-partitioned PostgreSQL tables by binary COPY.
//!
//! This page is the map. The modules stand in the order in which an event meets them.

pub mod config;
pub mod limits;
pub mod types;

pub mod cli;
pub mod encode;
pub mod journal;
pub mod json;
pub mod metrics;
pub mod pg;
pub mod sys;
