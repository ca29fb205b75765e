//! PostgreSQL: the only station that speaks SQL.
//!
//! [`connect`] and [`tls`] turn a URL into connections, [`pool`] keeps them with their statements, [`watch`] closes those
//! that are dead and do not look it; [`health`] is the verdict on PostgreSQL as a whole. [`land`] lands
//! batches exactly once ([`ledger`], [`copy`], [`stage`], [`quarantine`] are its parts), [`wal`] knows which commits a crash
//! can take back, and [`sqlstate`] decides
//! what an error means. [`migrate`], [`partitions`] and [`dead_letter`] look after the tables, [`clock`] says what is old; [`embedded`] is a
//! PostgreSQL of ingestd's own.
//!
//! Invariant: everything that lands is written in the transaction that writes its ledger row.

pub mod citus;
pub mod clock;
pub mod connect;
pub mod copy;
pub mod dead_letter;
pub mod embedded;
pub mod health;
pub mod land;
pub mod ledger;
pub mod migrate;
pub mod month;
pub mod partitions;
pub mod pool;
pub mod quarantine;
pub mod sqlstate;
pub mod stage;
pub mod tls;
pub mod wal;
pub mod watch;
