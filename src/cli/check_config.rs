//! `ingestd check-config`: are the settings valid, and what do they mean?

use std::io::{Write, stdout};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::failure::Failure;
use super::help::with_examples;
use super::{database, settings};
use crate::auth::file::KeysFile;
use crate::config::open_files::OpenFiles;
use crate::config::{Auth, Config};
use crate::http::tls;
use crate::limits::CONNECT_WAIT_MAX;
use crate::pg::backing::Backing;
use crate::pg::capacity::Capacity;
use crate::pg::citus::layout::LayoutError;
use crate::pg::citus::{cluster, layout};
use crate::pg::connect::classify_start_error;
use crate::pg::migrate::{self, SCHEMA_VERSION};
use crate::pg::online::time_index;
use crate::pg::requirements;
use crate::sharding::Sharding;
use crate::sys::{affinity, open_files};

pub(super) fn command() -> Command {
    let command = settings::with_all_settings(
        Command::new("check-config")
            .about("Validate the settings without starting anything")
            .long_about(
                "Validate the settings and the TLS files they name, without starting anything. Prints consequences of \
                 the settings that may be unexpected. Makes no connections without --connect, unless SHARDING=citus: \
                 then it also prints what the cluster of DATABASE_URL lacks. Exit code 2 if 'ingestd serve' would \
                 end with it.",
            )
            .arg(Arg::new("connect").long("connect").action(ArgAction::SetTrue).help(
                "also check the database: version, schema, encoding, rights of the role, whether a pooler is in front of \
                 it, room for DB_POOL_MAX_SIZE",
            )),
    );
    with_examples(
        command,
        &[
            ("check a file before deploying it", "ingestd check-config --config /etc/ingestd/ingestd.toml"),
            (
                "also check the database, before adding a node",
                "DATABASE_URL=postgresql://ingestd:secret@db/events ingestd check-config --connect",
            ),
            (
                "check the environment",
                "DATABASE_URL=postgresql://ingestd:secret@db/events ACK=commit ingestd check-config",
            ),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let raw = settings::raw(matches);
    let config = Config::from_raw(&raw)?;
    if let Auth::Keys(path) = &config.auth {
        KeysFile::at(path).keys().map_err(|error| Failure::usage(error.to_string()))?;
    }
    let loaded = config.tls.as_ref().map(tls::load).transpose().map_err(Failure::usage)?;
    let warnings = loaded.map(|loaded| loaded.warnings).unwrap_or_default();
    // As `serve` does: the soft limit is only where it begins.
    open_files::raise_limit();
    let workers = config.workers.unwrap_or_else(affinity::default_workers);
    let planned = OpenFiles::plan(&config, workers, open_files::limit()).map_err(Failure::usage)?;
    let mut found = if matches.get_flag("connect") { ask_database(&config)? } else { Vec::new() };
    if config.sharding == Sharding::Citus {
        found.extend(ask_cluster(&config)?);
    }
    let mut out = stdout().lock();
    writeln!(out, "configuration is valid")?;
    for line in config.consequences(&raw).into_iter().chain([planned.to_string()]).chain(warnings).chain(found) {
        writeln!(out, "- {line}")?;
    }
    Ok(())
}

/// How the cluster is that the tables are spread over, or are to be: what it lacks keeps a server from spreading them, and from
/// nothing once they are.
fn ask_cluster(config: &Config) -> Result<Vec<String>, Failure> {
    let mut client = database::connect(config)?;
    let layout = layout::layout_of(&mut client).map_err(database_fault)?;
    let lacks = cluster::lacks(&mut client, Some(config.pool_connections_max)).map_err(database_fault)?;
    let required = match layout {
        Sharding::None => cluster::lacks(&mut client, None).map_err(database_fault)?,
        Sharding::Citus => Vec::new(),
    };
    if !required.is_empty() {
        return Err(Failure::usage(LayoutError::NotReady(required).to_string()));
    }
    let mut lines = vec![match layout {
        Sharding::None => "the tables are not distributed yet: run 'ingestd migrate' or start a server".to_owned(),
        Sharding::Citus => "the tables are distributed over the Citus cluster".to_owned(),
    }];
    let advice = cluster::advice(&mut client).map_err(database_fault)?;
    if lacks.is_empty() {
        let cluster = cluster::look(&mut client).map_err(database_fault)?;
        lines.push(format!("the Citus cluster is ready: {} workers", cluster.workers.len()));
        lines.extend(cluster.doubt());
    }
    lines.extend(lacks.into_iter().chain(advice));
    Ok(lines)
}

fn database_fault(error: postgres::Error) -> Failure {
    classify_start_error(&error).into()
}

/// What the database says, a line each.
fn ask_database(config: &Config) -> Result<Vec<String>, Failure> {
    let connector = database::connector(config)?;
    let (mut client, backing) = connector.connect_within(CONNECT_WAIT_MAX)?;
    let lacks = requirements::lacks(&mut client, config.migrate_database.is_some())?;
    if !lacks.is_empty() {
        return Err(lacks.into());
    }
    if config.sharding == Sharding::None && layout::layout_of(&mut client).map_err(database_fault)? == Sharding::Citus {
        return Err(Failure::usage(LayoutError::Distributed.to_string()));
    }
    let schema = match migrate::version(&mut client)? {
        SCHEMA_VERSION => format!("up to date (version {SCHEMA_VERSION})"),
        found => format!("version {found}; 'ingestd serve' or 'ingestd migrate' upgrades it to {SCHEMA_VERSION}"),
    };
    let mut lines = vec![format!("PostgreSQL at {} is reachable; schema: {schema}", connector.address())];
    lines.extend(migrate::waiting(&mut client)?);
    if migrate::version(&mut client)? == SCHEMA_VERSION {
        lines.extend(time_index::advice(&mut client, config.time_index).map_err(database_fault)?);
    }
    if backing == Backing::Lent {
        lines.push(
            "transaction pooling detected (e.g. PgBouncer): statements are prepared per transaction; the pooler limits \
             the number of PostgreSQL connections"
                .to_owned(),
        );
        return Ok(lines);
    }
    let capacity = Capacity::read(&mut client).map_err(|error| Failure::from(classify_start_error(&error)))?;
    let pool_max = config.pool_connections_max;
    lines.push(capacity.shortage(pool_max).unwrap_or_else(|| {
        let nodes = capacity.nodes(pool_max);
        format!(
            "PostgreSQL has room for {} connections of this role: enough for {nodes} nodes with these \
            settings",
            capacity.available()
        )
    }));
    Ok(lines)
}
