//! `ingestd serve`: the server.

use clap::{ArgMatches, Command};

use super::failure::Failure;
use super::help::with_examples;
use super::progress::{self, Progress};
use super::{log, settings};
use crate::config::Config;
use crate::sys::open_files;

pub(super) fn command() -> Command {
    let command = settings::with_all_settings(Command::new("serve").about("Run the server").long_about(
        "Run the server until SIGTERM or SIGINT. Then open requests finish, queued batches are committed or \
                 stay safe in the journal, and the exit code is 0. A second signal exits at once. Without DATABASE_URL \
                 the server starts a private PostgreSQL.\n\nSIGHUP reloads API keys, rate limits and certificates. A \
                 setting is read from its flag, else from the environment, else from --config FILE, else it has its \
                 default; 'ingestd print-config' shows which.",
    ));
    with_examples(
        command,
        &[
            ("on 127.0.0.1:8000, with a private PostgreSQL under ./data", "ingestd serve"),
            (
                "answer after the commit in PostgreSQL, on another port, with a JSON log",
                "ingestd serve --listen-addr 127.0.0.1:8001 --ack commit --log-format json",
            ),
            (
                "with an external database, status shared over Redis, and API keys",
                "DATABASE_URL=postgresql://ingestd:secret@db/events REDIS_URL=redis://cache \\\n\
                 API_KEYS_FILE=keys.toml ingestd serve --listen-addr 0.0.0.0:8000",
            ),
            ("with all settings in a file", "ingestd serve --config /etc/ingestd/ingestd.toml"),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let config = settings::config(matches)?;
    log::start(&config);
    open_files::raise_limit();
    let reread = || Config::from_raw(&settings::raw(matches));
    let mut progress = Progress::of_bytes("reading the journal", progress::is_wanted(matches));
    let mut on_recovery = |read, of| progress.show(read, of);
    crate::server::run(&config, &reread, &mut on_recovery).map_err(Failure::from)
}
