//! The time by which old data are dropped.

use postgres::GenericClient;

use crate::sys::clock::wall_now;
use crate::types::UnixMicros;

/// The earlier of this machine's clock and PostgreSQL's: what age makes expendable goes only when both say so. A node
/// whose clock has jumped ahead must not drop what its neighbours still need.
pub fn agreed_now(client: &mut impl GenericClient) -> Result<UnixMicros, postgres::Error> {
    let micros = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let theirs = UnixMicros(client.query_typed_one(micros, &[])?.get(0));
    Ok(theirs.min(wall_now()))
}
