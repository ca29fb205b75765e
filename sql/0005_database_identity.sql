-- Which database this is, for what several databases may share: keys in Redis begin with it. One row. A copy of the database has
-- the same id and another oid, so both are used (src/pg/identity.rs). It is no secret.
CREATE TABLE IF NOT EXISTS ingestd_database (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    id      uuid    NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO ingestd_database DEFAULT VALUES ON CONFLICT DO NOTHING;
GRANT SELECT ON ingestd_database TO PUBLIC;
