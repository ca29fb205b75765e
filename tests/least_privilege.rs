//! Promise: a server whose role may only read and insert does everything that a server does, and its role cannot do more.

mod support;

use std::process::{Command, Output};

use ingestd::pg::migrate::{MIGRATIONS, Migration, SCHEMA_VERSION};
use ingestd::pg::partitions::{Month, ensure};
use ingestd::status::model::rfc3339;
use ingestd::sys::clock::wall_now;
use ingestd::types::UnixMicros;
use postgres::Client;
use serde_json::Value;

use support::contract::{accept, batch, batch_at, send, status_of, wait_until_completed};
use support::postgres::{PASSWORD, TestDatabase, connect, shared};
use support::server::{Builder, Finished, Ingestd, get};
use support::{WAIT_MAX, wait_until};

const ROLE_PASSWORD: &str = "little's \"right\"";

/// A database with the schema as its owner made it, and a role for the server.
struct Site {
    database: TestDatabase,
    role: String,
}

impl Site {
    fn migrated() -> Self {
        let site = Self::empty();
        let migrated = Ingestd::run_to_exit(&["migrate"], &[("DATABASE_URL", &site.database.url)]);
        assert_eq!(migrated.code, Some(0), "{migrated:?}");
        site.make_role();
        site
    }

    fn empty() -> Self {
        let database = shared().create_database();
        let role = format!("server_of_{}", database.name);
        Self { database, role }
    }

    fn make_role(&self) {
        let made = self.run_script(&[]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn run_script(&self, arguments: &[&str]) -> Output {
        let script = support::checkout().join("sql/roles/least_privilege.sql");
        let mut command = Command::new(support::postgres::psql());
        command.arg("-X").arg("-q").arg(&self.database.socket_url).arg("-v").arg(format!("role={}", self.role));
        command.args(arguments).arg("-f").arg(script).env("INGESTD_ROLE_PASSWORD", ROLE_PASSWORD);
        command.output().expect("psql runs")
    }

    /// `DATABASE_URL` of the role.
    fn url(&self) -> String {
        let escaped = ROLE_PASSWORD.replace(' ', "%20").replace('"', "%22").replace('\'', "%27");
        self.database.url.replace(&format!("ingestd:{PASSWORD}@"), &format!("{}:{escaped}@", self.role))
    }

    fn server(&self) -> Builder {
        Ingestd::builder().env("DATABASE_URL", self.url()).env("SYNCHRONOUS_COMMIT", "on")
    }

    fn command(&self, arguments: &[&str]) -> Finished {
        Ingestd::run_to_exit(arguments, &[("DATABASE_URL", &self.url())])
    }

    fn count(&self, what: &str) -> i64 {
        let query = format!("SELECT count(*) FROM {what}");
        self.database.connect().query_one(&query, &[]).expect("a count").get(0)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.database.socket_url, postgres::NoTls) {
            let _ = client.batch_execute(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.role));
        }
    }
}

fn commit(server: &Ingestd, batch: &Value) -> [u64; 3] {
    let reply = send(server, "ack=commit", batch.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_u64().unwrap_or_else(|| panic!("{answer}")))
}

fn sqlstate(client: &mut Client, statement: &str) -> Option<String> {
    let error = client.batch_execute(statement).err()?;
    Some(error.code().unwrap_or_else(|| panic!("{statement}: {error}")).code().to_owned())
}

#[test]
fn a_server_with_few_rights_ingests_counts_buries_replays_and_makes_partitions() {
    let site = Site::migrated();
    let server = site.server().start();
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "healthy");
    assert_eq!(site.count("pg_inherits WHERE inhparent = 'events'::regclass"), 5, "made ahead of need");

    let now = wall_now();
    assert_eq!(commit(&server, &batch_at("first", 10, &rfc3339(now))), [10, 0, 0]);
    let mut again = batch_at("first", 12, &rfc3339(now));
    again["batch_id"] = "again".into();
    assert_eq!(commit(&server, &again), [2, 10, 0]);
    let long_ago = UnixMicros(now.0 - 200 * 86_400_000_000);
    assert_eq!(commit(&server, &batch_at("on-demand", 3, &rfc3339(long_ago))), [3, 0, 0]);
    assert_eq!(site.count("pg_inherits WHERE inhparent = 'events'::regclass"), 6, "made on demand");
    let owners = "pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid JOIN pg_class p ON p.oid = i.inhparent
                  WHERE p.relname = 'events' AND c.relowner = p.relowner";
    assert_eq!(site.count(owners), 6, "they belong to whoever owns events");

    site.database
        .connect()
        .batch_execute("ALTER TABLE events ADD CONSTRAINT no CHECK (event_id <> 'bad-1')")
        .expect("ours");
    assert_eq!(commit(&server, &batch("bad", 3)), [2, 0, 1]);
    assert_eq!(status_of(&server, "bad")["status"], "partial");
    assert!(site.command(&["dead-letter", "list"]).stdout.contains("event bad-1"));
    assert_eq!(site.command(&["dead-letter", "replay"]).code, Some(1), "refused again");
    site.database.connect().batch_execute("ALTER TABLE events DROP CONSTRAINT no").expect("ours");
    let replayed = site.command(&["dead-letter", "replay"]);
    assert_eq!(
        (replayed.code, &*replayed.stdout),
        (Some(0), "replayed 1; 0 were already present\n"),
        "{}",
        replayed.stderr
    );
    assert_eq!(site.count("events"), 10 + 2 + 3 + 3);
    assert!(site.command(&["partitions", "list"]).stdout.lines().count() >= 7);
    assert_eq!(site.command(&["migrate"]).stdout, format!("schema is up to date (version {SCHEMA_VERSION})\n"));
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "healthy");
}

#[test]
fn old_partitions_and_old_ledger_rows_go_without_ownership_when_nobody_holds_them() {
    let site = Site::migrated();
    let mut owner = site.database.connect();
    let old = Month::of(wall_now()).plus(-9);
    ensure(&mut owner, &[old, old.plus(1), old.plus(7)]).expect("made");
    owner
        .batch_execute(&format!(
            "COMMENT ON TABLE {0} IS 'ingestd: expired, being dropped'; ALTER TABLE events DETACH PARTITION {0};
             INSERT INTO ingest_batches SELECT '', 'old', '', 0, 1, 1, 0, 0, now(), now() - interval '100 days', 'n'",
            old.partition_name()
        ))
        .expect("what an interrupted cleanup leaves");
    // A report that takes long must not stop ingestion by way of a cleanup that waits for it.
    let mut reader = site.database.connect();
    let mut reading = reader.transaction().expect("begun");
    reading.query("SELECT FROM events", &[]).expect("read");
    let builder = site.server().env("PARTITION_RETENTION_MONTHS", 3).env("LEDGER_RETENTION_DAYS", 30);
    let mut server = builder.start();
    server.wait_for_log("could not drop old partitions yet", WAIT_MAX);
    accept(&server, "", &batch("meanwhile", 5));
    assert_eq!(wait_until_completed(&server, "meanwhile")["inserted"], 5);
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "healthy");
    reading.commit().expect("the report is done");
    server.restart();
    let gone = format!("pg_class WHERE relname IN ('{}', '{}')", old.partition_name(), old.plus(1).partition_name());
    wait_until("the old months are gone", WAIT_MAX, || site.count(&gone) == 0);
    assert_eq!(site.count(&format!("pg_class WHERE relname = '{}'", old.plus(7).partition_name())), 1);
    wait_until("the old batch is forgotten", WAIT_MAX, || site.count("ingest_batches WHERE batch_id = 'old'") == 0);
}

#[test]
fn the_role_can_do_nothing_else() {
    let site = Site::migrated();
    let mut owner = site.database.connect();
    let this = Month::of(wall_now());
    ensure(&mut owner, &[this.plus(-1), this]).expect("made");
    let other = "CREATE SCHEMA other; CREATE TABLE other.secrets (a int); CREATE TABLE kept (a int);
                 CREATE VIEW mine AS SELECT * FROM ingest_batches";
    owner.batch_execute(other).expect("ours");
    site.make_role(); // once more: it takes nothing for granted, and changes nothing
    let mut client = connect(&site.url());
    for statement in [
        "DROP TABLE events".to_owned(),
        "DELETE FROM events".to_owned(),
        "UPDATE events SET priority = 1".to_owned(),
        "TRUNCATE events".to_owned(),
        "ALTER TABLE events ADD COLUMN a int".to_owned(),
        format!("DELETE FROM {}", this.partition_name()),
        format!("SELECT FROM {}", this.partition_name()),
        format!("DROP TABLE {}", this.partition_name()),
        "CREATE TABLE mine_too (a int)".to_owned(),
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'".to_owned(),
        "CREATE SCHEMA mine".to_owned(),
        "CREATE ROLE mine".to_owned(),
        "UPDATE ingest_batches SET body_digest = ''".to_owned(),
        "DELETE FROM dead_letter_events".to_owned(),
        "UPDATE dead_letter_events SET event = ''".to_owned(),
        "INSERT INTO ingestd_migrations (version, name) VALUES (99, 'x')".to_owned(),
        "SELECT * FROM pg_authid".to_owned(),
        "SELECT * FROM other.secrets".to_owned(),
        "SELECT * FROM kept".to_owned(),
        "SELECT * FROM mine".to_owned(),
        "SELECT nextval('dead_letter_events_id_seq')".to_owned(),
        "COPY events TO PROGRAM 'true'".to_owned(),
        "SET ROLE ingestd".to_owned(),
        // What the functions refuse: months that may still be needed, and tables that are no partitions.
        format!("SELECT ingestd_drop_partition('{}')", this.partition_name()),
        format!("SELECT ingestd_drop_partition('{}')", this.plus(-1).partition_name()),
        "SELECT ingestd_drop_partition('events')".to_owned(),
        "SELECT ingestd_drop_partition('kept')".to_owned(),
        "SELECT ingestd_drop_partition('pg_authid')".to_owned(),
    ] {
        assert_eq!(sqlstate(&mut client, &statement).as_deref(), Some("42501"), "{statement}");
    }
    for not_a_month in ["0, 1", "10000, 1", "2026, 0", "2026, 13", "NULL, 1", "2026, NULL"] {
        let statement = format!("SELECT ingestd_make_partition({not_a_month})");
        assert_eq!(sqlstate(&mut client, &statement).as_deref(), Some("22023"), "{statement}");
    }
    // Its own objects are never found in the functions: neither by the search path nor as temporary ones.
    let trap = "CREATE TEMPORARY TABLE events (a int); SET search_path = pg_temp, public;
                SELECT public.ingestd_make_partition(2031, 5)";
    assert_eq!(sqlstate(&mut client, trap), None);
    assert_eq!(site.count("pg_inherits WHERE inhparent = 'public.events'::regclass"), 3);
    // Others may not even call them.
    let outsider = format!("{}_outsider", site.role);
    owner.batch_execute(&format!("CREATE ROLE {outsider}; SET ROLE {outsider}")).expect("a role");
    assert_eq!(sqlstate(&mut owner, "SELECT ingestd_make_partition(2031, 6)").as_deref(), Some("42501"));
    owner.batch_execute(&format!("RESET ROLE; DROP ROLE {outsider}")).expect("it goes");
}

#[test]
fn a_role_that_could_do_more_is_not_taken_for_one_that_cannot() {
    let site = Site::migrated();
    let mut owner = site.database.connect();
    owner.batch_execute(&format!("GRANT pg_read_all_data TO {}", site.role)).expect("granted");
    let refused = site.run_script(&[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("nothing was changed"), "a member of another role: {said}");
    owner.batch_execute(&format!("REVOKE pg_read_all_data FROM {}", site.role)).expect("revoked");
    site.make_role();
}

/// The newest migration that only its owner can apply and that nobody goes on without.
fn last_in_sql() -> &'static Migration {
    MIGRATIONS.iter().rev().find(|migration| !migration.is_online()).expect("there are some")
}

#[test]
fn an_old_schema_asks_for_the_owner_and_the_owners_url_migrates_it() {
    let site = Site::migrated();
    let mut owner = site.database.connect();
    let left_out = last_in_sql();
    owner.execute("DELETE FROM ingestd_migrations WHERE version = $1", &[&left_out.version]).expect("older");
    for command in ["serve", "migrate"] {
        let folder = support::folder();
        let settings = [("DATABASE_URL", &*site.url()), ("LISTEN_ADDR", "127.0.0.1:0")];
        let finished = Ingestd::run_to_exit_in(folder.path(), &[command], &settings);
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        let last = finished.stderr.lines().last().unwrap_or_default();
        assert!(last.contains("run 'ingestd migrate' with a role that owns the tables"), "{last}");
    }
    let server = site.server().env("MIGRATE_DATABASE_URL", &site.database.url).start();
    assert_eq!(commit(&server, &batch("migrated", 2)), [2, 0, 0]);
    assert!(server.log().contains("schema migrated"), "{}", server.log());

    owner.execute("DELETE FROM ingestd_migrations WHERE version = $1", &[&left_out.version]).expect("older");
    let folder = support::folder();
    let file = folder.path().join("url");
    std::fs::write(&file, &site.database.url).expect("ours");
    let url = site.url();
    let settings = [("DATABASE_URL", &*url), ("MIGRATE_DATABASE_URL_FILE", file.to_str().expect("UTF-8"))];
    let migrated = Ingestd::run_to_exit(&["migrate"], &settings);
    let expected = format!("applied {} (schema version {SCHEMA_VERSION})\n", left_out.name);
    assert_eq!((migrated.code, &*migrated.stdout), (Some(0), &*expected), "{}", migrated.stderr);
    // Dropping is the owner's: months that a server's role may not drop yet.
    let listed = Ingestd::run_to_exit(&["partitions", "cleanup", "--older-than", "1month"], &settings);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
}

#[test]
fn an_owners_url_that_is_wrong_is_named_and_its_password_is_not_shown() {
    let site = Site::empty();
    let wrong = site.database.url.replace(PASSWORD, "Zanzibar");
    let settings = [("DATABASE_URL", &*site.database.url), ("MIGRATE_DATABASE_URL", &*wrong)];
    let finished = Ingestd::run_to_exit(&["serve"], &settings);
    assert_eq!(finished.code, Some(2), "{}", finished.stderr);
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("correct the user and password in MIGRATE_DATABASE_URL"), "{last}");
    let alone = Ingestd::run_to_exit(&["serve"], &[("MIGRATE_DATABASE_URL", &*wrong)]);
    assert_eq!(alone.code, Some(2), "{}", alone.stderr);
    assert!(alone.stderr.contains("DATABASE_URL is not"), "{}", alone.stderr);
    let both = [("DATABASE_URL", &*site.database.url), ("MIGRATE_DATABASE_URL", "mysql://u:Zanzibar@h")];
    let refused = Ingestd::run_to_exit(&["check-config"], &both);
    assert!(refused.stderr.starts_with("ingestd: MIGRATE_DATABASE_URL=mysql://u:***@h"), "{}", refused.stderr);
    for said in [finished.stderr, alone.stderr, refused.stderr] {
        assert!(!said.contains("Zanzibar"), "{said}");
    }
}
