//! `ingestd migrate`: bring the schema up to date.

use std::io::{Write, stdout};

use clap::{ArgMatches, Command};

use super::failure::Failure;
use super::help::with_examples;
use super::progress::{self, Progress};
use super::{database, log, settings};
use crate::config::settings::Key;
use crate::limits::CONNECT_WAIT_MAX;
use crate::pg::citus::layout;
use crate::pg::migrate::{MigrateError, check_migration, migrate_while_nodes_run};
use crate::pg::online::{OnlineError, time_index};

pub(super) fn command() -> Command {
    let command = settings::with_settings(
        Command::new("migrate").about("Apply missing database migrations").long_about(
            "Apply missing database migrations and print which. With SHARDING=citus, then distribute the tables over \
             the cluster. Safe to run again, after an interruption, and on many nodes at once. The server does the same \
             when it starts, except for indexes of large tables: build those here, while servers run (connect to \
             PostgreSQL itself, not to a transaction pooler). Also makes the index of TIME_INDEX. Requires a role that \
             owns the tables: that of MIGRATE_DATABASE_URL if set, otherwise that of DATABASE_URL.",
        ),
        &[settings::OWNER, &[Key::TimeIndex]].concat(),
    );
    with_examples(
        command,
        &[
            ("the database of DATABASE_URL, or of the server that was started in this directory", "ingestd migrate"),
            (
                "another database, as the role that owns the tables",
                "MIGRATE_DATABASE_URL=postgresql://owner:secret@db/events ingestd migrate",
            ),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let config = settings::config(matches)?;
    log::start(&config);
    let (mut client, backing) = database::connector_of_owner(&config)?.connect_within(CONNECT_WAIT_MAX)?;
    // Also where nothing is to be applied: a relation may have taken the place of a table.
    check_migration(&mut client)?;
    let waiting = Progress::of_waiting("migrating", progress::is_wanted(matches));
    let report = migrate_while_nodes_run(&mut client, backing);
    let indexed = report.as_ref().ok().map(|_| time_index::arrange(&mut client, backing, config.time_index));
    let arranged = report.as_ref().ok().map(|_| layout::arrange(&mut client, config.sharding));
    drop(waiting);
    let mut out = stdout().lock();
    writeln!(out, "{}", report?)?;
    match indexed.transpose() {
        Ok(None | Some(None)) => {}
        Ok(Some(Some(changed))) => {
            writeln!(out, "{changed}")?;
            writeln!(out, "index of events on \"timestamp\": {}", config.time_index.name())?;
        }
        Err(error @ OnlineError::Sharded(_)) => writeln!(out, "TIME_INDEX: {error}")?,
        Err(error) => return Err(MigrateError::from(error).into()),
    }
    if arranged.transpose()? == Some(true) {
        writeln!(out, "tables distributed over the Citus cluster")?;
    }
    Ok(())
}
