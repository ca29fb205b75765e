//! Flags for settings, made from the table of settings, and the way back from flags to a [`Config`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::conceal;
use super::failure::Failure;
use crate::config::Config;
use crate::config::raw::{Raw, Sources};
use crate::config::settings::{Fallback, Key, SETTINGS, Setting};

/// Settings that every command which talks to the database takes.
pub(super) const DATABASE: &[Key] = &[Key::DatabaseUrl, Key::DatabaseUrlFile, Key::DataDir];

/// The same for commands that change the schema or partitions.
pub(super) const OWNER: &[Key] =
    &[Key::DatabaseUrl, Key::DatabaseUrlFile, Key::MigrateDatabaseUrl, Key::MigrateDatabaseUrlFile, Key::DataDir];

const HEADING: &str = "Settings (flag > environment > file > default)";

/// `command` with `--config` and flags for `keys`.
pub(super) fn with_settings(command: Command, keys: &[Key]) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("TOML file with settings, names in lower case")
        .help_heading(HEADING);
    command.arg(config).args(keys.iter().map(|key| flag(key.setting())))
}

/// `command` with `--config`, `--embedded` and flags for all settings.
pub(super) fn with_all_settings(command: Command) -> Command {
    let keys = SETTINGS.map(|setting| setting.key);
    let embedded = Arg::new("embedded")
        .long("embedded")
        .action(ArgAction::SetTrue)
        .conflicts_with_all([Key::DatabaseUrl.name(), Key::DatabaseUrlFile.name()])
        .help("use the private PostgreSQL even if DATABASE_URL is set in environment or file");
    with_settings(command.arg(embedded), &keys)
}

fn flag(setting: &'static Setting) -> Arg {
    let fallback = match setting.fallback {
        Fallback::Value(text) => format!("default: {text}"),
        Fallback::Unset(text) => format!("unset: {text}"),
    };
    Arg::new(setting.name)
        .long(setting.flag())
        .value_name(setting.kind.placeholder())
        .allow_negative_numbers(true)
        .help(format!("{} [{}; {fallback}]", setting.help, setting.name))
        .help_heading(HEADING)
}

/// The flags in `matches`.
pub(super) fn flags(matches: &ArgMatches) -> BTreeMap<Key, String> {
    let text = |key: Key| matches.try_get_one::<String>(key.name()).ok().flatten();
    SETTINGS.iter().filter_map(|setting| Some((setting.key, text(setting.key)?.clone()))).collect()
}

/// All settings as given, from the flags in `matches`, the environment and the file.
pub(super) fn raw(matches: &ArgMatches) -> Raw {
    let mut flags = flags(matches);
    flags.extend(conceal::moved());
    let embedded = matches.try_get_one::<bool>("embedded").ok().flatten().copied().unwrap_or(false);
    let file = matches.get_one::<PathBuf>("config");
    let environment = |name: &str| std::env::var_os(name);
    Raw::gather(Sources { flags, embedded, environment: Some(&environment), file: file.map(PathBuf::as_path) })
}

/// The valid settings.
pub(super) fn config(matches: &ArgMatches) -> Result<Config, Failure> {
    Ok(Config::from_raw(&raw(matches))?)
}
