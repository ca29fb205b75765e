//! Which database this is, so that deployments that share a Redis do not meet there.
//!
//! A migration gives each database a random id. What is restored from a copy has the same one and is another database, with an
//! oid of its own; a standby that was promoted has both from its primary, and goes on.

use postgres::Client;

use super::sqlstate::Fault;

/// The database of `client`, as `<uuid>-<oid>`; migrations have been applied.
pub fn read(client: &mut Client) -> Result<String, Fault> {
    let query = "SELECT id::text || '-' || (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 FROM ingestd_database";
    Ok(client.query_typed_one(query, &[])?.try_get(0)?)
}
