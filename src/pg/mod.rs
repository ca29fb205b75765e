//! PostgreSQL: the only station that speaks SQL.
//!
//! [`connect`] and [`tls`] turn a URL into connections, [`backing`] knows whether a pooler lends them their backends and
//! [`capacity`] how many there can be; [`pool`] keeps them with their statements, [`watch`] closes those that are dead and do
//! not look it; [`health`] is the verdict on PostgreSQL as a whole. [`land`] lands
//! batches exactly once ([`ledger`], [`copy`], [`stage`], [`quarantine`] are its parts), [`wal`] knows which commits a crash
//! can take back, and [`sqlstate`] decides
//! what an error means. [`requirements`] is what a database and a role must have.
//! [`migrate`], [`online`], [`partitions`] and [`dead_letter`] look after the tables; [`event_key`] is what makes two events the same; [`citus`] spreads them over a cluster, [`clock`] says what is old; [`embedded`] is a
//! PostgreSQL of ingestd's own.
//!
//! Invariants:
//! * Everything that lands is written in the transaction that writes its ledger row.
//! * A session leaves nothing on its backend that outlives a transaction, unless it has that backend for itself: no named
//!   statement, no temporary table, no `SET` but `SET LOCAL`, no advisory lock but a transaction's, no LISTEN. So
//!   everything works behind PgBouncer in transaction mode.

pub mod backing;
pub mod capacity;
pub mod citus;
pub mod clock;
pub mod connect;
pub mod copy;
pub mod dead_letter;
pub mod embedded;
pub mod event_key;
pub mod health;
pub mod identity;
pub mod land;
pub mod ledger;
pub mod ledger_search;
pub mod locks;
pub mod migrate;
pub mod month;
pub mod online;
pub mod partitions;
pub mod pool;
pub mod quarantine;
pub mod requirements;
pub mod sqlstate;
pub mod stage;
pub mod time_limits;
pub mod tls;
pub mod wal;
pub mod watch;
