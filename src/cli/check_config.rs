//! `ingestd check-config`: are the settings valid, and what do they mean?

use std::io::{Write, stdout};

use clap::{ArgMatches, Command};

use super::failure::Failure;
use super::help::with_examples;
use super::settings;
use crate::auth::file::KeysFile;
use crate::config::{Auth, Config};
use crate::http::tls;

pub(super) fn command() -> Command {
    let command = settings::with_all_settings(
        Command::new("check-config").about("Validate the settings without starting anything").long_about(
            "Validate the settings, and the files of TLS that they name, without starting anything. Prints what they \
                 mean that you may not expect. Connects to nothing; exit code 2 when a setting is wrong.",
        ),
    );
    with_examples(
        command,
        &[
            ("a file, before a server gets it", "ingestd check-config --config /etc/ingestd/ingestd.toml"),
            ("the environment", "DATABASE_URL=postgresql://ingestd:secret@db/events ACK=commit ingestd check-config"),
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
    let mut out = stdout().lock();
    writeln!(out, "configuration is fine")?;
    for line in config.consequences(&raw).into_iter().chain(warnings) {
        writeln!(out, "- {line}")?;
    }
    Ok(())
}
