//! Promise: what a database or a role lacks is found at the start, by `check-config --connect`, and where it concerns
//! migrations by `migrate`: exit code 2, a line for each lack, with the SQL that ends it. A node whose journal holds batches
//! starts all the same, degraded, and one that runs learns of a lack before it does harm.

mod support;

use std::path::Path;

use ingestd::pg::migrate::migrate;
use ingestd::pg::partitions::{Month, ensure};
use ingestd::sys::clock::wall_now;
use postgres::Client;
use serde_json::Value;
use support::contract::{accept, batch, rows_of, send, wait_until_completed};
use support::pgbouncer::PgBouncer;
use support::postgres::{PASSWORD, TestDatabase, TestPostgres, connect, shared};
use support::server::{Finished, Ingestd, get};
use support::{WAIT_MAX, wait_until};

/// A migrated database with a role of few rights, made by the documented grants.
struct Site {
    database: TestDatabase,
    role: String,
    owner: Client,
}

impl Site {
    fn on(postgres: &TestPostgres) -> Self {
        let database = postgres.create_database();
        let (role, mut owner) = (format!("role_of_{}", database.name), database.connect());
        migrate(&mut owner).expect("migrated");
        let this = Month::of(wall_now());
        ensure(&mut owner, &[this.plus(-1), this, this.plus(1), this.plus(2), this.plus(3)]).expect("made");
        let mut site = Self { database, role, owner };
        site.run(
            "CREATE ROLE @role LOGIN PASSWORD '@password';
                  REVOKE TEMPORARY ON DATABASE @database FROM PUBLIC;
                  GRANT TEMPORARY ON DATABASE @database TO @role;
                  GRANT SELECT ON ingestd_migrations TO @role;
                  GRANT SELECT, INSERT ON events TO @role;
                  GRANT SELECT, INSERT, UPDATE (inserted, duplicates, dead_lettered) ON ingest_batches TO @role;
                  GRANT INSERT ON dead_letter_events TO @role;
                  GRANT EXECUTE ON FUNCTION ingestd_make_partition(integer, integer) TO @role",
        );
        site
    }

    fn new() -> Self {
        Self::on(shared())
    }

    /// Runs `sql` as a superuser, with `@role`, `@database` and `@password` filled in.
    fn run(&mut self, sql: &str) {
        let sql =
            sql.replace("@role", &self.role).replace("@database", &self.database.name).replace("@password", PASSWORD);
        self.owner.batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    fn url(&self) -> String {
        self.database.url.replace("ingestd:", &format!("{}:", self.role))
    }

    fn server(&self) -> Ingestd {
        Ingestd::builder().env("DATABASE_URL", self.url()).start()
    }

    /// Checks that exactly `problems` are told, runs the SQL that is told with them, and checks that nothing is missing
    /// then.
    fn assert_cured(&mut self, problems: &[&str]) {
        self.apply_cures(problems);
        assert_lacks_nothing(&self.url());
    }

    fn apply_cures(&mut self, problems: &[&str]) {
        let told = refused(&self.url());
        assert_eq!(told.len(), problems.len(), "{told:#?}");
        for problem in problems {
            let problem = problem.replace("@role", &self.role).replace("@database", &self.database.name);
            let cure = told.iter().find_map(|line| line.strip_prefix(&format!("{problem}: ")));
            let cure = cure.unwrap_or_else(|| panic!("{problem:?} is not in {told:#?}"));
            self.run(cure.split(", or ").next().unwrap_or_default());
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // PostgreSQL may be down.
        let _ = self.owner.batch_execute(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.role));
    }
}

fn lines(finished: &Finished) -> Vec<String> {
    finished.stderr.lines().filter_map(|line| line.strip_prefix("ingestd: ")).map(str::to_owned).collect()
}

fn run(folder: &Path, arguments: &[&str], url: &str) -> Finished {
    Ingestd::run_to_exit_in(folder, arguments, &[("DATABASE_URL", url), ("LISTEN_ADDR", "127.0.0.1:0")])
}

/// What a start is refused for; `check-config --connect` says the same.
fn refused(url: &str) -> Vec<String> {
    let folder = support::folder();
    let served = run(folder.path(), &["serve"], url);
    assert_eq!(served.code, Some(2), "{}", served.stderr);
    let checked = run(folder.path(), &["check-config", "--connect"], url);
    assert_eq!(checked.code, Some(2), "{}{}", checked.stdout, checked.stderr);
    assert_eq!(lines(&served), lines(&checked));
    lines(&served)
}

fn assert_lacks_nothing(url: &str) {
    let folder = support::folder();
    let checked = run(folder.path(), &["check-config", "--connect"], url);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
}

fn health(server: &Ingestd) -> (String, String) {
    let health = get(&server.url("/v1/health")).json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&health["status"]), text(&health["checks"]["database"]["reason"]))
}

fn wait_until_healthy(server: &Ingestd) {
    wait_until("all is well", WAIT_MAX, || health(server).0 == "healthy");
}

/// A server that has acknowledged the batch `held`, which is in its journal only, and was killed.
fn killed_with_a_batch_in_the_journal(site: &mut Site) -> Ingestd {
    let mut server = site.server();
    let mut locker = site.database.connect();
    let mut lock = locker.transaction().expect("begun");
    lock.batch_execute("LOCK TABLE ingest_batches").expect("locked");
    accept(&server, "ack=journal", &batch("held", 5));
    server.kill9();
    // Its backend may wait for the lock still, with the whole batch.
    let left = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'ingestd'";
    wait_until("its sessions have ended", WAIT_MAX, || {
        site.owner.query_one(left, &[]).expect("asked").get::<_, i64>(0) == 0
    });
    lock.rollback().expect("unlocked");
    assert_eq!(rows_of(&site.database, "held"), 0);
    server
}

#[test]
fn a_role_with_the_documented_rights_lacks_nothing_over_a_pooler_either() {
    let site = Site::new();
    assert_lacks_nothing(&site.url());
    assert_lacks_nothing(&site.database.url);
    let server = site.server();
    assert_eq!(health(&server).0, "healthy");
    let Some(bouncer) = PgBouncer::start(shared(), &[]) else { return };
    assert_lacks_nothing(&bouncer.url(&site.database));
}

#[test]
fn the_check_waits_for_no_lock() {
    let mut site = Site::new();
    let url = site.url();
    let mut transaction = site.owner.transaction().expect("begun");
    transaction.batch_execute("LOCK TABLE events, ingest_batches, dead_letter_events").expect("locked");
    assert_lacks_nothing(&url);
}

#[test]
fn tables_that_are_laid_out_for_citus_lack_nothing() {
    let mut site = Site::new();
    let script = std::fs::read_to_string(support::checkout().join("sql/citus/distribute.sql")).expect("readable");
    let layout: Vec<&str> =
        script.lines().filter(|line| !line.starts_with("SELECT create_distributed_table")).collect();
    site.run(&layout.join("\n"));
    // There is no cluster here to name. This is what follows the requirements.
    let distributed = ["the tables are distributed over a Citus cluster: set SHARDING=citus on every node"];
    assert_eq!(refused(&site.url()), distributed);
    site.run(
        "REVOKE INSERT ON events FROM @role; GRANT INSERT (event_id, service_name, event_type, payload, \"timestamp\",
              metadata, batch_id, priority, ingested_at) ON events TO @role",
    );
    site.apply_cures(&["role @role lacks INSERT on table public.events"]);
    assert_eq!(refused(&site.url()), distributed);
}

#[test]
fn a_database_that_is_not_utf8_is_refused() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("encoded_{}_{}", encoding.to_lowercase(), std::process::id());
        let url = shared().url(&name);
        let mut admin = connect(&shared().url("postgres"));
        let create = format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        admin.batch_execute(&create).expect("made");
        let problem = format!("database {name} has the encoding {encoding}, but ingestd requires UTF8: ");
        let told = refused(&url);
        assert_eq!(told.len(), 1, "{told:?}");
        let cure = told[0].strip_prefix(&problem).unwrap_or_else(|| panic!("{told:?}"));
        let migrated = run(support::folder().path(), &["migrate"], &url);
        assert_eq!((migrated.code, lines(&migrated)), (Some(2), told.clone()), "{}", migrated.stderr);
        admin.batch_execute(cure.split(", and ").next().unwrap_or_default()).expect("the SQL runs as it is");
        assert_lacks_nothing(&shared().url(&format!("{name}_utf8")));
        admin.batch_execute(&format!("DROP DATABASE {name}")).expect("dropped");
        admin.batch_execute(&format!("DROP DATABASE {name}_utf8")).expect("dropped");
    }
}

#[test]
fn relations_that_have_the_tables_names_are_named_by_the_start_and_by_migrate() {
    let kinds = [
        ("table", "TABLE @ (id int, \"timestamp\" timestamptz)"),
        ("view", "VIEW @ AS SELECT 1 AS id"),
        ("materialized view", "MATERIALIZED VIEW @ AS SELECT 1 AS id"),
        ("foreign table", "FOREIGN TABLE @ (id int) SERVER elsewhere"),
        ("sequence", "SEQUENCE @"),
        ("type", "TYPE @ AS (id int)"),
    ];
    for first in 0..kinds.len() {
        let database = shared().create_database();
        let mut client = database.connect();
        client
            .batch_execute("CREATE FOREIGN DATA WRAPPER nobody; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nobody")
            .expect("made");
        let mut wanted = Vec::new();
        for (number, name) in ["events", "ingest_batches", "dead_letter_events"].into_iter().enumerate() {
            let (kind, create) = kinds[(first + number) % kinds.len()];
            client.batch_execute(&format!("CREATE {}", create.replace('@', name))).expect("made");
            wanted.push(format!("{kind} public.{name} is not a table of ingestd: "));
        }
        let told = refused(&database.url);
        assert_eq!(told.len(), wanted.len(), "{told:#?}");
        for start in &wanted {
            assert!(
                told.iter().any(|line| line.starts_with(start) && line.contains("rename it")),
                "{start}: {told:#?}"
            );
        }
        let migrated = run(support::folder().path(), &["migrate"], &database.url);
        assert_eq!((migrated.code, lines(&migrated)), (Some(2), told), "{}", migrated.stderr);
        let made = client.query_one("SELECT to_regclass('ingestd_migrations')::text", &[]).expect("asked");
        assert_eq!(made.get::<_, Option<&str>>(0), None, "nothing was begun");
    }
}

#[test]
fn a_separate_schema_makes_room_beside_a_foreign_table() {
    let database = shared().create_database();
    let mut client = database.connect();
    client.batch_execute("CREATE TABLE events (id int); CREATE VIEW ingest_batches AS SELECT 1 AS id").expect("made");
    // Told, run and undone: the role is that of all tests.
    let told = refused(&database.url);
    let cure = told[0].split("separate schema: ").nth(1).unwrap_or_else(|| panic!("{told:?}"));
    client.batch_execute(cure).expect("the SQL runs as it is");
    assert_lacks_nothing(&database.url);
    let server = Ingestd::builder().database(&database).start();
    let reply = send(&server, "ack=commit", batch("beside", 3).to_string().as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    client.batch_execute(&format!("ALTER ROLE ingestd IN DATABASE {} RESET ALL", database.name)).expect("undone");
}

#[test]
fn tables_of_the_right_kind_that_are_not_ingestds_are_told_with_the_reason() {
    let changes = [
        (
            "ALTER TABLE events RENAME TO old_events;
             CREATE TABLE events (LIKE old_events) PARTITION BY RANGE (ingested_at)",
            "table public.events is not a table of ingestd: it is not partitioned by RANGE (\"timestamp\")",
        ),
        (
            "ALTER TABLE events RENAME TO old_events; CREATE TABLE events (LIKE old_events)",
            "table public.events is not a table of ingestd: it is not partitioned by RANGE (\"timestamp\")",
        ),
        (
            "ALTER TABLE ingest_batches DROP CONSTRAINT ingest_batches_pkey",
            "table public.ingest_batches is not a table of ingestd: it has no unique key of (owner, batch_id)",
        ),
        (
            "ALTER TABLE dead_letter_events DROP COLUMN sqlstate, DROP COLUMN event",
            "table public.dead_letter_events is not a table of ingestd: it lacks the columns event, sqlstate",
        ),
        (
            "DROP TABLE ingestd_migrations; CREATE TABLE ingestd_migrations (id int)",
            "table public.ingestd_migrations is not a table of ingestd: it lacks the columns applied_at, name, version",
        ),
    ];
    for (change, problem) in changes {
        let database = shared().create_database();
        let mut client = database.connect();
        migrate(&mut client).expect("migrated");
        client.batch_execute(change).expect("changed");
        let told = refused(&database.url);
        assert!(told.len() == 1 && told[0].starts_with(problem), "{told:#?}");
        let migrated = run(support::folder().path(), &["migrate"], &database.url);
        assert_eq!((migrated.code, lines(&migrated)), (Some(2), told), "{}", migrated.stderr);
    }
}

#[test]
fn a_role_without_temporary_is_told_the_grant() {
    let mut site = Site::new();
    site.run("REVOKE TEMPORARY ON DATABASE @database FROM @role");
    site.assert_cured(&[
        "role @role may not create temporary tables in database @database, through which duplicate events go",
    ]);
}

#[test]
fn a_role_without_rights_on_the_tables_is_told_the_grants() {
    let mut site = Site::new();
    site.run("REVOKE INSERT ON events FROM @role");
    site.assert_cured(&["role @role lacks INSERT on table public.events"]);
    site.run("REVOKE SELECT ON events FROM @role; REVOKE ALL ON ingest_batches FROM @role");
    site.assert_cured(&[
        "role @role lacks SELECT on table public.events",
        "role @role lacks INSERT, SELECT, UPDATE (inserted, duplicates, dead_lettered) on table public.ingest_batches",
    ]);
    site.run("REVOKE INSERT ON dead_letter_events FROM @role; REVOKE SELECT ON ingestd_migrations FROM @role");
    site.assert_cured(&[
        "role @role lacks INSERT on table public.dead_letter_events",
        "role @role lacks SELECT on table public.ingestd_migrations",
    ]);
}

#[test]
fn a_role_that_may_not_create_partitions_is_told_the_grant() {
    let mut site = Site::new();
    let make = "ingestd_make_partition(integer,integer)";
    site.run("REVOKE EXECUTE ON FUNCTION ingestd_make_partition(integer, integer) FROM @role");
    site.assert_cured(&[&format!(
        "role @role may not create partitions: it does not own public.events, and may not execute {make}"
    )]);
    // The function runs with the rights of its owner.
    let other = format!("{}_other", site.role);
    site.run(&format!(
        "CREATE ROLE {other}; ALTER TABLE events OWNER TO {other}; ALTER FUNCTION {make} OWNER TO {other}"
    ));
    site.assert_cured(&[&format!(
        "role @role may not create partitions: it does not own public.events, and {make} runs as {other}, which may not \
         create tables in schema public"
    )]);
    site.run("ALTER TABLE events OWNER TO ingestd");
    site.assert_cured(&[&format!(
        "role @role may not create partitions: it does not own public.events, and neither does the owner of {make}"
    )]);
    // An owner needs the schema only.
    site.run(&format!("DROP OWNED BY {other}; DROP ROLE {other}; ALTER TABLE events OWNER TO @role"));
    site.assert_cured(&[
        "role @role may not create partitions: it owns public.events, but may not create tables in schema public",
    ]);
    let server = site.server();
    assert_eq!(health(&server).0, "healthy");
}

#[test]
fn an_empty_database_where_the_role_may_not_create_tables_is_told_the_grant() {
    let mut site = Site::new();
    site.run(
        "DROP TABLE events, ingest_batches, dead_letter_events, ingestd_migrations, ingestd_database;
         DROP FUNCTION ingestd_make_partition, ingestd_drop_partition",
    );
    site.run("REVOKE TEMPORARY ON DATABASE @database FROM @role");
    site.assert_cured(&[
        "role @role may not create tables in schema public",
        "role @role may not create temporary tables in database @database, through which duplicate events go",
    ]);
    let migrated = run(support::folder().path(), &["migrate"], &site.url());
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    assert_lacks_nothing(&site.url());
}

#[test]
fn a_role_that_may_use_no_schema_is_told_the_grant() {
    let mut site = Site::new();
    site.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC");
    site.assert_cured(&["role @role may use no schema of its search_path (\"$user\", public)"]);
}

#[test]
fn row_security_that_applies_to_the_role_is_told_with_what_lifts_it() {
    let mut site = Site::new();
    site.run("ALTER TABLE events ENABLE ROW LEVEL SECURITY; CREATE POLICY every ON events USING (true)");
    site.assert_cured(&["row security applies to role @role on table public.events, and COPY is rejected"]);
    site.run(
        "ALTER TABLE events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
              ALTER TABLE events OWNER TO @role; GRANT CREATE ON SCHEMA public TO @role",
    );
    site.assert_cured(&["row security applies to role @role on table public.events, and COPY is rejected"]);
    site.run("ALTER TABLE ingest_batches ENABLE ROW LEVEL SECURITY");
    site.assert_cured(&[
        "row security applies to role @role on table public.ingest_batches, and no policy permits a row",
    ]);
    site.run(
        "ALTER TABLE ingest_batches ENABLE ROW LEVEL SECURITY; CREATE POLICY every ON ingest_batches USING (true)",
    );
    assert_lacks_nothing(&site.url());
}

#[test]
fn all_lacks_are_told_at_once() {
    let mut site = Site::new();
    site.run(
        "REVOKE TEMPORARY ON DATABASE @database FROM @role;
              REVOKE INSERT ON events FROM @role;
              REVOKE UPDATE (inserted, duplicates, dead_lettered) ON ingest_batches FROM @role;
              REVOKE EXECUTE ON FUNCTION ingestd_make_partition(integer, integer) FROM @role;
              ALTER TABLE dead_letter_events ENABLE ROW LEVEL SECURITY",
    );
    site.assert_cured(&[
        "role @role may not create temporary tables in database @database, through which duplicate events go",
        "role @role lacks INSERT on table public.events",
        "role @role lacks UPDATE (inserted, duplicates, dead_lettered) on table public.ingest_batches",
        "row security applies to role @role on table public.dead_letter_events, and no policy permits a row",
        "role @role may not create partitions: it does not own public.events, and may not execute \
         ingestd_make_partition(integer,integer)",
    ]);
}

#[test]
fn a_node_whose_journal_holds_batches_starts_degraded_without_a_right_and_recovers_when_it_is_granted() {
    let mut site = Site::new();
    let mut server = killed_with_a_batch_in_the_journal(&mut site);
    site.run("REVOKE TEMPORARY ON DATABASE @database FROM @role");
    server.begin_restart();
    server.wait_until_ready();
    let (status, reason) = health(&server);
    assert_eq!(status, "degraded");
    let grant = format!("GRANT TEMPORARY ON DATABASE {} TO {}", site.database.name, site.role);
    assert!(reason.contains(&grant), "{reason}");
    // What needs no temporary table lands.
    wait_until("the batch of the journal has landed", WAIT_MAX, || rows_of(&site.database, "held") == 5);
    accept(&server, "", &batch("new", 4));
    assert_eq!(wait_until_completed(&server, "new")["inserted"], 4);
    assert!(health(&server).1.contains(&grant));
    site.run(&grant);
    wait_until_healthy(&server);
    let log = server.log();
    // What is to be granted is told as it begins, and as it ends.
    let told =
        [("because the journal holds batches", 1), (&*grant, 2), ("the database meets all requirements again", 1)];
    for (line, times) in told {
        assert_eq!(log.matches(line).count(), times, "{line}: {log}");
    }
}

#[test]
fn a_node_whose_journal_holds_batches_accepts_over_a_foreign_table_and_lands_them_when_it_is_gone() {
    let mut site = Site::new();
    let mut server = killed_with_a_batch_in_the_journal(&mut site);
    site.run("ALTER TABLE events RENAME TO kept; CREATE VIEW events AS SELECT 1 AS id; GRANT ALL ON events TO @role");
    server.begin_restart();
    server.wait_until_ready();
    accept(&server, "ack=journal", &batch("meanwhile", 4));
    assert_eq!(health(&server).0, "degraded");
    server.wait_for_log("view public.events is not a table of ingestd", WAIT_MAX);
    site.run("DROP VIEW events; ALTER TABLE kept RENAME TO events");
    wait_until("both have landed", WAIT_MAX, || {
        rows_of(&site.database, "held") == 5 && rows_of(&site.database, "meanwhile") == 4
    });
    wait_until_healthy(&server);
    // With an empty journal the same start is refused.
    assert!(server.terminate().success());
    site.run("ALTER TABLE events RENAME TO kept; CREATE VIEW events AS SELECT 1 AS id");
    server.begin_restart();
    assert_eq!(server.wait_for_exit(WAIT_MAX).code(), Some(2), "{}", server.log());
}

#[test]
fn a_right_that_is_revoked_is_in_health_after_an_outage_and_gone_when_it_is_granted() {
    let mut postgres = TestPostgres::start_private(&[]);
    let mut site = Site::on(&postgres);
    let server = site.server();
    wait_until_healthy(&server);
    site.run("REVOKE TEMPORARY ON DATABASE @database FROM @role");
    postgres.stop();
    wait_until("the outage is noticed", WAIT_MAX, || health(&server).0 == "degraded");
    postgres.start();
    wait_until("the lack is told", WAIT_MAX, || health(&server).1.contains("GRANT TEMPORARY ON DATABASE"));
    site.owner = site.database.connect();
    site.run("GRANT TEMPORARY ON DATABASE @database TO @role");
    wait_until_healthy(&server);
}

#[test]
fn a_right_that_is_revoked_while_serving_is_in_health_within_two_minutes() {
    let mut site = Site::new();
    let server = site.server();
    wait_until_healthy(&server);
    site.run("REVOKE TEMPORARY ON DATABASE @database FROM @role");
    let told = std::time::Duration::from_secs(120);
    wait_until("the lack is told", told, || health(&server).1.contains("GRANT TEMPORARY ON DATABASE"));
    accept(&server, "", &batch("no-duplicate", 2));
    assert_eq!(wait_until_completed(&server, "no-duplicate")["inserted"], 2, "what needs no temporary table lands");
    site.run("GRANT TEMPORARY ON DATABASE @database TO @role");
    wait_until_healthy(&server);
}
