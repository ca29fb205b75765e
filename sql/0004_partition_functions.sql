-- What a server needs ownership of events for, as functions that run with the rights of whoever migrates: so its own role
-- can do without (sql/roles/least_privilege.sql). A role that owns events does not use them.
--
-- Nobody may call them until that is granted. Names are qualified and the search path is pinned, so that no object of the
-- caller's is run; the schema is the one of events. Advisory lock ('ingd', 2): src/pg/partitions.rs.
DO $migration$
DECLARE
    -- Quoted where needed.
    home text := (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'events'::regclass);
BEGIN
    EXECUTE replace($create$
        -- Makes the partition of a month, which must be missing. A table of its name that an interrupted cleanup has left
        -- makes room; any other is an error (42P07).
        CREATE OR REPLACE FUNCTION @home@.ingestd_make_partition(year integer, month integer) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $function$
        DECLARE
            name text;
            starts timestamp;
        BEGIN
            IF year IS NULL OR month IS NULL OR year NOT BETWEEN 1 AND 9999 OR month NOT BETWEEN 1 AND 12 THEN
                RAISE EXCEPTION 'not a month: %-%', year, month USING ERRCODE = 'invalid_parameter_value';
            END IF;
            starts := make_timestamp(year, month, 1, 0, 0, 0);
            name := format('events_%s_%s', lpad(year::text, 4, '0'), lpad(month::text, 2, '0'));
            PERFORM pg_advisory_xact_lock(1768843108, 2);
            IF EXISTS (SELECT FROM pg_class c
                       WHERE c.relnamespace = '@home@'::regnamespace AND c.relname = name
                         AND c.relkind = 'r' AND NOT c.relispartition
                         AND obj_description(c.oid, 'pg_class') = 'ingestd: expired, being dropped') THEN
                EXECUTE format('DROP TABLE @home@.%I', name);
            END IF;
            EXECUTE format(
                'CREATE TABLE @home@.%I (LIKE @home@.events INCLUDING DEFAULTS INCLUDING CONSTRAINTS '
                'INCLUDING STORAGE INCLUDING COMPRESSION INCLUDING GENERATED)', name);
            EXECUTE format(
                'ALTER TABLE @home@.events ATTACH PARTITION @home@.%I FOR VALUES FROM (%L) TO (%L)',
                name, starts AT TIME ZONE 'UTC', (starts + interval '1 month') AT TIME ZONE 'UTC');
        END $function$
    $create$, '@home@', home);

    EXECUTE replace($create$
        -- Drops a partition of events that ended more than a month ago, or one that the owner's cleanup has marked; false
        -- when it is gone already. DETACH CONCURRENTLY is not for functions: COPYs wait while this waits for those under
        -- way, so it does not wait for long (55P03 then).
        CREATE OR REPLACE FUNCTION @home@.ingestd_drop_partition(partition regclass) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' SET lock_timeout = '1s' AS $function$
        DECLARE
            name text;
            marked boolean;
            ends timestamptz;
        BEGIN
            PERFORM pg_advisory_xact_lock(1768843108, 2);
            SELECT format('%I.%I', n.nspname, c.relname),
                   obj_description(c.oid, 'pg_class') IS NOT DISTINCT FROM 'ingestd: expired, being dropped'
                       AND c.relnamespace = '@home@'::regnamespace,
                   CASE WHEN i.inhrelid IS NOT NULL
                        THEN (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz END
            INTO name, marked, ends
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = '@home@.events'::regclass
            WHERE c.oid = partition AND c.relkind IN ('r', 'p');
            IF NOT FOUND THEN
                RETURN false;
            END IF;
            IF NOT marked AND (ends IS NULL OR ends > date_trunc('month', clock_timestamp()) - interval '1 month') THEN
                RAISE EXCEPTION '% is no partition of events that ended more than a month ago', name
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            EXECUTE 'DROP TABLE ' || name;
            RETURN true;
        END $function$
    $create$, '@home@', home);

    EXECUTE replace('REVOKE ALL ON FUNCTION @home@.ingestd_make_partition(integer, integer) FROM PUBLIC', '@home@', home);
    EXECUTE replace('REVOKE ALL ON FUNCTION @home@.ingestd_drop_partition(regclass) FROM PUBLIC', '@home@', home);
END $migration$;
