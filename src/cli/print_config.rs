//! `ingestd print-config`: every setting, its value and where that came from.

use std::io::{Write, stdout};

use clap::{ArgMatches, Command};

use super::failure::Failure;
use super::help::with_examples;
use super::settings;
use crate::config::Config;
use crate::config::raw::{Given, Raw};
use crate::config::settings::Fallback;

pub(super) fn command() -> Command {
    let command = settings::with_all_settings(
        Command::new("print-config").about("Print every setting, its value and where it came from").long_about(
            "Print every setting, its value and where it came from. Passwords are shown as ***. Of the files that \
                 settings name, only those that contain URLs are read. Invalid settings are printed too; the exit code \
                 is then 2.",
        ),
    );
    with_examples(
        command,
        &[
            ("what a server started this way would use", "ingestd print-config"),
            ("what applies with a settings file", "ingestd print-config --config /etc/ingestd/ingestd.toml"),
            ("only settings that differ from the defaults", "ingestd print-config | grep -v ' default$'"),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let raw = settings::raw(matches);
    print(&raw, &mut stdout().lock())?;
    Config::from_raw(&raw)?;
    Ok(())
}

fn print(raw: &Raw, out: &mut impl Write) -> std::io::Result<()> {
    let rows: Vec<_> = raw
        .iter()
        .map(|given| (given.setting.name, value(given, raw.is_unused(given.setting.key)), given.origin.to_string()))
        .collect();
    let width = |column: fn(&(&str, String, String)) -> usize| rows.iter().map(column).max().unwrap_or(0);
    let (names, values) = (width(|row| row.0.len()), width(|row| row.1.chars().count()));
    for (name, value, origin) in &rows {
        writeln!(out, "{name:names$}  {value:values$}  {origin}")?;
    }
    Ok(())
}

fn value(given: &Given, is_unused: bool) -> String {
    let shown = given.shown().map(|text| text.escape_debug().to_string());
    match (shown, given.setting.fallback) {
        (Some(text), _) if is_unused => format!("{text} (ignored: --embedded)"),
        (Some(text), _) => text,
        (None, Fallback::Value(text) | Fallback::Unset(text)) => format!("unset ({text})"),
    }
}
