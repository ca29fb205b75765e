//! What the server counts and times, and how it tells.
//!
//! Every station of the path counts here; `GET /v1/metrics` reads here. Imports nothing above
//! [`crate::types`], and knows no sockets.
//!
//! | file | holds |
//! |---|---|
//! | `labels` | the closed label sets |
//! | `cells` | counters and gauges, plain and labelled |
//! | `histogram` | latencies and sizes: one shard per recording thread, HDR layout |
//! | `throughput` | events a second over the last 1, 10 and 60 seconds |
//! | `registry` | [`Metrics`]: every metric, as a field |
//! | `history` | the last minutes, a sample a second, for the dashboard |
//! | `process` | CPU, memory, descriptors and disk I/O of this process |
//! | `export` | Prometheus text and OpenMetrics |
//! | `report` | the JSON form |
//!
//! # Invariants
//! - The set is closed: each metric is a field of [`Metrics`] and each label value comes from an enum or a table
//!   fixed at start-up, so no client can make a series.
//! - Nobody waits for a scrape: recording is a load and a store on the recorder's own cache lines, counting is one
//!   relaxed addition. A scrape only reads.
//! - All that is told to scrapers is since start, but [`report::Throughput`]. A rate or a quantile over another window
//!   is theirs to compute, from counters and buckets. [`history`] does that for people who look at one node.
//!
//! # Absent on purpose
//! Registration at run time, exemplars, native histograms, remote write, and metrics labelled by service, event type
//! or API key: a client could grow those without bound.

mod cells;
mod export;
mod histogram;
pub mod history;
mod labels;
mod process;
mod registry;
pub mod report;
mod throughput;

pub use cells::{Counter, Counters, Gauge, Gauges, NamedCounters, RequestCounters};
pub use export::{Format, NotAcceptable};
pub use histogram::{Histogram, Histograms, Merged, Recorder, Recorders, VALUE_MAX};
pub use labels::{
    AuthFailure, BatchOutcome, HttpStatus, Label, PoolState, Route, SqlstateClass, Statement, WorkerState,
};
pub use process::ProcessStats;
pub use registry::Metrics;
