-- The ledger: one row a batch, written in the transaction of its COPY. Its primary key is what makes a batch
-- arrive exactly once; body_digest tells a retry from another batch under the same id.
-- owner is the API key's id, '' without keys: each owner has its own batch ids.
CREATE TABLE IF NOT EXISTS ingest_batches (
    owner         text COLLATE "C" NOT NULL,
    batch_id      text COLLATE "C" NOT NULL,
    body_digest   bytea            NOT NULL,
    priority      smallint         NOT NULL,
    events        integer          NOT NULL,
    inserted      integer          NOT NULL,
    duplicates    integer          NOT NULL,
    dead_lettered integer          NOT NULL,
    received_at   timestamptz      NOT NULL,
    committed_at  timestamptz      NOT NULL DEFAULT clock_timestamp(),
    node          text COLLATE "C" NOT NULL,
    PRIMARY KEY (owner, batch_id)
);

-- For upkeep by age. The ledger grows in the order of committed_at, so a few kilobytes of BRIN do.
CREATE INDEX IF NOT EXISTS ingest_batches_committed_at_idx
    ON ingest_batches USING brin (committed_at);
