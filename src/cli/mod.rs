//! The command line: arguments → [`Config`](crate::config::Config) → a command → exit code.
//!
//! One file per command, each with `command()` (its arguments and help) and `run()`. Results go to stdout.
//! Errors go to stderr, one line each, prefixed `ingestd: `, and say what to do. Exit codes: 0 fine, 2 usage
//! or configuration, 1 anything else.
//!
//! Absent on purpose: settings by name. They come from [`crate::config::settings`], see [`settings`].

mod batches;
mod check_config;
mod client;
mod completions;
mod conceal;
mod database;
mod dead_letter;
mod failure;
mod healthcheck;
mod help;
mod journal;
mod keys;
mod load;
mod local;
mod log;
mod man;
mod migrate;
mod partitions;
mod print_config;
mod progress;
mod serve;
mod settings;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgMatches, Command};

pub use conceal::passwords as conceal_passwords;
use failure::Failure;
use help::with_examples;

/// Runs the command that `arguments` (the program's name first) ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let done = match command().try_get_matches_from(arguments) {
        Ok(matches) => dispatch(&matches),
        Err(error) => failure::from_clap(&error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn command() -> Command {
    let command = Command::new("ingestd")
        .color(terminal::colours_of_help())
        .version(env!("CARGO_PKG_VERSION"))
        .about("Accepts batches of JSON events over HTTP and stores them, durably and exactly once, in PostgreSQL")
        .long_about(
            "Accepts batches of JSON events over HTTP and stores them, durably and exactly once, in \
             monthly-partitioned PostgreSQL tables by binary COPY.\n\nSettings are read from flags, then the \
             environment, then --config FILE (TOML, names in lower case), then defaults; 'ingestd serve --help' lists \
             them, 'ingestd print-config' shows the values in effect.\n\nResults go to stdout, errors and the log to \
             stderr. Exit codes: 0 success, 2 usage or configuration error, 1 any other error. Colours and progress \
             bars are used on terminals only; NO_COLOR=1 disables colours.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(110)
        .subcommands([
            serve::command(),
            migrate::command(),
            partitions::command(),
            dead_letter::command(),
            batches::command(),
            journal::command(),
            load::command(),
            keys::command(),
            check_config::command(),
            print_config::command(),
            healthcheck::command(),
            completions::command(),
            man::command(),
        ]);
    with_examples(
        command,
        &[
            ("a server on 127.0.0.1:8000 with a private PostgreSQL under ./data", "ingestd serve"),
            ("ten seconds of load against it, and a check that nothing is lost", "ingestd load"),
            ("its settings and where they came from", "ingestd print-config"),
        ],
    )
}

fn dispatch(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("migrate", matches)) => migrate::run(matches),
        Some(("partitions", matches)) => partitions::run(matches),
        Some(("dead-letter", matches)) => dead_letter::run(matches),
        Some(("batches", matches)) => batches::run(matches),
        Some(("journal", matches)) => journal::run(matches),
        Some(("load", matches)) => load::run(matches),
        Some(("keys", matches)) => keys::run(matches),
        Some(("check-config", matches)) => check_config::run(matches),
        Some(("print-config", matches)) => print_config::run(matches),
        Some(("healthcheck", matches)) => healthcheck::run(matches),
        Some(("completions", matches)) => completions::run(matches),
        Some(("man", matches)) => man::run(matches),
        _ => unreachable!("clap accepts no other command"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_commands_are_well_formed() {
        super::command().debug_assert();
    }
}
