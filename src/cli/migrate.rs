//! `ingestd migrate`: bring the schema up to date.

use std::io::{Write, stdout};

use clap::{ArgMatches, Command};

use super::failure::Failure;
use super::help::with_examples;
use super::progress::{self, Progress};
use super::{database, settings};
use crate::pg::citus::layout;
use crate::pg::migrate::{check_migration, migrate};

pub(super) fn command() -> Command {
    let command = settings::with_settings(
        Command::new("migrate").about("Apply missing database migrations").long_about(
            "Apply missing database migrations and print which. With SHARDING=citus, then distribute the tables over \
             the cluster. Safe to run again, and on many nodes at once. The server does the same when it starts. \
             Requires a role that owns the tables: that of MIGRATE_DATABASE_URL if set, otherwise that of \
             DATABASE_URL.",
        ),
        settings::OWNER,
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
    let mut client = database::connect_as_owner(&config)?;
    // Also where nothing is to be applied: a relation may have taken the place of a table.
    check_migration(&mut client)?;
    let waiting = Progress::of_waiting("migrating", progress::is_wanted(matches));
    let report = migrate(&mut client);
    let arranged = report.as_ref().ok().map(|_| layout::arrange(&mut client, config.sharding));
    drop(waiting);
    writeln!(stdout(), "{}", report?)?;
    if arranged.transpose()? == Some(true) {
        writeln!(stdout(), "tables distributed over the Citus cluster")?;
    }
    Ok(())
}
