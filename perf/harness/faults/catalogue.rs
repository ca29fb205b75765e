//! The faults, as data: what each prepares, how it begins and ends, which batches hit it and what becomes of these.
//!
//! SQL has places, which [`super::scene::Scene::fill`] fills: `{part}` the partition of a month five months ago, `{from}`,
//! `{to}` its bounds, `{make}` a query that makes it, `{db}` the database, `{role}` the server's role where it has a separate
//! one, `{place}` an empty directory on a small disk.

use std::time::Duration;

use super::count::Lands;
use super::means::{Means, Strike};

/// A fault.
pub struct Fault {
    /// `FAULTS` names it so.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// SQL before the control run.
    pub prepare: String,
    /// SQL after the control run, before the server is started again for the run with the fault.
    pub before: String,
    /// How it begins and ends.
    pub means: Means,
    /// The batches that hit it.
    pub batches: Option<Batches>,
    /// What the servers need.
    pub needs: Needs,
    /// False for a reference, which is held to no figure.
    pub is_judged: bool,
}

/// Batches that hit a fault, `ack=journal`.
#[derive(Clone, Copy)]
pub struct Batches {
    /// Events of each.
    pub events: u64,
    /// From one to the next.
    pub every: Duration,
    /// How many at most.
    pub batches_max: u64,
    /// Whether their events are of the old month.
    pub is_old: bool,
    /// What becomes of them.
    pub lands: Lands,
}

/// What the servers of a fault need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// One server, whose role owns the tables.
    Usual,
    /// A role that may only read and insert (sql/roles/least_privilege.sql).
    Role,
    /// A second server.
    SecondNode,
    /// `PARTITION_RETENTION_MONTHS=2`.
    Retention,
    /// A small disk, which only root can mount.
    SmallDisk,
}

const SECOND: Duration = Duration::from_secs(1);
/// One small batch a second, which lands as a whole once the fault is gone.
const ONE_A_SECOND: Batches =
    Batches { events: 20, every: SECOND, batches_max: u64::MAX, is_old: true, lands: Lands::All };
const NOTHING: &str = "RETURN NEW;";

/// All faults, in the order in which they run.
pub fn all() -> Vec<Fault> {
    let mut all = months();
    all.extend(locks());
    all.extend(rows());
    all.extend(sessions());
    all.extend(others());
    all
}

fn fault(name: &'static str, what: &'static str, means: Means) -> Fault {
    let (prepare, before) = ("{make}".to_owned(), String::new());
    let batches = Some(ONE_A_SECOND);
    Fault { name, what, prepare, before, means, batches, needs: Needs::Usual, is_judged: true }
}

fn sql(begin: &str, end: &str) -> Means {
    Means::Sql { begin: begin.to_owned(), end: end.to_owned() }
}

/// The month's partition cannot be made, or is no partition.
fn months() -> Vec<Fault> {
    let function = "FUNCTION ingestd_make_partition(integer, integer)";
    let forbidden = sql(
        &format!("REVOKE EXECUTE ON {function} FROM {{role}}"),
        &format!("GRANT EXECUTE ON {function} TO {{role}}"),
    );
    let no_tables = sql(
        "CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS
             $$BEGIN RAISE EXCEPTION 'no tables today' USING ERRCODE = 'insufficient_privilege'; END$$;
         CREATE EVENT TRIGGER forbid ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION forbid()",
        "DROP EVENT TRIGGER forbid",
    );
    let by_hand = sql(
        "CREATE TABLE by_hand PARTITION OF events FOR VALUES FROM ('{from}') TO (timestamptz '{from}' + interval '7 days')",
        "ALTER TABLE events DETACH PARTITION by_hand",
    );
    let attach = "ALTER TABLE events ATTACH PARTITION {part} FOR VALUES FROM ('{from}') TO ('{to}')";
    let lock = "SELECT pg_advisory_xact_lock(1768843108, 2)";
    let missing = |name, what, means| Fault { prepare: String::new(), ..fault(name, what, means) };
    vec![
        Fault {
            needs: Needs::Role,
            ..missing("month-forbidden", "the role may not make the month's partition (42501)", forbidden)
        },
        missing("tables-forbidden", "an event trigger forbids CREATE TABLE (42501)", no_tables),
        missing("month-overlapped", "a partition made by hand overlaps the month (42P17)", by_hand),
        missing(
            "name-taken",
            "a plain table has the name of the month's partition",
            sql("CREATE TABLE {part} (elsewhere int)", "DROP TABLE {part}"),
        ),
        missing("month-lock-held", "another session hangs while it makes partitions", Means::Held(lock.to_owned())),
        fault(
            "detached",
            "the month's partition is detached",
            sql("ALTER TABLE events DETACH PARTITION {part}", attach),
        ),
        fault(
            "detaching",
            "DETACH CONCURRENTLY of the month's partition waits for a reader",
            Means::Detaching { end: attach.to_owned() },
        ),
    ]
}

/// Something is locked.
fn locks() -> Vec<Fault> {
    let held = |sql: &str| Means::Held(sql.to_owned());
    let ledger = "INSERT INTO ingest_batches (owner, batch_id, body_digest, priority, events, inserted, duplicates,
                                              dead_lettered, received_at, node)
                  SELECT '', 'faulty-' || lpad(n::text, 6, '0'), '', 0, 20, 20, 0, 0, now(), 'hangs'
                  FROM generate_series(0, 9999) n";
    vec![
        fault(
            "share-lock",
            "the month's partition is locked in SHARE mode, as by REINDEX",
            held("LOCK TABLE {part} IN SHARE MODE"),
        ),
        fault(
            "exclusive-lock",
            "the month's partition is locked ACCESS EXCLUSIVE, as by a long ALTER",
            held("LOCK TABLE {part} IN ACCESS EXCLUSIVE MODE"),
        ),
        fault("ledger-rows-held", "another node hangs in a transaction with the same batches", held(ledger)),
    ]
}

/// A trigger on the month's partition whose function, harmless until then, becomes `body`.
fn trigger(name: &'static str, what: &'static str, body: &str, lands: Lands) -> Fault {
    let function = |body: &str| {
        format!("CREATE OR REPLACE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$;")
    };
    let trigger = "CREATE TRIGGER on_row BEFORE INSERT ON {part} FOR EACH ROW EXECUTE FUNCTION on_row()";
    let mut fault = fault(name, what, sql(&function(body), &function(NOTHING)));
    fault.prepare = format!("{{make}};{}{trigger}", function(NOTHING));
    fault.batches = Some(Batches { lands, ..ONE_A_SECOND });
    fault
}

fn raise(sqlstate: &str) -> String {
    format!("RAISE EXCEPTION 'not today' USING ERRCODE = '{sqlstate}';")
}

/// What rows meet in the month's partition.
fn rows() -> Vec<Fault> {
    let odd = format!("IF (NEW.payload->>'number')::int % 2 = 1 THEN {} END IF; {NOTHING}", raise("23514"));
    let of_row = |body: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION of_row(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$BEGIN RETURN {body}; END$$;"
        )
    };
    let mut broken_index = fault(
        "broken-index",
        "an expression index of the partition fails (42883)",
        sql(&of_row("no_such_function($1)"), &of_row("$1")),
    );
    broken_index.prepare = format!("{{make}};{}CREATE INDEX ON {{part}} (of_row(event_id))", of_row("$1"));
    let mut deferred = trigger(
        "deferred-trigger",
        "a deferred trigger of the partition refuses the COMMIT",
        &raise("P0001"),
        Lands::Either,
    );
    deferred.prepare =
        deferred.prepare.replace("CREATE TRIGGER on_row BEFORE", "CREATE CONSTRAINT TRIGGER on_row AFTER");
    deferred.prepare = deferred.prepare.replace("FOR EACH ROW", "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW");
    let mut slow = trigger(
        "slow-trigger",
        "a trigger of the partition sleeps 100 ms for each row",
        &format!("PERFORM pg_sleep(0.1); {NOTHING}"),
        Lands::All,
    );
    slow.batches = Some(ONE_A_SECOND);
    let mut timeouts = trigger(
        "statement-timeout",
        "statement_timeout=400ms, and rows that take 5 ms each",
        &format!("PERFORM pg_sleep(0.005); {NOTHING}"),
        Lands::All,
    );
    timeouts.before = "ALTER DATABASE {db} SET statement_timeout = '400ms'".to_owned();
    timeouts.batches = Some(Batches { events: 100, ..ONE_A_SECOND });
    let refused = |lands| Some(Batches { lands, ..ONE_A_SECOND });
    let mut unique = fault(
        "unique-index",
        "a unique index by hand refuses every second row (23505)",
        sql("CREATE UNIQUE INDEX by_hand ON {part} ((payload->>'pair'))", "DROP INDEX by_hand"),
    );
    unique.batches = refused(Lands::Half);
    let not_null = |how: &str| format!("ALTER TABLE {{part}} ALTER metadata {how} NOT NULL");
    let mut not_null = fault(
        "not-null",
        "a column of the partition is NOT NULL by hand (23502)",
        sql(&not_null("SET"), &not_null("DROP")),
    );
    not_null.batches = refused(Lands::DeadLetters);
    let mut check = fault(
        "check-refuses",
        "a CHECK refuses all rows of six batches of 10,000",
        Means::Sql { begin: String::new(), end: String::new() },
    );
    check.prepare = "ALTER TABLE events ADD CONSTRAINT by_hand CHECK (event_type <> 'faulty')".to_owned();
    let every = Duration::from_millis(100);
    check.batches = Some(Batches { events: 10_000, every, batches_max: 6, is_old: false, lands: Lands::DeadLetters });
    let terminate = format!("PERFORM pg_terminate_backend(pg_backend_pid()); {NOTHING}");
    vec![
        slow,
        timeouts,
        trigger("trigger-42P01", "a trigger of the partition misses its table (42P01)", &raise("42P01"), Lands::All),
        trigger("trigger-55000", "a trigger of the partition raises 55000", &raise("55000"), Lands::All),
        trigger("trigger-40001", "a trigger of the partition raises 40001", &raise("40001"), Lands::All),
        trigger(
            "trigger-08001",
            "a trigger of the partition calls a server that is away (08001)",
            &raise("08001"),
            Lands::All,
        ),
        trigger("trigger-ends-session", "a trigger of the partition ends the session (57P01)", &terminate, Lands::All),
        trigger(
            "trigger-23514",
            "a trigger refuses every second row with 23514 and no constraint's name",
            &odd,
            Lands::Half,
        ),
        deferred,
        broken_index,
        unique,
        not_null,
        check,
    ]
}

/// Sessions end, are cancelled, deadlock, or cannot be had.
fn sessions() -> Vec<Fault> {
    let again = |strike, every| Means::Again { strike, every };
    let without = |name, what, means| Fault { batches: None, ..fault(name, what, means) };
    vec![
        without(
            "session-terminated",
            "pg_terminate_backend of one session every 2 s",
            again(Strike::Terminate, 2 * SECOND),
        ),
        without("copy-cancelled", "pg_cancel_backend of a COPY every second", again(Strike::Cancel, SECOND)),
        fault("deadlock", "deadlocks with another session", again(Strike::Deadlock, SECOND)),
        without(
            "no-connections",
            "others have all connections, and one session is terminated every 2 s",
            Means::NoConnections,
        ),
    ]
}

/// Everything else.
fn others() -> Vec<Fault> {
    let mut chore = fault(
        "chore-fails",
        "PARTITION_RETENTION_MONTHS=2, and a view keeps an old partition (2BP01)",
        sql("", "DROP VIEW by_hand"),
    );
    (chore.prepare, chore.batches, chore.needs) = (String::new(), None, Needs::Retention);
    chore.before = "{make}; CREATE VIEW by_hand AS SELECT * FROM {part}".to_owned();
    let mut disk =
        fault("tablespace-full", "the partition is in a tablespace whose disk is full (53100)", Means::FullDisk);
    disk.prepare = "CREATE TABLESPACE small LOCATION '{place}'".to_owned();
    disk.before = "CREATE TABLE {part} (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS) TABLESPACE small;
                   ALTER TABLE events ATTACH PARTITION {part} FOR VALUES FROM ('{from}') TO ('{to}')"
        .to_owned();
    disk.needs = Needs::SmallDisk;
    let mut conflict = fault("id-conflict", "each id is sent to two nodes at once, with two bodies", sql("", ""));
    conflict.batches = Some(Batches { is_old: false, lands: Lands::OneOfSeveral, ..ONE_A_SECOND });
    conflict.needs = Needs::SecondNode;
    let mut bulk = fault("bulk", "no fault: 20,000 events/s more at priority 0 in batches of 1000", sql("", ""));
    let every = Duration::from_millis(50);
    bulk.batches = Some(Batches { events: 1000, every, batches_max: u64::MAX, is_old: false, lands: Lands::All });
    bulk.is_judged = false;
    vec![chore, disk, conflict, bulk]
}
