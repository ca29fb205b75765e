//! How many connections PostgreSQL has room for, against how many a node may open.

use postgres::Client;

use crate::config::settings::Key;

/// Connections of a node beside its pool: the watch asks about silent ones over one of its own.
const BESIDE_POOL: u32 = 1;

/// PostgreSQL's limits for one role in one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// `max_connections`.
    pub connections_max: u32,
    /// Those of it that are kept for others than this role.
    pub reserved: u32,
    /// What the role or the database may have, where that is limited.
    pub granted: Option<u32>,
}

impl Capacity {
    /// Reads it.
    pub fn read(client: &mut Client) -> Result<Self, postgres::Error> {
        // `reserved_connections` came with PostgreSQL 16, as did the role that may use them. -1 is no limit.
        let row = client.query_typed_one(
            "SELECT current_setting('max_connections')::int, \
                    CASE WHEN r.rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int END, \
                    CASE WHEN r.rolsuper OR EXISTS (SELECT FROM pg_roles u WHERE u.rolname = 'pg_use_reserved_connections' \
                                                    AND pg_has_role(r.oid, u.oid, 'USAGE')) THEN 0 \
                         ELSE coalesce(current_setting('reserved_connections', true)::int, 0) END, \
                    CASE WHEN r.rolsuper THEN NULL \
                         ELSE least(nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)) END \
             FROM pg_roles r, pg_database d WHERE r.rolname = session_user AND d.datname = current_database()",
            &[],
        )?;
        let count = |column: usize| row.get::<_, i32>(column).unsigned_abs();
        let granted = row.get::<_, Option<i32>>(3).map(i32::unsigned_abs);
        Ok(Self { connections_max: count(0), reserved: count(1) + count(2), granted })
    }

    /// Connections that the role can have when nobody else has any.
    pub fn available(&self) -> u32 {
        let unreserved = self.connections_max.saturating_sub(self.reserved);
        self.granted.map_or(unreserved, |granted| granted.min(unreserved))
    }

    /// How many nodes with pools of `pool_max` it has room for.
    pub fn nodes(&self, pool_max: u32) -> u32 {
        self.available() / (pool_max + BESIDE_POOL)
    }

    /// What to tell where a pool of `pool_max` does not fit.
    pub fn shortage(&self, pool_max: u32) -> Option<String> {
        let (needed, available) = (pool_max + BESIDE_POOL, self.available());
        if needed <= available {
            return None;
        }
        let limit = match self.granted {
            Some(granted) if granted == available => "the limit of this role or database".to_owned(),
            _ => format!("max_connections = {}, minus {} reserved", self.connections_max, self.reserved),
        };
        Some(format!(
            "this node may open {needed} connections ({}={pool_max}, plus one to watch them), but PostgreSQL has room \
             for {available} ({limit}), shared by all nodes: lower {0}, raise the limit, or use PgBouncer",
            Key::DbPoolMaxSize.name(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_fits_where_one_more_than_it_does() {
        let capacity = Capacity { connections_max: 24, reserved: 3, granted: None };
        assert_eq!((capacity.available(), capacity.shortage(20), capacity.nodes(20)), (21, None, 1));
        let told = capacity.shortage(21).expect("too many");
        assert!(
            told.contains("22 connections") && told.contains("room for 21 (max_connections = 24, minus 3"),
            "{told}"
        );
        let granted = Capacity { granted: Some(10), ..capacity };
        assert_eq!(granted.available(), 10);
        assert!(granted.shortage(10).is_some_and(|told| told.contains("limit of this role")));
        assert_eq!(Capacity { granted: Some(100), ..capacity }.available(), 21);
    }
}
