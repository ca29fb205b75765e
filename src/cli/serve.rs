//! `ingestd serve`: the server.

use clap::{ArgMatches, Command};

use super::failure::Failure;
use super::{log, settings};
use crate::config::Config;
use crate::server::ServeError;
use crate::sys::open_files;

pub(super) fn command() -> Command {
    settings::with_all_settings(
        Command::new("serve")
            .about("Run the server")
            .long_about(
                "Run the server until SIGTERM or SIGINT: then requests under way finish, what is queued is committed \
                 or safe in the journal, and the exit code is 0. A second signal exits at once. Without DATABASE_URL \
                 the server starts a private PostgreSQL of its own.",
            )
            .after_help("Example: ingestd serve --listen-addr 127.0.0.1:8000 --ack commit"),
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let config = settings::config(matches)?;
    log::start(&config);
    open_files::raise_limit();
    let reread = || Config::from_raw(&settings::raw(matches));
    crate::server::run(&config, &reread).map_err(|error| match error {
        ServeError::Configuration(message) => Failure::usage(message),
        ServeError::Failed(message) => Failure::runtime(message),
    })
}
