//! A connection for commands: to `DATABASE_URL`, or to the embedded database of a server that runs.

use postgres::Client;

use super::failure::Failure;
use crate::config::{Config, Database};
use crate::pg::connect::Connector;
use crate::pg::embedded;
use crate::pg::migrate::{self, SCHEMA_VERSION};

/// A connection to the database that `config` means.
pub(super) fn connect(config: &Config) -> Result<Client, Failure> {
    Ok(connector(config)?.connect()?)
}

/// The way to the database that `config` means.
pub(super) fn connector(config: &Config) -> Result<Connector, Failure> {
    match &config.database {
        Database::Url(url) => Ok(Connector::new(url)?),
        Database::Embedded => {
            let dir = config.embedded_dir();
            let Some(driver_config) = embedded::running(&dir) else {
                return Err(Failure::usage(format!(
                    "DATABASE_URL is unset, and no running server has its database in {}: set DATABASE_URL, or start \
                     'ingestd serve'",
                    dir.display()
                )));
            };
            Ok(Connector::local(driver_config, dir.display().to_string()))
        }
    }
}

/// As [`connect`], by the role of `MIGRATE_DATABASE_URL` where that is set.
pub(super) fn connect_as_owner(config: &Config) -> Result<Client, Failure> {
    Ok(connector_of_owner(config)?.connect()?)
}

/// As [`connector`], by the role of `MIGRATE_DATABASE_URL` where that is set.
pub(super) fn connector_of_owner(config: &Config) -> Result<Connector, Failure> {
    match &config.migrate_database {
        Some(url) => Ok(Connector::of_owner(url)?),
        None => connector(config),
    }
}

/// As [`connect`], to a schema that this program knows.
pub(super) fn connect_migrated(config: &Config) -> Result<Client, Failure> {
    migrated(connect(config)?)
}

/// As [`connect_as_owner`], to a schema that this program knows.
pub(super) fn connect_migrated_as_owner(config: &Config) -> Result<Client, Failure> {
    migrated(connect_as_owner(config)?)
}

fn migrated(mut client: Client) -> Result<Client, Failure> {
    let found = migrate::version(&mut client)?;
    if found < SCHEMA_VERSION {
        return Err(Failure::runtime(format!(
            "the database schema has version {found}, but version {SCHEMA_VERSION} is required: run 'ingestd migrate'"
        )));
    }
    Ok(client)
}
