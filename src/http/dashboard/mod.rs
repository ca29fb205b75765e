//! `GET /`: a live page for people, and what it shows.
//!
//! | path | answers |
//! |---|---|
//! | `/` and `/assets/…` | the page's files, from the binary; without a key, as they tell nothing |
//! | `/dashboard/data` | what the page shows, as JSON; to keys with the scope `metrics` |
//!
//! The page asks for its data once a second. Its look-back is [`crate::metrics::history`], so that who opens it during an
//! incident sees how it began; what is wrong is said in words by [`concerns`], from the figures that are answered beside
//! it.
//!
//! # Absent on purpose
//! A stable form: `/dashboard/data` changes with the page and is not in the OpenAPI document. Scripts read `/v1/metrics`
//! and `/v1/health`. Other nodes: each has a page of its own, Grafana shows all.

mod assets;
mod concerns;
mod data;

pub use assets::{get as asset, is_asset};
pub use data::get as data;
