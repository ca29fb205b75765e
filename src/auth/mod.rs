//! Who may do what: API keys, their scopes, their rates.
//!
//! ```text
//!  keys.toml ─▶ file ─▶ keyring ─┐                 one snapshot, swapped as a whole on SIGHUP
//!                                ▼
//!  peer, headers ─────────────▶ gate ─▶ Caller     owner of batches, scopes, services, rates
//!                                └────▶ Denied     401, 403 or 429
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `scope` | what a key may do |
//! | `key` | one key, how a new one is made, how a token is taken apart |
//! | `file` | the file of keys: read, added to, taken from |
//! | `keyring` | the keys in force, found by token or client certificate |
//! | `rate` | token buckets for events and requests |
//! | `clients` | a bounded map by client address |
//! | `gate` | the decision |
//!
//! # Invariants
//! - Only hashes of keys are stored, and no token is ever logged.
//! - Nothing here takes a lock that another core can hold, and nothing blocks: a request costs one SHA-256 of its
//!   token and one comparison in constant time.
//! - Without a keyring everybody is the owner `""`, and rates count by address.
//!
//! # Absent on purpose
//! Users, roles, sessions, and tokens of other issuers: a service has a key, and whoever runs the server makes it.

pub mod clients;
pub mod file;
pub mod gate;
pub mod key;
pub mod keyring;
pub mod rate;
pub mod scope;
