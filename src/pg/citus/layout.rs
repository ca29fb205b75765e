//! Whether the tables are distributed, and how they come to be.

use postgres::error::SqlState;
use postgres::{Client, GenericClient, IsolationLevel};

use super::cluster::lacks;
use crate::limits::MIGRATE_LOCK_WAIT_MAX;
use crate::pg::connect::{Connector, StartFault, one_line};
use crate::pg::migrate::{ADVISORY_MIGRATE, lock};
use crate::sharding::{NodeGroup, ShardMap, Sharding};

const DISTRIBUTE: &str = include_str!("../../../sql/citus/distribute.sql");

/// Why the tables are not laid out as `SHARDING` says.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// They are distributed, and this node would not fill the distribution column.
    #[error("the tables are distributed over a Citus cluster: set SHARDING=citus on every node")]
    Distributed,
    /// They could not be distributed here.
    #[error("SHARDING=citus, but the tables cannot be distributed over this database: {}", .0.join("; "))]
    NotReady(Vec<String>),
    /// Another session holds a lock for long.
    #[error(
        "waited {} s for a lock held by another session while distributing the tables over the cluster; see \
         pg_stat_activity, then retry", MIGRATE_LOCK_WAIT_MAX.as_secs()
    )]
    LockTimeout,
    /// PostgreSQL refused; nothing was changed.
    #[error("could not distribute the tables over the cluster: {}", one_line(.0))]
    Failed(postgres::Error),
    /// The role that may change the tables cannot connect.
    #[error("{0}")]
    Connect(StartFault),
    /// The database could not be asked.
    #[error("{}", one_line(.0))]
    Postgres(#[from] postgres::Error),
}

/// How the tables are laid out in the database of `client`; [`Sharding::None`], too, where there are none yet.
pub fn layout_of(client: &mut impl GenericClient) -> Result<Sharding, postgres::Error> {
    let query =
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('events') AND attname = 'ingest_shard')";
    let distributed = client.query_typed_one(query, &[])?.get(0);
    Ok(if distributed { Sharding::Citus } else { Sharding::None })
}

/// Checks that the migrated tables are laid out as `wanted`, and spreads them over the cluster if they are not yet; true
/// when it did. Idempotent; safe to run from many nodes at once.
pub fn arrange(client: &mut Client, wanted: Sharding) -> Result<bool, LayoutError> {
    match (layout_of(client)?, wanted) {
        (Sharding::None, Sharding::None) | (Sharding::Citus, Sharding::Citus) => Ok(false),
        (Sharding::Citus, Sharding::None) => Err(LayoutError::Distributed),
        (Sharding::None, Sharding::Citus) => {
            let lacks = lacks(client, None)?;
            if !lacks.is_empty() {
                return Err(LayoutError::NotReady(lacks));
            }
            distribute(client)
        }
    }
}

/// As [`arrange`], over a connection of `owner` (`MIGRATE_DATABASE_URL`) where there is one; that is opened only when
/// `client`, of the role that serves, finds something to do.
pub fn arrange_by(client: &mut Client, owner: Option<&Connector>, wanted: Sharding) -> Result<bool, LayoutError> {
    let Some(owner) = owner else { return arrange(client, wanted) };
    if layout_of(client)? == wanted {
        return Ok(false);
    }
    arrange(&mut owner.connect().map_err(LayoutError::Connect)?, wanted)
}

/// In one transaction, under the lock of the migrations; false when another node came first.
fn distribute(client: &mut Client) -> Result<bool, LayoutError> {
    // Read committed whatever the database's default is: what is read after the wait must be fresh.
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    lock(&mut transaction, ADVISORY_MIGRATE, MIGRATE_LOCK_WAIT_MAX).map_err(failed)?;
    if layout_of(&mut transaction)? == Sharding::Citus {
        return Ok(false);
    }
    tracing::info!("distributing the tables over the Citus cluster; existing rows are copied to its workers");
    transaction.batch_execute(DISTRIBUTE).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(true)
}

fn failed(error: postgres::Error) -> LayoutError {
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => LayoutError::LockTimeout,
        _ => LayoutError::Failed(error),
    }
}

/// The shards of `events`, which those of the other tables follow.
pub fn shard_map(client: &mut impl GenericClient) -> Result<ShardMap, postgres::Error> {
    let query = "SELECT s.shardminvalue::int4, p.groupid FROM pg_dist_shard s JOIN pg_dist_placement p USING (shardid) \
                 WHERE s.logicalrelid = to_regclass('events')";
    let rows = client.query_typed(query, &[])?;
    Ok(ShardMap::from_starts(rows.iter().map(|row| (row.get(0), NodeGroup(row.get(1)))).collect()))
}
