//! `ingestd journal`: look into the write-ahead journal.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};

use super::failure::Failure;
use super::settings;
use crate::config::settings::Key;

pub(super) fn command() -> Command {
    let dir = Arg::new("dir")
        .long("dir")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .help("folder of the journal, instead of JOURNAL_DIR");
    let inspect = Command::new("inspect")
        .about("Print segments, frames, what is not yet committed, and damage")
        .long_about(
            "Print segments, frames, what is not yet committed, and damage. Reads only: it may run beside a server.",
        )
        .after_help("Example: ingestd journal inspect --dir data/journal")
        .arg(dir);
    Command::new("journal")
        .about("Look into the write-ahead journal")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(settings::with_settings(inspect, &[Key::JournalDir]))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let Some(("inspect", matches)) = matches.subcommand() else { unreachable!("clap accepts no other command") };
    let dir = match matches.get_one::<PathBuf>("dir") {
        Some(dir) => dir.clone(),
        None => settings::config(matches)?.journal_dir,
    };
    inspect(&dir, &mut std::io::stdout().lock())
}

fn inspect(dir: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let report = crate::journal::inspect(dir).map_err(Failure::runtime)?;
    write!(out, "{report}").map_err(Failure::runtime)
}
