-- The key of events that an ingestd before this one distributed becomes the identity of an event. For tables with many rows,
-- run it while nothing is ingested (PostgreSQL builds the index meanwhile, and nobody can write); nodes may be up before and after:
--
--   psql "$MIGRATE_DATABASE_URL" --single-transaction -f sql/citus/event_key.sql
--
-- 'ingestd migrate' runs it itself where the tables are small, and notes afterwards that it is done.
ALTER TABLE events DROP CONSTRAINT events_pkey;
ALTER TABLE events ADD CONSTRAINT events_pkey
    PRIMARY KEY (service_name, event_type, "timestamp", event_id, ingest_shard);
DROP INDEX IF EXISTS events_service_name_event_type_timestamp_idx;
