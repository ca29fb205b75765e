//! The key of `events` becomes the identity of an event: service, type, time and id.
//!
//! ```text
//!  PRIMARY KEY ("timestamp", event_id)                        PRIMARY KEY (service_name, event_type, "timestamp", event_id)
//!  INDEX (service_name, event_type, "timestamp")     ──▶      (its beginning serves the same queries)
//! ```
//!
//! Rows that the older key kept apart are apart under the new one, so building it never fails for what rows hold. A node of
//! an older version goes on with the new key: it names no columns where it stores rows, and only stores more of them.
//!
//! On a Citus cluster an index can neither be attached nor made a constraint: `sql/citus/event_key.sql` is for a moment in
//! which nobody writes, and is run here where the tables are small.

use std::time::{Duration, Instant};

use postgres::{GenericClient, Transaction};

use super::build::{How, IndexSpec};
use super::tree::Table;
use super::{Held, Hold, OnlineError, Outcome, Patience, begin_calmly, hold, is_busy};
use crate::limits::LOCKED_BUILD_BYTES_MAX;
use crate::pg::citus::cluster::table_sizes;
use crate::pg::citus::layout::layout_of;
use crate::pg::connect::one_line;
use crate::pg::event_key::{EventKey, IDENTITY, quoted};
use crate::sharding::Sharding;

/// What it does on a Citus cluster.
const SHARDED: &str = include_str!("../../../sql/citus/event_key.sql");
/// What to do there with tables that are not small.
const SHARDED_ADVICE: &str = "run sql/citus/event_key.sql with psql --single-transaction while nothing is ingested";
/// The index that the key makes superfluous.
const SUPERFLUOUS: &str = "events_service_name_event_type_timestamp_idx";

/// What partitions need before the key is exchanged.
pub(in crate::pg) fn spec() -> IndexSpec {
    IndexSpec { suffix: "event_key", is_unique: true, definition: format!("btree ({})", columns()) }
}

fn columns() -> String {
    IDENTITY.map(quoted).join(", ")
}

/// Exchanges the key within `transaction`, which then commits, if partitions have what they need or are small. A key that is
/// neither the older one nor the identity is its owner's, and stays.
///
/// # Errors
/// Nothing was changed then: roll back.
pub(in crate::pg) fn exchange(transaction: &mut Transaction<'_>, patience: Patience) -> Result<Outcome, OnlineError> {
    if !is_older(transaction)? {
        return Ok(Outcome::Done(Duration::ZERO));
    }
    begin_calmly(transaction, patience)?;
    if layout_of(transaction)? == Sharding::Citus {
        return exchange_sharded(transaction, patience);
    }
    // Before anything is built or locked.
    let in_the_way = dependants(transaction)?;
    if !in_the_way.is_empty() {
        return Err(OnlineError::InTheWay(in_the_way));
    }
    let held = match hold(transaction, Some(&spec()), patience)? {
        Hold::Held(held) => held,
        Hold::Not(outcome) => return Ok(outcome),
    };
    // Another one may have done it while this one waited.
    if is_older(transaction)? {
        let statements = statements(&held).join("; ");
        transaction.batch_execute(&statements).map_err(failed)?;
    }
    Ok(Outcome::Done(held.since.elapsed()))
}

fn failed(error: postgres::Error) -> OnlineError {
    OnlineError::Failed { what: "exchanging the primary key of events".to_owned(), error }
}

/// True when the primary key is the older one.
fn is_older(client: &mut impl GenericClient) -> Result<bool, postgres::Error> {
    let primary = "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass('events') AND contype = 'p')";
    Ok(EventKey::of(client)?.is_older_identity() && client.query_typed_one(primary, &[])?.get(0))
}

/// Objects that need the key as it is: a foreign key, a view that groups by it, a replica identity.
fn dependants(client: &mut impl GenericClient) -> Result<Vec<String>, postgres::Error> {
    Ok(client.query_typed(DEPENDANTS, &[])?.iter().map(|row| row.get(0)).collect())
}

/// A foreign key depends on the index, also on those of partitions; a view on the constraint. What belongs to a foreign key
/// is told once.
const DEPENDANTS: &str = "\
    WITH RECURSIVE keys AS ( \
        SELECT oid, conindid FROM pg_constraint WHERE conrelid = to_regclass('events') AND contype = 'p' \
        UNION ALL SELECT c.oid, c.conindid FROM pg_constraint c JOIN keys k ON c.conparentid = k.oid) \
    SELECT DISTINCT CASE WHEN d.classid = 'pg_rewrite'::regclass \
                         THEN (SELECT 'view ' || ev_class::regclass::text FROM pg_rewrite WHERE oid = d.objid) \
                         ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END \
    FROM keys JOIN pg_depend d ON d.deptype = 'n' \
         AND (d.refclassid = 'pg_constraint'::regclass AND d.refobjid = keys.oid \
              OR d.refclassid = 'pg_class'::regclass AND d.refobjid = keys.conindid) \
    WHERE d.classid <> 'pg_constraint'::regclass \
       OR NOT EXISTS (SELECT FROM pg_constraint p WHERE p.oid = d.objid AND p.conparentid <> 0) \
    UNION SELECT 'the replica identity of table ' || i.indrelid::regclass::text \
    FROM keys JOIN pg_index i ON i.indexrelid = keys.conindid WHERE i.indisreplident \
    ORDER BY 1";

/// The exchange, statement by statement. Constraints keep their names.
fn statements(held: &Held) -> Vec<String> {
    let Held { tree, unready, .. } = held;
    let Some(root) = tree.root() else { return Vec::new() };
    let (spec, columns) = (spec(), columns());
    let mut statements = Vec::new();
    for table in unready {
        // What an interrupted run left.
        statements.push(format!("DROP INDEX IF EXISTS {}", table.beside(&spec.name_on(table))));
        statements.push(spec.sql(table, How::Locked));
    }
    statements.push(format!("ALTER TABLE {} DROP CONSTRAINT {}", root.sql(), quoted(&key_name(root))));
    let add = |table: &Table| {
        let key = quoted(&key_name(table));
        match table.is_leaf && table.parent.is_some() {
            true => format!(
                "ALTER TABLE {} ADD CONSTRAINT {key} PRIMARY KEY USING INDEX {}",
                table.sql(),
                quoted(&spec.name_on(table))
            ),
            false => format!("ALTER TABLE ONLY {} ADD CONSTRAINT {key} PRIMARY KEY ({columns})", table.sql()),
        }
    };
    statements.push(add(root));
    for (table, above) in tree.partitions() {
        statements.push(add(table));
        statements.push(format!(
            "ALTER INDEX {} ATTACH PARTITION {}",
            above.beside(&key_name(above)),
            table.beside(&key_name(table))
        ));
    }
    statements.push(format!("DROP INDEX IF EXISTS {}", root.beside(SUPERFLUOUS)));
    statements
}

fn key_name(table: &Table) -> String {
    table.key.clone().unwrap_or_else(|| spec().name_on(table))
}

/// Where the tables are spread over a cluster. Locks on workers have no limit of their own, so the statement has one.
fn exchange_sharded(transaction: &mut Transaction<'_>, patience: Patience) -> Result<Outcome, OnlineError> {
    let bytes: u64 = table_sizes(transaction)?.values().map(|(_, bytes)| bytes).sum();
    if bytes > LOCKED_BUILD_BYTES_MAX.unsigned_abs() {
        return Err(OnlineError::Sharded(SHARDED_ADVICE));
    }
    let since = Instant::now();
    let wait_ms = patience.lock.as_millis();
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {wait_ms}"))?;
    match transaction.batch_execute(SHARDED) {
        Ok(()) => Ok(Outcome::Done(since.elapsed())),
        Err(error) if is_busy(&error) => Ok(Outcome::Busy(one_line(&error))),
        Err(error) => Err(failed(error)),
    }
}

/// Where `events` still has the older key, what that means and what to do; `None` where it has not.
pub(in crate::pg) fn advice(client: &mut impl GenericClient) -> Result<Option<String>, postgres::Error> {
    if !is_older(client)? {
        return Ok(None);
    }
    let what = match layout_of(client)? {
        Sharding::None => "run 'ingestd migrate', while nodes run",
        Sharding::Citus => SHARDED_ADVICE,
    };
    Ok(Some(format!(
        "the primary key of events is still (\"timestamp\", event_id), so events of two services or types with the same time \
         and id count as one: {what}"
    )))
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Tree, example};
    use super::*;

    #[test]
    fn the_exchange_attaches_every_partition_and_keeps_names() {
        let tree = example();
        let unready = vec![tree.0[3].clone()];
        let held = Held { tree, unready, since: Instant::now() };
        let key = r#"("service_name", "event_type", "timestamp", "event_id")"#;
        assert_eq!(
            statements(&held),
            [
                r#"DROP INDEX IF EXISTS "public"."its_half_event_key""#.to_owned(),
                format!(r#"CREATE UNIQUE INDEX "its_half_event_key" ON ONLY "public"."its_half" USING btree {key}"#),
                r#"ALTER TABLE "public"."events" DROP CONSTRAINT "events_pkey""#.to_owned(),
                format!(r#"ALTER TABLE ONLY "public"."events" ADD CONSTRAINT "events_pkey" PRIMARY KEY {key}"#),
                r#"ALTER TABLE "public"."events_2026_11" ADD CONSTRAINT "events_2026_11_pkey" PRIMARY KEY USING INDEX "events_2026_11_event_key""#.to_owned(),
                r#"ALTER INDEX "public"."events_pkey" ATTACH PARTITION "public"."events_2026_11_pkey""#.to_owned(),
                format!(r#"ALTER TABLE ONLY "public"."my ""year""" ADD CONSTRAINT "my ""year""_pkey" PRIMARY KEY {key}"#),
                r#"ALTER INDEX "public"."events_pkey" ATTACH PARTITION "public"."my ""year""_pkey""#.to_owned(),
                r#"ALTER TABLE "public"."its_half" ADD CONSTRAINT "its_half_pkey" PRIMARY KEY USING INDEX "its_half_event_key""#.to_owned(),
                r#"ALTER INDEX "public"."my ""year""_pkey" ATTACH PARTITION "public"."its_half_pkey""#.to_owned(),
                r#"DROP INDEX IF EXISTS "public"."events_service_name_event_type_timestamp_idx""#.to_owned(),
            ]
        );
    }

    #[test]
    fn a_table_of_its_own_gets_the_key_at_once() {
        let tree = Tree(example().0.into_iter().take(1).collect());
        let held = Held { tree, unready: Vec::new(), since: Instant::now() };
        assert_eq!(statements(&held).len(), 3);
    }
}
