-- Spreads the tables over a Citus cluster (SHARDING=citus), in the transaction of `ingestd migrate`: after the migrations,
-- whether the tables are empty or not. What has rows is copied to the workers, and nobody reads or writes it meanwhile.
--
-- ingest_shard is a function of batch_id alone, so that a batch that is sent again meets its own ledger row. The same
-- function is IngestShard::of in src/sharding.rs. What follows a # in an id is the server's own, and belongs to the batch.
CREATE OR REPLACE FUNCTION ingestd_ingest_shard(batch_id text) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ('x' || encode(substring(sha256(convert_to(split_part(batch_id, '#', 1), 'UTF8')) FROM 1 FOR 4), 'hex'))::bit(32)::integer;

-- The distribution column is part of every key: uniqueness is each shard's own. It is filled by rewriting the tables, four
-- times faster than by UPDATE, and without dead rows.
ALTER TABLE events ADD COLUMN ingest_shard integer;
ALTER TABLE ingest_batches ADD COLUMN ingest_shard integer;
ALTER TABLE dead_letter_events ADD COLUMN ingest_shard integer;
ALTER TABLE events ALTER COLUMN ingest_shard TYPE integer USING ingestd_ingest_shard(batch_id);
ALTER TABLE ingest_batches ALTER COLUMN ingest_shard TYPE integer USING ingestd_ingest_shard(batch_id);
ALTER TABLE dead_letter_events ALTER COLUMN ingest_shard TYPE integer USING ingestd_ingest_shard(batch_id);

ALTER TABLE events DROP CONSTRAINT events_pkey,
    ADD PRIMARY KEY (service_name, event_type, "timestamp", event_id, ingest_shard);
-- Where the key has not been exchanged yet.
DROP INDEX IF EXISTS events_service_name_event_type_timestamp_idx;
ALTER TABLE ingest_batches DROP CONSTRAINT ingest_batches_pkey, ADD PRIMARY KEY (owner, batch_id, ingest_shard);
ALTER TABLE dead_letter_events DROP CONSTRAINT dead_letter_events_pkey, ADD PRIMARY KEY (id, ingest_shard);

SELECT create_distributed_table('events', 'ingest_shard', colocate_with => 'none');
SELECT create_distributed_table('ingest_batches', 'ingest_shard', colocate_with => 'events');
SELECT create_distributed_table('dead_letter_events', 'ingest_shard', colocate_with => 'events');
