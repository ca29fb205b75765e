-- The functions of 0004 read text that PostgreSQL has written. They say by which settings, whatever the caller's role has.
DO $migration$
DECLARE
    -- Quoted where needed.
    home text := (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'events'::regclass);
BEGIN
    EXECUTE replace('ALTER FUNCTION @home@.ingestd_make_partition(integer, integer) SET standard_conforming_strings = on', '@home@', home);
    EXECUTE replace('ALTER FUNCTION @home@.ingestd_drop_partition(regclass) SET standard_conforming_strings = on', '@home@', home);
END $migration$;
