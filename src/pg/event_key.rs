//! What makes two events the same one: the key of `events`, as the table has it at the moment.
//!
//! A table made by this version, or changed by `ingestd migrate`, has [`IDENTITY`]; an older one [`OLDER_IDENTITY`] until
//! then ([`super::online::event_key`]). So nobody assumes one of them: a session reads the key when it prepares its
//! statements, and PostgreSQL refuses an `ON CONFLICT` that does not fit any more
//! ([`Verdict::KeyChanged`](super::sqlstate::Verdict::KeyChanged)), after which it is read again.
//!
//! Invariant: only a row with the same key is a duplicate. A unique index of the user's own that refuses a row refuses
//! that row, with its reason.

use postgres::types::Type;
use postgres::{GenericClient, Row};

use super::sqlstate::Fault;
use super::stage::Identity;
use crate::encode::text::TEXT_COPY_COLUMNS;
use crate::sharding::Sharding;

/// An event's identity, in the order of the key's columns.
pub const IDENTITY: [&str; 4] = ["service_name", "event_type", "timestamp", "event_id"];
/// What it was in tables that an ingestd before this one made.
pub const OLDER_IDENTITY: [&str; 2] = ["timestamp", "event_id"];
/// Where the tables are spread over a Citus cluster, it is a column of every key.
pub const SHARD_COLUMN: &str = "ingest_shard";

/// The columns of the key of `events`; none where the table has no key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventKey {
    columns: Vec<String>,
}

/// Unique indexes that `ON CONFLICT` could name, the primary key first.
const KEYS: &str = "\
    SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.position) \
    FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (number, position) \
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number \
    WHERE i.indrelid = to_regclass('events') AND i.indisunique AND i.indimmediate AND i.indisvalid \
      AND i.indpred IS NULL AND i.indexprs IS NULL AND k.position <= i.indnkeyatts \
    GROUP BY i.indexrelid, i.indisprimary ORDER BY i.indisprimary DESC, i.indexrelid";

/// Columns of the index `$2` in the schema `$1`; no row where there is none.
const COLUMNS_OF_INDEX: &str = "\
    SELECT coalesce(array_agg(a.attname::text) FILTER (WHERE a.attname IS NOT NULL), '{}') \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_index i ON i.indexrelid = c.oid \
    CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (number, position) \
    LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number \
    WHERE n.nspname = $1 AND c.relname = $2 AND k.position <= i.indnkeyatts GROUP BY c.oid";

impl EventKey {
    /// The key of `events` in the database of `client`. Reads the catalogue only.
    pub fn of(client: &mut impl GenericClient) -> Result<Self, postgres::Error> {
        let rows = client.query_typed(KEYS, &[])?;
        let found = rows.iter().find_map(|row: &Row| {
            let (is_primary, key) = (row.get(0), Self { columns: row.get(1) });
            (is_primary || key.is_identity() || key.is_older_identity()).then_some(key)
        });
        Ok(found.unwrap_or_default())
    }

    /// The key's columns, in its order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// True for [`IDENTITY`].
    pub fn is_identity(&self) -> bool {
        self.has_exactly(&IDENTITY)
    }

    /// True for [`OLDER_IDENTITY`].
    pub fn is_older_identity(&self) -> bool {
        self.has_exactly(&OLDER_IDENTITY)
    }

    /// In any order, with or without [`SHARD_COLUMN`].
    fn has_exactly(&self, wanted: &[&str]) -> bool {
        let own = self.columns.iter().filter(|column| *column != SHARD_COLUMN);
        own.clone().count() == wanted.len() && own.clone().all(|column| wanted.contains(&&**column))
    }

    /// `ON CONFLICT (…) DO NOTHING` for an INSERT into `events`; nothing where the table has no key.
    pub fn on_conflict(&self) -> String {
        if self.columns.is_empty() {
            return String::new();
        }
        let columns: Vec<String> = self.columns.iter().map(|column| quoted(column)).collect();
        format!("ON CONFLICT ({}) DO NOTHING", columns.join(", "))
    }

    /// True for the rows `left` and `right` of a query that are the same event.
    pub fn equality(&self, left: &str, right: &str) -> String {
        let columns = self.compared();
        let equal = columns.iter().map(|column| format!("{left}.{column} = {right}.{column}", column = quoted(column)));
        equal.collect::<Vec<_>>().join(" AND ")
    }

    /// `event` without what the key does not tell apart.
    pub fn narrowed(&self, (service, kind, at, id): Identity) -> Identity {
        let kept = |column: &str, value: String| if self.has(column) { value } else { String::new() };
        (kept("service_name", service), kept("event_type", kind), at, kept("event_id", id))
    }

    fn has(&self, column: &str) -> bool {
        self.compared().contains(&column)
    }

    /// The columns by which a row that is to be stored is looked for: those of the key that COPYs fill. Without a key no row
    /// keeps another one out, so it can only be the batch's own.
    fn compared(&self) -> Vec<&str> {
        if self.columns.is_empty() {
            return IDENTITY.into_iter().chain(["batch_id"]).collect();
        }
        let filled = |column: &&str| TEXT_COPY_COLUMNS.split(", ").any(|copied| copied.trim_matches('"') == *column);
        self.columns.iter().map(String::as_str).filter(filled).collect()
    }
}

/// True when the unique index that `fault` names keeps apart what the key keeps apart: then the row is there by now, and
/// whoever tries again finds it.
///
/// An `ON CONFLICT` that names the key meets such an index only while `ingestd migrate` (or REINDEX CONCURRENTLY) builds it
/// beside the key: PostgreSQL documentation, INSERT. An index that is gone meanwhile was one of those. On a Citus cluster none is
/// built that way, and a worker does not name what it means.
pub fn is_violated(
    client: &mut impl GenericClient,
    sharding: Sharding,
    fault: &Fault,
) -> Result<bool, postgres::Error> {
    let (Sharding::None, Some(violated)) = (sharding, &fault.violated) else { return Ok(false) };
    let parameters = [(&violated.schema, Type::TEXT), (&violated.index, Type::TEXT)];
    let parameters = parameters.map(|(value, kind)| (value as &(dyn postgres::types::ToSql + Sync), kind));
    let Some(row) = client.query_typed_opt(COLUMNS_OF_INDEX, &parameters)? else { return Ok(true) };
    let (key, columns) = (EventKey::of(client)?, row.get::<_, Vec<String>>(0));
    Ok(!key.columns.is_empty() && key.columns.iter().all(|column| columns.contains(column)))
}

/// `name` as an identifier in SQL, whatever the session's settings are.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(columns: &[&str]) -> EventKey {
        EventKey { columns: columns.iter().map(|column| (*column).to_owned()).collect() }
    }

    #[test]
    fn an_identity_is_its_columns_in_any_order_and_on_any_shard() {
        assert!(key(&IDENTITY).is_identity() && !key(&IDENTITY).is_older_identity());
        assert!(key(&["event_id", "timestamp"]).is_older_identity());
        assert!(key(&["timestamp", "event_id", "ingest_shard"]).is_older_identity());
        for other in [&["event_id"][..], &["timestamp", "batch_id"], &["ingest_shard"], &[]] {
            assert!(!key(other).is_identity() && !key(other).is_older_identity(), "{other:?}");
        }
    }

    #[test]
    fn a_conflict_names_exactly_the_keys_columns() {
        assert_eq!(
            key(&IDENTITY).on_conflict(),
            r#"ON CONFLICT ("service_name", "event_type", "timestamp", "event_id") DO NOTHING"#
        );
        assert_eq!(key(&[]).on_conflict(), "", "without a key every refusal is a row's");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn rows_are_compared_by_what_they_are_filled_with() {
        assert_eq!(
            key(&["timestamp", "event_id", "tenant"]).equality("e", "s"),
            r#"e."timestamp" = s."timestamp" AND e."event_id" = s."event_id""#
        );
        assert!(key(&[]).equality("e", "s").ends_with(r#"e."batch_id" = s."batch_id""#));
        assert!(key(&IDENTITY).has("service_name") && !key(&OLDER_IDENTITY).has("service_name"));
    }
}
