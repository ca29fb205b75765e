-- Events that PostgreSQL refused, written in the transaction that committed the rest of their batch.
-- event is the event as JSON text, its payload verbatim: jsonb may be the very thing that refused it.
CREATE TABLE IF NOT EXISTS dead_letter_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner       text COLLATE "C" NOT NULL,
    batch_id    text COLLATE "C" NOT NULL,
    priority    smallint         NOT NULL,
    event_id    text COLLATE "C",
    "timestamp" timestamptz,
    event       text             NOT NULL,
    sqlstate    text COLLATE "C" NOT NULL,
    message     text             NOT NULL,
    received_at timestamptz,
    dead_at     timestamptz      NOT NULL DEFAULT now(),
    node        text COLLATE "C" NOT NULL,
    replayed_at timestamptz
);

-- What replay looks at, and nothing else.
CREATE INDEX IF NOT EXISTS dead_letter_events_waiting_idx
    ON dead_letter_events (id) WHERE replayed_at IS NULL;
