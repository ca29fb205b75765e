//! `ingestd migrate`: bring the schema up to date.

use std::io::{Write, stdout};

use clap::{ArgMatches, Command};

use super::failure::Failure;
use super::{database, settings};
use crate::pg::migrate::migrate;

pub(super) fn command() -> Command {
    settings::with_settings(
        Command::new("migrate")
            .about("Apply the migrations that the database lacks")
            .long_about(
                "Apply the migrations that the database lacks, and print which. Safe to run again, and on many nodes \
                 at once. The server does the same when it starts. Needs a role that owns the tables: that of \
                 MIGRATE_DATABASE_URL, or else of DATABASE_URL.",
            )
            .after_help("Example: DATABASE_URL=postgresql://ingestd:secret@db/events ingestd migrate"),
        settings::OWNER,
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let config = settings::config(matches)?;
    let mut client = database::connect_as_owner(&config)?;
    let report = migrate(&mut client)?;
    Ok(writeln!(stdout(), "{report}")?)
}
