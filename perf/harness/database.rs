//! The PostgreSQL that all subjects share, each with a database of its own.

use std::collections::HashMap;
use std::path::Path;

use ingestd::pg::embedded::{Embedded, EmbeddedOptions};
use postgres::{Client, Config, NoTls, config::Host};

use crate::{Failure, Plan, raw_copy};

/// A PostgreSQL of the built-in kind, with its settings.
pub struct Database {
    embedded: Embedded,
    url: String,
    pid: u32,
}

impl Database {
    /// Starts it under `folder`.
    pub fn start(folder: &Path) -> Result<Self, Failure> {
        Self::start_with(folder, &[])
    }

    /// The same with more settings, which win.
    pub fn start_with(folder: &Path, settings: &[(String, String)]) -> Result<Self, Failure> {
        let data = folder.join("postgres");
        let options = EmbeddedOptions { settings: settings.to_vec(), ..EmbeddedOptions::new(&data) };
        let embedded = Embedded::start(&options)?;
        let pid_file = std::fs::read_to_string(embedded.data_dir().join("postmaster.pid"))?;
        let pid = pid_file.lines().next().unwrap_or_default().trim().parse()?;
        Ok(Self { url: embedded.url(None), embedded, pid })
    }

    /// The same with [`Plan::warm_rows`] rows behind it.
    pub fn start_warm(plan: &Plan, folder: &Path) -> Result<Self, Failure> {
        let database = Self::start(folder)?;
        eprintln!("warm-up: raw COPY of {} rows", plan.warm_rows);
        raw_copy::run(database.url(), plan.raw_connections, plan.warm_rows, plan.raw_rows)?;
        Ok(database)
    }

    /// Of the database that ingestd uses.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process that all others descend from.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// `18.6` or so.
    pub fn version(&self) -> String {
        self.embedded.version().to_string()
    }

    /// Where its programs are.
    pub fn bin_dir(&self) -> &Path {
        self.embedded.bin_dir()
    }

    /// Where its data are.
    pub fn data_dir(&self) -> &Path {
        self.embedded.data_dir()
    }

    /// Stops it.
    pub fn stop(self) -> Result<(), Failure> {
        Ok(self.embedded.stop()?)
    }

    /// The database `name`, made when it is missing.
    pub fn tables_of(&mut self, name: &str) -> Result<Tables, Failure> {
        let mut client = Client::connect(&self.embedded.url(None), NoTls)?;
        if client.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&name])?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {name}"))?;
        }
        Tables::at(self.embedded.url(Some(name)))
    }
}

/// A subject's tables.
pub struct Tables {
    client: Client,
    url: String,
}

impl Tables {
    /// Those of the database that `url` names.
    pub fn at(url: String) -> Result<Self, Failure> {
        let client = Client::connect(&url, NoTls)?;
        Ok(Self { client, url })
    }

    /// For libpq-like URLs with the socket's folder as a percent-encoded host.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Empties them, if they are there, and writes everything to disk, so that nobody pays for what was before.
    pub fn empty(&mut self) -> Result<(), Failure> {
        let there =
            "SELECT string_agg(name, ', ') FROM unnest(ARRAY['events', 'ingest_batches', 'dead_letter_events']) name
                     WHERE to_regclass(name) IS NOT NULL";
        if let Some(names) = self.client.query_one(there, &[])?.get::<_, Option<String>>(0) {
            self.client.batch_execute(&format!("TRUNCATE {names}"))?;
        }
        self.checkpoint()
    }

    /// Writes everything of their server to disk.
    pub fn checkpoint(&mut self) -> Result<(), Failure> {
        Ok(self.client.batch_execute("CHECKPOINT")?)
    }

    /// Rows in `events`.
    pub fn rows(&mut self) -> Result<u64, Failure> {
        self.number("SELECT count(*) FROM events")
    }

    /// Rows, and different events, of each batch.
    pub fn rows_by_batch(&mut self) -> Result<HashMap<String, (u64, u64)>, Failure> {
        let query = "SELECT batch_id, count(*), count(DISTINCT event_id) FROM events GROUP BY 1";
        let number = |row: &postgres::Row, column: usize| row.get::<_, i64>(column).unsigned_abs();
        let rows = self.client.query(query, &[])?;
        Ok(rows.iter().map(|row| (row.get(0), (number(row, 1), number(row, 2)))).collect())
    }

    /// Rows that the primary key kept out.
    pub fn duplicates(&mut self) -> Result<u64, Failure> {
        self.number("SELECT coalesce(sum(duplicates), 0)::bigint FROM ingest_batches")
    }

    /// Events that PostgreSQL refused.
    pub fn dead_letters(&mut self) -> Result<u64, Failure> {
        self.number("SELECT count(*) FROM dead_letter_events")
    }

    fn number(&mut self, query: &str) -> Result<u64, Failure> {
        Ok(self.client.query_one(query, &[])?.get::<_, i64>(0).unsigned_abs())
    }

    /// Bytes of `events` with its indexes, all partitions together.
    pub fn stored_bytes(&mut self) -> Result<u64, Failure> {
        self.number("SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('events')")
    }

    /// WAL written since the cluster was made.
    pub fn wal_bytes(&mut self) -> Result<u64, Failure> {
        self.number("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
    }
}

/// `url` as asyncpg reads it: a socket's folder is a parameter there.
pub fn with_host_parameter(url: &str) -> Result<String, Failure> {
    let config: Config = url.parse()?;
    let Some(Host::Unix(folder)) = config.get_hosts().first() else { return Ok(url.to_owned()) };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let (user, name) = (config.get_user().unwrap_or_default(), config.get_dbname().unwrap_or_default());
    Ok(format!("postgresql://{user}@/{name}?host={}&port={port}", folder.display()))
}
