//! One index of one partition, under a name that is made from the partition's: so that a run finds what an earlier one built.

use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::types::Type;
use postgres::{Client, GenericClient};

use super::OnlineError;
use super::tree::{Table, Tree};
use crate::limits::INDEX_BUILDS_MAX;
use crate::pg::event_key::quoted;

/// PostgreSQL's NAMEDATALEN, without the zero at the end.
const NAME_BYTES_MAX: usize = 63;

/// What an index is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pg) struct IndexSpec {
    /// Ends its name.
    pub(super) suffix: &'static str,
    /// No two rows may be alike in it.
    pub(super) is_unique: bool,
    /// Method and columns, such as `btree ("timestamp")`, and what else there is.
    pub(super) definition: String,
}

impl IndexSpec {
    /// The name of the index on `table`, the same each time.
    pub(super) fn name_on(&self, table: &Table) -> String {
        let plain = format!("{}_{}", table.name, self.suffix);
        if plain.len() <= NAME_BYTES_MAX { plain } else { format!("events_{}_{}", table.oid, self.suffix) }
    }

    /// The statement that makes it on `table` and on nothing below.
    pub(super) fn sql(&self, table: &Table, how: How) -> String {
        let unique = if self.is_unique { "UNIQUE " } else { "" };
        let concurrently = if how == How::Concurrently { "CONCURRENTLY " } else { "" };
        let name = quoted(&self.name_on(table));
        format!("CREATE {unique}INDEX {concurrently}{name} ON ONLY {} USING {}", table.sql(), self.definition)
    }
}

/// How an index is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// While the table is locked anyway.
    Locked,
    /// While others write to it.
    Concurrently,
}

/// What has the name of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// It, whole.
    Whole,
    /// It, of a run that was interrupted.
    Unfinished,
    /// Something else.
    Foreign,
}

/// Builds the index of `spec` on `table` while others write to it; how long that took. It may be there.
pub(super) fn concurrently(client: &mut Client, spec: &IndexSpec, table: &Table) -> Result<Duration, OnlineError> {
    let began = Instant::now();
    let name = table.beside(&spec.name_on(table));
    let failed = |what: &str, error| OnlineError::Failed { what: format!("{what} {name}"), error };
    for _ in 0..INDEX_BUILDS_MAX {
        match found(client, spec, table)? {
            Found::Whole => return Ok(began.elapsed()),
            Found::Foreign => return Err(OnlineError::NameTaken { name: name.clone(), table: table.sql() }),
            Found::Unfinished => {
                let drop = client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS {name}"));
                drop.map_err(|error| failed("dropping the unfinished index", error))?;
            }
            Found::Nothing => {}
        }
        match client.batch_execute(&spec.sql(table, How::Concurrently)) {
            Ok(()) => {}
            // Another session came first, or was in the way.
            Err(error)
                if matches!(
                    error.code(),
                    Some(&SqlState::DUPLICATE_TABLE | &SqlState::T_R_DEADLOCK_DETECTED | &SqlState::UNIQUE_VIOLATION)
                ) => {}
            // The partition was dropped.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(began.elapsed()),
            Err(error) => return Err(failed("building the index", error)),
        }
    }
    match found(client, spec, table)? {
        Found::Whole => Ok(began.elapsed()),
        _ => {
            Err(OnlineError::Locked { attempts: INDEX_BUILDS_MAX, reason: format!("index {name} could not be built") })
        }
    }
}

const FIND: &str = "\
    SELECT coalesce(i.indrelid = $3::oid, false), coalesce(i.indisvalid AND i.indisready, false) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid \
    WHERE n.nspname = $1 AND c.relname = $2";

fn found(client: &mut Client, spec: &IndexSpec, table: &Table) -> Result<Found, postgres::Error> {
    let name = spec.name_on(table);
    let row =
        client.query_typed_opt(FIND, &[(&table.schema, Type::TEXT), (&name, Type::TEXT), (&table.oid, Type::OID)])?;
    Ok(match row.map(|row| (row.get(0), row.get(1))) {
        None => Found::Nothing,
        Some((true, true)) => Found::Whole,
        Some((true, false)) => Found::Unfinished,
        Some((false, _)) => Found::Foreign,
    })
}

/// Those that hold rows and have no whole index of `spec`.
pub(super) fn unready(
    client: &mut impl GenericClient,
    spec: &IndexSpec,
    tree: &Tree,
) -> Result<Vec<Table>, postgres::Error> {
    let leaves: Vec<u32> = tree.leaves().map(|table| table.oid).collect();
    let query = "SELECT i.indrelid, c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                 WHERE i.indrelid = ANY ($1) AND i.indisvalid AND i.indisready";
    let rows = client.query_typed(query, &[(&leaves, Type::OID_ARRAY)])?;
    let whole: Vec<(u32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let is_ready = |table: &Table| whole.contains(&(table.oid, spec.name_on(table)));
    Ok(tree.leaves().filter(|table| !is_ready(table)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::super::tree::example;
    use super::*;

    #[test]
    fn an_index_has_the_same_name_each_time_and_none_too_long() {
        let spec = IndexSpec { suffix: "event_key", is_unique: true, definition: "btree (a)".to_owned() };
        let mut table = example().0[1].clone();
        assert_eq!(
            spec.sql(&table, How::Concurrently),
            r#"CREATE UNIQUE INDEX CONCURRENTLY "events_2026_11_event_key" ON ONLY "public"."events_2026_11" USING btree (a)"#
        );
        table.name = "a".repeat(53);
        assert_eq!(spec.name_on(&table).len(), NAME_BYTES_MAX);
        table.name.push('a');
        assert_eq!(spec.name_on(&table), "events_2_event_key");
    }
}
