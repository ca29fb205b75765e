-- A role that can do what a running server does, and nothing else. Not a migration: run it with psql, as the role that
-- migrates (or a superuser), after 'ingestd migrate'; and again after each later one, which may bring something new.
--
--   INGESTD_ROLE_PASSWORD=… psql "$MIGRATE_DATABASE_URL" -f sql/roles/least_privilege.sql
--
-- Variables (psql -v name=value):
--   role      the role, made if it is missing; ingestd_server by default
--   password  its password; without it that of the environment is taken, which 'ps' does not show
--   schema    where the tables are; public by default
--
-- Then DATABASE_URL names this role. MIGRATE_DATABASE_URL, with the owner, is for 'ingestd migrate'; a server does not
-- need it while the schema is up to date.
--
-- The role may drop a whole partition, but only one that ended more than a month ago (PARTITION_RETENTION_MONTHS). Where
-- nothing is to be dropped, take that away:
--   REVOKE EXECUTE ON FUNCTION ingestd_drop_partition(regclass) FROM ingestd_server;
-- Likewise DELETE on ingest_batches, where LEDGER_RETENTION_DAYS is not set.
\set ON_ERROR_STOP on
\if :{?role}
\else
    \set role ingestd_server
\endif
\if :{?schema}
\else
    \set schema public
\endif
\if :{?password}
\else
    \getenv password INGESTD_ROLE_PASSWORD
\endif
\if :{?password}
\else
    DO $$ BEGIN RAISE EXCEPTION 'no password: set INGESTD_ROLE_PASSWORD, or give -v password=…'; END $$;
\endif

BEGIN;

SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN NOCREATEDB NOCREATEROLE PASSWORD :'password';

-- A role that can do more than is granted here is no such role: this refuses to pretend.
SELECT NOT (rolsuper OR rolreplication OR rolbypassrls)
       AND NOT EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid)
       AND NOT EXISTS (SELECT FROM pg_class WHERE relowner = pg_roles.oid AND relpersistence <> 't') AS is_plain
FROM pg_roles WHERE rolname = :'role' \gset
\if :is_plain
\else
    DO $$ BEGIN RAISE EXCEPTION 'the role is a superuser, member of another role, or owns tables: nothing was changed'; END $$;
\endif

GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO :"role";  -- duplicates are found by way of a temporary table
GRANT USAGE ON SCHEMA :"schema" TO :"role";
REVOKE ALL ON ALL TABLES IN SCHEMA :"schema" FROM :"role";
REVOKE ALL ON ALL SEQUENCES IN SCHEMA :"schema" FROM :"role";
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA :"schema" FROM :"role";

SET LOCAL search_path = :"schema";
GRANT SELECT ON ingestd_migrations TO :"role";
-- COPY; an INSERT that names the key (ON CONFLICT reads its columns); telling duplicates from rows that a trigger left out. Its
-- partitions need no grants.
GRANT SELECT, INSERT ON events TO :"role";
-- Claim a batch, correct its counts, forget it (LEDGER_RETENTION_DAYS).
GRANT SELECT, INSERT, DELETE, UPDATE (inserted, duplicates, dead_lettered) ON ingest_batches TO :"role";
-- Write dead letters, and replay them.
GRANT SELECT, INSERT, UPDATE (sqlstate, message, replayed_at) ON dead_letter_events TO :"role";
GRANT EXECUTE ON FUNCTION ingestd_make_partition(integer, integer), ingestd_drop_partition(regclass) TO :"role";

COMMIT;
