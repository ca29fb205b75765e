//! What a database and a role must have before batches can land, and the SQL that gives what is missing.
//!
//! ```text
//!  start, check-config --connect, migrate ──▶ lacks ──▶ exit code 2, a line for each
//!  start while the journal holds batches  ──▶ lacks ──▶ serves, degraded
//!  upkeep: after an outage, now and then  ──▶ lacks ──▶ a doubt in health
//! ```
//!
//! [`REQUIREMENTS`] is the table: each entry is a query of the catalogs that returns a row for each lack. They run as one
//! statement, which locks no table: it answers while a lock on `events` is held.
//!
//! Absent on purpose: rights that only chores and commands need (dropping partitions, forgetting ledger rows, replaying
//! dead letters). Administrators may withhold them.

use std::fmt;

use postgres::Client;
use postgres::error::SqlState;
use postgres::types::Type;

use super::migrate::{self, MigrateError, SCHEMA_VERSION};
use crate::encode::tuple::COPY_COLUMNS;

/// Something that the database or the role lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What is wrong.
    pub problem: String,
    /// What to do about it: SQL where there is some.
    pub remedy: String,
    /// Migrations must not run, or would fail.
    pub bars_migration: bool,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.problem, self.remedy)
    }
}

/// Everything that the database and the role lack; empty when batches can land.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacks(Vec<Lack>);

impl Lacks {
    /// A single one, which does not bar migrations.
    pub fn one(problem: String, remedy: &str) -> Self {
        Self(vec![Lack { problem, remedy: remedy.to_owned(), bars_migration: false }])
    }

    /// True when nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when migrations must not run, or would fail.
    pub fn bar_migration(&self) -> bool {
        self.0.iter().any(|lack| lack.bars_migration)
    }

    /// Those that bar migrations.
    pub fn of_migration(mut self) -> Self {
        self.0.retain(|lack| lack.bars_migration);
        self
    }

    /// A line for each.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// All in one line; `None` when nothing is missing.
    pub fn reason(&self) -> Option<String> {
        (!self.is_empty()).then(|| self.to_string())
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("; "))
    }
}

/// What `client`'s database and role lack. `has_owner`: another role migrates (`MIGRATE_DATABASE_URL`).
///
/// # Errors
/// A schema of a newer ingestd, whose requirements are unknown; a database that cannot be asked.
pub fn lacks(client: &mut Client, has_owner: bool) -> Result<Lacks, MigrateError> {
    let (version, refused) = match migrate::version(client) {
        Ok(version) => (version, None),
        Err(MigrateError::Postgres(error)) if is_of_schema(error.code()) => (SCHEMA_VERSION, Some(error)),
        Err(error) => return Err(error),
    };
    let rows = client.query_typed(&statement(), &[(&version, Type::INT4), (&has_owner, Type::BOOL)])?;
    let lack = |row: &postgres::Row| Lack { bars_migration: row.get(0), problem: row.get(1), remedy: row.get(2) };
    match (Lacks(rows.iter().map(lack).collect()), refused) {
        (lacks, Some(error)) if lacks.is_empty() => Err(error.into()),
        (lacks, _) => Ok(lacks),
    }
}

/// True for SQLSTATE class 42: a right, a column or a relation is not as the statement needs it.
pub fn is_of_schema(state: Option<&SqlState>) -> bool {
    state.is_some_and(|state| state.code().starts_with("42"))
}

fn statement() -> String {
    let queries: Vec<String> = REQUIREMENTS
        .iter()
        .enumerate()
        .map(|(rank, Requirement { bars_migration, query })| {
            format!("SELECT {rank} AS rank, {bars_migration} AS bars_migration, lack.* FROM ({query}) AS lack (problem, remedy)")
        })
        .collect();
    let facts = FACTS.replace("@copied@", &COPY_COLUMNS.replace(['"', ' '], ""));
    format!(
        "{facts} SELECT bars_migration, problem, remedy FROM ({}) AS lacks ORDER BY rank, problem",
        queries.join(" UNION ALL ")
    )
}

/// What the queries of [`REQUIREMENTS`] look at. `$1` is the schema's version, `$2` whether another role migrates.
///
/// * `here`: role and database, quoted; the schema in which tables are created, NULL without any.
/// * `needs`: columns and the right to each; `@copied@` stands for [`COPY_COLUMNS`]. A column that a later migration than
///   the table's own adds must not be needed before: a schema that is to be migrated has none. `ingest_shard` counts only
///   where it exists (Citus).
/// * `found`: relations that have the tables' names. One in another schema is passed over before its migration, as
///   CREATE TABLE passes it over.
/// * `alien`: those that are not ingestd's, and why; `own`: the others.
const FACTS: &str = r#"
WITH here AS (
    SELECT quote_ident(current_user) AS role, quote_ident(current_database()) AS database, current_schema() AS home
), tables (name, since) AS (
    VALUES ('ingestd_migrations', 1), ('events', 1), ('ingest_batches', 2), ('dead_letter_events', 3)
), needs (name, privilege, shown, columns) AS (
    VALUES ('ingestd_migrations', 'SELECT', 'SELECT', '{version,name,applied_at}'::text[]),
           ('events', 'INSERT', 'INSERT', '{@copied@,ingest_shard}'),
           ('events', 'SELECT', 'SELECT', '{@copied@,ingest_shard}'),
           ('ingest_batches', 'INSERT', 'INSERT',
            '{owner,batch_id,body_digest,priority,events,inserted,duplicates,dead_lettered,received_at,node,ingest_shard}'),
           ('ingest_batches', 'SELECT', 'SELECT',
            '{owner,batch_id,body_digest,priority,events,inserted,duplicates,dead_lettered,received_at,committed_at,node}'),
           ('ingest_batches', 'UPDATE', 'UPDATE (inserted, duplicates, dead_lettered)', '{inserted,duplicates,dead_lettered}'),
           ('dead_letter_events', 'INSERT', 'INSERT',
            '{owner,batch_id,priority,event_id,timestamp,event,sqlstate,message,received_at,node,ingest_shard}')
), found AS (
    SELECT t.name, c.oid, c.relkind, c.relowner, c.relnamespace, format('%I.%I', n.nspname, c.relname) AS shown,
           CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                          WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' WHEN 'c' THEN 'type'
                          ELSE 'table' END AS kind
    FROM tables t JOIN pg_class c ON c.oid = to_regclass(t.name) JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE $1 >= t.since OR n.nspname = current_schema()
), missing AS (
    SELECT f.oid, string_agg(DISTINCT needed, ', ') AS columns
    FROM found f JOIN needs USING (name) CROSS JOIN unnest(needs.columns) AS needed
    WHERE needed <> 'ingest_shard'
      AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = f.oid AND a.attname = needed AND NOT a.attisdropped)
    GROUP BY f.oid
), alien AS (
    SELECT f.oid, f.kind, f.shown, CASE
        WHEN f.relkind NOT IN ('r', 'p') THEN 'a table must have that name'
        WHEN m.columns IS NOT NULL THEN format('it lacks the columns %s', m.columns)
        WHEN f.name = 'events' AND NOT EXISTS (
            SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
            WHERE p.partrelid = f.oid AND p.partstrat = 'r' AND p.partnatts = 1 AND a.attname = 'timestamp')
            THEN 'it is not partitioned by RANGE ("timestamp")'
        WHEN f.name = 'ingest_batches' AND NOT EXISTS (
            SELECT FROM pg_index i
            WHERE i.indrelid = f.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
              AND (SELECT array_agg(a.attname::text) FROM pg_attribute a
                   WHERE a.attrelid = f.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                  <@ '{owner,batch_id,ingest_shard}'::text[])
            THEN 'it has no unique key of (owner, batch_id)'
        END AS why
    FROM found f LEFT JOIN missing m USING (oid)
), own AS (
    SELECT f.* FROM found f JOIN alien a USING (oid) WHERE a.why IS NULL
)"#;

struct Requirement {
    bars_migration: bool,
    /// Gives (problem, remedy) for each lack.
    query: &'static str,
}

const REQUIREMENTS: &[Requirement] = &[
    // Text in another encoding cannot be written; neither can the dead letter that would tell of it.
    Requirement {
        bars_migration: true,
        query: "
            SELECT format('database %s has the encoding %s, but ingestd requires UTF8', database, current_setting('server_encoding')),
                   format('CREATE DATABASE %I ENCODING ''UTF8'' LOCALE ''C'' TEMPLATE template0, and name it in DATABASE_URL',
                          current_database() || '_utf8')
            FROM here WHERE current_setting('server_encoding') <> 'UTF8'",
    },
    Requirement {
        bars_migration: true,
        query: "
            SELECT format('role %s may use no schema of its search_path (%s)', role, current_setting('search_path')),
                   format('GRANT USAGE ON SCHEMA public TO %s, or correct its search_path', role)
            FROM here WHERE home IS NULL",
    },
    Requirement {
        bars_migration: true,
        query: "
            SELECT format('role %s may not create tables in schema %I', role, home),
                   format('GRANT CREATE ON SCHEMA %I TO %s, or run ''ingestd migrate'' with a role that owns the tables, or '
                          'set MIGRATE_DATABASE_URL', home, role)
            FROM here WHERE $1 = 0 AND NOT $2 AND NOT has_schema_privilege(home::text, 'CREATE')",
    },
    Requirement {
        bars_migration: true,
        query: "
            SELECT format('%s %s is not a table of ingestd: %s', kind, shown, why),
                   format('rename it, or give ingestd a separate schema: CREATE SCHEMA ingestd AUTHORIZATION %s; '
                          'ALTER ROLE %s IN DATABASE %s SET search_path = ingestd', role, role, database)
            FROM alien CROSS JOIN here WHERE why IS NOT NULL",
    },
    // The way of events that may be duplicates.
    Requirement {
        bars_migration: false,
        query: "
            SELECT format('role %s may not create temporary tables in database %s, through which duplicate events go', role, database),
                   format('GRANT TEMPORARY ON DATABASE %s TO %s', database, role)
            FROM here WHERE NOT has_database_privilege(current_database(), 'TEMPORARY')",
    },
    Requirement {
        bars_migration: false,
        query: "
            SELECT format('role %s lacks %s on table %s', role, lacked, shown),
                   format('GRANT %s ON %s TO %s, or run sql/roles/least_privilege.sql', lacked, shown, role)
            FROM here CROSS JOIN (
                SELECT own.shown, string_agg(needs.shown, ', ') AS lacked FROM own JOIN needs USING (name)
                WHERE EXISTS (SELECT FROM pg_attribute a
                              WHERE a.attrelid = own.oid AND a.attname = ANY (needs.columns) AND NOT a.attisdropped
                                AND NOT has_column_privilege(own.oid, a.attnum, needs.privilege))
                GROUP BY own.shown) AS rights",
    },
    // COPY is rejected whatever the policies say (0A000). Elsewhere policies may let all rows through; none lets none.
    Requirement {
        bars_migration: false,
        query: "
            SELECT format('row security applies to role %s on table %s, and %s', role, shown,
                          CASE name WHEN 'events' THEN 'COPY is rejected' ELSE 'no policy permits a row' END),
                   CASE WHEN pg_has_role(relowner, 'USAGE') THEN format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', shown)
                        ELSE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY, or ALTER ROLE %s BYPASSRLS', shown, role) END
            FROM own CROSS JOIN here
            WHERE row_security_active(own.oid)
              AND (name = 'events' OR NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = own.oid AND polpermissive))",
    },
    // Partitions of an owner: see `pg::partitions`.
    Requirement {
        bars_migration: false,
        query: "
            SELECT format('role %s may not create partitions: it owns %s, but may not create tables in schema %I', role, shown, home),
                   format('GRANT CREATE ON SCHEMA %I TO %s', home, role)
            FROM own CROSS JOIN here
            WHERE name = 'events' AND $1 > 0 AND pg_has_role(relowner, 'USAGE') AND NOT has_schema_privilege(home::text, 'CREATE')",
    },
    // Partitions of any other role. The function runs with the rights of its owner. It is of migration 4.
    Requirement {
        bars_migration: false,
        query: "
            SELECT format('role %s may not create partitions: it does not own %s, and %s', role, shown, why), remedy
            FROM here CROSS JOIN (
                SELECT own.shown, CASE
                    WHEN p.oid IS NULL THEN 'function ingestd_make_partition(integer, integer) is missing'
                    WHEN NOT has_function_privilege(p.oid, 'EXECUTE') THEN format('may not execute %s', p.oid::regprocedure)
                    WHEN NOT pg_has_role(p.proowner, own.relowner, 'USAGE')
                        THEN format('neither does the owner of %s', p.oid::regprocedure)
                    WHEN NOT has_schema_privilege(p.proowner, own.relnamespace, 'CREATE')
                        THEN format('%s runs as %s, which may not create tables in schema %s', p.oid::regprocedure,
                                    p.proowner::regrole, own.relnamespace::regnamespace)
                    END AS why, CASE
                    WHEN p.oid IS NULL THEN format('ALTER TABLE %s OWNER TO %s, or run sql/0004_partition_functions.sql as its '
                                                   'owner', own.shown, quote_ident(current_user))
                    WHEN NOT has_function_privilege(p.oid, 'EXECUTE')
                        THEN format('GRANT EXECUTE ON FUNCTION %s TO %s', p.oid::regprocedure, quote_ident(current_user))
                    WHEN NOT pg_has_role(p.proowner, own.relowner, 'USAGE')
                        THEN format('ALTER FUNCTION %s OWNER TO %s', p.oid::regprocedure, own.relowner::regrole)
                    ELSE format('GRANT CREATE ON SCHEMA %s TO %s', own.relnamespace::regnamespace, p.proowner::regrole)
                    END AS remedy
                FROM own LEFT JOIN pg_proc p ON p.oid = to_regprocedure('ingestd_make_partition(integer,integer)')
                WHERE own.name = 'events' AND $1 >= 4 AND NOT pg_has_role(own.relowner, 'USAGE')) AS partitions
            WHERE why IS NOT NULL",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lacks_are_told_in_one_line_and_those_that_bar_migrations_are_told_apart() {
        let lack =
            |problem: &str, bars_migration| Lack { problem: problem.into(), remedy: "cure".into(), bars_migration };
        let lacks = Lacks(vec![lack("a", true), lack("b", false)]);
        assert_eq!(lacks.reason().as_deref(), Some("a: cure; b: cure"));
        assert_eq!(lacks.lines(), ["a: cure", "b: cure"]);
        assert!(lacks.bar_migration());
        assert_eq!(lacks.of_migration().lines(), ["a: cure"]);
        assert_eq!(Lacks::default().reason(), None);
    }
}
