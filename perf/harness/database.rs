//! The PostgreSQL that all subjects share, each with a database of its own.

use std::path::Path;

use ingestd::pg::embedded::{Embedded, EmbeddedOptions};
use postgres::{Client, Config, NoTls, config::Host};

use crate::Failure;

/// A PostgreSQL of the built-in kind, with its settings.
pub struct Database {
    embedded: Embedded,
    url: String,
    pid: u32,
}

impl Database {
    /// Starts it under `folder`.
    pub fn start(folder: &Path) -> Result<Self, Failure> {
        let data = folder.join("postgres");
        let embedded = Embedded::start(&EmbeddedOptions::new(&data))?;
        let pid_file = std::fs::read_to_string(embedded.data_dir().join("postmaster.pid"))?;
        let pid = pid_file.lines().next().unwrap_or_default().trim().parse()?;
        let url = embedded.url(None);
        let mut database = Self { embedded, url, pid };
        let url = database.tables_of("ingestd")?.url().to_owned();
        database.url = url;
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
        let url = self.embedded.url(Some(name));
        let client = Client::connect(&url, NoTls)?;
        Ok(Tables { client, url })
    }
}

/// A subject's tables.
pub struct Tables {
    client: Client,
    url: String,
}

impl Tables {
    /// For libpq-like URLs with the socket's folder as a percent-encoded host.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Empties them, if they are there, and writes everything to disk, so that nobody pays for what was before.
    pub fn empty(&mut self) -> Result<(), Failure> {
        let there = "SELECT coalesce(string_agg(relid::regclass::text, ', '), '') FROM pg_stat_user_tables
                     WHERE relname IN ('events', 'ingest_batches', 'dead_letter_events')";
        let mut names: String = self.client.query_one(there, &[])?.get(0);
        // Partitioned tables have no statistics of their own.
        if self.client.query_one("SELECT to_regclass('events') IS NOT NULL", &[])?.get(0) {
            names = if names.is_empty() { "events".to_owned() } else { format!("events, {names}") };
        }
        if !names.is_empty() {
            self.client.batch_execute(&format!("TRUNCATE {names}"))?;
        }
        Ok(self.client.batch_execute("CHECKPOINT")?)
    }

    /// Rows in `events`.
    pub fn rows(&mut self) -> Result<u64, Failure> {
        Ok(self.client.query_one("SELECT count(*) FROM events", &[])?.get::<_, i64>(0).unsigned_abs())
    }

    /// WAL written since the cluster was made.
    pub fn wal_bytes(&mut self) -> Result<u64, Failure> {
        let row = self.client.query_one("SELECT (pg_current_wal_lsn() - '0/0')::bigint", &[])?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
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
