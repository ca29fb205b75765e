//! One fault's database and servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ingestd::pg::partitions::Month;
use ingestd::status::model::rfc3339;
use ingestd::sys::clock::wall_now;
use ingestd::types::UnixMicros;
use postgres::{Client, NoTls};
use serde_json::Value;

use super::catalogue::{Fault, Needs};
use super::means::SmallDisk;
use crate::Failure;
use crate::database::{Database, Tables};
use crate::subject::{Ingestd, Running, Subject};

/// Small enough for segments of which several fill in a run, large enough for all that a fault holds up.
const JOURNAL_MAX_MB: &str = "256";
/// The month of old events, before this one.
const MONTHS_AGO: i32 = 5;
const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;
/// How long anything may take that a fault waits for.
const WAIT_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
const ROLE: &str = "bench_server";

/// Where a fault happens.
pub struct Scene {
    client: Client,
    url: String,
    server_url: String,
    database: String,
    month: Month,
    disk: Option<SmallDisk>,
    needs: Needs,
    servers: Vec<Ingestd>,
}

impl Scene {
    /// A new database, migrated, with what the fault has prepared. An error says why this machine cannot do it.
    pub fn new(ingestd: &Path, work: &Path, database: &mut Database, fault: &Fault) -> Result<Self, Failure> {
        let name = format!("fault_{}", fault.name.replace('-', "_").to_lowercase());
        let tables = database.tables_of(&name)?;
        let url = tables.url().to_owned();
        drop::<Tables>(tables);
        migrate(ingestd, &url)?;
        let server_url = if fault.needs == Needs::Role { plain_role(database, &url)? } else { url.clone() };
        let disk = match fault.needs {
            Needs::SmallDisk => Some(SmallDisk::mount(work.join("small"), database.data_dir())?),
            _ => None,
        };
        let nodes = if fault.needs == Needs::SecondNode { 2 } else { 1 };
        let servers = (0..nodes).map(|number| node(ingestd, work, number, fault.needs)).collect::<Result<_, _>>()?;
        let month = Month::of(wall_now()).plus(-MONTHS_AGO);
        let client = connect(&url)?;
        let mut scene = Self { client, url, server_url, database: name, month, disk, needs: fault.needs, servers };
        scene.execute(&fault.prepare)?;
        Ok(scene)
    }

    /// Starts the servers, each with an empty journal.
    pub fn start(&self) -> Result<Vec<Running>, Failure> {
        self.servers.iter().map(|server| server.start(&self.server_url)).collect()
    }

    /// Replaces the places of `sql`.
    pub fn fill(&self, sql: &str) -> String {
        let month = self.month;
        let make = format!("SELECT ingestd_make_partition({}, {})", month.year(), month.month());
        let place = self.disk.as_ref().map(|disk| disk.tablespace().display().to_string());
        sql.replace("{make}", &make)
            .replace("{part}", &month.partition_name())
            .replace("{from}", &rfc3339(month.start()))
            .replace("{to}", &rfc3339(month.end()))
            .replace("{db}", &self.database)
            .replace("{role}", ROLE)
            .replace("{place}", &place.unwrap_or_default())
    }

    /// A time in the old month.
    pub fn old_timestamp(&self) -> String {
        rfc3339(UnixMicros(self.month.start().0 + 14 * DAY_MICROS))
    }

    /// Runs statements, their places filled. Each by itself: some want no transaction.
    pub fn execute(&mut self, sql: &str) -> Result<(), Failure> {
        let sql = self.fill(sql);
        self.client.batch_execute(&sql).map_err(|error| format!("{sql}: {error:?}").into())
    }

    /// Waits until `query`, its places filled, finds a row.
    pub fn wait_for(&mut self, query: &str) -> Result<(), Failure> {
        let (query, until) = (self.fill(query), Instant::now() + WAIT_MAX);
        while self.client.query(&query, &[])?.is_empty() {
            if Instant::now() > until {
                return Err(format!("waited {WAIT_MAX:?} in vain: {query}").into());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Another connection, as a superuser.
    pub fn connect(&self) -> Result<Client, Failure> {
        connect(&self.url)
    }

    /// The scene's own connection.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Where the small disk is.
    pub fn place(&self) -> Result<PathBuf, Failure> {
        Ok(self.disk.as_ref().ok_or("this scene has no small disk")?.path().to_owned())
    }

    /// Drops everything.
    pub fn end(self, database: &Database) -> Result<(), Failure> {
        drop(self.client);
        let mut client = connect(database.url())?;
        client.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.database))?;
        if self.needs == Needs::SmallDisk {
            client.batch_execute("DROP TABLESPACE small")?;
        }
        if self.needs == Needs::Role {
            client.batch_execute(&format!("DROP ROLE {ROLE}"))?;
        }
        Ok(())
    }
}

/// A connection that strikes do not hit.
pub fn connect(url: &str) -> Result<Client, Failure> {
    let mut config: postgres::Config = url.parse()?;
    Ok(config.application_name("bench").connect(NoTls)?)
}

/// Health of the server at `url`, in few words.
pub fn health(url: &str) -> String {
    let answer = ureq::get(&format!("{url}/v1/health")).config().http_status_as_error(false).build().call();
    let text = answer.and_then(|mut answer| answer.body_mut().read_to_string());
    let told: Value = text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let status = told["status"].as_str().unwrap_or("no answer").to_owned();
    match told["checks"]["database"]["stuck_batches"].as_u64() {
        Some(stuck) if stuck > 0 => format!("{status}, {stuck} stuck"),
        _ => status,
    }
}

fn migrate(ingestd: &Path, url: &str) -> Result<(), Failure> {
    let output = Command::new(ingestd).arg("migrate").env("DATABASE_URL", url).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ingestd migrate: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Makes the role of sql/roles/least_privilege.sql; its `DATABASE_URL`.
fn plain_role(database: &Database, url: &str) -> Result<String, Failure> {
    let psql = database.bin_dir().join("psql");
    let psql = if psql.exists() { psql } else { "psql".into() };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/roles/least_privilege.sql");
    let output = Command::new(psql)
        .args(["-X", "-q", url, "-v", &format!("role={ROLE}"), "-f"])
        .arg(script)
        .env("INGESTD_ROLE_PASSWORD", ROLE)
        .output()
        .map_err(|error| format!("psql: {error}"))?;
    if !output.status.success() {
        return Err(format!("sql/roles/least_privilege.sql: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let (_, host) = url.split_once('@').ok_or("the URL has a user")?;
    Ok(format!("postgresql://{ROLE}@{host}"))
}

fn node(ingestd: &Path, work: &Path, number: usize, needs: Needs) -> Result<Ingestd, Failure> {
    let folder = work.join(format!("node-{number}"));
    std::fs::create_dir_all(&folder)?;
    let names = ["bench-0", "bench-1"];
    let server =
        Ingestd::new(ingestd, &folder, "commit").with("JOURNAL_MAX_MB", JOURNAL_MAX_MB).with("NODE_ID", names[number]);
    Ok(if needs == Needs::Retention { server.with("PARTITION_RETENTION_MONTHS", "2") } else { server })
}
