//! `events` and everything below it, as the catalogue has it: partitions made by hand, with names of their own, and those
//! that are partitioned themselves.

use postgres::GenericClient;

use crate::pg::event_key::quoted;

/// `events`, a partition of it, or a partition of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pg) struct Table {
    pub(super) oid: u32,
    /// The table that it is a partition of; `None`: it is `events`.
    pub(super) parent: Option<u32>,
    pub(super) schema: String,
    pub(super) name: String,
    /// It holds rows itself.
    pub(super) is_leaf: bool,
    /// Of its rows, without indexes and large values.
    pub(super) bytes: i64,
    /// The constraint that is its primary key.
    pub(super) key: Option<String>,
}

impl Table {
    /// Its name in SQL.
    pub(super) fn sql(&self) -> String {
        self.beside(&self.name)
    }

    /// The name in SQL of an index of it.
    pub(super) fn beside(&self, name: &str) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(name))
    }
}

/// All of them, each behind the one that it is a partition of; the first is `events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pg) struct Tree(pub(super) Vec<Table>);

/// A partition that is being detached counts no more.
const READ: &str = "\
    WITH RECURSIVE tree AS ( \
        SELECT to_regclass('events')::oid AS oid, NULL::oid AS parent, 0 AS level \
        UNION ALL SELECT i.inhrelid, i.inhparent, t.level + 1 FROM pg_inherits i JOIN tree t ON i.inhparent = t.oid \
        WHERE NOT i.inhdetachpending) \
    SELECT t.oid, t.parent, n.nspname::text, c.relname::text, c.relkind <> 'p', \
           CASE WHEN c.relkind <> 'p' THEN coalesce(pg_relation_size(c.oid), 0) ELSE 0 END, \
           (SELECT k.conname::text FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p') \
    FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
    ORDER BY t.level, n.nspname, c.relname";

impl Tree {
    /// Waits for whoever has locked a partition, as the size of that is asked for.
    pub(super) fn read(client: &mut impl GenericClient) -> Result<Self, postgres::Error> {
        let rows = client.query_typed(READ, &[])?;
        let table = |row: &postgres::Row| Table {
            oid: row.get(0),
            parent: row.get(1),
            schema: row.get(2),
            name: row.get(3),
            is_leaf: row.get(4),
            bytes: row.get(5),
            key: row.get(6),
        };
        Ok(Self(rows.iter().map(table).collect()))
    }

    /// Those that hold rows.
    pub(super) fn leaves(&self) -> impl Iterator<Item = &Table> {
        self.0.iter().filter(|table| table.is_leaf)
    }

    /// All but `events`, each with the table that it is a partition of.
    pub(super) fn partitions(&self) -> impl Iterator<Item = (&Table, &Table)> {
        let parent = |table: &Table| self.0.iter().find(|above| Some(above.oid) == table.parent);
        self.0.iter().filter_map(move |table| Some((table, parent(table)?)))
    }

    /// `events` itself.
    pub(super) fn root(&self) -> Option<&Table> {
        self.0.first()
    }

    /// Of the rows of all.
    pub(super) fn bytes(&self) -> i64 {
        self.0.iter().map(|table| table.bytes).sum()
    }

    /// The statement that locks all of them.
    pub(super) fn lock(&self, mode: &str) -> String {
        let tables: Vec<String> = self.0.iter().map(|table| format!("ONLY {}", table.sql())).collect();
        format!("LOCK TABLE {} IN {mode} MODE", tables.join(", "))
    }
}

/// `events` with a partition that holds rows, and one that is partitioned again.
#[cfg(test)]
pub(super) fn example() -> Tree {
    let table = |oid, parent, name: &str, is_leaf| Table {
        oid,
        parent,
        schema: "public".to_owned(),
        name: name.to_owned(),
        is_leaf,
        bytes: if is_leaf { 8192 } else { 0 },
        key: Some(format!("{name}_pkey")),
    };
    Tree(vec![
        table(1, None, "events", false),
        table(2, Some(1), "events_2026_11", true),
        table(3, Some(1), "my \"year\"", false),
        table(4, Some(3), "its_half", true),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_parents_are_found() {
        let tree = example();
        assert!(tree.lock("SHARE").starts_with(
            r#"LOCK TABLE ONLY "public"."events", ONLY "public"."events_2026_11", ONLY "public"."my ""year""", ONLY"#
        ));
        let pairs: Vec<_> = tree.partitions().map(|(table, above)| (table.oid, above.oid)).collect();
        assert_eq!(pairs, [(2, 1), (3, 1), (4, 3)]);
        assert_eq!(tree.leaves().map(|table| table.oid).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(tree.bytes(), 2 * 8192);
    }
}
